"""The linear model is a sparse matrix product."""

import jax
import numpy as np

from pretrain.models.linear import HashedLinear


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


def test_starts_at_zero():
    batch = {"features": np.ones((1, 2), np.int32), "values": np.ones((1, 2), np.float32)}
    params = HashedLinear(8, 3).init(jax.random.key(0), batch)["params"]
    assert all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(params))
