"""MobileBERT: neighbours, bottlenecks, and the published sizes."""

import dataclasses
import functools
import math

import flax.linen as nn
import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from configs import mobilebert as shipped
from pretrain import config as configs
from pretrain import schema, tasks
from pretrain.errors import UserError
from pretrain.models.attention import SCORES
from pretrain.models.heads import Encoder, LanguageModel
from pretrain.models.mobilebert import MobileBert, MobileBertConfig, MobileBertLMHead, trigrams
from tests import tiny

SHAPE = dict(
    vocab_size=tiny.VOCAB, num_layers=2, hidden_size=24, embedding_size=8, bottleneck_size=12,
    num_heads=2, ffn_size=20, num_ffns=3, max_positions=32,
)  # fmt: skip
RELEASED = MobileBertConfig(**schema.MODELS["mobilebert"] | SHAPE)
TINY = dataclasses.replace(RELEASED, attention_input="bottleneck", num_ffns=2)
TEACHER = dataclasses.replace(
    RELEASED, attention_input="full", bottleneck_size=32, num_ffns=1, norm="layer",
    activation="gelu",
)  # fmt: skip
SHAPES = {"released": RELEASED, "tiny": TINY, "teacher": TEACHER}
BATCH = tiny.lm_batch(4, 24)
KEY = jax.random.key(0)


@functools.cache
def params_of(config):
    """Parameters with visible effects: no bias zero, no scale one; the padding piece is empty."""
    init = jax.eval_shape(MobileBert(config).init, KEY, jnp.zeros((1, 8), jnp.int32))
    leaves, tree = jax.tree.flatten(nn.unbox(init)["params"])
    rng = np.random.default_rng(0)
    noise = [rng.normal(0, 0.3, leaf.shape).astype(np.float32) for leaf in leaves]
    params = jax.tree.unflatten(tree, noise)
    params["word"]["embedding"][0] = 0
    return jax.tree.map_with_path(lambda path, x: x + (path[-1].key == "scale"), params)


@functools.cache
def compiled(config):
    return jax.jit(lambda params, inputs: MobileBert(config).apply({"params": params}, **inputs))


def hidden(config, **changes):
    """Of `BATCH`, changed."""
    inputs = {name: jnp.asarray(x, jnp.int32) for name, x in (BATCH | changes).items()}
    return np.asarray(compiled(config)(params_of(config), inputs), np.float32)


def test_trigrams_are_next_current_previous_within_a_document():
    words = np.random.default_rng(0).normal(size=(2, 6, 3)).astype(np.float32)
    segments = np.array([[1, 1, 2, 2, 0, 0], [1, 1, 1, 1, 1, 1]], np.int32)
    got = np.asarray(trigrams(jnp.asarray(words), jnp.asarray(segments)))
    zero = np.zeros(3)
    a, b, c, d, e, _ = words[0]
    for place, (after, here, before) in enumerate([(b, a, zero), (zero, b, a), (d, c, zero)]):
        np.testing.assert_array_equal(got[0, place], np.concatenate([after, here, before]))
    # What follows a text is padding, and counts.
    np.testing.assert_array_equal(got[0, 3], np.concatenate([e, d, c]))
    np.testing.assert_array_equal(got[1, 0], np.concatenate([words[1, 1], words[1, 0], zero]))
    np.testing.assert_array_equal(got[1, 5], np.concatenate([zero, words[1, 5], words[1, 4]]))


@pytest.mark.parametrize("name", SHAPES)
def test_packed_documents_are_as_in_rows_of_their_own(name):
    """Where what follows a text alone, the padding piece, is as empty as the edge of a row."""
    config, segments = SHAPES[name], BATCH["segment_ids"]
    packed = hidden(config)
    for segment in (1, 2):
        alone = {key: np.zeros_like(array) for key, array in BATCH.items()}
        for row, mine in enumerate(segments == segment):
            alone["tokens"][row, : mine.sum()] = BATCH["tokens"][row, mine]
            alone["positions"][row, : mine.sum()] = np.arange(mine.sum())
            alone["segment_ids"][row, : mine.sum()] = 1
        real = alone["segment_ids"] == 1
        want = hidden(config, **alone)[real]
        np.testing.assert_allclose(packed[segments == segment], want, rtol=1e-3, atol=1e-4)
    blind = hidden(config, segment_ids=segments > 0)
    assert np.abs(packed - blind)[segments > 0].max() > 0.1, "segments matter here"


