"""The trunk: what a position may see, and attention against NumPy."""

import ast
import dataclasses
import functools
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pretrain import models
from pretrain.models.transformer import (
    Attention,
    Transformer,
    TransformerConfig,
    attention_mask,
    forward_flops,
)
from tests import tiny

BERT = tiny.transformer()
MODERN = tiny.transformer(
    norm_position="pre", position="rotary", type_vocab_size=0, norm_bias=False, gated=True,
    bias=False,
)  # fmt: skip
GPT = tiny.transformer(
    norm_position="pre", causal=True, type_vocab_size=0, embedding_norm=False,
    activation="gelu_tanh", scale_residual_init=True,
)  # fmt: skip
SHAPES = {"bert": BERT, "modern": MODERN, "gpt": GPT}


@functools.cache
def compiled(config):
    """Parameters with visible effects (std 0.5), and the jitted model."""
    model = Transformer(config)
    tokens = jnp.zeros((1, 8), jnp.int32)
    params = nn.unbox(jax.jit(model.init)(jax.random.key(0), tokens))["params"]
    params = jax.tree.map(lambda x: x * 25 if float(jnp.abs(x).max()) < 0.2 else x, params)
    apply = jax.jit(lambda tokens, **inputs: model.apply({"params": params}, tokens, **inputs))
    return params, apply


def hidden(config, batch, **changes):
    return np.asarray(compiled(config)[1](**{**batch, **changes}), np.float32)


BATCH = tiny.lm_batch(4, 24)


@pytest.mark.parametrize("name", SHAPES)
def test_documents_of_a_packed_row_do_not_see_each_other(name):
    """Each has the hidden states that it has alone, at positions from 0 on."""
    packed = hidden(SHAPES[name], BATCH)
    for row, segments in enumerate(BATCH["segment_ids"]):
        for segment in (1, 2):
            where = np.flatnonzero(segments == segment)
            alone = {"segment_ids": np.zeros((4, 24), np.int32)}
            alone |= {"tokens": np.zeros((4, 24), np.int32)}
            alone |= {"positions": np.tile(np.arange(24, dtype=np.int32), (4, 1))}
            alone["tokens"][0, : len(where)] = BATCH["tokens"][row, where]
            alone["segment_ids"][0, : len(where)] = 1
            got = hidden(SHAPES[name], alone)[0, : len(where)]
            np.testing.assert_allclose(packed[row, where], got, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", SHAPES)
def test_padding_changes_no_real_position(name):
    real = BATCH["segment_ids"] > 0
    assert not real.all()
    other = np.where(real, BATCH["tokens"], 33).astype(np.int32)
    want, got = hidden(SHAPES[name], BATCH), hidden(SHAPES[name], BATCH, tokens=other)
    np.testing.assert_array_equal(got[real], want[real])
    assert not np.allclose(got[~real], want[~real])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_row_of_padding_is_finite(dtype):
    config = dataclasses.replace(BERT, dtype=dtype)
    nothing = np.zeros_like(BATCH["tokens"])
    empty = dict.fromkeys(BATCH, nothing)
    out = compiled(config)[1](**empty)
    assert out.dtype == dtype and np.isfinite(np.asarray(out, np.float32)).all()

    def total(params):
        return Transformer(config).apply({"params": params}, **empty).astype(jnp.float32).sum()

    if dtype == "float32":
        gradient = jax.jit(jax.grad(total))(compiled(config)[0])
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_causal_positions_see_only_earlier_ones():
    tokens = np.random.default_rng(1).integers(5, tiny.VOCAB, (1, 24)).astype(np.int32)
    changed = tokens.copy()
    changed[0, 10] = (tokens[0, 10] - 5 + 1) % (tiny.VOCAB - 5) + 5
    inputs = {"segment_ids": np.ones_like(tokens)}
    want = hidden(GPT, inputs, tokens=tokens)[0]
    got = hidden(GPT, inputs, tokens=changed)[0]
    np.testing.assert_array_equal(got[:10], want[:10])
    assert (np.abs(got[10:] - want[10:]).max(-1) > 1e-4).all()
    want = hidden(BERT, inputs, tokens=tokens)[0]
    got = hidden(BERT, inputs, tokens=changed)[0]
    assert (np.abs(got - want).max(-1) > 1e-4).all()


def test_rotary_models_see_relative_positions_only():
    shifted = BATCH["positions"] + 17
    real = BATCH["segment_ids"] > 0
    want, got = hidden(MODERN, BATCH), hidden(MODERN, BATCH, positions=shifted)
    np.testing.assert_allclose(got[real], want[real], atol=2e-3)
    backwards = hidden(MODERN, BATCH, positions=-BATCH["positions"])
    assert np.abs(backwards[real] - want[real]).max() > 0.1


def test_types_are_added():
    types = np.ones_like(BATCH["tokens"])
    assert not np.allclose(hidden(BERT, BATCH), hidden(BERT, BATCH, token_types=types), atol=1e-3)
    np.testing.assert_array_equal(
        hidden(BERT, BATCH), hidden(BERT, BATCH, token_types=np.zeros_like(types))
    )


def test_attention_equals_numpy():
    x = np.random.default_rng(0).normal(size=(2, 6, 16)).astype(np.float32)
    segments = np.array([[1, 1, 1, 2, 2, 0], [1, 1, 1, 1, 1, 1]], np.int32)
    config = dataclasses.replace(BERT, causal=True)
    mask = attention_mask(jnp.asarray(segments), True)
    positions = np.zeros((2, 6), np.int32)
    module = Attention(config)
    variables = nn.unbox(module.init(jax.random.key(0), x, mask, positions, True))
    params = jax.tree.map(lambda a: np.asarray(a) * 25 + 0.01, variables["params"])
    got = module.apply({"params": params}, x, mask, positions, True)

    q, k, v = (
        np.einsum("sbd,dhk->bhsk", x.swapaxes(0, 1), params[name]["kernel"])
        + params[name]["bias"][None, :, None, :]
        for name in ("query", "key", "value")
    )
    expected = np.zeros_like(x)
    for row in range(2):
        for place in range(6):
            sees = [
                other for other in range(place + 1) if segments[row, other] == segments[row, place]
            ]
            context = []
            for head in range(2):
                scores = k[row, head, sees] @ q[row, head, place] / np.sqrt(8)
                weights = np.exp(scores - scores.max())
                context.append(weights / weights.sum() @ v[row, head, sees])
            flat = np.stack(context).reshape(-1)
            kernel = params["out"]["kernel"].reshape(16, 16)
            expected[row, place] = flat @ kernel + params["out"]["bias"]
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4)


