"""Layers against plain NumPy, and the statistics of dropout."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pretrain.models import layers
from pretrain.models.layers import (
    ACTIVATIONS,
    Dense,
    Embed,
    LayerNorm,
    dropout,
    micro_batch,
    rotary,
)
from tests import tiny


def init_and_apply(module, *inputs):
    """Plain parameters (each moved off its initial value) and the output."""
    params = jax.tree.map(
        lambda x: x.value, module.init(jax.random.key(0), *inputs)["params"], is_leaf=_boxed
    )
    params = jax.tree.map(
        lambda x: x + jnp.arange(x.size, dtype=x.dtype).reshape(x.shape) % 7 * 0.1, params
    )
    return jax.device_get(params), np.asarray(module.apply({"params": params}, *inputs))


def _boxed(x):
    return hasattr(x, "names")


def test_dense_contracts_the_last_dimensions():
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)
    module = Dense(("heads", "kv"), (6, 7), ("embed", "mlp"))
    params, y = init_and_apply(module, x)
    assert params["kernel"].shape == (4, 5, 6, 7) and params["bias"].shape == (6, 7)
    expected = np.einsum("bshk,hkxy->bsxy", x, params["kernel"]) + params["bias"]
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)
    params, y = init_and_apply(Dense(("heads", "kv"), (6,), ("embed",), use_bias=False), x)
    assert set(params) == {"kernel"}
    np.testing.assert_allclose(
        y, np.einsum("bshk,hkx->bsx", x, params["kernel"]), rtol=1e-4, atol=1e-4
    )


def test_kernels_start_with_the_given_deviation():
    x = jnp.zeros((1, 64))
    kernel = Dense(("embed",), (512,), ("mlp",), init_std=0.05).init(jax.random.key(0), x)
    kernel = np.asarray(kernel["params"]["kernel"].value)
    assert kernel.std() == pytest.approx(0.05, rel=0.03) and abs(kernel.mean()) < 1e-3


@pytest.mark.parametrize("eps", [1e-12, 0.1])
def test_layer_norm(eps):
    x = np.random.default_rng(0).normal(3.0, 2.0, (2, 3, 8)).astype(np.float32)
    params, y = init_and_apply(LayerNorm(eps), x)
    centred = x - x.mean(-1, keepdims=True)
    expected = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps)
    np.testing.assert_allclose(y, expected * params["scale"] + params["bias"], rtol=1e-4, atol=1e-5)
    params, y = init_and_apply(LayerNorm(eps, use_bias=False), x)
    np.testing.assert_allclose(y, expected * params["scale"], rtol=1e-4, atol=1e-5)


def test_layer_norm_of_bfloat16_is_computed_in_float32():
    """Statistics in bfloat16 would lose the small variation around a large mean."""
    x = jnp.asarray(100.0 + np.arange(8)[None, :] * 0.5, jnp.bfloat16)
    got = LayerNorm(1e-6, dtype="bfloat16").apply(
        {"params": {"scale": jnp.ones(8), "bias": jnp.zeros(8)}}, x
    )
    assert got.dtype == jnp.bfloat16
    exact = np.asarray(x, np.float64)
    exact = (exact - exact.mean()) / exact.std()
    np.testing.assert_allclose(np.asarray(got, np.float64), exact, rtol=1e-2, atol=1e-2)


def test_embed_takes_rows():
    ids = np.array([[2, 0], [1, 2]])
    params, y = init_and_apply(Embed(3, 4, "vocab"), ids)
    np.testing.assert_array_equal(y, params["embedding"][ids])


@pytest.mark.parametrize("wrong", [-1, 3])
def test_embed_has_no_row_for_other_ids(wrong):
    """An error where ids are concrete, in compiled code NaN, which reaches no row's gradient."""
    module, ids = Embed(3, 4, "vocab", name="word"), np.array([wrong, 2])
    params, _ = init_and_apply(module, np.array([0]))
    low, high = min(ids), max(ids)
    with pytest.raises(ValueError, match=f"word: ids from {low} to {high}, expected 0 to 2"):
        module.apply({"params": params}, ids)

    def rows(table, ids):
        y = module.apply({"params": {"embedding": table}}, ids)
        return y[1].sum(), y

    run = jax.jit(jax.grad(rows, has_aux=True))
    gradient, y = run(params["embedding"], ids)
    assert np.isnan(y[0]).all()
    np.testing.assert_array_equal(y[1], params["embedding"][2])
    np.testing.assert_array_equal(gradient, [[0] * 4, [0] * 4, [1] * 4])