@pytest.mark.parametrize("name", SHAPES)
def test_a_row_of_padding_is_finite_in_bfloat16(name):
    config = dataclasses.replace(SHAPES[name], dtype="bfloat16")
    empty = dict.fromkeys(BATCH, jnp.zeros((2, 8), jnp.int32))
    out = compiled(config)(params_of(SHAPES[name]), empty)
    assert out.dtype == jnp.bfloat16 and jnp.isfinite(out).all()


def test_types_and_positions_are_added():
    types = np.zeros_like(BATCH["tokens"])
    want = hidden(RELEASED)
    np.testing.assert_array_equal(want, hidden(RELEASED, token_types=types))
    for changes in ({"token_types": types + 1}, {"positions": BATCH["positions"] + 1}):
        other = hidden(RELEASED, **changes)
        assert (np.abs(other - want).max(-1) > 1e-3).all(), changes.keys()


def test_unrolling_and_remat_change_nothing():
    def squares(params, config):
        return jnp.square(MobileBert(config).apply({"params": params}, **BATCH)).sum()

    def derivatives(**changes):
        config = dataclasses.replace(RELEASED, **changes)
        tree = jax.jit(jax.grad(functools.partial(squares, config=config)))(params_of(RELEASED))
        return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])

    want, got = derivatives(), derivatives(unroll=2, remat="full")
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-5 * np.abs(want).max())


def test_layers_tell_their_hidden_states_and_attention_scores():
    """Those of the first layer are what a model of that layer alone gives."""
    params = params_of(RELEASED)
    apply = functools.partial(MobileBert(RELEASED).apply, mutable=["intermediates", SCORES])
    out, told = jax.jit(apply)({"params": params}, **BATCH)
    told, scores = told["intermediates"], told[SCORES]
    assert told["embedded"][0].shape == (4, 24, 24)
    (states,) = told["layers"]["hidden"]
    np.testing.assert_array_equal(states[-1], out)
    one = dataclasses.replace(RELEASED, num_layers=1)
    first = params | {"layers": jax.tree.map(lambda x: x[:1], params["layers"])}
    np.testing.assert_allclose(states[0], compiled(one)(first, BATCH), rtol=1e-4, atol=1e-4)
    (scores,) = scores["layers"]["attention"]["attention_scores"]
    assert scores.shape == (2, 4, 2, 24, 24)
    segments = BATCH["segment_ids"]
    seen = segments[:, None, :, None] == segments[:, None, None, :]
    assert ((scores[0] > -1e30) == np.broadcast_to(seen, scores.shape[1:])).all()


def test_attention_dropout_acts_in_training_only():
    @jax.jit
    def trained(params):
        rngs = {"dropout": KEY}
        return MobileBert(RELEASED).apply(params, **BATCH, deterministic=False, rngs=rngs)

    assert RELEASED.attention_dropout > 0
    assert not np.allclose(trained({"params": params_of(RELEASED)}), hidden(RELEASED), atol=1e-2)


@pytest.mark.parametrize("name", ["released", "teacher"])
def test_lm_head_is_the_word_embedding_beside_a_matrix_of_its_own(name):
    config = SHAPES[name]
    rng = np.random.default_rng(1)
    x, table = rng.normal(size=(2, 3, 24)), rng.normal(size=(tiny.VOCAB, 8))

    def logits(head, x, table):
        return head(x, head.matrix(table, len(x)))

    init = functools.partial(MobileBertLMHead(config).init, method=logits)
    shapes = jax.eval_shape(init, KEY, x, table)
    head = jax.tree.map(lambda s: rng.normal(size=s.shape), nn.unbox(shapes)["params"])
    inputs = jax.tree.map(jnp.float32, (head, x, table))
    got = MobileBertLMHead(config).apply({"params": inputs[0]}, *inputs[1:], method=logits)
    assert got.dtype == jnp.float32
    y = x @ head["transform"]["kernel"] + head["transform"]["bias"]
    erf = np.vectorize(math.erf)
    y = np.maximum(y, 0) if name == "released" else y * (1 + erf(y / np.sqrt(2))) / 2
    y = (y - y.mean(-1, keepdims=True)) / y.std(-1, keepdims=True)
    y = y * head["norm"]["scale"] + head["norm"]["bias"]
    want = y @ np.concatenate([table.T, head["kernel"]]) + head["bias"]
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-3)


