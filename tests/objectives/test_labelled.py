"""Losses, weights and penalties of the labelled tasks."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.svm import LinearSVC

from pretrain import optim
from pretrain.models.linear import HashedLinear
from pretrain.objectives.labelled import LOSSES, Classification, Tagging
from tests import tiny

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(7, 4)).astype(np.float32) * 2
LABELS = RNG.integers(0, 4, 7)


def test_softmax_loss():
    probabilities = np.exp(LOGITS) / np.exp(LOGITS).sum(-1, keepdims=True)
    expected = -np.log(probabilities[np.arange(7), LABELS])
    np.testing.assert_allclose(LOSSES["softmax"](LOGITS, LABELS), expected, rtol=1e-5)


def test_squared_hinge_is_one_versus_rest():
    signs = -np.ones((7, 4))
    signs[np.arange(7), LABELS] = 1
    expected = (np.maximum(0, 1 - signs * LOGITS) ** 2).sum(-1)
    np.testing.assert_allclose(LOSSES["squared_hinge"](LOGITS, LABELS), expected, rtol=1e-5)


def test_hinge_is_one_versus_rest():
    signs = -np.ones((7, 4))
    signs[np.arange(7), LABELS] = 1
    expected = np.maximum(0, 1 - signs * LOGITS).sum(-1)
    np.testing.assert_allclose(LOSSES["hinge"](LOGITS, LABELS), expected, rtol=1e-5)


def linear_batch(rows=24, classes=3):
    features = np.tile(np.arange(1, 6, dtype=np.int32), (rows, 1))
    values = RNG.normal(size=(rows, 5)).astype(np.float32)
    labels = (values[:, :classes].argmax(-1)).astype(np.int32)
    weights = RNG.uniform(0.2, 1, rows).astype(np.float32)
    return {"features": features, "values": values, "labels": labels, "weights": weights}


def test_rows_weigh_what_their_weights_say():
    batch = linear_batch()
    objective = Classification(HashedLinear(6, 3), "softmax", 0.0, 0.5)
    kernel = RNG.normal(size=(6, 3)).astype(np.float32)
    params = {"kernel": kernel, "bias": np.zeros(3, np.float32)}
    loss, weight, metrics = objective.loss(params, batch, jax.random.key(0))
    logits = batch["values"] @ kernel[1:]
    losses = np.asarray(LOSSES["softmax"](logits, batch["labels"]))
    assert float(weight) == pytest.approx(batch["weights"].sum())
    assert float(loss) == pytest.approx((losses * batch["weights"]).sum(), rel=1e-5)
    right = logits.argmax(-1) == batch["labels"]
    assert float(metrics["accuracy"][0]) == pytest.approx((right * batch["weights"]).sum())
    log_probs = np.asarray(objective.predict(params, batch))
    np.testing.assert_allclose(np.exp(log_probs).sum(-1), 1, rtol=1e-5)
    np.testing.assert_array_equal(log_probs.argmax(-1), logits.argmax(-1))


def test_words_weigh_what_the_mask_says():
    batch = tiny.tag_batch()
    batch["weights"][2] = 0.0
    objective = Tagging(HashedLinear(6, 3), "softmax", 0.0, 1)
    got = objective.weights({k: jnp.asarray(v) for k, v in batch.items()})
    expected = batch["label_mask"].copy()
    expected[2] = 0
    np.testing.assert_array_equal(got, expected)
    assert expected.sum() > 0


def test_penalty_is_scikit_learns():
    """sum(loss) + |kernel|^2 / (2 C), divided by the number of examples; biases are free."""
    kernel = RNG.normal(size=(6, 3)).astype(np.float32)
    params = {"kernel": kernel, "bias": np.full(3, 100.0)}
    objective = Classification(HashedLinear(6, 3), "softmax", 4.0, 0.5)
    assert float(objective.penalty(params)) == pytest.approx((kernel**2).sum() / (2 * 4.0) * 0.5)
    nested = {"trunk": {"embedding": np.ones(5), "in": {"kernel": kernel, "bias": np.ones(3)}}}
    assert float(objective.penalty(nested)) == pytest.approx((kernel**2).sum() / (2 * 4.0) * 0.5)
    assert Classification(HashedLinear(6, 3), "softmax", 0.0, 0.5).penalty(params) == 0


def test_minimum_of_the_hinge_is_the_linear_svm():
    """LIBLINEAR's, with an intercept scaled so that its penalty vanishes."""
    batch = linear_batch(60)
    batch["weights"][:] = 1
    batch["labels"][::7] = (batch["labels"][::7] + 1) % 3  # not separable
    objective = Classification(HashedLinear(6, 3), "squared_hinge", 0.5, 1.0)
    optimizer = optim.create("lbfgs", memory=10, tolerance=1e-5)
    params = {"kernel": jnp.zeros((6, 3)), "bias": jnp.zeros(3)}

    def mean_loss(params):
        loss, weight, _ = objective.loss(params, batch, jax.random.key(0))
        return (loss + objective.penalty(params)) / weight

    @jax.jit
    def step(params, state):
        value, grads = jax.value_and_grad(mean_loss)(params)
        options = dict(names={}, lr=0.0, value=value, value_fn=mean_loss)
        return optimizer.update(grads, state, params, **options)

    state = optimizer.init(params, {})
    for _ in range(60):
        params, state, scalars = step(params, state)
    assert bool(scalars["converged"])
    svm = LinearSVC(C=0.5, intercept_scaling=1000.0, tol=1e-8, max_iter=200_000)
    svm.fit(batch["values"], batch["labels"])
    np.testing.assert_allclose(params["kernel"][1:].T, svm.coef_, atol=5e-3)
    np.testing.assert_allclose(params["bias"], svm.intercept_, atol=5e-3)