def test_gradients_of_a_frequent_row_add_up_in_float32():
    """In bfloat16 the 257th one would change nothing."""
    module, ids = Embed(3, 4, "vocab", dtype="bfloat16"), np.ones(1000, np.int32)
    params, _ = init_and_apply(module, ids)
    grad = jax.grad(lambda p: module.apply({"params": p}, ids).astype("float32").sum())(params)
    np.testing.assert_array_equal(grad["embedding"], [[0] * 4, [1000] * 4, [0] * 4])


def test_embed_of_a_sharded_table():
    ids = np.random.default_rng(0).integers(0, 16, (4, 6)).astype(np.int32)
    table = np.random.default_rng(1).normal(size=(16, 8)).astype(np.float32)
    mesh = tiny.mesh(fsdp=2, tensor=2)
    spec = jax.sharding.PartitionSpec("tensor", "fsdp")
    sharded = jax.device_put(table, jax.sharding.NamedSharding(mesh, spec))

    def rows(table):
        found = Embed(16, 8, "vocab").apply({"params": {"embedding": table}}, ids)
        return found.sum(), found

    with jax.set_mesh(mesh):
        grad, found = jax.jit(jax.grad(rows, has_aux=True))(sharded)
    np.testing.assert_array_equal(found, table[ids])
    np.testing.assert_array_equal(grad[:, 0], np.bincount(ids.ravel(), minlength=16))


PUBLISHED = {
    "gelu": lambda v: 0.5 * v * (1 + math.erf(v / math.sqrt(2))),
    "gelu_tanh": lambda v: (
        0.5 * v * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3)))
    ),
    "relu": lambda v: max(v, 0.0),
    "silu": lambda v: v / (1 + math.exp(-v)),
    "tanh": math.tanh,
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_and_their_derivatives_are_the_published_ones(name):
    x, step = np.linspace(-4, 4, 20), 1e-5
    function = PUBLISHED[name]
    np.testing.assert_allclose(
        ACTIVATIONS[name](jnp.asarray(x)), [function(v) for v in x], atol=2e-6
    )
    slopes = [(function(v + step) - function(v - step)) / (2 * step) for v in x]
    derivative = jax.vmap(jax.grad(ACTIVATIONS[name]))
    np.testing.assert_allclose(derivative(jnp.asarray(x)), slopes, atol=1e-5)
    low = jnp.asarray(x, jnp.bfloat16)
    assert ACTIVATIONS[name](low).dtype == derivative(low).dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(derivative(low), float), slopes, atol=0.03)


def test_rotary_scores_depend_on_relative_positions_only():
    query, key = jax.random.normal(jax.random.key(0), (2, 1, 6, 2, 8))

    def scores(offset):
        positions = jnp.arange(6)[None, :] + offset
        return jnp.einsum(
            "bqhd,bkhd->bhqk", rotary(query, positions, 1e4), rotary(key, positions, 1e4)
        )

    np.testing.assert_allclose(scores(0), scores(37), atol=2e-5)
    assert not np.allclose(scores(0), jnp.einsum("bqhd,bkhd->bhqk", query, key), atol=1e-2)


def test_rotary_turns_pairs_by_the_published_angles():
    """Su et al. 2021: pair i of position m turns by m * base^(-2i/d)."""
    x = np.random.default_rng(0).normal(size=(1, 3, 1, 8)).astype(np.float32)
    got = np.asarray(rotary(jnp.asarray(x), jnp.array([[0, 1, 5]]), 100.0))
    pairs = x[0, :, 0, :4] + 1j * x[0, :, 0, 4:]
    turned = pairs * np.exp(1j * np.array([[0.0], [1], [5]]) * 100.0 ** (-np.arange(4) / 4))
    np.testing.assert_allclose(got[0, :, 0], np.concatenate([turned.real, turned.imag], -1), 1e-5)