def count_products(jaxpr) -> int:
    """FLOPs of all matrix products, those of loops as often as they run."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            inner = math.prod(equation.invars[0].aval.shape[i] for i in contracted)
            total += 2 * inner * math.prod(equation.outvars[0].aval.shape)
        times = equation.params.get("length", 1)
        for part in jax.extend.core.jaxprs_in_params(equation.params):
            total += times * count_products(part)
    return total


@pytest.mark.parametrize("name", SHAPES)
def test_forward_flops_are_all_matrix_products(name):
    config = SHAPES[name]
    model = LanguageModel(MobileBert(config), MobileBertLMHead(config))
    tokens = jnp.zeros((1, 20), jnp.int32)
    variables = jax.eval_shape(functools.partial(model.init, method="initialise"), KEY, tokens)
    run = functools.partial(model.apply, method="initialise")
    counted = count_products(jax.make_jaxpr(run)(nn.unbox(variables), tokens).jaxpr)
    assert model.forward_flops(20, predicted=20) == counted


def options(variant: str, **changes) -> MobileBertConfig:
    config = shipped.get_config(f"{variant},published")
    return dataclasses.replace(tasks.backbone_options(configs.Reader(config)), **changes)


def count(model: nn.Module) -> int:
    """Parameters, by shapes alone."""
    tokens = jnp.zeros((1, 8), jnp.int32)
    boxed = jax.eval_shape(functools.partial(model.init, method="initialise"), KEY, tokens)
    return sum(leaf.size for leaf in jax.tree.leaves(boxed))


def test_parameters_are_those_of_the_published_models():
    """Counts of the same options in `transformers.MobileBertModel`, shared tensors once."""
    released = options("released")
    assert count(Encoder(MobileBert(released), False)) == 24_581_888
    assert count(LanguageModel(MobileBert(released), MobileBertLMHead(released))) == 36_596_538
    pooled = dataclasses.replace(released, pooler="bert")
    assert count(Encoder(MobileBert(pooled), True)) == 24_844_544  # classifier_activation
    assert count(Encoder(MobileBert(options("tiny")), False)) == 15_485_696


@pytest.mark.parametrize(
    "variant, expected", [("released", 842_240), ("tiny", 463_232), ("teacher", 12_076_544)]
)
def test_parameters_of_a_layer(variant, expected):
    two, three = (count(Encoder(MobileBert(options(variant, num_layers=n)), False)) for n in (2, 3))
    assert three - two == expected


def test_the_teacher_is_the_one_that_was_trained():
    """`transformers` allocates queries and keys for the inner width, 1024, and feeds them 512."""
    teacher = options("teacher")
    published = count(Encoder(MobileBert(teacher), True))
    assert published == 294_467_840  # 293 M in the paper
    too_wide = teacher.bottleneck_size - teacher.hidden_size
    allocated = published + teacher.num_layers * 2 * too_wide * teacher.bottleneck_size
    assert allocated == 319_633_664


@pytest.mark.parametrize(
    "changes, said",
    [
        (dict(num_heads=5), "num_heads: 5 does not divide bottleneck_size 12"),
        (dict(embedding_size=25), "embedding_size: found 25, expected at most hidden_size 24"),
        (dict(num_ffns=0), "num_ffns: found 0, expected at least 1"),
        (dict(norm="rms"), "norm: found 'rms', expected one of none, layer"),
        (dict(attention_input="key"), "attention_input: found 'key', expected one of full, shared"),
        (dict(pooler="bart"), "pooler: found 'bart', expected one of bert, none"),
    ],
)
def test_options_that_make_no_model_are_refused(changes, said):
    with pytest.raises(UserError, match=f"config.model.{said}"):
        dataclasses.replace(RELEASED, **changes)


def test_rows_longer_than_the_model_are_refused():
    with pytest.raises(ValueError, match="33 tokens a row, max_positions 32"):
        hidden(RELEASED, tokens=np.ones((1, 33)))
