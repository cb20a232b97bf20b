"""Pooling, and the vocabulary head against NumPy."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pretrain.errors import UserError
from pretrain.models.families import language_model
from pretrain.models.heads import Classifier, LMHead, Tagger, pool
from pretrain.models.transformer import Transformer
from tests import tiny

HIDDEN = np.random.default_rng(0).normal(size=(3, 5, 4)).astype(np.float32)
SEGMENTS = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0]], np.int32)


def test_pools_look_at_real_positions_only():
    np.testing.assert_array_equal(pool(HIDDEN, SEGMENTS, "first"), HIDDEN[:, 0])
    last = pool(jnp.asarray(HIDDEN), SEGMENTS, "last")
    np.testing.assert_array_equal(last[:2], HIDDEN[[0, 1], [4, 1]])
    mean = np.asarray(pool(jnp.asarray(HIDDEN), SEGMENTS, "mean"))
    np.testing.assert_allclose(mean[0], HIDDEN[0].mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(mean[1], HIDDEN[1, :2].mean(0), rtol=1e-5, atol=1e-6)
    assert np.isfinite(mean[2]).all()


def test_what_is_behind_a_text_does_not_change_its_class():
    model = Classifier(Transformer(tiny.transformer()), 3, "mean", 0.0)
    tokens = np.array([[2, 9, 8, 7, 3, 0, 0, 0]], np.int32)
    batch = {"tokens": tokens, "segment_ids": (tokens > 0).astype(np.int32)}
    params = jax.jit(model.init)(jax.random.key(0), batch)
    logits = jax.jit(model.apply)
    want = logits(params, batch)
    other = dict(batch, tokens=np.where(tokens > 0, tokens, 55))
    np.testing.assert_allclose(logits(params, other), want, atol=1e-6)
    changed = dict(batch, tokens=np.where(tokens == 8, 11, tokens))
    assert not np.allclose(logits(params, changed), want, atol=1e-6)


@pytest.mark.parametrize("transform", [True, False])
def test_lm_head_is_tied_to_the_word_embedding(transform):
    config = tiny.transformer(head_transform=transform, head_bias=transform)
    model = language_model("transformer", config)
    tokens = jnp.zeros((1, 8), jnp.int32)
    variables = jax.jit(lambda key: model.init(key, tokens, method="initialise"))(jax.random.key(0))
    params = jax.device_get(nn.unbox(variables)["params"])
    assert ("lm_head" in params) == transform
    hidden = np.random.default_rng(1).normal(size=(2, 3, 16)).astype(np.float32)
    got = model.apply({"params": params}, hidden, method="logits")
    x = hidden.astype(np.float64)
    bias = 0.0
    if transform:
        head = params["lm_head"]
        x = x @ head["transform"]["kernel"] + head["transform"]["bias"]
        x = np.asarray(nn.gelu(x, approximate=False))
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12)
        x, bias = x * head["norm"]["scale"] + head["norm"]["bias"], head["bias"]
    expected = x @ params["trunk"]["word"]["embedding"].T + bias
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4)


def test_logits_of_a_bfloat16_model_are_float32():
    config = tiny.transformer(dtype="bfloat16")
    embedding = jnp.ones((tiny.VOCAB, 16), jnp.bfloat16)
    hidden = jnp.ones((2, 16), jnp.bfloat16)
    variables = LMHead(config).init(jax.random.key(0), hidden, embedding)
    assert LMHead(config).apply(variables, hidden, embedding).dtype == jnp.float32


def test_a_tagger_with_a_pooler_that_has_no_layer_is_refused():
    trunk = Transformer(tiny.transformer(pooler="none"))
    with pytest.raises(UserError, match=r"config\.model\.pooler: found .none., which has no layer"):
        Tagger(trunk, 3, 0.0, True)
    Tagger(trunk, 3, 0.0)