def test_rows_longer_than_the_model_are_refused():
    with pytest.raises(ValueError, match="24 tokens a row, max_positions 16"):
        Transformer(dataclasses.replace(BERT, max_positions=16)).init(
            jax.random.key(0), BATCH["tokens"]
        )


def test_residual_projections_start_smaller_where_asked():
    config = dataclasses.replace(GPT, num_layers=8, hidden_size=64)
    params = nn.unbox(jax.jit(Transformer(config).init)(jax.random.key(0), BATCH["tokens"]))
    layers = params["params"]["layers"]
    for module, name in (("attention", "out"), ("ffn", "out")):
        assert np.std(layers[module][name]["kernel"]) == pytest.approx(0.02 / 4, rel=0.05)
    assert np.std(layers["ffn"]["in"]["kernel"]) == pytest.approx(0.02, rel=0.05)
    assert np.std(layers["attention"]["query"]["kernel"]) == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize("name", SHAPES)
def test_forward_flops_equal_the_compilers_count(name):
    """Of an unrolled model, where XLA's count is all matrix products but a few per cent.

    XLA counts a causal model's masked pairs too.
    """
    config = dataclasses.replace(
        SHAPES[name], hidden_size=64, num_heads=1, ffn_size=256, unroll=2, num_layers=2
    )
    model, tokens = Transformer(config), jnp.zeros((2, 64), jnp.int32)
    params = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), tokens))["params"]
    lowered = jax.jit(lambda p, t: model.apply({"params": p}, t)).lower(params, tokens)
    counted = lowered.compile().cost_analysis()["flops"]
    expected = 2 * forward_flops(dataclasses.replace(config, causal=False), 64)
    assert counted == pytest.approx(expected, rel=0.06)
    pairs = 64 * 63 // 2 if config.causal else 0
    assert expected / 2 - forward_flops(config, 64) == 2 * 4 * 64 * pairs


def test_every_field_of_the_config_is_used():
    """Read from ``cfg`` (``self`` in its own properties) in some module of ``pretrain.models``."""
    used = set()
    for file in pathlib.Path(models.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                used |= {node.attr} if node.value.id in ("cfg", "self") else set()
    unused = {field.name for field in dataclasses.fields(TransformerConfig)} - used
    assert not unused


def test_layers_tell_their_hidden_states_and_attention_scores():
    """Those of the first layer are what a model of that layer alone gives."""
    params, _ = compiled(BERT)
    _, told = Transformer(BERT).apply({"params": params}, **BATCH, mutable=["intermediates"])
    (states,) = told["intermediates"]["layers"]["hidden"]
    np.testing.assert_allclose(states[-1], hidden(BERT, BATCH), atol=1e-5)
    first = params | {"layers": jax.tree.map(lambda x: x[:1], params["layers"])}
    alone = Transformer(dataclasses.replace(BERT, num_layers=1)).apply({"params": first}, **BATCH)
    np.testing.assert_allclose(states[0], alone, atol=1e-5)
    (scores,) = told["intermediates"]["layers"]["attention"]["attention_scores"]
    assert scores.shape == (2, 4, 2, 24, 24)
    seen = np.broadcast_to(attention_mask(BATCH["segment_ids"], causal=False), scores.shape[1:])
    assert (np.isfinite(scores[0]) & (scores[0] > -1e30) == seen).all()
