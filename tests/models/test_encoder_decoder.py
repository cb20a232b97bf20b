"""Encoder-decoders: what a position may see, options, counts and operations."""

import dataclasses
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import bart, t5
from pretrain import config as configs
from pretrain import schema, tasks
from pretrain.errors import UserError
from pretrain.models.encoder_decoder import (
    EncoderDecoder,
    EncoderDecoderConfig,
    relative_buckets,
    shift_right,
)
from pretrain.models.families import language_model
from tests import tiny

SHAPE = dict(
    vocab_size=tiny.VOCAB, num_layers=2, num_decoder_layers=3, hidden_size=16, num_heads=2,
    head_size=6, ffn_size=32, max_positions=32, relative_buckets=8, relative_distance=12,
    dropout=0.0, attention_dropout=0.0,
)  # fmt: skip
T5 = EncoderDecoderConfig(**schema.MODELS["encoder_decoder"] | SHAPE)
BART = dataclasses.replace(
    T5, position="learned", position_offset=2, norm="layer", norm_position="post", norm_eps=1e-5,
    embedding_norm=True, scale_embedding=True, scale_scores=True, activation="gelu", gated=False,
    bias=True, tied=True, head_bias=True, decoder_start_id=2,
)  # fmt: skip
SHAPES = {"t5": T5, "bart": BART, "encoder": dataclasses.replace(T5, reads="encoder")}
BATCH = tiny.lm_batch(3, 24)
KEY = jax.random.key(0)


@functools.cache
def params_of(config):
    """Parameters with visible effects: no bias zero, no scale one."""
    init = jax.eval_shape(EncoderDecoder(config).init, KEY, jnp.zeros((1, 8), jnp.int32))
    leaves, tree = jax.tree.flatten(nn.unbox(init)["params"])
    rng = np.random.default_rng(0)
    noise = [rng.normal(0, 0.4, leaf.shape).astype(np.float32) for leaf in leaves]
    params = jax.tree.unflatten(tree, noise)
    return jax.tree.map_with_path(lambda path, x: x + (path[-1].key == "scale"), params)


@functools.cache
def compiled(config):
    return jax.jit(
        lambda params, inputs: EncoderDecoder(config).apply({"params": params}, **inputs)
    )


def hidden(config, inputs, params=None):
    inputs = {name: jnp.asarray(value, jnp.int32) for name, value in inputs.items()}
    params = params_of(config) if params is None else params
    return np.asarray(compiled(config)(params, inputs), np.float32)


