"""What is masked, by what, and how the loss weighs it."""

import dataclasses
import math
from fractions import Fraction

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pretrain.models.families import language_model
from pretrain.objectives.mlm import MaskedLM, choose_positions
from tests import tiny

MASK, SPECIAL = 4, 5
MLM = tiny.mlm()
PADDED = tiny.mlm(vocab_size=tiny.VOCAB + 32)  # more rows than the tokenizer has pieces


@pytest.fixture(scope="module")
def params():
    return nn.unbox(jax.jit(MLM.init)(jax.random.key(0)))["params"]


@pytest.mark.parametrize("percent", [15, 40])
def test_exactly_the_rounded_share_of_the_eligible_positions(percent):
    """For every number of eligible positions up to a row's length."""
    length = 160
    rng = np.random.default_rng(0)
    eligible = np.stack([rng.permutation(length) < n for n in range(length + 1)])
    keys = jax.random.split(jax.random.key(0), length + 1)
    choose = jax.jit(choose_positions, static_argnums=1)
    positions, weights = jax.device_get(choose(jnp.asarray(eligible), percent / 100, keys))
    assert positions.shape[1] == round(Fraction(percent * length, 100))
    for n in range(length + 1):
        drawn = positions[n][weights[n] == 1]
        expected = min(n, max(1, round(Fraction(percent * n, 100))))
        assert len(drawn) == len(set(drawn)) == weights[n].sum() == expected, n
        assert eligible[n][drawn].all()


def test_all_eligible_positions_are_equally_likely():
    eligible = np.tile(np.arange(32) % 4 > 0, (4000, 1))
    keys = jax.random.split(jax.random.key(1), 4000)
    choose = jax.jit(choose_positions, static_argnums=1)
    positions, weights = jax.device_get(choose(jnp.asarray(eligible), 0.15, keys))
    counts = np.bincount(positions[weights == 1], minlength=32)
    assert (counts[::4] == 0).all()
    share = 4 / 24  # round(0.15 * 24) of 24
    bound = 5 * math.sqrt(4000 * share * (1 - share))
    assert (np.abs(counts[np.arange(32) % 4 > 0] - 4000 * share) < bound).all()


def rows_of(tokens):
    """A batch without padding."""
    return {"tokens": jnp.asarray(tokens), "segment_ids": jnp.ones(tokens.shape, jnp.int32)}


