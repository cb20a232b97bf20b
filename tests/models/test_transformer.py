"""The trunk: what a position may see, and attention against NumPy."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pretrain.errors import UserError
from pretrain.models.attention import SCORES, Shape, attention_mask, masking
from pretrain.models.transformer import Attention, Transformer, layer_outputs
from tests import tiny

BERT = tiny.transformer()
MODERN = tiny.transformer(
    norm_position="pre", position="rotary", type_vocab_size=0, norm_bias=False, gated=True,
    bias=False,
)  # fmt: skip
MODERN_BERT = dataclasses.replace(
    MODERN, first_norm=False, num_layers=4, local_window=3, global_every=3, rotary_base=160.0,
)  # fmt: skip
LLAMA = tiny.transformer(
    norm="rms", norm_position="pre", position="rotary", type_vocab_size=0, embedding_norm=False,
    causal=True, gated=True, activation="silu", bias=False, tied=False, head_transform=False,
    num_heads=4, num_kv_heads=2, head_size=6,
)  # fmt: skip
ELECTRA = tiny.transformer(embedding_size=8, position_offset=2)
GPT = tiny.transformer(
    norm_position="pre", causal=True, type_vocab_size=0, embedding_norm=False,
    activation="gelu_tanh", scale_residual_init=True,
)  # fmt: skip
SHAPES = {
    "bert": BERT, "modern": MODERN, "gpt": GPT, "modern_bert": MODERN_BERT, "llama": LLAMA,
    "electra": ELECTRA,
}  # fmt: skip


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
@pytest.mark.parametrize("name", SHAPES)
def test_a_row_of_padding_is_finite(name, dtype):
    """So is its gradient."""
    config = dataclasses.replace(SHAPES[name], dtype=dtype)
    empty = dict.fromkeys(BATCH, np.zeros((2, 8), np.int32))

    def total(params):
        out = Transformer(config).apply({"params": params}, **empty)
        return out.astype(jnp.float32).sum(), out

    gradient, out = jax.jit(jax.grad(total, has_aux=True))(compiled(SHAPES[name])[0])
    assert out.dtype == dtype
    for leaf in (out, *jax.tree.leaves(gradient)):
        assert np.isfinite(np.asarray(leaf, np.float32)).all()


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
    shape = Shape(6, heads=2, kv_heads=2, head_size=8, dtype="float32", causal=True)
    masks = masking("plain", shape, jnp.asarray(segments))
    positions = np.zeros((2, 6), np.int32)
    module, everywhere = Attention(config), jnp.zeros((), bool)
    inputs = (x, everywhere, masks, positions, True)
    variables = nn.unbox(module.init(jax.random.key(0), *inputs))
    params = jax.tree.map(lambda a: np.asarray(a) * 25 + 0.01, variables["params"])
    got = module.apply({"params": params}, *inputs)

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
        SHAPES[name], hidden_size=64, num_heads=2, head_size=0, num_kv_heads=1, ffn_size=256,
        unroll=2, num_layers=2, local_window=0, global_every=1,
    )  # fmt: skip
    model, tokens = Transformer(config), jnp.zeros((2, 64), jnp.int32)
    params = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), tokens))["params"]
    lowered = jax.jit(lambda p, t: model.apply({"params": p}, t)).lower(params, tokens)
    counted = lowered.compile().cost_analysis()["flops"]
    expected = 2 * Transformer(dataclasses.replace(config, causal=False)).forward_flops(64)
    assert counted == pytest.approx(expected, rel=0.06)
    pairs = 64 * 63 // 2 if config.causal else 0
    assert expected / 2 - model.forward_flops(64) == 2 * 4 * 64 * pairs


def test_layers_tell_their_hidden_states_and_attention_scores():
    """Those of the first layer are what a model of that layer alone gives."""
    params, _ = compiled(BERT)
    _, told = Transformer(BERT).apply(
        {"params": params}, **BATCH, mutable=["intermediates", SCORES]
    )
    states = layer_outputs(told["intermediates"])
    np.testing.assert_allclose(states[-1], hidden(BERT, BATCH), atol=1e-5)
    first = params | {"layers": jax.tree.map(lambda x: x[:1], params["layers"])}
    alone = Transformer(dataclasses.replace(BERT, num_layers=1)).apply({"params": first}, **BATCH)
    np.testing.assert_allclose(states[0], alone, atol=1e-5)
    scores = layer_outputs(told[SCORES], "attention_scores")
    assert scores.shape == (2, 4, 2, 24, 24)
    seen = np.broadcast_to(attention_mask(BATCH["segment_ids"], causal=False), scores.shape[1:])
    assert (np.isfinite(scores[0]) & (scores[0] > -1e30) == seen).all()


def test_a_first_layer_without_norm_is_told_before_the_others():
    """Also that local layers see their window only: their scores say what was hidden."""
    params, _ = compiled(MODERN_BERT)
    _, told = Transformer(MODERN_BERT).apply(
        {"params": params}, **BATCH, mutable=["intermediates", SCORES]
    )
    states = np.asarray(layer_outputs(told["intermediates"]))
    assert states.shape == (4, 4, 24, 16)
    final = np.asarray(params["final_norm"]["scale"]) * (
        states[-1] - states[-1].mean(-1, keepdims=True)
    )
    final /= np.sqrt(np.var(states[-1], -1, keepdims=True) + MODERN_BERT.norm_eps)
    np.testing.assert_allclose(final, hidden(MODERN_BERT, BATCH), rtol=1e-3, atol=1e-3)
    seen = layer_outputs(told[SCORES], "attention_scores") > -1e30
    same = np.asarray(attention_mask(BATCH["segment_ids"], causal=False))
    distance = np.abs(np.subtract.outer(np.arange(24), np.arange(24)))
    for layer, window in enumerate((24, 3, 3, 24)):
        expected = np.broadcast_to(same & (distance <= window), seen[layer].shape)
        np.testing.assert_array_equal(seen[layer], expected)


def test_local_attention_counts_the_pairs_of_its_window():
    config = dataclasses.replace(MODERN_BERT, local_window=24)
    apart = np.abs(np.subtract.outer(np.arange(24), np.arange(24)))
    fewer = int((apart > 3).sum())
    difference = Transformer(config).forward_flops(24) - Transformer(MODERN_BERT).forward_flops(24)
    assert difference == 2 * fewer * 4 * 16, "two local layers"


@pytest.mark.parametrize(
    "change, said",
    [
        ({"num_heads": 3}, "num_heads: 3 does not divide hidden_size 16"),
        ({"num_kv_heads": 3, "num_heads": 4}, "num_kv_heads: 3 does not divide num_heads 4"),
        ({"position": "rotary", "head_size": 3}, "num_heads: 2 makes heads of odd size 3"),
        ({"first_norm": False}, "first_norm: found False with norm_position 'post'"),
        ({"activation": "swish"}, "activation: found 'swish', expected one of gelu, gelu_tanh"),
        ({"norm": "batch"}, "norm: found 'batch', expected one of layer, rms"),
        ({"embedding_size": 8, "head_transform": False}, "embedding_size: 8 is not hidden_size"),
        ({"pooler": "foo"}, "pooler: found 'foo', expected one of bert, roberta, .*, none"),
        ({"local_window": 3}, "local_window: found 3 with global_every 1; expected both"),
        ({"global_every": 3}, "local_window: found 0 with global_every 3"),
        ({"local_window": -1}, "local_window: found -1, expected at least 0"),
        ({"global_every": 0}, "global_every: found 0, expected at least 1"),
        (
            {"position": "rotary", "position_offset": 2},
            "position_offset: found 2 with position 'rotary', which has no table; expected 0",
        ),
    ],
)
def test_options_that_make_no_model_are_refused(change, said):
    with pytest.raises(UserError, match=f"config.model.{said}"):
        dataclasses.replace(BERT, **change)


def test_ids_outside_of_the_vocabulary_are_never_clamped():
    """An error where ids are concrete, NaN in compiled code."""
    params, apply = compiled(BERT)
    for wrong in (-1, tiny.VOCAB):
        tokens = np.full((1, 4), wrong, np.int32)
        with pytest.raises(ValueError, match=f"word: ids from {wrong} to {wrong}, expected"):
            Transformer(BERT).apply({"params": params}, tokens)
        assert np.isnan(apply(tokens)).all()