def crf_batch():
    """Rows of words with sub-words between, of sentences that begin and end anywhere."""
    batch = tiny.tag_batch(rows=8, seq_len=12)
    place = np.cumsum(batch["label_mask"], axis=1).astype(np.int32) - 1
    batch["word"] = np.where(batch["label_mask"] > 0, place % 3, -1).astype(np.int32)
    batch["sentence_end"] = batch["word"] == 2
    batch["weights"][3] = 0.0  # a copy that fills up a batch
    return batch


def test_a_crf_adds_up_over_sentences_and_cuts_of_the_batch():
    objective = dataclasses.replace(tiny.tagging(), crf=True)
    params = nn.unbox(objective.init(jax.random.key(0)))["params"]
    assert {name: x.shape for name, x in params["crf"].items()} == {
        "transitions": (3, 3), "start": (3,), "end": (3,)
    }  # fmt: skip
    noise = {n: RNG.normal(size=x.shape).astype(np.float32) for n, x in params["crf"].items()}
    params = {**params, "crf": noise}
    batch = crf_batch()
    loss = jax.jit(lambda p, b: objective.loss(p, b, jax.random.key(0)))
    whole, weight, _ = loss(params, batch)
    parts = [loss(params, {k: v[i::4] for k, v in batch.items()}) for i in range(4)]
    assert float(sum(part[0] for part in parts)) == pytest.approx(float(whole), rel=1e-5)
    words = batch["label_mask"] * batch["weights"][:, None]
    assert float(weight) == words.sum() == sum(float(part[1]) for part in parts)
    # Without transitions the words are independent: the loss is that of each word by itself.
    silent = {**params, "crf": {n: np.zeros_like(x) for n, x in noise.items()}}
    alone, _, _ = tiny.tagging().loss(params, batch, jax.random.key(0))
    assert float(loss(silent, batch)[0]) == pytest.approx(float(alone), rel=1e-5)
    assert abs(float(whole - alone)) > 1e-2


def test_transitions_are_penalised_as_kernels_are():
    params = {"kernel": np.full((2, 3), 2.0), "crf": {"transitions": np.full((3, 3), 3.0)}}
    params["crf"] |= {"start": np.ones(3), "end": np.ones(3)}
    objective = Tagging(HashedLinear(2, 3), "softmax", 0.5, 1.0, crf=True)
    assert float(objective.penalty(params)) == pytest.approx(6 * 4 + 9 * 9)


def test_flops_of_linear_models_count_features():
    assert Classification(HashedLinear(6, 3), "softmax", 0.0, 1).train_flops(50) == 3 * 2 * 50 * 3
