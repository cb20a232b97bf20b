"""Parameters in pieces over devices, whole where they are used (ZeRO 3; Rajbhandari et al. 2020).

Every group of devices with rows of its own computes with a copy of a parameter. Copies are a
dimension of the array that the compiler sees, so that it is told, and does not guess, when
gradients are summed: once for each use of `copies`, however many products in a loop share one.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.sharding import PartitionSpec

from pretrain.sharding import BATCH_AXES, FSDP, Placement, placements, spec

REPLICAS = tuple(axis for axis in BATCH_AXES if axis not in FSDP)
GROUPS = (REPLICAS, *((axis,) for axis in FSDP))  # the mesh axes that split rows


def group_sizes(rows: int) -> tuple[int, ...]:
    """How many groups of devices have rows of their own, by `GROUPS`; () where ``rows`` are whole.

    Of the mesh that a step is compiled for; rows that do not divide over it are whole too.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return ()
    sizes = tuple(math.prod(mesh.shape[axis] for axis in group) for group in GROUPS)
    count = math.prod(sizes)
    return sizes if count > 1 and rows and rows % count == 0 else ()


def by_group(x: jax.Array) -> jax.Array:
    """``[B, ...] -> [*groups, B / groups, ...]``, each group with the rows that it holds."""
    sizes = group_sizes(len(x))
    x = x.reshape(*sizes, -1, *x.shape[1:])
    others = [PartitionSpec.UNCONSTRAINED] * (x.ndim - len(sizes))
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*GROUPS, *others))


def copies(x: jax.Array, rows: int, *names: str | None) -> jax.Array:
    """A parameter as layers use it on a batch of so many ``rows``: ``[*groups, *shape]``.

    ``names`` are those of its dimensions. Where rows are whole, so is the parameter: ``[*shape]``.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    found = tuple(placements(x.shape, names, mesh))
    if any(set(p.axes) & set(FSDP) and set(p.axes) - set(FSDP) for p in found):
        raise ValueError(f"{names}: a dimension over FSDP and another axis has no order of pieces")
    if sizes := group_sizes(rows):
        return _copies(x, found, sizes)
    return jax.lax.with_sharding_constraint(x, _kept(found, ()))


def in_pieces() -> bool:
    """Whether the mesh that a step is compiled for has axes that split parameters."""
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and any(mesh.shape[axis] > 1 for axis in FSDP)


def all_but_copies(primitive: Primitive, *_, **params: Any) -> bool:
    """A policy of ``jax.checkpoint``: keeps what is computed, not `copies`, only laid out."""
    if called := params.get("call_jaxpr"):
        return any(all_but_copies(step.primitive, **step.params) for step in called.eqns)
    return primitive.name not in ("sharding_constraint", "broadcast_in_dim")


def _kept(found: Sequence[Placement], axes: Sequence[str]) -> PartitionSpec:
    """How a parameter lies that only these FSDP axes still split."""
    kept = (tuple(a for a in p.axes if a not in FSDP or a in axes) for p in found)
    return spec([Placement(axes, "") for axes in kept])


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _copies(x: jax.Array, found: tuple[Placement, ...], sizes: tuple[int, ...]) -> jax.Array:
    # An axis at a time, each a ring of the torus: over both at once the TPU compiler gathers some
    # parameters by adding up zeros, at twice the traffic.
    for axes in (FSDP[:1], ()):
        x = jax.lax.with_sharding_constraint(x, _kept(found, axes))
    x = jnp.broadcast_to(x, sizes + x.shape)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*GROUPS, *_kept(found, ())))


def _sum_copies(found, sizes, _, grad):
    mesh = jax.sharding.get_abstract_mesh()

    def add(grad):
        grad = grad.reshape(grad.shape[len(sizes) :])
        for axis in FSDP:
            dimension = next((d for d, place in enumerate(found) if axis in place.axes), None)
            if mesh.shape[axis] == 1:
                continue
            if dimension is None:
                grad = jax.lax.psum(grad, axis)
                continue
            # Pieces as a dimension of their own in front: along a minor one of an array's layout
            # the TPU compiler does not scatter, but reduces the whole and slices it.
            before, after = grad.shape[:dimension], grad.shape[dimension + 1 :]
            merged = (math.prod(before),) if before else ()
            grad = grad.reshape(*merged, mesh.shape[axis], -1, *after)
            grad = jax.lax.psum_scatter(jnp.moveaxis(grad, len(merged), 0), axis)
            grad = grad.reshape(*before, -1, *after)
        others = tuple(axis for axis in REPLICAS if mesh.shape[axis] > 1)
        return jax.lax.psum(grad, others) if others else grad

    whole = PartitionSpec(*GROUPS, *_kept(found, ()))
    return (jax.shard_map(add, in_specs=whole, out_specs=spec(found), check_vma=False)(grad),)


_copies.defvjp(lambda x, found, sizes: (_copies(x, found, sizes), None), _sum_copies)
