"""Copies of parameters for groups of rows: what they hold, and how their gradients are summed."""

import functools
import re

import jax
import numpy as np
import pytest

from pretrain import fsdp, schema, sharding, state
from pretrain.costs import costs, group_size
from pretrain.models.families import language_model
from pretrain.models.layers import Embed
from pretrain.models.transformer_xl import TransformerXLConfig
from pretrain.objectives.causal import CausalLM
from tests import tiny

MESH = tiny.mesh(fsdp=4, fsdp_y=2)
FULL = {"slices": 2, "fsdp": 2, "fsdp_y": 2}
RAGGED = np.random.default_rng(0).normal(size=(12, 8)).astype(np.float32)


@pytest.mark.parametrize(
    "sizes, names",
    [
        (FULL, ("embed", "mlp")),
        (FULL, ("heads", "embed")),
        ({"data": 2, "fsdp": 2, "tensor": 2}, ("mlp", "embed")),
        ({"fsdp_y": 4, "tensor": 2}, ("embed", "embed_out")),
        ({"data": 4, "fsdp_y": 2}, ("types", "norm")),  # not in pieces
        ({"fsdp": 8}, ("embed", "mlp")),  # 12 do not divide
    ],
    ids=str,
)
def test_each_group_of_rows_has_a_copy_and_gradients_are_their_sum(sizes, names):
    mesh = tiny.mesh(**sizes)
    rows = np.arange(16 * 3, dtype=np.float32).reshape(16, 3)
    stored = jax.NamedSharding(mesh, sharding.partition(RAGGED.shape, names, mesh))

    def weighted(x, rows):
        found = fsdp.copies(x, len(rows), *names)
        mine = fsdp.by_group(rows)
        assert found.shape == (*mine.shape[:3], *x.shape)
        per_group = (found * found).sum((-1, -2)) * mine.sum((-1, -2))
        return per_group.sum(), mine

    with jax.set_mesh(mesh):
        x = jax.device_put(RAGGED, stored)
        split = jax.device_put(rows, sharding.batch_sharding(mesh))
        grad, mine = jax.jit(jax.grad(weighted, has_aux=True))(x, split)
    assert grad.sharding.is_equivalent_to(stored, 2)
    np.testing.assert_allclose(grad, 2 * RAGGED * rows.sum(), rtol=1e-5)
    for part in mine.addressable_shards:  # each with the rows that its device held before
        held = next(x.data for x in split.addressable_shards if x.device == part.device)
        np.testing.assert_array_equal(part.data.reshape(held.shape), held)


@pytest.mark.parametrize(
    "sizes, rows, split",
    [
        ({"tensor": 4}, 16, (None, "tensor")),  # a mesh that splits no rows
        ({"fsdp": 4, "tensor": 2}, 6, (None, "tensor")),  # and rows that it does not divide
        ({"fsdp": 4}, 0, ()),  # none
    ],
    ids=str,
)
def test_parameters_are_whole_where_rows_are(sizes, rows, split):
    names, mesh = ("embed", "mlp"), tiny.mesh(**sizes)
    with jax.set_mesh(mesh):
        assert fsdp.group_sizes(rows) == ()
        stored = jax.NamedSharding(mesh, sharding.partition(RAGGED.shape, names, mesh))
        x = jax.jit(lambda x: fsdp.copies(x, rows, *names))(jax.device_put(RAGGED, stored))
    assert x.sharding.is_equivalent_to(jax.NamedSharding(mesh, jax.P(*split)), 2)
    np.testing.assert_array_equal(x, RAGGED)


def test_without_a_mesh_a_parameter_is_itself():
    assert fsdp.copies(RAGGED, 16, "embed", None) is RAGGED
    assert fsdp.group_sizes(16) == ()


