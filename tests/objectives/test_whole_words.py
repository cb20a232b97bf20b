"""Whole-word masking against BERT's loop over words, and over every kind of tokenizer."""

import dataclasses
import functools
import math

import flax.linen as nn
import jax
import numpy as np
import pytest

from pretrain.data import tokenizer as tokenizers
from pretrain.objectives.mlm import choose_words, num_masked
from tests import small_runs, tiny

WORDS = ["a", "of", "the", "in", "house", "water", "river", "mountain", "government", "language"]
WORDS += ["international", "representation", "bidirectional", "electroencephalography"]
KEY = jax.random.key(0)


@functools.cache
def pieces_of(kind: str) -> tokenizers.AnyTokenizer:
    if kind == "sentencepiece":
        text = " ".join(WORDS)
        return tokenizers.train([text] * 5, vocab_size=310, model_type="bpe")
    return tokenizers.load(small_runs.TOKENIZERS / kind)


def test_words_are_those_that_berts_loop_takes():
    """In the order of the same draws: each word if all of it fits into what is left."""
    rng = np.random.default_rng(0)
    rows, length, rate = 300, 60, 0.2
    eligible = rng.random((rows, length)) < rng.uniform(0.1, 1.0, (rows, 1))
    starts = rng.random((rows, length)) < rng.uniform(0.1, 1.0, (rows, 1))
    starts[:, 1:] |= ~eligible[:, :-1]
    starts[:, 0] = True
    keys = jax.random.split(KEY, rows)
    choose = jax.jit(choose_words, static_argnums=2)
    positions, weights = jax.device_get(choose(eligible, starts, rate, keys))
    draws = jax.device_get(jax.vmap(lambda key: jax.random.uniform(key, (length,)))(keys))
    assert positions.shape == (rows, num_masked(length, rate)) == (rows, 12)
    for row in range(rows):
        words: list[list[int]] = []
        for place in np.flatnonzero(eligible[row]):
            if starts[row, place]:
                words.append([])
            words[-1].append(place)
        left = max(round(rate * eligible[row].sum()), 1)
        taken = []
        for number in np.argsort(draws[row], kind="stable"):
            if number < len(words) and len(words[number]) <= left:
                taken += words[number]
                left -= len(words[number])
        assert sorted(positions[row][weights[row] > 0]) == sorted(taken)
        assert len(set(positions[row])) == 12, "fillings are other positions"


@functools.cache
def text_rows(kind: str, rows: int = 64, length: int = 96):
    """Rows of two documents and padding, and the number of its word for each position, or -1."""
    pieces = pieces_of(kind)
    rng = np.random.default_rng(1)
    batch = {"tokens": np.full((rows, length), pieces.pad_id, np.int32)}
    batch["segment_ids"] = np.zeros((rows, length), np.int32)
    word_of = np.full((rows, length), -1)
    for row in range(rows):
        place = number = 0
        for segment, end in enumerate((40, 90), 1):
            ids, own = [pieces.cls_id], [-1]
            words = rng.choice(WORDS, 60).tolist()
            encoded = pieces.encode_words(words)
            whole = pieces.encode(" " + " ".join(words))
            assert whole == [i for word in encoded for i in word], "words are apart"
            for word in encoded:
                ids, own = ids + word, own + [number] * len(word)
                number += 1
            room = end - place - 1  # a window cuts the last word
            ids, own = [*ids[:room], pieces.sep_id], [*own[:room], -1]
            batch["tokens"][row, place:end], word_of[row, place:end] = ids, own
            batch["segment_ids"][row, place:end] = segment
            place = end
    return batch, word_of


KINDS = ("bert_uncased", "roberta", "sentencepiece")


def objective(kind: str, **changes):
    pieces = pieces_of(kind)
    made = tiny.mlm(vocab_size=pieces.vocab_size)
    own = dict(special_ids=pieces.special_ids, num_pieces=pieces.vocab_size)
    own |= dict(mask_id=pieces.special_ids[-1], word_start=pieces.word_start.tobytes())
    return dataclasses.replace(made, **own | changes)


@pytest.mark.parametrize("kind", KINDS)
def test_words_are_masked_whole_or_not_at_all(kind):
    batch, word_of = text_rows(kind)
    corrupt = jax.jit(objective(kind, mask_rate=0.25, mask_prob=1.0).corrupt)
    pieces = pieces_of(kind)
    shares, lengths = [], set()
    for seed in range(4):
        got = jax.device_get(corrupt(batch, jax.random.key(seed)))
        drawn = np.zeros(batch["tokens"].shape, bool)
        for row, (places, weights) in enumerate(
            zip(got["masked_positions"], got["masked_weights"], strict=True)
        ):
            drawn[row, places[weights > 0]] = True
        assert (got["tokens"][drawn] == pieces.special_ids[-1]).all()
        np.testing.assert_array_equal(got["tokens"][~drawn], batch["tokens"][~drawn])
        assert not drawn[word_of < 0].any(), "neither special tokens nor padding"
        for row in range(len(drawn)):
            for number in range(word_of[row].max() + 1):
                own = drawn[row][word_of[row] == number]
                assert own.all() or not own.any()
                if own.any():
                    lengths.add(len(own))
        wanted = np.round(0.25 * (word_of >= 0).sum(1))
        assert (drawn.sum(1) <= wanted).all()
        shares.append(drawn.sum() / wanted.sum())
    assert np.mean(shares) > 0.97
    assert {1, 2} < lengths and max(lengths) > 4, "words of many lengths"


