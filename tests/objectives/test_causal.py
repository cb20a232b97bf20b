"""Next-token prediction inside documents, in chunks."""

import functools
import math

import flax.linen as nn
import jax
import numpy as np
import pytest

from pretrain.objectives.causal import next_tokens
from pretrain.objectives.language import in_chunks
from tests import tiny

BATCH = tiny.lm_batch(seq_len=23) | {"weights": np.array([1, 1, 0, 1, 0.5, 1, 1, 1], np.float32)}


@functools.cache
def params():
    return nn.unbox(jax.jit(tiny.causal().init)(jax.random.key(0)))["params"]


def test_labels_stay_in_the_document():
    """Also in a row that is one document from end to end."""
    batch = dict(BATCH, segment_ids=BATCH["segment_ids"].copy())
    batch["segment_ids"][3] = 1
    labels, weights = jax.device_get(next_tokens(batch))
    for row, segments in enumerate(batch["segment_ids"]):
        for place in range(len(segments)):
            inside = place + 1 < len(segments) and segments[place] == segments[place + 1] > 0
            assert weights[row, place] == inside
            if inside:
                assert labels[row, place] == batch["tokens"][row, place + 1]
    documents = 2 * 7 + 1
    assert 0 < weights.sum() == (batch["segment_ids"] > 0).sum() - documents


@functools.cache
def value_and_gradient(chunk_size):
    objective = tiny.causal(chunk_size)

    def loss(params):
        total, weight, metrics = objective.loss(params, BATCH, jax.random.key(0))
        return total, (weight, metrics)

    return jax.device_get(jax.jit(jax.value_and_grad(loss, has_aux=True))(params()))


def test_loss_is_the_cross_entropy_of_the_full_logits():
    model = tiny.causal().model

    @jax.jit
    def full(params):
        inputs = {name: BATCH[name] for name in ("tokens", "segment_ids", "positions")}
        hidden = model.apply({"params": params}, **inputs)
        return model.apply({"params": params}, hidden, method="logits")

    logits = np.asarray(full(params()), np.float64)
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    labels, weights = jax.device_get(next_tokens(BATCH))
    weights = weights * BATCH["weights"][:, None]
    losses = -np.take_along_axis(log_probs, labels[..., None], -1)[..., 0]
    (loss, (weight, metrics)), _ = value_and_gradient(128)
    assert float(weight) == pytest.approx(weights.sum())
    assert float(loss) == pytest.approx((losses * weights).sum(), rel=1e-4)
    hits = ((logits.argmax(-1) == labels) * weights).sum()
    assert float(metrics["accuracy"][0]) == pytest.approx(hits)
    assert float(loss) / weights.sum() == pytest.approx(math.log(tiny.VOCAB), rel=0.02)


def test_chunks_change_neither_value_nor_gradient():
    """Rows of 23 positions in four chunks, the last one short."""
    (loss, _), gradient = value_and_gradient(7)
    (want, _), wanted = value_and_gradient(128)
    assert float(loss) == pytest.approx(float(want), rel=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4, rtol=1e-4), gradient, wanted
    )


def test_memory_is_that_of_one_chunk():
    """Four times as many chunks of a large vocabulary cost little more."""

    def temporaries(length):
        objective = tiny.causal(
            8, vocab_size=16384, num_layers=1, hidden_size=8, num_heads=1, ffn_size=8
        )
        batch = jax.eval_shape(lambda: tiny.lm_batch(4, length))
        boxed = jax.eval_shape(objective.init, jax.random.key(0))

        def loss(params, batch):
            return objective.loss(params, batch, jax.random.key(0))[0]

        lowered = jax.jit(jax.grad(loss)).lower(nn.unbox(boxed)["params"], batch)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    one_chunk = 4 * 8 * 16384 * 4  # bytes of its logits
    few, many = temporaries(32), temporaries(128)
    assert many - few < one_chunk
    assert many < 16 * one_chunk / 2, "all logits at once would take twice this and more"


def test_held_out_metrics_are_those_of_the_loss():
    objective = tiny.causal(7)
    metrics = jax.device_get(jax.jit(objective.predict)(params(), BATCH))
    (loss, (weight, _)), _ = value_and_gradient(7)
    assert metrics["loss"] == pytest.approx((float(loss), float(weight)), rel=1e-5)


def test_results_of_chunks_are_put_in_order():
    """Scalars and vectors of seven positions, in chunks of three."""
    values = np.random.default_rng(0).normal(size=(2, 7, 4)).astype(np.float32)
    top, total = in_chunks(lambda x: (jax.lax.top_k(x, 2), x.sum(-1)), (values,), 3)
    order = np.argsort(-values, -1)[..., :2]
    np.testing.assert_array_equal(top[1], order)
    np.testing.assert_array_equal(top[0], np.take_along_axis(values, order, -1))
    np.testing.assert_allclose(total, values.sum(-1), rtol=1e-5)
