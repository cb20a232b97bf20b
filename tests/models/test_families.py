"""What is asked of every family: options that do something, poolers that can be built."""

import ast
import dataclasses
import inspect
import textwrap

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pretrain import schema
from pretrain.errors import UserError
from pretrain.models import (
    adaptive,
    attention,
    encoder_decoder,
    heads,
    mobilebert,
    transformer,
    transformer_xl,
)
from pretrain.models.families import FAMILIES
from pretrain.models.layers import micro_batch
from tests import tiny

PARTS = {  # of each, the parts that read its options beside those that all families have
    "transformer": (transformer, heads.LMHead),
    "mobilebert": (mobilebert,),
    "transformer_xl": (transformer_xl, adaptive),
    "encoder_decoder": (encoder_decoder, transformer.FeedForward, heads.LMHead),
}
COMMON = (heads.Pooler, attention.attend)


def read_options(part) -> set[str]:
    """Names read from ``cfg``, or by an options class from ``self`` but to check them."""
    used = set()

    def walk(node, names):
        if isinstance(node, ast.ClassDef):
            names = {"cfg", "self"} if node.name.endswith("Config") else {"cfg"}
        if isinstance(node, ast.FunctionDef) and node.name == "__post_init__":
            return
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            used.update({node.attr} if node.value.id in names else ())
        for child in ast.iter_child_nodes(node):
            walk(child, names)

    walk(ast.parse(textwrap.dedent(inspect.getsource(part))), {"cfg"})
    return used


@pytest.mark.parametrize("name", FAMILIES)
def test_every_field_of_the_config_is_used(name):
    used = set().union(*map(read_options, (*PARTS[name], *COMMON)))
    assert not {field.name for field in dataclasses.fields(FAMILIES[name].options)} - used


@pytest.mark.parametrize("name", sorted(FAMILIES.keys() - {"transformer"}))  # see test_state
def test_dropout_in_micro_batches_is_that_of_the_whole_batch(name):
    """Also of what all rows share, as relative positions."""
    section = schema.MODELS[name] | tiny.SHAPE | {"dropout": 0.3, "attention_dropout": 0.3}
    section |= {"embedding_size": 16} if "embedding_size" in section else {}
    model = FAMILIES[name].backbone(FAMILIES[name].options(**section))
    rng = np.random.default_rng(0)
    ids = jnp.asarray(rng.integers(5, tiny.VOCAB, (4, 8)).astype(np.int32))
    shapes = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), ids))["params"]
    params = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), shapes)

    def forward(ids):
        rngs = {"dropout": jax.random.key(1)}
        return model.apply({"params": params}, ids, deterministic=False, rngs=rngs)

    def part(number):
        with micro_batch(number, 2):
            return forward(jnp.where(number == 0, ids[::2], ids[1::2]))

    whole, parts = jax.jit(lambda: (forward(ids), jax.lax.map(part, jnp.arange(2))))()
    for number in range(2):
        np.testing.assert_allclose(parts[number], whole[number::2], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_pooler_that_is_accepted_can_be_built(name):
    family, built = FAMILIES[name], set()
    section = schema.MODELS[name] | tiny.SHAPE
    section |= {"embedding_size": 16} if "embedding_size" in section else {}
    ids = jnp.ones((2, 8), jnp.int32)
    for pooler in heads.POOLERS:
        try:
            options = family.options(**section | {"pooler": pooler})
        except UserError as error:
            assert str(error).startswith(f"config.model.pooler: found '{pooler}', expected one of")
            continue
        model = heads.Encoder(family.backbone(options), True)
        init = jax.eval_shape(lambda m=model: m.init(jax.random.key(0), ids, method="initialise"))
        assert ("pooler" in init["params"]) == (pooler != "none")
        built.add(pooler)
    assert schema.MODELS[name]["pooler"] in built
    assert (built == set(heads.POOLERS)) == (name == "transformer")