@pytest.mark.parametrize("rate", [0.15, 0.4])
def test_the_rate_is_met_as_words_allow(rate):
    """In English words of 1 to 4 pieces: to one in a hundred."""
    rng = np.random.default_rng(2)
    starts = rng.random((512, 128)) < 0.7
    eligible = np.ones_like(starts)
    keys = jax.random.split(KEY, 512)
    _, weights = jax.jit(choose_words, static_argnums=2)(eligible, starts, rate, keys)
    assert float(weights.sum()) == pytest.approx(512 * round(rate * 128), rel=0.01)


def test_a_word_longer_than_the_budget_is_never_masked():
    starts = np.zeros((200, 40), bool)
    starts[:, [0, 20, 21, 23]] = True  # words of 20, 1, 2 and 17 pieces; 0.15 * 40 = 6
    eligible = np.ones_like(starts)
    choose = jax.jit(choose_words, static_argnums=2)
    positions, weights = jax.device_get(choose(eligible, starts, 0.15, jax.random.split(KEY, 200)))
    assert (weights.sum(1) == 3).all() and set(positions[weights > 0]) == {20, 21, 22}
    starts[:] = np.arange(40) == 0
    _, weights = choose(eligible, starts, 0.15, jax.random.split(KEY, 200))
    assert not weights.any()


def test_a_batch_without_any_word_that_fits_has_no_loss():
    start = np.zeros(tiny.VOCAB, bool)
    made = dataclasses.replace(tiny.mlm(), word_start=start.tobytes())
    batch = dict(tiny.lm_batch(), tokens=np.full((8, 24), 9, np.int32))
    batch["segment_ids"] = np.ones_like(batch["segment_ids"])
    params = nn.unbox(jax.jit(tiny.mlm().init)(KEY))["params"]
    batch = jax.jit(made.corrupt)(batch, KEY)
    loss, weight, _ = jax.jit(made.loss)(params, batch, KEY)
    assert float(loss) == float(weight) == 0.0


def test_the_split_of_what_is_chosen_is_80_10_10():
    batch, _ = text_rows("bert_uncased")
    made, pieces = objective("bert_uncased"), pieces_of("bert_uncased")
    counts = np.zeros(3)
    corrupt = jax.jit(made.corrupt)
    for seed in range(8):
        got = jax.device_get(corrupt(batch, jax.random.key(seed)))
        drawn = got["masked_weights"] > 0
        new = np.take_along_axis(got["tokens"], got["masked_positions"], 1)[drawn]
        old = got["masked_labels"][drawn]
        counts += [(new == made.mask_id).sum(), (new == old).sum(), 0]
        random = (new != made.mask_id) & (new != old)
        counts[2] += random.sum()
        assert not set(new[random]) & set(pieces.special_ids)
    n, same = counts.sum(), 1 / (pieces.vocab_size - len(pieces.special_ids))
    for count, share in zip(counts, (0.8, 0.1 + 0.1 * same, 0.1 - 0.1 * same), strict=True):
        assert abs(count - n * share) < 5 * math.sqrt(n * share * (1 - share))


def test_masks_do_not_depend_on_devices_or_on_other_rows():
    batch, _ = text_rows("roberta")
    corrupt = jax.jit(objective("roberta").corrupt)
    one = jax.device_get(corrupt(batch, KEY))
    mesh = tiny.mesh(data=4, fsdp=2)
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(("data", "fsdp")))
    eight = jax.device_get(corrupt(jax.device_put(batch, rows), KEY))
    other = {name: np.concatenate([x[:8], x[8:][::-1]]) for name, x in batch.items()}
    mixed = jax.device_get(corrupt(other, KEY))
    for name, value in one.items():
        np.testing.assert_array_equal(eight[name], value, err_msg=name)
        np.testing.assert_array_equal(mixed[name][:8], value[:8], err_msg=name)


def test_evaluation_masks_single_pieces():
    """Whatever is chosen in training: losses compare."""
    batch = tiny.lm_batch()
    plain = tiny.mlm()
    params = nn.unbox(jax.jit(plain.init)(KEY))["params"]
    word_start = (np.arange(tiny.VOCAB) % 2 == 0).tobytes()
    whole = dataclasses.replace(plain, word_start=word_start)
    want, got = (jax.jit(x.predict)(params, batch) for x in (plain, whole))
    assert jax.device_get(want) == jax.device_get(got)
    want, got = (jax.jit(x.corrupt)(batch, KEY)["masked_positions"] for x in (plain, whole))
    assert (np.asarray(want) != np.asarray(got)).any()
