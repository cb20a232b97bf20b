"""The linear model is a sparse matrix product."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pretrain.models.linear import HashedLinear, weighted_rows


def dense_product(features, values, kernel):
    """``values``: of each feature, or of each feature and class."""
    values = values[..., None] if values.ndim == features.ndim else values
    dense = np.zeros((*features.shape[:-1], *kernel.shape), np.float32)
    np.add.at(dense, (*np.indices(features.shape)[:-1], features), values)
    return (dense * kernel).sum(-2)


@pytest.mark.parametrize("of_classes", [False, True])
def test_logits_are_those_of_a_dense_product(of_classes):
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(50, 3)).astype(np.float32)
    bias = rng.normal(size=3).astype(np.float32)
    features = rng.integers(1, 50, (2, 5, 6)).astype(np.int32)
    features[0, ..., 1] = features[0, ..., 0]  # one feature twice: its values add
    values = rng.normal(size=(2, 5, 6, *[3] * of_classes)).astype(np.float32)
    features[..., -1], values[:, :, -1] = 0, 0.0  # padding
    lanes = dense_product(features, values, kernel)
    batch = {"features": features, "values": values}
    params = {"params": {"kernel": kernel, "bias": bias}}
    got = HashedLinear(50, 3).apply(params, batch)
    np.testing.assert_allclose(got, lanes + bias, rtol=1e-4, atol=1e-5)

    # Documents of one, two and three lanes in the rows: their logits stand at the first.
    batch["document"] = np.array([[0, 1, 1, 3, 4], [0, 1, 2, 2, 2]], np.int32)
    got = np.asarray(HashedLinear(50, 3).apply(params, batch))
    np.testing.assert_allclose(got[0, 1], lanes[0, 1:3].sum(0) + bias, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(got[1, 2], lanes[1, 2:].sum(0) + bias, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(got[0, [0, 3, 4]], lanes[0, [0, 3, 4]] + bias, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("classes", [1, 3])
def test_gradient_is_that_of_gathering_all_rows_at_once(classes):
    rng = np.random.default_rng(1)
    kernel = rng.normal(size=(9, 3)).astype(np.float32)
    features = rng.integers(0, 9, (2, 5, 6)).astype(np.int32)  # most of them several times
    values = rng.normal(size=(2, 5, 6, classes)).astype(np.float32)
    weights = rng.normal(size=(2, 5, 3)).astype(np.float32)

    def ours(kernel):
        return (jnp.sin(weighted_rows(kernel, features, values)) * weights).sum()

    def theirs(kernel):
        logits = (kernel[features] * values).sum(-2)
        return (jnp.sin(logits) * weights).sum()

    value, grad = jax.jit(jax.value_and_grad(ours))(kernel)
    want, want_grad = jax.value_and_grad(theirs)(jnp.array(kernel))
    np.testing.assert_allclose(value, want, rtol=1e-5)
    np.testing.assert_allclose(grad, want_grad, rtol=1e-4, atol=1e-5)


def test_starts_at_zero():
    model = HashedLinear(8, 3)
    params = model.init(jax.random.key(0), model.example())["params"]
    assert all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(params))


def test_fasttext_classifies_the_mean_embedding():
    rng = np.random.default_rng(2)
    model = HashedLinear(20, 3, embedding_size=4)
    variables = model.init(jax.random.key(0), model.example())
    shapes = {name: x.value.shape for name, x in variables["params"].items()}
    assert shapes == {"embedding": (20, 4), "kernel": (4, 3), "bias": (3,)}
    assert np.abs(variables["params"]["embedding"].value).max() <= 1 / 4
    params = {name: rng.normal(size=s).astype(np.float32) for name, s in shapes.items()}
    features = np.array([[[3, 7, 0], [5, 0, 0]]], np.int32)
    values = np.array([[[0.25, 0.25, 0], [0.5, 0, 0]]], np.float32)  # 3, 7, 5, 5
    batch = {"features": features, "values": values, "document": np.zeros((1, 2), np.int32)}
    got = model.apply({"params": params}, batch)[0, 0]
    mean = params["embedding"][[3, 7, 5, 5]].mean(0)
    np.testing.assert_allclose(got, mean @ params["kernel"] + params["bias"], rtol=1e-4, atol=1e-5)


def test_predictions_interpolate_with_the_mean_weight():
    """Wang & Manning 2012, where the mean is over features that training saw."""
    kernel = np.array([[0, 0], [2, -1], [-4, 3], [0, 0]], np.float32)
    batch = {"features": np.array([[[1, 2, 3]]], np.int32)}
    batch["values"] = np.array([[[[1, -1], [1, 1], [1, 1]]]], np.float32)
    params = {"params": {"kernel": kernel, "bias": np.zeros(2, np.float32)}}
    model = HashedLinear(4, 2, beta=0.25)
    trained = model.apply(params, batch, deterministic=False)
    np.testing.assert_allclose(trained[0, 0], [-2, 4], rtol=1e-6)
    predicted = model.apply(params, batch)
    want = [(2.25 + 0.5) + (2.25 - 1), -(1.5 - 0.25) + (1.5 + 0.75)]
    np.testing.assert_allclose(predicted[0, 0], want, rtol=1e-6)
