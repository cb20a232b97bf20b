"""How a model is laid out on a mesh, array by array, without devices, data or a tokenizer.

    python -m tools.explain_sharding --config=configs/bert.py:large,published --mesh=fsdp:4,tensor:2
    python -m tools.explain_sharding --config=configs/gpt.py:6b7,published --mesh=fsdp:16,fsdp_y:16
    python -m tools.explain_sharding --remake=tests/golden/sharding

A line an array: its shape, the logical names of its dimensions, for each of them what the rules say
(mesh axes in order of preference, "|" between them; "-" for none), what it got, the bytes on each
device, and what it would have had if that divided it. Then totals. Exit code 1 where training would
refuse the mesh for what it does to the parameters. docs/sharding.md tells how to choose one.

--remake writes every table of a folder again, by the command in its first line.
"""

import logging
import pathlib
import shlex
from collections.abc import Iterator
from typing import Any

import jax
from absl import flags
from jax.sharding import AbstractMesh
from ml_collections import ConfigDict, config_flags

from pretrain import blank, cli, sharding, state, tasks
from pretrain import config as configs
from pretrain.errors import UserError
from pretrain.trees import flatten


def axes_text(axes: Any) -> str:
    """Of one dimension: "fsdp+fsdp_y", "-" for none."""
    return axes if isinstance(axes, str) else "+".join(axes or ()) or "-"


def rule_text(name: str | None, mesh: AbstractMesh) -> str:
    """What the rules have for a name on this mesh, in order of preference."""
    groups = sharding.RULES[name] if name else ()
    groups = [[axis for axis in group if mesh.shape[axis] > 1] for group in groups]
    return "|".join(axes_text(group) for group in groups if group) or "-"


def device_bytes(tree: Any) -> int:
    """Of all arrays of a tree, on each device."""
    return sum(_device_bytes(leaf) for leaf in jax.tree.leaves(tree))


def _device_bytes(leaf: jax.ShapeDtypeStruct) -> int:
    part = jax.ShapeDtypeStruct(leaf.sharding.shard_shape(leaf.shape), leaf.dtype)
    return part.size * part.dtype.itemsize


def lines(params: Any, names: dict[str, tuple], mesh: AbstractMesh) -> Iterator[tuple[str, ...]]:
    """A row of cells for each array of parameters."""
    for path, leaf in flatten(params).items():
        found = sharding.placements(leaf.shape, names[path], mesh)
        yield (
            path,
            " x ".join(map(str, leaf.shape)),
            ", ".join(name or "-" for name in names[path]),
            ", ".join(rule_text(name, mesh) for name in names[path]),
            ", ".join(axes_text(placement.axes) for placement in found),
            f"{_device_bytes(leaf):,}",
            "; ".join(placement.note for placement in found if placement.note),
        )


def totals(train_state: state.TrainState, mesh: AbstractMesh) -> Iterator[str]:
    """What parameters and optimizer state come to, and what splits them."""
    parts = {"parameters": train_state.params, "optimizer state": train_state.opt_state}
    if train_state.mean is not None:
        parts["average"] = train_state.mean
    for name, tree in parts.items():
        whole = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
        yield f"{name}: {whole:,} bytes, {device_bytes(tree):,} on each device"
    leaves = jax.tree.leaves(train_state.params)
    total = sum(leaf.size for leaf in leaves)
    split = [(leaf.size, sharding.axes_of(leaf.sharding)) for leaf in leaves]
    for axis in sharding.SPLITTING_AXES:
        if mesh.shape[axis] > 1:
            share = sum(size for size, axes in split if axis in axes) / total
            yield f"{axis} splits {share:.2%} of {total:,} parameters"
    yield f"left whole: {sum(size for size, axes in split if not axes) / total:.2%}"


def explain(config: ConfigDict, sizes: dict[str, int]) -> tuple[str, UserError | None]:
    """The table and the totals; also what training would refuse the mesh with."""
    mesh = sharding.abstract_mesh(sizes)
    objective = blank.objective(config)
    optimizer = tasks.make_optimizer(configs.Reader(config))
    train_state = state.abstract(objective, optimizer, mesh)
    header = ("parameter", "shape", "names", "rule", "spec", "bytes/device", "fallback")
    names = state.parameter_names(objective)
    rows = [header, *lines(train_state.params, names, mesh)]
    table = cli.table(rows, right=(header.index("bytes/device"),))
    text = "\n".join([f"{mesh.size} devices", "", table, "", *totals(train_state, mesh)])
    try:
        sharding.check_sharded(train_state.params, mesh)
    except UserError as error:
        return text, error
    return text, None


def remade(text: str) -> str:
    """A committed table made again: its first line is the command."""
    command = text.partition("\n")[0]
    given = dict(part.lstrip("-").split("=", 1) for part in shlex.split(command) if "=" in part)
    path, _, arg = given["config"].partition(":")
    config = configs.load(str(pathlib.Path(__file__).parents[1] / path), arg or None)
    return f"{command}\n{explain(config, sharding.parse_mesh(given['mesh']))[0]}\n"


def run() -> None:
    given = flags.FLAGS
    if given.remake is not None:
        for file in sorted(pathlib.Path(given.remake).glob("*.txt")):
            file.write_text(remade(file.read_text()))
            print(file)
        return
    sizes = {axis: max(size, 1) for axis, size in given.config.mesh.items()}  # -1: nothing is left
    if given.mesh is not None:
        sizes = sharding.parse_mesh(given.mesh)
    logging.getLogger("pretrain.sharding").setLevel(logging.ERROR)  # the table tells it all
    text, refused = explain(given.config, sizes)
    print(text)
    if refused is not None:
        raise refused


if __name__ == "__main__":
    config_flags.DEFINE_config_file(
        "config", "configs/bert.py", "A config file and its argument behind a colon."
    )
    flags.DEFINE_string(
        "mesh", None, "Sizes of axes: fsdp:4,tensor:2; by default those of config.mesh."
    )
    flags.DEFINE_string("remake", None, "A folder of tables to write again.")
    cli.main(run, __doc__)
