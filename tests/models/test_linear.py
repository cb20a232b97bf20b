"""The linear model is a sparse matrix product."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pretrain.models.linear import HashedLinear, weighted_rows


def test_logits_are_those_of_a_dense_product():
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(50, 3)).astype(np.float32)
    bias = rng.normal(size=3).astype(np.float32)
    for leading in ((4,), (2, 5)):  # texts, and words of sentences
        features = rng.integers(1, 50, (*leading, 6)).astype(np.int32)
        features[0, ..., 1] = features[0, ..., 0]  # one feature twice: its values add
        values = rng.normal(size=(*leading, 6)).astype(np.float32)
        features[..., -1], values[..., -1] = 0, 0.0  # padding
        dense = np.zeros((*leading, 50), np.float32)
        np.add.at(dense, (*np.indices(features.shape)[:-1], features), values)
        batch = {"features": features, "values": values}
        got = HashedLinear(50, 3).apply({"params": {"kernel": kernel, "bias": bias}}, batch)
        np.testing.assert_allclose(got, dense @ kernel + bias, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("leading", [(4,), (2, 5)])
def test_gradient_is_that_of_gathering_all_rows_at_once(leading):
    rng = np.random.default_rng(1)
    kernel = rng.normal(size=(9, 3)).astype(np.float32)
    features = rng.integers(0, 9, (*leading, 6)).astype(np.int32)  # most of them several times
    values = rng.normal(size=(*leading, 6)).astype(np.float32)
    weights = rng.normal(size=(*leading, 3)).astype(np.float32)

    def ours(kernel):
        return (jnp.sin(weighted_rows(kernel, features, values)) * weights).sum()

    def theirs(kernel):
        logits = jnp.einsum("...kc,...k->...c", kernel[features], values)
        return (jnp.sin(logits) * weights).sum()

    value, grad = jax.jit(jax.value_and_grad(ours))(kernel)
    want, want_grad = jax.value_and_grad(theirs)(jnp.array(kernel))
    np.testing.assert_allclose(value, want, rtol=1e-5)
    np.testing.assert_allclose(grad, want_grad, rtol=1e-4, atol=1e-5)


def test_starts_at_zero():
    batch = {"features": np.ones((1, 2), np.int32), "values": np.ones((1, 2), np.float32)}
    params = HashedLinear(8, 3).init(jax.random.key(0), batch)["params"]
    assert all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(params))