@pytest.fixture(scope="module")
def corrupted():
    """Many rows with special tokens at the ends and padding, before and after."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(SPECIAL, tiny.VOCAB, (512, 64)).astype(np.int32)
    tokens[:, 0], tokens[:, 50], tokens[:, 51:] = 2, 3, 0
    batch = rows_of(tokens)
    return tokens, jax.device_get(jax.jit(PADDED.corrupt)(batch, jax.random.key(2)))


def test_labels_are_the_original_pieces_and_the_rest_stays(corrupted):
    tokens, batch = corrupted
    rows = np.arange(len(tokens))[:, None]
    drawn = batch["masked_weights"] > 0
    assert drawn.sum(1).tolist() == [round(Fraction(15 * 49, 100))] * len(tokens)
    labels = tokens[rows, batch["masked_positions"]]
    np.testing.assert_array_equal(batch["masked_labels"][drawn], labels[drawn])
    assert (labels[drawn] >= SPECIAL).all(), "special tokens are never predicted"
    untouched = np.ones_like(tokens, bool)
    untouched[np.broadcast_to(rows, drawn.shape)[drawn], batch["masked_positions"][drawn]] = False
    np.testing.assert_array_equal(batch["tokens"][untouched], tokens[untouched])


def replacements(tokens, batch):
    """The random pieces at the chosen positions: 80 % are masks, 10 % random, 10 % themselves."""
    rows = np.arange(len(tokens))[:, None]
    drawn = batch["masked_weights"] > 0
    new = batch["tokens"][rows, batch["masked_positions"]][drawn]
    old = batch["masked_labels"][drawn]
    masked, kept = new == MASK, new == old
    swapped = new[~masked & ~kept]
    n = len(new)
    collision = 1 / (tiny.VOCAB - SPECIAL)  # a random piece is the original one
    for count, share in (
        (masked.sum(), 0.8),
        (kept.sum(), 0.1 + 0.1 * collision),
        (len(swapped), 0.1 * (1 - collision)),
    ):
        assert abs(count - n * share) < 5 * math.sqrt(n * share * (1 - share))
    return set(swapped)


def test_of_the_chosen_80_10_10_become_mask_random_and_themselves(corrupted):
    assert replacements(*corrupted) == set(range(SPECIAL, tiny.VOCAB)), "all but the special ones"


def test_held_out_rows_are_masked_80_10_10_whatever_training_does(corrupted, monkeypatch):
    monkeypatch.setattr(MaskedLM, "metrics", lambda _, params, batch: (params, batch))
    pure, tokens = dataclasses.replace(PADDED, mask_prob=1.0, random_prob=0.0), corrupted[0]
    _, batch = jax.device_get(jax.jit(lambda rows: pure.predict({}, rows))(rows_of(tokens)))
    assert replacements(tokens, batch) <= set(range(SPECIAL, tiny.VOCAB))


def test_special_ids_may_stand_anywhere():
    """As of RoBERTa, whose mask is the last piece: none is masked, none is drawn, all else is."""
    special = (0, 1, 7, 30, tiny.VOCAB - 1)
    objective = dataclasses.replace(
        MLM, mask_id=tiny.VOCAB - 1, special_ids=special, mask_prob=0.0, random_prob=1.0
    )
    rng = np.random.default_rng(1)
    tokens = rng.integers(0, tiny.VOCAB, (2000, 40)).astype(np.int32)
    corrupt = jax.jit(objective.corrupt)
    batch = jax.device_get(corrupt(rows_of(tokens), jax.random.key(4)))
    drawn = batch["masked_weights"] > 0
    places = np.arange(len(tokens))[:, None], batch["masked_positions"]
    ordinary = set(range(tiny.VOCAB)) - set(special)
    assert set(tokens[places][drawn]) == set(batch["tokens"][places][drawn]) == ordinary
    counts = np.bincount(batch["tokens"][places][drawn], minlength=tiny.VOCAB)[sorted(ordinary)]
    mean = counts.sum() / len(ordinary)
    assert (np.abs(counts - mean) < 5 * math.sqrt(mean)).all(), "all equally often"
    assert hash(objective) == hash(dataclasses.replace(objective))


def test_padding_with_the_id_of_a_piece_is_never_masked():
    """A tokenizer without a padding token pads with some other id: segment ids tell."""
    tokens = jnp.full((64, 24), 9, jnp.int32)
    segment_ids = jnp.broadcast_to((jnp.arange(24) < 10).astype(jnp.int32), tokens.shape)
    batch = {"tokens": tokens, "segment_ids": segment_ids}
    batch = jax.device_get(jax.jit(MLM.corrupt)(batch, jax.random.key(5)))
    drawn = batch["masked_weights"] > 0
    assert drawn.any() and (batch["masked_positions"][drawn] < 10).all()
    assert (batch["tokens"][:, 10:] == 9).all()


def test_masks_change_with_the_key(corrupted):
    tokens, batch = corrupted
    again = jax.device_get(jax.jit(MLM.corrupt)(rows_of(tokens), jax.random.key(2)))
    other = jax.device_get(jax.jit(MLM.corrupt)(rows_of(tokens), jax.random.key(3)))
    np.testing.assert_array_equal(again["masked_positions"], batch["masked_positions"])
    assert (other["masked_positions"] != batch["masked_positions"]).mean() > 0.5
    assert (batch["masked_positions"][0] != batch["masked_positions"][1]).any()


def sums(metrics):
    return {name: (float(value), float(weight)) for name, (value, weight) in metrics.items()}


def test_loss_is_the_cross_entropy_of_the_full_logits(params):
    """Computed in NumPy from the logits of all positions."""
    batch = tiny.lm_batch() | {"weights": np.array([1, 1, 0, 1, 0.5, 1, 1, 0], np.float32)}
    batch = jax.device_get(jax.jit(MLM.corrupt)(batch, jax.random.key(5)))

    @jax.jit
    def full(batch):
        inputs = {name: batch[name] for name in ("tokens", "segment_ids", "positions")}
        hidden = MLM.model.apply({"params": params}, **inputs)
        return MLM.model.apply({"params": params}, hidden, method="logits")

    logits = np.asarray(full(batch), np.float64)
    loss = weight = hits = 0.0
    for row in range(8):
        for place, label, drawn in zip(
            *(batch[f"masked_{name}"][row] for name in ("positions", "labels", "weights")),
            strict=True,
        ):
            scores = logits[row, place]
            drawn = drawn * batch["weights"][row]
            loss += drawn * (np.log(np.exp(scores - scores.max()).sum()) + scores.max())
            loss -= drawn * scores[label]
            hits += drawn * (scores.argmax() == label)
            weight += drawn
    got_loss, got_weight, metrics = jax.jit(MLM.loss)(params, batch, jax.random.key(0))
    assert float(got_weight) == pytest.approx(weight)
    assert float(got_loss) == pytest.approx(loss, rel=1e-4)
    assert sums(metrics)["masked_accuracy"] == pytest.approx((hits, weight))
    assert float(got_loss) / weight == pytest.approx(math.log(tiny.VOCAB), rel=0.02)


def test_held_out_masks_depend_on_the_row_alone(params):
    """Neither on the other rows nor on the number of rows: partial sums add up."""
    batch = tiny.lm_batch()
    predict = jax.jit(MLM.predict)
    whole = sums(predict(params, batch))
    halves = [
        sums(predict(params, {k: v[rows] for k, v in batch.items()}))
        for rows in ([7, 2, 4, 0], [1, 6, 3, 5])
    ]
    for name, (value, weight) in whole.items():
        assert sum(half[name][1] for half in halves) == weight > 0
        assert sum(half[name][0] for half in halves) == pytest.approx(value, rel=1e-5)
    twice = {k: np.concatenate([v[:4], v[:4]]) for k, v in batch.items()}
    other = dict(batch, tokens=np.where(batch["tokens"] >= 5, batch["tokens"] ^ 1, batch["tokens"]))
    first = sums(predict(params, {k: v[:4] for k, v in batch.items()}))
    assert sums(predict(params, twice))["loss"] == pytest.approx(
        (2 * first["loss"][0], 2 * first["loss"][1]), rel=1e-5
    )
    assert sums(predict(params, other))["loss"][0] != pytest.approx(whole["loss"][0], rel=1e-6)


def test_held_out_masks_do_not_follow_the_training_masks(params):
    other = dataclasses.replace(MLM, mask_rate=0.4, mask_prob=1.0, random_prob=0.0)
    batch = tiny.lm_batch()
    assert sums(jax.jit(other.predict)(params, batch)) == sums(jax.jit(MLM.predict)(params, batch))


def test_train_flops_equal_the_compilers_count():
    """Of the gradient of an unrolled model whose matrices outweigh everything else."""
    config = tiny.transformer(
        num_layers=1, hidden_size=128, ffn_size=512, vocab_size=2048, num_heads=1
    )
    objective = MaskedLM(
        language_model("transformer", config), MASK, tiny.SPECIAL, 2048, 0.15, 0.8, 0.1
    )
    batch = tiny.lm_batch(2, 128)
    batch = jax.eval_shape(objective.corrupt, batch, jax.random.key(0))
    params = nn.unbox(jax.eval_shape(objective.init, jax.random.key(0)))["params"]
    gradient = jax.jit(jax.grad(lambda p, b: objective.loss(p, b, jax.random.key(0))[0]))
    counted = gradient.lower(params, batch).compile().cost_analysis()["flops"]
    assert counted == pytest.approx(2 * objective.train_flops(128), rel=0.06)