@pytest.mark.parametrize("name", SHAPES)
def test_documents_of_a_packed_row_do_not_see_each_other(name):
    """Each has the hidden states that it has alone, at positions from 0 on."""
    packed = hidden(SHAPES[name], BATCH)
    for row, segments in enumerate(BATCH["segment_ids"]):
        alone = {"tokens": np.zeros((3, 24)), "segment_ids": np.zeros((3, 24))}
        for segment in (1, 2):
            where = np.flatnonzero(segments == segment)
            alone["tokens"][segment, : len(where)] = BATCH["tokens"][row, where]
            alone["segment_ids"][segment, : len(where)] = 1
        states = hidden(SHAPES[name], alone)
        for segment in (1, 2):
            where = np.flatnonzero(segments == segment)
            got = states[segment, : len(where)]
            np.testing.assert_allclose(packed[row, where], got, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", SHAPES)
def test_padding_changes_no_real_position(name):
    real = BATCH["segment_ids"] > 0
    assert not real.all()
    other = BATCH | {"tokens": np.where(real, BATCH["tokens"], 33)}
    want, got = hidden(SHAPES[name], BATCH), hidden(SHAPES[name], other)
    np.testing.assert_array_equal(got[real], want[real])
    assert not np.allclose(got[~real], want[~real])


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_a_row_of_padding_is_finite(name):
    config = dataclasses.replace(SHAPES[name], dtype="bfloat16")
    empty = dict.fromkeys(BATCH, np.zeros_like(BATCH["tokens"]))

    def total(params):
        out = EncoderDecoder(config).apply({"params": params}, **empty)
        return out.astype(jnp.float32).sum(), out

    gradient, out = jax.jit(jax.grad(total, has_aux=True))(params_of(config))
    assert out.dtype == "bfloat16" and np.isfinite(np.asarray(out, np.float32)).all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_the_decoder_sees_all_of_the_source_and_what_it_has_written(name):
    rng = np.random.default_rng(1)
    inputs = {"tokens": rng.integers(5, tiny.VOCAB, (1, 20))}
    inputs["decoder_tokens"] = rng.integers(5, tiny.VOCAB, (1, 14))
    want = hidden(SHAPES[name], inputs)[0]
    assert want.shape == (14, 16)
    changed = {key: tokens.copy() for key, tokens in inputs.items()}
    changed["decoder_tokens"][0, 9] ^= 1
    got = hidden(SHAPES[name], inputs | {"decoder_tokens": changed["decoder_tokens"]})[0]
    np.testing.assert_array_equal(got[:9], want[:9])
    assert (np.abs(got[9:] - want[9:]).max(-1) > 1e-4).all()
    changed["tokens"][0, 19] ^= 1
    got = hidden(SHAPES[name], inputs | {"tokens": changed["tokens"]})[0]
    assert (np.abs(got - want).max(-1) > 1e-4).all()


def test_shifted_documents_each_begin_with_the_start_token():
    tokens, segments = BATCH["tokens"], BATCH["segment_ids"]
    got = np.asarray(shift_right(jnp.asarray(tokens), jnp.asarray(segments), 63))
    for row, place in np.ndindex(tokens.shape):
        first = place == 0 or segments[row, place] != segments[row, place - 1]
        assert got[row, place] == (63 if first else tokens[row, place - 1])


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_without_decoder_tokens_the_decoder_is_fed_the_text_shifted_right(name):
    config = SHAPES[name]
    shifted = shift_right(
        jnp.asarray(BATCH["tokens"]), jnp.asarray(BATCH["segment_ids"]), config.decoder_start_id
    )
    explicit = BATCH | {
        "decoder_tokens": shifted,
        "decoder_segment_ids": BATCH["segment_ids"],
        "decoder_positions": BATCH["positions"],
    }
    np.testing.assert_array_equal(hidden(config, explicit), hidden(config, BATCH))
    other = dataclasses.replace(config, decoder_start_id=9)
    assert not np.allclose(hidden(other, BATCH, params_of(config)), hidden(config, BATCH))


def test_an_encoder_alone_is_that_of_the_pair():
    encoder = dataclasses.replace(T5, reads="encoder")
    assert params_of(encoder).keys() == params_of(T5).keys() - {"decoder"}
    params = params_of(T5)
    apply = functools.partial(EncoderDecoder(T5).apply, mutable="intermediates")
    _, told = jax.jit(apply)({"params": params}, **BATCH)
    states = told["intermediates"]["encoder"]["layers"]["hidden"][0][-1]
    rms = np.sqrt(np.square(states).mean(-1, keepdims=True) + T5.norm_eps)
    want = states / rms * params["encoder"]["final_norm"]["scale"].reshape(1, 1, -1)
    np.testing.assert_allclose(hidden(encoder, BATCH, params), want, atol=1e-4)


# The first distance of each bucket from 16 (one direction) or 8 (two) on, by transformers 4.48.3.
LARGE = {
    False: [16, 19, 21, 24, 27, 31, 35, 40, 46, 52, 59, 67, 77, 87, 99, 113],
    True: [8, 12, 16, 23, 32, 46, 64, 91],
}


@pytest.mark.parametrize("bidirectional", [False, True])
def test_buckets_of_distances_are_those_of_t5(bidirectional):
    length, options = 300, dict(bidirectional=bidirectional, count=32, max_distance=128)
    got = relative_buckets(length, length, **options)
    starts = [*range(LARGE[bidirectional][0]), *LARGE[bidirectional]]
    for query, key in np.random.default_rng(0).integers(0, length, (3000, 2)):
        distance, side = abs(key - query), 0
        if key > query:
            distance, side = (distance, 16) if bidirectional else (0, 0)
        assert got[query, key] == side + sum(start <= distance for start in starts) - 1


def test_relative_positions_are_distances():
    """Positions of packed rows change nothing; BART's do."""
    other = BATCH | {"positions": BATCH["positions"][::-1]}
    np.testing.assert_array_equal(hidden(T5, other), hidden(T5, BATCH))
    assert not np.allclose(hidden(BART, other), hidden(BART, BATCH), atol=1e-2)


def test_remat_and_unrolling_change_nothing():
    def value_and_gradient(config):
        def loss(params):
            out = EncoderDecoder(config).apply({"params": params}, **BATCH)
            return (out * jnp.cos(jnp.arange(16.0)).reshape(1, 1, 16)).mean()

        return jax.jit(jax.value_and_grad(loss))(params_of(T5))

    want, gradient = value_and_gradient(T5)
    for leaf in jax.tree.leaves(gradient):  # the encoder's too, through the decoder
        assert np.abs(leaf).max() > 0
    got, other = value_and_gradient(dataclasses.replace(T5, remat="full", unroll=2))
    assert float(got) == pytest.approx(float(want), rel=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-3), other, gradient
    )


@pytest.mark.parametrize("name", SHAPES)
def test_forward_flops_equal_the_compilers_count(name):
    """Of unrolled stacks. XLA counts the pairs that a causal mask hides as well."""
    config = dataclasses.replace(
        SHAPES[name], hidden_size=64, head_size=48, ffn_size=256, unroll=3, max_positions=64
    )
    model, tokens = EncoderDecoder(config), jnp.zeros((2, 64), jnp.int32)
    params = nn.unbox(jax.eval_shape(model.init, KEY, tokens))["params"]
    lowered = jax.jit(lambda p, t: model.apply({"params": p}, t)).lower(params, tokens)
    counted = lowered.compile().cost_analysis()["flops"]
    hidden_pairs = 0 if config.reads == "encoder" else 3 * 64 * 63 // 2
    expected = 2 * (model.forward_flops(64) + 4 * hidden_pairs * 2 * 48)
    assert counted == pytest.approx(expected, rel=0.06)