@pytest.mark.parametrize("at", range(3))
def test_pieces_of_any_dimension_keep_their_order(at):
    """As of attention's kernels, ``[heads, kv, embed]`` among them, in bfloat16 too."""
    shape, names = [4, 2, 6], ["heads", "kv", "embed"]
    shape[at], shape[2] = shape[2], shape[at]
    names[at], names[2] = names[2], names[at]
    shape[at] = 8
    x = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    mesh = tiny.mesh(fsdp=2, fsdp_y=2, tensor=2)
    stored = jax.NamedSharding(mesh, sharding.partition(x.shape, names, mesh))

    def squares(x):
        copies = fsdp.copies(x.astype("bfloat16"), 4, *names).astype("float32")
        return (copies * copies).sum() / 8

    with jax.set_mesh(mesh):
        grad = jax.jit(jax.grad(squares))(jax.device_put(x, stored))
    assert grad.sharding.is_equivalent_to(stored, 3)
    np.testing.assert_allclose(grad, x, rtol=0.02)


@functools.cache
def compiled(family="transformer", chunk_size=16, **shape):
    """The objective of a causal model and an update of it, compiled for 4 x 2 devices."""
    shape = dict(num_layers=2, hidden_size=64, num_heads=4, vocab_size=512, dropout=0.0) | shape
    if family == "transformer":
        shape = dict(ffn_size=256, tied=False, head_bias=False, bias=False) | shape
        objective = tiny.causal(chunk_size, head_transform=False, **shape)
    else:
        options = TransformerXLConfig(**schema.MODELS[family] | shape)
        objective = CausalLM(language_model(family, options), chunk_size)
    shapes = state.shapes(tiny.lm_batch(8, 16))
    return objective, state.compile_train_step(objective, tiny.sgd(), MESH, 1, shapes).program


def spent(**options):
    return costs(compiled(**options)[1].as_text())


def wire(**options):
    """Bytes that a device sends, by kind."""
    return {k: v.wire for k, v in spent(**options).collectives.items()}


def test_gradients_are_scattered_in_stages():
    """Over 4 x 2 devices a piece goes 3/4 of the way at full size, then half of a quarter."""
    leaves = jax.tree.leaves(state.abstract(compiled()[0], tiny.sgd(), MESH).params)
    sent, params = wire(), sum(x.size for x in leaves)
    assert sent["reduce-scatter"] == pytest.approx(4 * params * (3 / 4 + 1 / 8), rel=0.1)
    assert sent["all-reduce"] < 0.1 * sent["reduce-scatter"]  # norms


def test_parameters_are_gathered_in_stages():
    text = compiled()[1].as_text()
    gathers = re.findall(r" all-gather(?:-start)?\(.*", text)
    assert {group_size(x, 8) for x in gathers} == {4, 2}


CLUSTERS = dict(embedding_size=32, ffn_size=64, cutoffs="128,256", div_val=2, mem_len=0)


@pytest.mark.parametrize("options", [{}, {"family": "transformer_xl", **CLUSTERS}], ids=len)
def test_the_loss_in_chunks_sends_no_more_than_whole(options):
    """But for the gradients of biases."""
    chunks, whole = wire(**options, chunk_size=2), wire(**options)
    for kind in ("all-gather", "reduce-scatter"):
        assert chunks[kind] == pytest.approx(whole[kind], rel=0.05)


def test_a_layer_keeps_no_copies_for_the_backward_pass():
    """With no rematerialisation: what a layer more takes is less than its weights."""
    size = {}
    for layers in (2, 6):
        program = compiled(num_layers=layers, ffn_size=1024)[1]
        size[layers] = program.memory_analysis().temp_size_in_bytes
    weights = 4 * (4 * 64 * 64 + 2 * 64 * 1024)
    assert (size[6] - size[2]) / 4 < 0.6 * weights


def test_minimal_rematerialisation_keeps_products_with_copies():
    """Only attention's own products are computed again, a fifth of these layers' or less."""
    none, minimal, full = (spent(remat=x).flops for x in ("none", "minimal", "full"))
    assert 0 < minimal - none < 0.2 * (full - none)


def test_an_embedding_is_looked_up_by_group():
    ids = np.random.default_rng(1).integers(0, 12, (16, 5))
    layer = Embed(12, 8, "vocab")
    params = {"params": {"embedding": RAGGED}}
    with jax.set_mesh(tiny.mesh(**FULL)):
        text = jax.jit(layer.apply).lower(params, ids).as_text()
        found = jax.jit(layer.apply)(params, jax.device_put(ids))
    assert "2x2x2x12x8" in text
    np.testing.assert_array_equal(found, RAGGED[ids])
