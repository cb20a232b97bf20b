"""The mesh, and one table from logical names of dimensions to mesh axes.

``docs/sharding.md`` tells how to choose a mesh; ``python -m tools.explain_sharding`` what
becomes of a model on it.
"""

import functools
import itertools
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from pretrain.errors import UserError

# slices    groups of devices that a slower network joins: replicas
# data      replicas within a slice
# fsdp      rows, and parameters with their optimizer state, gathered where they are used (ZeRO 3;
#           Rajbhandari et al. 2020)
# fsdp_y    the same over a second axis: 16 x 16 chips of a torus gather and scatter in two stages,
#           each within a ring, where one axis of 256 reduces gradients whole
# tensor    heads, feed-forward width and vocabulary (Shoeybi et al. 2019)
# sequence  positions of activations
AXES = ("slices", "data", "fsdp", "fsdp_y", "tensor", "sequence")
FSDP = ("fsdp", "fsdp_y")
BATCH_AXES = ("slices", "data", *FSDP)
SPLITTING_AXES = (*FSDP, "tensor")  # of parameters
MAX_WHOLE = 0.02  # share of the parameters that may lie whole on every device of a mesh of these

# Logical name -> groups of mesh axes, in order of preference. Of the first group of which any axis
# is larger than one, not yet taken by another dimension of the same array, and divides it, a
# dimension takes all that divide it together; if there is none it stays whole.
RULES: dict[str, tuple[tuple[str, ...], ...]] = {
    # activations
    "batch": (BATCH_AXES,),
    "length": (("sequence",),),  # positions
    # parameters; activations have these names too, where ``batch`` has taken FSDP
    "vocab": (("tensor",), FSDP),
    "embed": (FSDP,),  # the hidden width, as most matrices have it once
    "embed_out": (("tensor",),),  # the second width of a square matrix
    "heads": (("tensor",),),
    "kv": (),  # within a head
    "mlp": (("tensor",),),
    "features": ((*FSDP, "tensor"),),  # hashed, of linear models
    "positions": (("tensor",),),  # rows of a learned table
    "types": (),
    "classes": (),
    "norm": (),
    "layers": (),  # a scan goes over them
}

logger = logging.getLogger(__name__)


def parse_mesh(text: str) -> dict[str, int]:
    """``"fsdp:4,tensor:2"`` -> the size of every axis; those that are not named have 1."""
    sizes = dict.fromkeys(AXES, 1)
    for part in filter(None, text.split(",")):
        axis, _, size = part.partition(":")
        if axis not in AXES or not size.isdecimal() or int(size) < 1:
            raise UserError(
                f"--mesh: found {part!r} in {text!r}, expected AXIS:SIZE with one of "
                f"{', '.join(AXES)}"
            )
        sizes[axis] = int(size)
    return sizes