@pytest.mark.parametrize("dtype, close", [("float32", 1e-6), ("bfloat16", 0.02)])
def test_rotary_for_tpus_gives_the_same(monkeypatch, dtype, close):
    """Gradients too; the forward pass rounds once in either way."""
    x, grad = jax.random.normal(jax.random.key(0), (2, 2, 5, 3, 8)).astype(dtype)
    positions = jnp.tile(jnp.arange(5), (2, 1))
    expected, backward = jax.vjp(lambda x: rotary(x, positions, 100.0), x)
    monkeypatch.setattr(layers, "platform", lambda: "tpu")
    found, backward_there = jax.vjp(lambda x: rotary(x, positions, 100.0), x)
    close_forward = dict(rtol=0, atol=1e-6 if dtype == "float32" else 0)
    for ours, theirs, bounds in (
        (found, expected, close_forward),
        (*backward_there(grad), *backward(grad), dict(rtol=close, atol=close)),
    ):
        ours, theirs = (np.asarray(a.astype(jnp.float32)) for a in (ours, theirs))
        np.testing.assert_allclose(ours, theirs, **bounds)


RATE = 0.1


@pytest.fixture(scope="module")
def kept():
    """Which elements of four rows of 2^14 dropout keeps, for two keys: bool [2, 4, 2^14]."""
    x = jnp.ones((4, 2**14))
    return np.stack([np.asarray(dropout(x, RATE, jax.random.key(i))) != 0 for i in (0, 1)])


def test_dropout_drops_the_given_share(kept):
    """Within five standard deviations of the binomial, in every row."""
    n = kept.shape[-1]
    bound = 5 * np.sqrt(n * RATE * (1 - RATE))
    assert (np.abs((~kept).sum(-1) - n * RATE) < bound).all()


def test_dropout_masks_are_independent(kept):
    """Of other keys, other rows and neighbouring elements, and do not repeat at powers of two."""
    n = kept.shape[-1]

    def correlation(a, b):
        return abs(np.corrcoef(a.ravel(), b.ravel())[0, 1])

    bound = 5 / np.sqrt(n)
    assert correlation(kept[0], kept[1]) < bound
    mask = kept[0]
    assert correlation(mask[0], mask[1]) < bound and correlation(mask[2], mask[3]) < bound
    for lag in (*range(1, 33), 64, 128, 256, 512, 768, 1024, 4096):
        assert correlation(mask[:, lag:], mask[:, :-lag]) < bound, f"lag {lag}"
        assert correlation(mask[0, lag:], mask[1, :-lag]) < bound, f"lag {lag} and a row"
        assert correlation(mask[1, lag:], mask[0, :-lag]) < bound, f"lag {lag} and a row"


def test_dropout_preserves_the_mean_and_scales_what_it_keeps():
    x = jnp.full((256, 64), 2.0)
    y = np.asarray(dropout(x, 0.25, jax.random.key(3)))
    np.testing.assert_allclose(np.unique(y), [0.0, 2.0 / 0.75], rtol=1e-6)
    assert y.mean() == pytest.approx(2.0, rel=0.02)
    assert dropout(x, 0.25, None) is x and dropout(x, 0.0, jax.random.key(0)) is x
    assert dropout(x.astype(jnp.bfloat16), 0.25, jax.random.key(3)).dtype == jnp.bfloat16


def test_dropout_does_not_depend_on_the_layout():
    x = np.random.default_rng(0).normal(size=(8, 16, 32)).astype(np.float32)
    want = np.asarray(dropout(jnp.asarray(x), 0.3, jax.random.key(1)))
    mesh = tiny.mesh(data=4, tensor=2)
    spec = jax.sharding.PartitionSpec("data", None, "tensor")
    sharded = jax.device_put(x, jax.sharding.NamedSharding(mesh, spec))
    got = jax.jit(lambda x: dropout(x, 0.3, jax.random.key(1)))(sharded)
    np.testing.assert_array_equal(np.asarray(got), want)


def test_dropout_does_not_depend_on_micro_batches():
    x, key = jnp.ones((6, 5, 4)), jax.random.key(1)
    want = np.asarray(dropout(x, 0.3, key))
    for number in range(3):
        with micro_batch(number, 3):
            np.testing.assert_array_equal(dropout(x[number::3], 0.3, key), want[number::3])
            np.testing.assert_array_equal(dropout(x, 0.3, key, by_row=False), want)
    np.testing.assert_array_equal(dropout(x, 0.3, key), want)