def test_initial_sizes_of_t5():
    """As transformers draws them (Mesh TensorFlow's rule)."""
    config = dataclasses.replace(
        T5, vocab_size=1000, num_layers=1, num_decoder_layers=1, hidden_size=64, head_size=16,
        num_heads=8, ffn_size=512, relative_buckets=128, relative_distance=256, init_std=0.125,
        fan_in_init=True,
    )  # fmt: skip
    boxed = jax.jit(EncoderDecoder(config).init)(KEY, jnp.zeros((1, 8), jnp.int32))
    params = nn.unbox(boxed)["params"]
    layers, inner = params["decoder"]["layers"], 8 * 16
    for leaf, std in (
        (params["word"]["embedding"], 1.0),
        (params["decoder"]["relative"]["embedding"], 64**-0.5),
        (layers["attention"]["query"]["kernel"], (64 * 16) ** -0.5),
        (layers["cross_attention"]["key"]["kernel"], 64**-0.5),
        (layers["attention"]["out"]["kernel"], inner**-0.5),
        (layers["ffn"]["gate"]["kernel"], 64**-0.5),
        (layers["ffn"]["out"]["kernel"], 512**-0.5),
    ):
        assert np.std(leaf) == pytest.approx(std, rel=0.05)


def test_first_t5_scales_what_it_ties():
    """T5 1.0: decoder states / sqrt(D) against the word embedding."""
    config = dataclasses.replace(T5, tied=True, scale_logits=True)
    model, params = language_model("encoder_decoder", config), {"trunk": params_of(config)}
    states = hidden(config, BATCH)
    got = model.apply({"params": params}, states, method="logits")
    want = states @ params["trunk"]["word"]["embedding"].T / math.sqrt(16)
    np.testing.assert_allclose(got, want, atol=1e-4, rtol=1e-4)


COUNTS = {  # of T5Model and BartModel, by transformers 4.48.3 on the meta device
    (t5, "small"): 60_511_616,
    (t5, "base"): 222_903_552,
    (t5, "large"): 750_251_008,
    (t5, "xl"): 2_783_959_040,
    (t5, "xxl"): 11_003_736_064,
    (bart, "base"): 139_420_416,
    (bart, "large"): 406_291_456,
}
ENCODERS = {  # of T5EncoderModel
    "small": 35_332_800,
    "base": 109_628_544,
    "large": 341_231_104,
    "xl": 1_223_527_424,
    "xxl": 4_762_310_656,
}
FIRST = {  # of T5Model for T5 1.0: layers, width, feed-forward width, heads
    (6, 512, 2048, 8): 60_506_624,
    (12, 768, 3072, 12): 222_903_552,
    (24, 1024, 4096, 16): 737_668_096,
}


def count(options) -> int:
    boxed = jax.eval_shape(EncoderDecoder(options).init, KEY, jnp.zeros((1, 8), jnp.int32))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(boxed))


@pytest.mark.parametrize("family, size", COUNTS)
def test_published_sizes(family, size):
    config = family.get_config(f"{size},published")
    options = tasks.backbone_options(configs.Reader(config))
    assert count(options) == COUNTS[family, size]
    if family is t5:
        assert count(dataclasses.replace(options, reads="encoder")) == ENCODERS[size]


@pytest.mark.parametrize("shape", FIRST)
def test_published_sizes_of_t5_1_0(shape):
    layers, width, ffn, heads = shape
    options = dataclasses.replace(
        T5, vocab_size=32128, num_layers=layers, num_decoder_layers=0, hidden_size=width,
        ffn_size=ffn, num_heads=heads, head_size=0, relative_buckets=32, relative_distance=128,
        activation="relu", gated=False,
    )  # fmt: skip
    assert count(options) == FIRST[shape]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"reads": "both"}, r"model\.reads: found 'both', expected one of decoder, encoder"),
        ({"position": "rotary"}, r"model\.position: found 'rotary', expected one of learned, rel"),
        ({"head_size": 0, "num_heads": 3}, r"model\.num_heads: 3 does not divide hidden_size 16"),
        ({"relative_buckets": 6}, r"model\.relative_buckets: found 6, expected a multiple of 4"),
        ({"relative_distance": 4}, r"model\.relative_distance: found 4, expected more than half"),
        ({"pooler": "modernbert"}, r"model\.pooler: found 'modernbert', expected one of bert, rob"),
        ({"position_offset": 2}, r"model\.position_offset: found 2 with position 'relative'"),
        ({"decoder_start_id": 64}, r"decoder_start_id: found 64, expected an id below vocab_size"),
        ({"decoder_start_id": -1}, r"decoder_start_id: found -1, expected at least 0"),
    ],
)
def test_options_that_make_no_model_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(T5, **changes)


def test_rows_longer_than_the_model_are_refused():
    with pytest.raises(ValueError, match="33 tokens a row, max_positions 32"):
        jax.eval_shape(EncoderDecoder(T5).init, KEY, jnp.zeros((1, 33), jnp.int32))
