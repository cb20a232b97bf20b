"""Meshes, and where the rules put dimensions."""

import logging

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from configs import bert
from pretrain import sharding, state
from pretrain.errors import UserError
from tests import tiny


def test_mesh_gives_one_axis_what_is_left():
    sizes = dict.fromkeys(sharding.AXES, 1) | {"data": -1, "fsdp": 2, "tensor": 2}
    mesh = sharding.make_mesh(sizes)
    assert {axis: size for axis, size in mesh.shape.items() if size > 1} == {
        "data": 2,
        "fsdp": 2,
        "tensor": 2,
    }
    assert mesh.size == 8


@pytest.mark.parametrize(
    "sizes",
    [
        {"data": 3},
        {"data": 4},
        {"data": 16},
        {"data": -1, "fsdp": 3},
        {"data": -1, "fsdp": -1},
        {"data": 0},
        {"data": -2},
    ],
    ids=str,
)
def test_meshes_that_do_not_fit_are_refused(sizes):
    sizes = dict.fromkeys(sharding.AXES, 1) | sizes
    with pytest.raises(UserError, match=r"config\.mesh: found \{'slices'"):
        sharding.make_mesh(sizes)


@pytest.mark.parametrize(
    "shape, names, sizes, spec",
    [
        ((16, 32), ("embed", "mlp"), {"fsdp": 4, "tensor": 2}, P("fsdp", "tensor")),
        ((2, 16, 32), ("layers", "embed", "mlp"), {"fsdp": 4}, P(None, "fsdp", None)),
        ((64, 16), ("vocab", "embed"), {"fsdp": 2, "tensor": 2}, P("tensor", "fsdp")),
        ((64, 16), ("vocab", "embed"), {"fsdp": 4}, P("fsdp", None)),  # taken by vocab
        ((63, 16), ("vocab", "embed"), {"fsdp": 4}, P(None, "fsdp")),  # 63 does not divide
        ((63, 16), ("vocab", "embed"), {"fsdp": 3, "tensor": 2}, P("fsdp", None)),
        ((16, 2, 8), ("embed", "heads", "kv"), {"tensor": 2}, P(None, "tensor", None)),
        ((3,), ("classes",), {"fsdp": 4}, P(None)),
        ((8, 8), (None, "embed"), {"fsdp": 4}, P(None, "fsdp")),
        ((16, 32), ("embed", "mlp"), {"fsdp": 4, "fsdp_y": 2}, P(("fsdp", "fsdp_y"), None)),
        ((12, 32), ("embed", "mlp"), {"fsdp": 4, "fsdp_y": 2}, P("fsdp", None)),
        ((6, 32), ("embed", "mlp"), {"fsdp": 4, "fsdp_y": 2}, P("fsdp_y", None)),
        ((12, 16), ("vocab", "embed"), {"fsdp": 4, "fsdp_y": 2}, P("fsdp", "fsdp_y")),
        ((16, 3), ("features", "classes"), {"fsdp": 4, "tensor": 2}, P(("fsdp", "tensor"), None)),
        ((8, 6, 4), ("batch", "length", "embed"), {"data": 2, "fsdp": 2, "sequence": 2},
         P(("data", "fsdp"), "sequence", None)),
    ],
    ids=str,
)  # fmt: skip
def test_dimensions_take_the_first_axis_that_divides_them(shape, names, sizes, spec):
    assert sharding.partition(shape, names, tiny.mesh(**sizes)) == spec


def test_a_dimension_that_its_first_axis_does_not_divide_says_so_once(caplog):
    sharding._warn.cache_clear()
    mesh = tiny.mesh(tensor=2, fsdp=4)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            sharding.partition((3, 16), ("heads", "embed"), mesh)
            sharding.partition((36, 32), ("vocab", "mlp"), mesh)  # divides; mlp finds tensor taken
            sharding.partition((4, 8), ("vocab", "embed"), tiny.mesh(fsdp=4))  # embed: fsdp taken
            sharding.partition((3, 3), ("classes", "norm"), mesh)  # want no axis
            sharding.partition((9, 12), ("features", None), tiny.mesh(tensor=3, fsdp=2))
    assert [r.getMessage() for r in caplog.records] == [
        "heads of size 3 does not divide over tensor=2: left whole",
        "features of size 9 does not divide over fsdp=2 x tensor=3: split over tensor instead",
    ]


def test_unknown_names_are_no_silent_replication():
    with pytest.raises(KeyError, match="embde"):
        sharding.partition((4,), ("embde",), tiny.mesh())


def test_boxed_trees_get_shardings_and_scalars_are_replicated():
    mesh = tiny.mesh(fsdp=4)
    boxed = {
        "kernel": nn.LogicallyPartitioned(jnp.zeros((8, 2)), ("embed", "classes")),
        "history": nn.LogicallyPartitioned(jnp.zeros((5, 8, 2)), ("embed", "classes")),
        "count": jnp.zeros(()),
    }
    specs = {name: s.spec for name, s in sharding.shardings(boxed, mesh).items()}
    assert specs == {"kernel": P("fsdp", None), "history": P(None, "fsdp", None), "count": P()}


@pytest.mark.parametrize("sizes", [{"fsdp": 8}, {"tensor": 2}, {"fsdp": 4, "tensor": 2}], ids=str)
def test_nearly_all_of_a_model_is_split(sizes):
    """Of configs/bert.py:tiny, also where the vocabulary does not divide."""
    shape = bert.get_config("tiny").model.to_dict()
    shape = {k: v for k, v in shape.items() if k != "name"} | {"vocab_size": 4096}
    mesh = tiny.mesh(**sizes)
    objective = tiny.mlm(**shape)
    sharding.check_sharded(state.abstract(objective, tiny.adamw(), mesh).params, mesh)
    if "fsdp" in sizes:
        objective = tiny.mlm(**shape | {"vocab_size": 4095})
        sharding.check_sharded(state.abstract(objective, tiny.adamw(), mesh).params, mesh)


