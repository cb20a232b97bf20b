"""Noise for encoder-decoders: what is drawn, by counting, and that the text can be had back."""

import functools
import itertools
import math

import numpy as np
import pytest

from pretrain.data import loader, noise
from pretrain.data.loader import Columns
from pretrain.data.sentences import Sentences
from pretrain.errors import UserError

CLS, SEP, MASK = 2, 3, 4
SENTINELS = tuple(range(900, 950))
ORDINARY = 5  # the first ordinary id


def rows_of(count: int, length: int, low: int, high: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Packed documents of ``low`` to ``high`` tokens, as a token store gives them."""
    rng = np.random.default_rng(seed)
    rows = {name: np.zeros((count, length), np.int32) for name in ("tokens", "segment_ids")}
    rows["positions"] = np.zeros_like(rows["tokens"])
    for row in range(count):
        place = number = 0
        while (size := min(int(rng.integers(low, high + 1)), length - place)) >= 3:
            number += 1
            inside = slice(place, place + size)
            rows["tokens"][row, inside] = [CLS, *rng.integers(ORDINARY, 800, size - 2), SEP]
            rows["segment_ids"][row, inside] = number
            rows["positions"][row, inside] = np.arange(size)
            place += size
    return rows


def keys_of(count: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**63, count).astype(np.uint64)


def spans_of(seq_len: int = 64, packing: bool = True, **changes) -> noise.SpanCorruption:
    options = dict(density=0.15, mean_span=3.0, sentinel_ids=SENTINELS, pad_id=0, end_id=SEP)
    return noise.SpanCorruption(seq_len, packing=packing, **options | changes)


def infilling_of(seq_len: int = 64, **changes) -> noise.Infilling:
    options = dict(density=0.3, mean_span=3.0, mask_id=MASK, pad_id=0)
    return noise.Infilling(seq_len, **options | changes)


def documents(batch, row, tokens="tokens", prefix=""):
    """The documents of a row, by number."""
    ids = batch[f"{prefix}segment_ids"][row]
    return {n: batch[tokens][row][ids == n].tolist() for n in range(1, ids.max() + 1)}


PACKED = [(6, 12), (5, 30), (20, 90), (100, 200)]  # lengths of documents


@functools.cache
def corrupted(low, high):
    corrupt = spans_of()
    rows = rows_of(200, corrupt.lengths[0], low, high)
    return rows, corrupt(rows, keys_of(200))


@pytest.mark.parametrize("low, high", PACKED)
def test_inputs_and_targets_make_the_text(low, high):
    """Sentinels in order, one for each span, in every document from the first one on."""
    rows, batch = corrupted(low, high)
    for row in range(200):
        targets = documents(batch, row, "targets", "target_")
        inputs = documents(batch, row)
        for number, text in documents(rows, row).items():
            found = targets.get(number, [])
            sentinels = [i for i in found if i in SENTINELS]
            assert sentinels == list(SENTINELS[: len(sentinels)])
            assert sentinels == [i for i in inputs[number] if i in SENTINELS]
            spans, span = {}, []
            assert not found or found.pop() == SEP
            for i in found:
                if i in SENTINELS:
                    span = spans[i] = []
                else:
                    assert i >= ORDINARY
                    span.append(i)
            assert all(spans.values())
            rebuilt = [j for i in inputs[number] for j in spans.get(i, [i])]
            assert rebuilt == text
            assert inputs[number][0] == CLS and inputs[number][-1] == SEP
    for prefix in ("", "target_"):
        for ids, positions in zip(
            batch[f"{prefix}segment_ids"], batch[f"{prefix}positions"], strict=True
        ):
            for number in range(1, ids.max() + 1):
                inside = positions[ids == number]
                assert inside.tolist() == list(range(len(inside)))


def test_inputs_without_a_first_token():
    """As T5's tokenizer has none: all else is the same."""
    rows, whole = corrupted(20, 90)
    batch = spans_of(start=False)(rows, keys_of(200))
    for row in range(200):
        inputs = documents(batch, row)
        assert inputs == {n: ids[1:] for n, ids in documents(whole, row).items()}
        for n in inputs:
            inside = batch["positions"][row][batch["segment_ids"][row] == n]
            assert inside.tolist() == list(range(len(inside)))
    np.testing.assert_array_equal(batch["targets"], whole["targets"])
    np.testing.assert_array_equal(batch["target_segment_ids"], whole["target_segment_ids"])


@pytest.mark.parametrize("low, high", PACKED)
def test_density_and_number_of_spans_are_exact(low, high):
    rows, batch = corrupted(low, high)
    real = (rows["segment_ids"] > 0).sum(1)
    sentinel = np.isin(batch["targets"], SENTINELS)
    masked = (batch["targets"] >= ORDINARY) & ~sentinel
    np.testing.assert_array_equal(masked.sum(1), np.round(0.15 * real))
    np.testing.assert_array_equal(batch["hidden"], masked)
    spans = np.maximum(1, np.round(masked.sum(1) / 3))
    np.testing.assert_array_equal(sentinel.sum(1), spans)
    assert batch["tokens"].shape == (200, 64)


def test_lengths_are_those_of_t5():
    """512 tokens of inputs are 568 of text and 114 of targets, in T5's code without the end's."""
    assert noise.span_lengths(512, 0.15, 3.0, packing=False) == (568 + 1, 114, 28)
    assert noise.span_lengths(512, 0.15, 3.0, packing=True) == (569, 114 - 1 + 28, 28)


@pytest.mark.parametrize("seq_len, density, mean_span", [(512, 0.15, 3.0), (100, 0.5, 4.0)])
def test_one_document_a_row_fills_inputs_and_targets(seq_len, density, mean_span):
    """Nothing is cut, and no place is left."""
    corrupt = spans_of(seq_len, packing=False, density=density, mean_span=mean_span)
    rows = rows_of(50, corrupt.lengths[0], 2000, 2000)
    batch = corrupt(rows, keys_of(50))
    assert (batch["segment_ids"] == 1).all() and (batch["target_segment_ids"] == 1).all()
    assert batch["targets"].shape[1] == corrupt.target_length


def test_spans_are_uniform_over_lengths_and_places():
    """Of 32 tokens 5 in 2 spans: 4 lengths of the first, 26 over 2 gaps and both ends."""
    corrupt = spans_of(28, packing=False)
    assert corrupt.lengths == (31, 8, 2)
    rows = {name: np.repeat(column, 20_000, 0) for name, column in rows_of(1, 31, 99, 99).items()}
    batch = corrupt(rows, keys_of(20_000))
    sentinel = batch["targets"] == SENTINELS[1]
    lengths = sentinel.argmax(1) - 1
    counts = np.bincount(lengths, minlength=5)[1:]
    np.testing.assert_allclose(counts / 20_000, 1 / 4, atol=0.015)
    first = (batch["tokens"] == SENTINELS[0]).argmax(1)
    # So many ways to divide what stands behind: all but the first `n`, in two parts.
    ways = np.array([max(0, 26 - n) for n in range(32)], float)
    ways[0] = 0
    share = np.bincount(first, minlength=32)[:26] / 20_000
    np.testing.assert_allclose(share, (ways / ways.sum())[:26], atol=0.008)


def test_noise_falls_on_documents_in_proportion():
    """A long and a short document of a row, many times."""
    corrupt = spans_of()
    row = rows_of(1, corrupt.lengths[0], 99, 99)
    row["segment_ids"][0, 50:] = 2
    row["positions"][0, 50:] -= 50
    row["tokens"][0, [49, 50]] = SEP, CLS
    rows = {name: np.repeat(column, 4000, 0) for name, column in row.items()}
    batch = corrupt(rows, keys_of(4000))
    masked = (batch["targets"] >= ORDINARY) & ~np.isin(batch["targets"], SENTINELS)
    share = (masked & (batch["target_segment_ids"] == 1)).sum() / masked.sum()
    assert share == pytest.approx(48 / (48 + corrupt.lengths[0] - 52), abs=0.01)


def test_rows_of_the_shortest_documents_are_cut_rather_than_overflow():
    """One token each: spans of one token make inputs no shorter than the text."""
    corrupt = spans_of()
    rows = rows_of(20, corrupt.lengths[0], 3, 3)
    batch = corrupt(rows, keys_of(20))
    for row in range(20):
        targets = documents(batch, row, "targets", "target_")
        inputs, texts = documents(batch, row), documents(rows, row)
        assert len(inputs) == math.ceil(64 / 3) < len(texts)
        for number in list(inputs)[:-1]:
            covered = targets.get(number)
            assert inputs[number] == ([CLS, covered[0], SEP] if covered else texts[number])
            assert not covered or covered[1:] == texts[number][1:]


@pytest.mark.parametrize("make", [spans_of, infilling_of])
def test_a_row_depends_on_its_key_alone(make):
    """Not on the batch, nor on the process that makes it; held-out rows on their text alone."""
    corrupt = make()
    rows, keys = rows_of(12, corrupt.seq_len, 5, 40), keys_of(12)
    whole = corrupt(rows, keys)
    some = np.array([7, 0, 11])
    part = corrupt({name: column[some] for name, column in rows.items()}, keys[some])
    for name, column in part.items():
        np.testing.assert_array_equal(column, whole[name][some])
    other = corrupt(rows, keys + np.uint64(1))
    assert (other["tokens"] != whole["tokens"]).any(1).all()

    class Rows(Columns):
        stats = None

    dataset = noise.Corrupted(Rows(rows), corrupt)
    held_out = dataset[np.arange(12)]
    again = dataset[some]
    np.testing.assert_array_equal(again["tokens"], held_out["tokens"][some])
    options = {"batch_size": 6, "seed": 3, "num_steps": 5}
    batches = list(loader.train_batches(dataset, start_step=0, **options))
    shares = [
        list(loader.train_batches(dataset, start_step=3, rows=rows, **options))
        for rows in (np.arange(3), np.arange(3, 6))
    ]
    for batch, *parts in zip(batches[3:], *shares, strict=True):
        for name, column in batch.items():
            np.testing.assert_array_equal(column, np.concatenate([x[name] for x in parts]))
    sums = {row.tobytes() for batch in batches[:4] for row in batch["tokens"]}
    assert len(sums) == 24, "each epoch has noise of its own"


@pytest.mark.parametrize("low, high", PACKED)
def test_infilling_leaves_the_text_with_masks(low, high):
    rows = rows_of(200, 64, low, high)
    batch = infilling_of()(rows, keys_of(200))
    np.testing.assert_array_equal(batch["targets"], rows["tokens"])
    np.testing.assert_array_equal(batch["target_segment_ids"], rows["segment_ids"])
    ordinary = (rows["tokens"] >= ORDINARY).sum(1)
    np.testing.assert_array_equal(batch["hidden"].sum(1), np.round(0.3 * ordinary))
    for row in range(200):
        inputs = documents(batch, row)
        shown = documents(rows | {"hidden": batch["hidden"]}, row)
        hidden = documents(rows | {"tokens": batch["hidden"]}, row)
        for number, text in shown.items():
            seen = [i for i, unseen in zip(text, hidden[number], strict=True) if not unseen]
            assert [i for i in inputs[number] if i != MASK] == seen
            runs = "".join(str(int(x)) for x in hidden[number]).split("0")
            assert inputs[number].count(MASK) >= sum(map(bool, runs))


def test_lengths_of_infilled_spans_are_poisson():
    """With as many masks between tokens as lengths of 0; the last span of a row is cut."""
    rows = rows_of(100, 2000, 5000, 5000)
    batch = infilling_of(2000)(rows, keys_of(100))
    runs = [
        len(run)
        for row in batch["hidden"].astype(int)
        for run in "".join(map(str, row)).split("0")
        if run
    ]
    inserted = (batch["tokens"] == MASK).sum() - len(runs)
    total = len(runs) + inserted
    counts = np.bincount(runs, minlength=12) / total
    counts[0] = inserted / total
    expected = [math.exp(-3) * 3**k / math.factorial(k) for k in range(12)]
    np.testing.assert_allclose(counts[:12], expected, atol=0.01)


def test_masks_between_tokens_are_anywhere():
    """Of lengths of 0: before each token but the first and before each span, equally often."""
    count, length = 8000, 40
    rows = rows_of(1, length, length, length)
    rows = {name: np.repeat(column, count, 0) for name, column in rows.items()}
    batch = infilling_of(length)(rows, keys_of(count))

    def per_gap(where, seen):
        """How many of ``where`` stand behind so many ``seen``: ``[n, length + 1]``."""
        behind = np.cumsum(seen, axis=1) + (length + 1) * np.arange(count)[:, None]
        sizes = np.bincount(behind[where], minlength=(length + 1) * count)
        return sizes.reshape(count, length + 1)

    hidden = batch["hidden"] > 0
    begins = hidden & ~np.pad(hidden, ((0, 0), (1, 0)))[:, :-1]
    masks = batch["tokens"] == MASK
    spans = per_gap(begins, ~hidden)
    inserted = per_gap(masks, ~masks & (batch["segment_ids"] > 0)) - spans
    gaps, shown = np.arange(length + 1)[None], (~hidden).sum(1, keepdims=True)
    free = ((gaps > 0) & (gaps < shown)) + spans
    expected = inserted.sum(1, keepdims=True) * free / free.sum(1, keepdims=True)
    total = inserted.sum()
    assert total > 1000
    np.testing.assert_allclose(inserted.sum(0) / total, expected.sum(0) / total, atol=0.015)


def test_all_orders_of_sentences_are_equally_frequent():
    (stops, ends), count = np.zeros((2, 1000), bool), 6000
    stops[10] = True
    row = rows_of(1, 20, 20, 20)
    row["tokens"][0, 1:19] = [21, 20, 10, *range(30, 39), 10, *range(40, 44), 10]
    rows = {name: np.repeat(column, count, 0) for name, column in row.items()}
    sentences = Sentences(stops, ends, np.ones(1000, bool), *np.zeros((4, 1000), bool))
    batch = infilling_of(20, density=1e-6, sentences=sentences)(rows, keys_of(count))
    places = [(batch["tokens"] == i).argmax(1) for i in (20, 30, 40)]
    _, counts = np.unique(np.argsort(places, axis=0), axis=1, return_counts=True)
    np.testing.assert_allclose(counts / count, np.full(6, 1 / 6), atol=0.02)


def test_sentences_are_shuffled_inside_their_documents():
    stops, ends = np.zeros((2, 1000), bool)
    stops[10] = True
    ends[11] = True
    word_start = np.arange(1000) % 3 > 0
    rows = rows_of(30, 64, 20, 40)
    rng = np.random.default_rng(0)
    marks = (rng.random((30, 64)) < 0.2) & (rows["tokens"] >= ORDINARY)
    rows["tokens"] = np.where(marks, rng.integers(10, 12, (30, 64)), rows["tokens"])

    def sentences(text):
        found, sentence = [], []
        for i, after in itertools.pairwise(text[1:]):
            sentence.append(i)
            if (i == 11 or (i == 10 and after % 3)) and after != 11:
                found.append(tuple(sentence))
                sentence = []
        return found + ([tuple(sentence)] if sentence else [])

    table = Sentences(stops, ends, word_start, *np.zeros((4, 1000), bool))
    corrupt = infilling_of(density=1e-6, sentences=table)
    batch = corrupt(rows, keys_of(30))
    moved = 0
    for row in range(30):
        inputs = documents(batch, row)
        for number, text in documents(rows, row).items():
            want, left = sentences(text), inputs[number][1:-1]
            moved += inputs[number] != text
            assert (inputs[number][0], inputs[number][-1]) == (CLS, SEP)
            while left:  # takes sentences from the front; one may be the beginning of another
                found = next(s for s in sorted(want, key=len)[::-1] if tuple(left[: len(s)]) == s)
                want.remove(found)
                left = left[len(found) :]
            assert not want
    assert moved > 30
    both = infilling_of(sentences=table)(rows, keys_of(30))
    for row in range(30):
        visible = rows["tokens"][row][(rows["segment_ids"][row] > 0) & (both["hidden"][row] == 0)]
        shown = both["tokens"][row][both["segment_ids"][row] > 0]
        assert sorted(shown[shown != MASK]) == sorted(visible)


def test_too_few_sentinels_are_refused():
    with pytest.raises(UserError, match=r"rows of 4 spans .* expected at most 2 spans"):
        spans_of(sentinel_ids=(7, 8))
