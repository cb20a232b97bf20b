"""Streams: documents one behind the other, in rows each of which continues the one before."""

import itertools

import numpy as np
import pytest

from pretrain.data import loader, order, store
from pretrain.data import tokenizer as tokenizers
from tests.data.test_store import Texts, documents

CLS, SEP, PAD = 2, 3, 0


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizers.train(documents(200), vocab_size=300, model_type="bpe")


@pytest.mark.parametrize("seq_len", [3, 16, 500])
def test_rows_are_the_text_cut_anywhere(tokenizer, tmp_path, seq_len):
    texts = ["", *documents(40), "lobre " * 300, " "]
    rows = store.build(
        Texts(texts), tokenizer, seq_len=seq_len, cache_dir=tmp_path, stream=True, progress=False
    )
    ids = [i for text in texts if (found := tokenizer.encode(text)) for i in (CLS, *found, SEP)]
    batch = rows[np.arange(len(rows))]
    flat = batch["tokens"].ravel()
    assert flat[: len(ids)].tolist() == ids and set(flat[len(ids) :]) <= {PAD}
    assert len(flat) - len(ids) < seq_len and rows.stats.num_tokens == len(ids)
    number = np.cumsum(np.array(ids) == CLS)
    next_token = [*ids[1:], CLS]
    for row in range(len(rows)):
        here = number[row * seq_len : (row + 1) * seq_len]
        before = number[row * seq_len - 1] if row else -1
        first = 1 if before == here[0] else 2  # 1: the document that the row before began
        segments = np.zeros(seq_len, int)
        segments[: len(here)] = here - here[0] + first
        assert batch["segment_ids"][row].tolist() == segments.tolist()
        last = min((row + 1) * seq_len, len(ids)) - 1
        goes_on = len(here) == seq_len and next_token[last] != CLS
        assert batch["next_token"][row] == (next_token[last] if goes_on else -1)
        for n in range(1, segments.max() + 1):
            inside = batch["positions"][row][segments == n]
            assert inside.tolist() == list(range(len(inside)))
    assert rows.stream
    packed = store.build(
        Texts(texts), tokenizer, seq_len=seq_len, cache_dir=tmp_path, progress=False
    )
    assert not packed.stream and packed.path != rows.path


@pytest.mark.parametrize("size, batch_size", [(100, 8), (37, 5), (6, 8)])
def test_rows_of_a_batch_continue_those_of_the_batch_before(size, batch_size):
    batches = np.stack([order.stream_indices(step, batch_size, size, 3) for step in range(60)])
    np.testing.assert_array_equal(batches[1:], (batches[:-1] + 1) % size)
    visits = np.bincount(batches[: -(-size // batch_size)].ravel(), minlength=size)
    assert (visits >= 1).all() and visits.sum() < size + batch_size
    far = order.stream_indices(10**15 * size + 7, batch_size, size, 3)
    np.testing.assert_array_equal(far, batches[7])
    starts = {order.stream_indices(0, batch_size, size, seed)[0] for seed in range(9)}
    assert len(starts) > 3


class Stream(loader.Columns):
    stream = True


def rows_of(batches):
    return np.stack([batch["tokens"][:, 0] for batch in batches])


def test_batches_of_a_stream():
    """The same in shares of processes and when they begin later; held-out rows once each."""
    dataset = Stream({"tokens": np.arange(23)[:, None]})
    options = dict(batch_size=4, seed=1, num_steps=9)
    whole = rows_of(loader.train_batches(dataset, start_step=0, **options))
    np.testing.assert_array_equal(whole[1:], (whole[:-1] + 1) % 23)
    shares = [
        rows_of(loader.train_batches(dataset, start_step=5, rows=rows, **options))
        for rows in (np.arange(2), np.arange(2, 4))
    ]
    np.testing.assert_array_equal(np.concatenate(shares, axis=1), whole[5:])

    batches = list(loader.eval_batches(dataset, 4))
    weights = np.stack([batch["weights"] for batch in batches])
    held_out = rows_of(batches)
    assert sorted(held_out[weights > 0].tolist()) == list(range(23))
    for (row, kept), (after, later) in itertools.pairwise(zip(held_out, weights, strict=True)):
        assert (later <= kept).all()
        np.testing.assert_array_equal(after[later > 0], row[later > 0] + 1)