def test_a_model_that_stays_whole_is_refused():
    """Seven heads do not divide over two devices, nor do 63 pieces; one device splits nothing."""
    objective = tiny.mlm(vocab_size=63, num_heads=7, hidden_size=28)
    mesh = tiny.mesh(data=2, tensor=2)
    params = state.abstract(objective, tiny.adamw(), mesh).params
    with pytest.raises(
        UserError, match=r"config\.mesh: \{'tensor': 2\} splits no dimension of"
    ) as e:
        sharding.check_sharded(params, mesh)
    whole = sum(leaf.size for leaf in jax.tree.leaves(params) if "tensor" not in leaf.sharding.spec)
    total = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert f"of {whole / total:.2%} of the parameters, expected at most 2%" in str(e.value)
    assert "the largest: trunk/word/embedding (63, 28), trunk/layers/attention/" in str(e.value)
    mesh = tiny.mesh(data=8)
    sharding.check_sharded(state.abstract(objective, tiny.adamw(), mesh).params, mesh)


def test_a_tensor_axis_that_splits_nothing_is_refused():
    """Seven heads, a feed-forward block of 35, 63 pieces and positions: none is even."""
    odd = dict(vocab_size=63, num_heads=7, hidden_size=28, ffn_size=35, max_positions=63)
    objective = tiny.mlm(**odd, head_transform=False)
    params = state.abstract(objective, tiny.adamw(), tiny.mesh(fsdp=4, tensor=2)).params
    with pytest.raises(UserError, match=r"config\.mesh\.tensor: found 2, which divides no heads"):
        sharding.check_sharded(params, tiny.mesh(fsdp=4, tensor=2))


def test_an_axis_of_fsdp_that_splits_no_parameter_says_so(caplog):
    """4 divides a width of 60, 8 does not: the parameters lie on 4 devices, twice."""
    objective = tiny.mlm(hidden_size=60, vocab_size=63)
    told = "config.mesh.fsdp_y: found 2, which splits no parameter of this model, only rows"
    for sizes, expected in (({"fsdp": 4, "fsdp_y": 2}, [told]), ({"fsdp": 2, "fsdp_y": 2}, [])):
        mesh = tiny.mesh(**sizes)
        caplog.clear()
        sharding.check_sharded(state.abstract(objective, tiny.adamw(), mesh).params, mesh)
        assert [text for text in caplog.messages if "config.mesh" in text] == expected


def test_axes_follow_slices_and_the_sides_of_the_torus():
    chips = [tiny.Chip(i, side=4) for i in range(32)]
    sizes = dict.fromkeys(sharding.AXES, 1) | {"slices": 2, "fsdp": 4, "fsdp_y": 4}
    array = sharding.make_mesh(sizes, chips[::-1]).devices.reshape(2, 4, 4)
    for number, members in enumerate(array):
        assert {chip.slice_index for chip in members.flat} == {number}
        rows, columns = ([{c.coords[side] for c in line} for line in members] for side in (0, 1))
        assert {len(line) for line in rows} | {len(line) for line in columns} == {1, 4}
    for wrong in ({"data": 32}, {"slices": 4, "fsdp": 8}):
        told = r"config\.mesh\.slices: found \d, expected 2, the number of TPU slices of this job"
        with pytest.raises(UserError, match=told):
            sharding.make_mesh(dict.fromkeys(sharding.AXES, 1) | wrong, chips)


def test_meshes_in_words():
    sizes = sharding.parse_mesh("fsdp:4,tensor:2")
    assert {k: v for k, v in sizes.items() if v > 1} == {"fsdp": 4, "tensor": 2}
    assert sharding.abstract_mesh(sizes).size == 8
    for text in ("fsdp", "fsdp:0", "fsdp:-1", "fdsp:2", "fsdp=2"):
        with pytest.raises(UserError, match=f"--mesh: found '{text}' in '{text}', expected AXIS"):
            sharding.parse_mesh(text)


def test_positions_divide_over_sequence():
    mesh = tiny.mesh(sequence=4)
    sharding.check_length("train.seq_len", 24, mesh)
    with pytest.raises(UserError, match=r"config\.train\.seq_len: rows of 26 positions"):
        sharding.check_length("train.seq_len", 26, mesh)
    with pytest.raises(UserError, match=r"config\.mesh\.sequence: found 4 with a model that"):
        sharding.check_length("train.seq_len", 0, mesh)
    sharding.check_length("train.seq_len", 0, tiny.mesh(data=8))


def test_batches_divide_over_devices_and_micro_batches():
    mesh = tiny.mesh(data=2, fsdp=2, tensor=2)
    sharding.check_batch("train.batch_size", 8, mesh, accumulate=2)
    with pytest.raises(UserError, match=r"config\.train\.batch_size: 12 rows .* multiple of 8"):
        sharding.check_batch("train.batch_size", 12, mesh, accumulate=2)


def test_rows_lie_on_data_and_fsdp():
    rows = np.arange(16).reshape(8, 2)
    placed = sharding.to_global({"tokens": rows}, tiny.mesh(data=2, fsdp=2, tensor=2))["tokens"]
    np.testing.assert_array_equal(placed, rows)
    assert {s.data.shape for s in placed.addressable_shards} == {(2, 2)}
    assert isinstance(placed, jax.Array) and len(placed.sharding.device_set) == 8