def abstract_mesh(sizes: Mapping[str, int]) -> AbstractMesh:
    """A mesh without devices, to lay out abstract arrays on."""
    shape = tuple(sizes[axis] for axis in AXES)
    return AbstractMesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def make_mesh(sizes: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over all devices; one size may be -1: what the others leave.

    On a TPU axes follow the torus, and ``slices`` are its slices. Elsewhere they may be any groups
    of devices that follow each other.
    """
    devices = jax.devices() if devices is None else list(devices)
    shape = [sizes[axis] for axis in AXES]
    known = math.prod(size for size in shape if size != -1)
    if shape.count(-1) > 1 or any(size < 1 and size != -1 for size in shape):
        raise UserError(f"config.mesh: found {dict(sizes)}, expected sizes >= 1, at most one -1")
    if len(devices) % known or (-1 not in shape and known != len(devices)):
        raise UserError(
            f"config.mesh: found {dict(sizes)}, which does not fit {len(devices)} devices"
        )
    shape = [len(devices) // known if size == -1 else size for size in shape]
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if devices[0].platform == "tpu" and shape[0] != slices:
        raise UserError(
            f"config.mesh.slices: found {shape[0]}, expected {slices}, the number of TPU slices of "
            "this job"
        )
    if slices > 1 and shape[0] == slices:
        joined = [slices] + [1] * (len(shape) - 1)
        array = mesh_utils.create_hybrid_device_mesh(
            [1, *shape[1:]], joined, devices, allow_split_physical_axes=True
        )
    else:
        array = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(array, AXES, axis_types=(AxisType.Auto,) * len(AXES))


class Placement(NamedTuple):
    """Mesh axes of one dimension, and what it would have had if that had divided it."""

    axes: tuple[str, ...]
    note: str


def placements(
    shape: Sequence[int], names: Sequence[str | None], mesh: Mesh | AbstractMesh
) -> list[Placement]:
    """Where `RULES` put the dimensions of one array. An unknown logical name is a ``KeyError``."""
    taken: set[str] = set()
    found = []
    for size, name in zip(shape, names, strict=True):
        groups = RULES[name] if name is not None else ()
        groups = [[a for a in g if mesh.shape[a] > 1 and a not in taken] for g in groups]
        groups = [group for group in groups if group]
        axes = next((fit for group in groups if (fit := _dividing(size, group, mesh))), ())
        note = ""
        if groups and axes != tuple(groups[0]):
            wanted = " x ".join(f"{axis}={mesh.shape[axis]}" for axis in groups[0])
            instead = f"split over {'+'.join(axes)} instead" if axes else "left whole"
            note = f"{name} of size {size} does not divide over {wanted}: {instead}"
        taken.update(axes)
        found.append(Placement(axes, note))
    return found


def _dividing(size: int, axes: Sequence[str], mesh: Mesh | AbstractMesh) -> tuple[str, ...]:
    """Of the subsets of ``axes`` that divide ``size``, that of most devices."""

    def ways(subset):
        return math.prod(mesh.shape[axis] for axis in subset)

    counts = range(len(axes), 0, -1)
    subsets = itertools.chain.from_iterable(itertools.combinations(axes, n) for n in counts)
    return max((s for s in subsets if size % ways(s) == 0), key=ways, default=())


def spec(found: Sequence[Placement]) -> PartitionSpec:
    """The `PartitionSpec` that puts dimensions there."""
    return PartitionSpec(*(p.axes[0] if len(p.axes) == 1 else p.axes or None for p in found))


def partition(
    shape: Sequence[int], names: Sequence[str | None], mesh: Mesh | AbstractMesh
) -> PartitionSpec:
    """The spec of one array by `RULES`, with a warning for each dimension that falls back."""
    found = placements(shape, names, mesh)
    for name, (_, note) in zip(names, found, strict=True):
        if note and name != "batch":  # `check_batch` refuses rows that do not divide
            _warn(note)
    return spec(found)


@functools.lru_cache  # once, however many arrays and compilations
def _warn(note: str) -> None:
    logger.warning("%s", note)


def layout(shape: Sequence[int], *names: str | None) -> PartitionSpec | None:
    """`partition` on the mesh that a step is compiled for; None where that has one device."""
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty or mesh.size == 1 else partition(shape, names, mesh)


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """``x`` laid out as the names of its dimensions say, in a step compiled for a mesh."""
    found = layout(x.shape, *names)
    return x if found is None else jax.lax.with_sharding_constraint(x, found)


def per_device(
    function: Callable[..., jax.Array],
    arrays: Sequence[jax.Array],
    names: Sequence[Sequence[str | None]],
) -> jax.Array:
    """``function`` of what each device has of ``arrays``: of kernels, which no compiler splits.

    ``names`` are those of their dimensions; what comes out lies as the first one does.
    """
    specs = tuple(layout(x.shape, *of_x) for x, of_x in zip(arrays, names, strict=True))
    if specs[0] is None:
        return function(*arrays)
    mapped = jax.shard_map(function, in_specs=specs, out_specs=specs[0], check_vma=False)
    return mapped(*arrays)


def platform() -> str:
    """Of the devices that a step is compiled for, which need not be here; else of those here."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device is not None else jax.default_backend()


def is_split(name: str) -> bool:
    """Whether the mesh that a step is compiled for has devices to split such a dimension."""
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and any(mesh.shape[a] > 1 for group in RULES[name] for a in group)


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


def axes_of(sharding: NamedSharding) -> set[str]:
    """Mesh axes of more than one device that split an array of this sharding."""
    entries = (e if isinstance(e, tuple) else (e,) for e in sharding.spec if e is not None)
    return {axis for entry in entries for axis in entry if sharding.mesh.shape[axis] > 1}


def check_sharded(params: Any, mesh: Mesh | AbstractMesh) -> None:
    """`UserError` if the axes for parameters leave more than 2 % whole, or ``tensor`` splits none.

    An axis of FSDP that splits none still splits rows, and is warned of.

    ``params``: a tree of arrays or of abstract ones, with shardings.
    """
    sizes = {axis: mesh.shape[axis] for axis in SPLITTING_AXES if mesh.shape[axis] > 1}
    if not sizes:
        return
    leaves = jax.tree_util.tree_leaves_with_path(params)
    split = [axes_of(leaf.sharding) for _, leaf in leaves]
    if "tensor" in sizes and not any("tensor" in axes for axes in split):
        raise UserError(
            f"config.mesh.tensor: found {sizes['tensor']}, which divides no heads, feed-forward "
            "width or vocabulary of this model; expected 1"
        )
    whole = [leaf for leaf, axes in zip(leaves, split, strict=True) if not axes]
    share = sum(leaf.size for _, leaf in whole) / sum(leaf.size for _, leaf in leaves)
    if share <= MAX_WHOLE:
        for axis in (axis for axis in sizes if not any(axis in axes for axes in split)):
            told = "config.mesh.%s: found %d, which splits no parameter of this model, only rows"
            logger.warning(told, axis, sizes[axis])
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
    """Rows over all axes but ``tensor`` and ``sequence``."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def check_batch(key: str, batch_size: int, mesh: Mesh, accumulate: int = 1) -> None:
    """`UserError` if the rows of a batch do not divide over the mesh."""
    ways = math.prod(mesh.shape[axis] for axis in BATCH_AXES) * accumulate
    if batch_size % ways:
        raise UserError(
            f"config.{key}: {batch_size} rows do not divide over {dict(mesh.shape)} x "
            f"{accumulate} micro-batches; expected a multiple of {ways}"
        )


def check_length(key: str, length: int, mesh: Mesh) -> None:
    """`UserError` if the positions of a row do not divide over ``sequence``; 0: they cannot."""
    if (ways := mesh.shape["sequence"]) == 1:
        return
    if not length:
        raise UserError(
            f"config.mesh.sequence: found {ways} with a model that reads one position after the "
            "other or none at all; expected 1"
        )
    if length % ways:
        raise UserError(
            f"config.{key}: rows of {length} positions do not divide over mesh.sequence {ways}; "
            "expected a multiple"
        )


@functools.lru_cache
def local_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """Rows of a global batch that lie on devices of this process, sorted: those that it reads."""
    held = batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
    return np.unique(np.concatenate([np.arange(batch_size)[index] for index in held.values()]))


def to_global(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Puts this process's rows of a batch, its `local_rows`, where `batch_sharding` says."""
    layout = batch_sharding(mesh)
    if jax.process_count() == 1:
        return jax.device_put(batch, layout)
    ways = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    parts = local_rows(mesh, ways)

    def place(rows: np.ndarray) -> jax.Array:
        size = len(rows) // len(parts)

        def part(index: tuple[slice, ...]) -> np.ndarray:
            start = int(np.searchsorted(parts, (index[0].start or 0) // size)) * size
            return rows[start : start + size]

        return jax.make_array_from_callback((size * ways, *rows.shape[1:]), layout, part)

    return {name: place(rows) for name, rows in batch.items()}


def _same(array: jax.Array) -> jax.Array:
    return array


def place(array: Any, layout: NamedSharding) -> jax.Array:
    """An array that is the same in all processes, or laid out over all, as ``layout`` says."""
    if jax.process_count() == 1:
        return jax.device_put(array, layout)
    if isinstance(array, jax.Array):
        return jax.jit(_same, out_shardings=layout)(array)
    array = np.asarray(array)
    return jax.make_array_from_callback(array.shape, layout, lambda index: array[index])


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Every array of a tree whole on every device."""
    return jax.tree.map(lambda x: place(x, NamedSharding(mesh, PartitionSpec())), tree)


def to_host(array: Any) -> np.ndarray:
    """The whole of an array, in every process that has a part of it."""
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        return multihost_utils.process_allgather(array, tiled=True)
    return np.asarray(array)
