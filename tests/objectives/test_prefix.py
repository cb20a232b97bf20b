"""Prefix language modelling: who sees whom, what is predicted, and how prefixes are drawn."""

import functools

import flax.linen as nn
import jax
import numpy as np
import pytest

from configs import gpt
from pretrain import blank
from pretrain.objectives.prefix import PrefixLM
from tests import tiny

BATCH = tiny.lm_batch(4, 24)


def objective(chunk_size=7):
    return PrefixLM(tiny.lm(causal=True), chunk_size)


@functools.cache
def params():
    boxed = jax.eval_shape(objective().init, jax.random.key(0))["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), nn.unbox(boxed))


@functools.cache
def corrupted(seed=0):
    return jax.device_get(jax.jit(objective().corrupt)(BATCH, jax.random.key(seed)))


@functools.cache
def compiled():
    return jax.jit(lambda batch: objective().forward(params(), batch))


def hidden(batch):
    return np.asarray(compiled()(batch))


def test_a_position_sees_its_prefix_and_what_comes_before_it():
    """Which positions a changed token changes, for every token."""
    want, segment_ids, prefix = hidden(corrupted()), BATCH["segment_ids"], corrupted()["prefix"]
    row = 0
    for place in range(24):
        tokens = BATCH["tokens"].copy()
        tokens[row, place] ^= 1
        changed = np.abs(hidden(corrupted() | {"tokens": tokens}) - want).max(-1) > 1e-6
        sees = segment_ids[row] == segment_ids[row, place]
        if not prefix[row, place]:
            sees &= np.arange(24) >= place
        np.testing.assert_array_equal(changed[row], sees)
        assert not changed[1:].any()


def test_packed_documents_are_as_alone():
    """With their prefixes."""
    want = hidden(corrupted())
    for number in (1, 2):
        single = {name: np.zeros_like(corrupted()[name]) for name in (*BATCH, "prefix")}
        for row, ids in enumerate(BATCH["segment_ids"]):
            inside = ids == number
            for name, column in single.items():
                column[row, : inside.sum()] = corrupted()[name][row, inside]
        single["segment_ids"] = np.minimum(single["segment_ids"], 1)
        found = hidden(single)
        for row, ids in enumerate(BATCH["segment_ids"]):
            inside = ids == number
            np.testing.assert_allclose(found[row, : inside.sum()], want[row, inside], atol=1e-4)


def test_loss_is_of_what_stands_behind_the_prefix():
    logits = objective().model.apply({"params": params()}, hidden(corrupted()), method="logits")
    log_probs = np.asarray(jax.nn.log_softmax(logits), np.float64)
    loss = hits = total = 0.0
    for row, ids in enumerate(BATCH["segment_ids"]):
        for place in range(1, 24):
            if (
                ids[place]
                and ids[place] == ids[place - 1]
                and not corrupted()["prefix"][row, place]
            ):
                label = BATCH["tokens"][row, place]
                loss -= log_probs[row, place - 1, label]
                hits += log_probs[row, place - 1].argmax() == label
                total += 1
    found, weight, metrics = jax.jit(objective().loss)(params(), corrupted(), jax.random.key(0))
    assert float(weight) == total > 0
    assert float(found) == pytest.approx(loss, rel=1e-4)
    assert float(metrics["accuracy"][0]) == hits


def test_prefixes_are_uniform_and_leave_a_token():
    """A document of six tokens, another of one, and padding."""
    ids = np.array([1] * 6 + [2] + [0] * 3, np.int32)
    batch = {"tokens": np.full((5000, 10), 7, np.int32), "segment_ids": np.tile(ids, (5000, 1))}
    batch["positions"] = np.tile(np.array([0, 1, 2, 3, 4, 5, 0, 0, 0, 0], np.int32), (5000, 1))
    prefix = np.asarray(jax.jit(objective().corrupt)(batch, jax.random.key(3))["prefix"])
    lengths = prefix[:, :6].sum(1)
    counts = np.bincount(lengths, minlength=7)
    assert counts[0] == counts[6] == 0
    np.testing.assert_allclose(counts[1:6] / 5000, 1 / 5, atol=0.025)
    assert (prefix[:, :6] == (np.arange(6) < lengths[:, None])).all(), "from the first token on"
    assert prefix[:, 6].all() and not prefix[:, 7:].any()
    assert (corrupted(1)["prefix"] != corrupted(0)["prefix"]).any()


def test_held_out_prefixes_are_of_the_text():
    """Neither of the batch nor of a key."""
    predict = jax.jit(objective().predict)

    def sums(rows):
        got = predict(params(), {name: value[rows] for name, value in BATCH.items()})
        return {name: np.array(pair, np.float64) for name, pair in got.items()}

    parts = [sums(np.array(rows)) for rows in ([2, 0, 1, 1], [3, 1, 1, 1])]
    whole, extra = sums(np.arange(4)), sums(np.array([1, 1, 1, 1]))
    for name, pair in whole.items():
        np.testing.assert_allclose(parts[0][name] + parts[1][name] - extra[name], pair, rtol=1e-4)
    assert set(objective().scores) == whole.keys() | {"perplexity"}


def test_a_shipped_config_makes_it():
    made = blank.objective(gpt.get_config("tiny,prefix"))
    assert isinstance(made, PrefixLM) and made.model.trunk.config.causal
    assert made.train_flops(8) == blank.objective(gpt.get_config("tiny")).train_flops(8)
