"""The mesh, and one table from logical axis names to mesh axes.

Axes: ``data`` (replicas), ``fsdp`` (parameters and batch), ``tensor`` (heads, feed-forward,
vocabulary), ``sequence`` (positions of activations).
"""

import functools
import logging
import math
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from pretrain.errors import UserError

AXES = ("data", "fsdp", "tensor", "sequence")

# Logical name -> mesh axes to try, in order. A dimension takes the first that is larger than one,
# not yet taken by another dimension of the same array, and divides it; else it is replicated.
RULES: dict[str, tuple[str, ...]] = {
    "vocab": ("tensor", "fsdp"),
    "embed": ("fsdp",),
    "embed_out": ("tensor",),
    "heads": ("tensor",),
    "kv": (),
    "mlp": ("tensor",),
    "features": ("fsdp", "tensor"),
    "positions": ("tensor",),
    "types": (),
    "classes": (),
    "norm": (),
    "layers": (),
}
ACTIVATION_RULES = (("batch", ("data", "fsdp")), ("length", "sequence"))
BATCH_AXES = ("data", "fsdp")
SPLITTING_AXES = ("fsdp", "tensor")  # of parameters
MAX_WHOLE = 0.02  # share of the parameters that may lie whole on every device of a mesh of these

logger = logging.getLogger(__name__)


def make_mesh(sizes: dict[str, int], devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh over all devices; one size may be -1: what the others leave."""
    devices = jax.devices() if devices is None else devices
    shape = [sizes[axis] for axis in AXES]
    known = math.prod(size for size in shape if size != -1)
    if shape.count(-1) > 1 or any(size < 1 and size != -1 for size in shape):
        raise UserError(f"config.mesh: found {dict(sizes)}, expected sizes >= 1, at most one -1")
    if len(devices) % known or (-1 not in shape and known != len(devices)):
        raise UserError(
            f"config.mesh: found {dict(sizes)}, which does not fit {len(devices)} devices"
        )
    shape = [len(devices) // known if size == -1 else size for size in shape]
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def partition(shape: tuple[int, ...], names: tuple[str | None, ...], mesh: Mesh) -> PartitionSpec:
    """The spec of one array by `RULES`. An unknown logical name is a ``KeyError``."""
    taken: set[str] = set()
    spec: list[str | None] = []
    for size, name in zip(shape, names, strict=True):
        wanted = RULES[name] if name is not None else ()
        free = [a for a in wanted if mesh.shape[a] > 1 and a not in taken]
        chosen = next((a for a in free if size % mesh.shape[a] == 0), None)
        if free and chosen != free[0]:
            _warn(name, size, free[0], mesh.shape[free[0]], chosen)
        taken.update({chosen} - {None})
        spec.append(chosen)
    return PartitionSpec(*spec)


@functools.lru_cache  # once, however many arrays and compilations
def _warn(name: str, size: int, axis: str, ways: int, chosen: str | None) -> None:
    instead = f"split over {chosen} instead" if chosen else "left whole"
    logger.warning("%s of size %d does not divide over %s=%d: %s", name, size, axis, ways, instead)


def shardings(boxed: Any, mesh: Mesh) -> Any:
    """`NamedSharding` of every leaf of an abstract tree boxed by ``nn.with_logical_partitioning``.

    Leaves without names (optimizer scalars) are replicated.
    """

    def leaf(x):
        if isinstance(x, nn.LogicallyPartitioned):
            stacked = (None,) * (x.value.ndim - len(x.names))  # an optimizer's history of updates
            return NamedSharding(mesh, partition(x.value.shape, (*stacked, *x.names), mesh))
        return NamedSharding(mesh, PartitionSpec())

    return jax.tree.map(leaf, boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))


def check_sharded(params: Any, mesh: Mesh) -> None:
    """`UserError` if ``fsdp`` and ``tensor`` leave more than 2 % of the parameters whole.

    ``params``: a tree of arrays or of abstract ones, with shardings.
    """
    sizes = {axis: mesh.shape[axis] for axis in SPLITTING_AXES if mesh.shape[axis] > 1}
    leaves = jax.tree_util.tree_leaves_with_path(params)
    whole = [x for x in leaves if sizes.keys().isdisjoint(x[1].sharding.spec)]
    share = sum(leaf.size for _, leaf in whole) / sum(leaf.size for _, leaf in leaves)
    if not sizes or share <= MAX_WHOLE:
        return
    largest = sorted(whole, key=lambda x: -x[1].size)[:3]
    named = ", ".join(
        f"{jax.tree_util.keystr(path, simple=True, separator='/')} {leaf.shape}"
        for path, leaf in largest
    )
    raise UserError(
        f"config.mesh: {sizes} splits no dimension of {share:.2%} of the parameters, expected at "
        f"most {MAX_WHOLE:.0%}; the largest: {named}"
    )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over ``data`` and ``fsdp``."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def check_batch(key: str, batch_size: int, mesh: Mesh, accumulate: int = 1) -> None:
    """`UserError` if the rows of a batch do not divide over the mesh."""
    ways = math.prod(mesh.shape[axis] for axis in BATCH_AXES) * accumulate
    if batch_size % ways:
        raise UserError(
            f"config.{key}: {batch_size} rows do not divide over {dict(mesh.shape)} x "
            f"{accumulate} micro-batches; expected a multiple of {ways}"
        )


def to_global(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Puts this process's rows of a batch where `batch_sharding` says."""
    if jax.process_count() == 1:
        return jax.device_put(batch, batch_sharding(mesh))
    return {
        name: jax.make_array_from_process_local_data(batch_sharding(mesh), rows)
        for name, rows in batch.items()
    }
