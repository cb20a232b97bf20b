"""What is asked of every family: options that do something, poolers that can be built."""

import ast
import dataclasses
import inspect
import textwrap

import jax
import jax.numpy as jnp
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
