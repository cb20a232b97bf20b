"""Layers shared by all models: dense, norm, embedding, dropout, rotary angles.

Parameters are float32 and carry logical axis names (``pretrain.sharding`` maps them to a mesh);
``dtype`` is the type of the activations.
"""

import contextlib
import contextvars
import functools
import math
from collections.abc import Callable, Iterator, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from pretrain.fsdp import by_group, copies
from pretrain.models.options import PRODUCT
from pretrain.sharding import constrain, is_split, platform


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
    """``x * Phi(x)`` with the exact normal distribution (Hendrycks & Gimpel 2016).

    The forward pass keeps the derivative: automatic differentiation would keep two arrays and
    evaluate the error function's derivative once more.
    """
    return _gelu_forward(x)[0]


def _gelu_forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    wide = x.astype(jnp.float32)
    cdf = 0.5 * (1.0 + jax.lax.erf(wide * math.sqrt(0.5)))
    density = jnp.exp(-0.5 * wide * wide) * (1.0 / math.sqrt(2.0 * math.pi))
    return (wide * cdf).astype(x.dtype), (cdf + wide * density).astype(x.dtype)


gelu.defvjp(_gelu_forward, lambda derivative, grad: (grad * derivative,))

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": gelu,
    "gelu_tanh": lambda x: nn.gelu(x, approximate=True),
    "relu": nn.relu,
    "silu": nn.silu,
    "tanh": jnp.tanh,
}


def product(
    x: jax.Array,
    matrix: jax.Array,
    *,
    dims: tuple[int, int] = (1, 1),
    transposed: bool = False,
    dtype: str | None = None,
) -> jax.Array:
    """``x [..., *I]`` by ``matrix [*I, *O]``, or ``[*O, *I]`` transposed: ``[..., *O]``.

    ``dims``: how many dimensions ``I`` and ``O`` have. ``matrix`` may be `copies` for the rows of
    ``x``. ``dtype``: of the result.
    """
    inputs, outputs = dims
    groups, leading = matrix.ndim - inputs - outputs, x.shape[: x.ndim - inputs]
    first = groups + outputs * transposed  # of the dimensions of matrix that are contracted
    contracted = tuple(range(first, first + inputs))
    shape = matrix.shape[groups : groups + outputs] if transposed else matrix.shape[-outputs:]
    if groups:
        x, over = by_group(x), tuple(range(groups))
        ours = tuple(range(x.ndim - inputs, x.ndim))
        y = jax.lax.dot_general(x, matrix, ((ours, contracted), (over, over)), None, dtype)
        return y.reshape(*leading, *shape)
    # One two-dimensional product: the CPU backend is slow on anything else, going backward. But
    # where devices have parts of every row, they have no part of the flat B x S positions.
    size = math.prod(x.shape[-inputs:])
    x = x.reshape(*leading, size) if is_split("length") else x.reshape(-1, size)
    matrix = matrix.reshape(-1, size) if transposed else matrix.reshape(size, -1)
    contracted = ((x.ndim - 1,), (int(transposed),))
    y = jax.lax.dot_general(x, matrix, (contracted, ((), ())), None, dtype)
    return y.reshape(*leading, *shape)


class Dense(nn.Module):
    """``x [..., *in] @ kernel [*in, *out] (+ bias [*out])`` -> ``[..., *out]``.

    ``in_axes`` and ``out_axes`` are the logical names of the contracted and the new dimensions.
    """

    in_axes: Sequence[str]
    out_shape: Sequence[int]
    out_axes: Sequence[str]
    use_bias: bool = True
    init_std: float = 0.02
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        rank = len(self.in_axes)
        leading, in_shape = x.shape[:-rank], x.shape[-rank:]
        kernel = self.param(
            "kernel",
            nn.with_logical_partitioning(
                nn.initializers.normal(self.init_std), (*self.in_axes, *self.out_axes)
            ),
            (*in_shape, *self.out_shape),
        )
        kernel = kernel.astype(self.dtype)
        kernel = copies(kernel, len(x) if leading else 0, *self.in_axes, *self.out_axes)
        y = product(x.astype(self.dtype), kernel, dims=(rank, len(self.out_axes)))
        y = checkpoint_name(y, PRODUCT)
        if self.use_bias:
            bias = self.param(
                "bias",
                nn.with_logical_partitioning(nn.initializers.zeros, tuple(self.out_axes)),
                tuple(self.out_shape),
            )
            y = y + bias.astype(self.dtype).reshape((1,) * len(leading) + bias.shape)
        if len(leading) == 2:  # else, of one vector a row, or none, the inputs tell
            y = constrain(y, "batch", "length", *self.out_axes)
        return y


class LayerNorm(nn.Module):
    """Layer norm over the last dimension, in float32 (Ba et al. 2016)."""

    eps: float
    use_bias: bool = True
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = x.shape[-1:]
        scale = self.param(
            "scale", nn.with_logical_partitioning(nn.initializers.ones, ("norm",)), shape
        )
        x = x.astype(jnp.float32)
        x = x - x.mean(-1, keepdims=True)
        row = (1,) * (x.ndim - 1) + shape
        y = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + self.eps)
        y = y * scale.reshape(row)
        if self.use_bias:
            bias = self.param(
                "bias", nn.with_logical_partitioning(nn.initializers.zeros, ("norm",)), shape
            )
            y = y + bias.reshape(row)
        return y.astype(self.dtype)


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last dimension, in float32 (Zhang & Sennrich 2019)."""

    eps: float
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = x.shape[-1:]
        scale = self.param(
            "scale", nn.with_logical_partitioning(nn.initializers.ones, ("norm",)), shape
        )
        x = x.astype(jnp.float32)
        y = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + self.eps)
        return (y * scale.reshape((1,) * (x.ndim - 1) + shape)).astype(self.dtype)


class Embed(nn.Module):
    """Rows of a table: ``ids [...]`` -> ``[..., features]``.

    An id without a row, a negative one too, is a ``ValueError`` where ids are concrete, and NaN in
    compiled code: a clamped or wrapped id would train on nonsense in silence.
    """

    num_embeddings: int
    features: int
    axis: str
    init_std: float = 0.02
    dtype: str = "float32"

    def setup(self):
        self.embedding = self.param(
            "embedding",
            nn.with_logical_partitioning(
                nn.initializers.normal(self.init_std), (self.axis, "embed")
            ),
            (self.num_embeddings, self.features),
        )

    def __call__(self, ids: jax.Array) -> jax.Array:
        if not isinstance(ids, jax.core.Tracer) and ids.size:
            found = np.asarray(ids)
            low, high, last = found.min(), found.max(), self.num_embeddings - 1
            if low < 0 or high > last:
                raise ValueError(f"{self.name}: ids from {low} to {high}, expected 0 to {last}")
        table = jnp.asarray(self.embedding).astype(self.dtype)
        rows = functools.partial(_rows, shape=table.shape, dtype=self.dtype)
        table = copies(table, len(ids) if ids.ndim else 0, self.axis, "embed")
        if groups := table.ndim - 2:
            for _ in range(groups):
                rows = jax.vmap(rows)
            return rows(table, by_group(ids)).reshape(*ids.shape, -1)
        return rows(table, ids)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _rows(table: jax.Array, ids: jax.Array, shape: tuple[int, int], dtype: str) -> jax.Array:
    """Rows of a table of this shape and type. Frequent ones add up their gradients in float32."""
    del shape, dtype
    return table.at[ids].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)


def _add_rows(shape, dtype, ids, grad):
    total = (
        jnp.zeros(shape, jnp.float32)
        .at[ids]
        .add(grad.astype(jnp.float32), mode="drop", wrap_negative_indices=False)
    )
    return total.astype(dtype), None


_rows.defvjp(lambda table, ids, shape, dtype: (_rows(table, ids, shape, dtype), ids), _add_rows)


def mix(word: jax.Array) -> jax.Array:
    """A bijection of uint32 whose output bits all depend on all input bits (MurmurHash3 final)."""
    word = (word ^ (word >> 16)) * jnp.uint32(0x85EBCA6B)
    word = (word ^ (word >> 13)) * jnp.uint32(0xC2B2AE35)
    return word ^ (word >> 16)


_PART = contextvars.ContextVar("part", default=(0, 1))  # of the batch: its number, of how many


@contextlib.contextmanager
def micro_batch(number: jax.Array | int, count: int) -> Iterator[None]:
    """What is traced within sees rows ``number``, ``number + count``, ... of the whole batch."""
    token = _PART.set((number, count))
    try:
        yield
    finally:
        _PART.reset(token)


def dropout(x: jax.Array, rate: float, key: jax.Array | None, by_row: bool = True) -> jax.Array:
    """Inverted dropout; ``key=None`` or ``rate=0`` returns ``x``.

    The mask hashes each element's index with the key: cheaper than a counter-based generator, it
    fuses into what surrounds it, and does not depend on how ``x`` is laid out over devices. Rows,
    the leading dimension, count as in the whole batch (`micro_batch`): so it does not depend on how
    the batch is cut either. ``by_row``: false for what all rows share.
    """
    if key is None or rate == 0.0:
        return x
    seed = jax.random.bits(key, (2,), jnp.uint32)
    # One hash of the row's place in the leading dimension, one of the element's place in its row:
    # neither index leaves 32 bits, and a sharded dimension stays an iota.
    row = jax.lax.broadcasted_iota(jnp.uint32, (x.shape[0],) + (1,) * (x.ndim - 1), 0)
    if by_row:
        number, count = _PART.get()
        row = row * jnp.uint32(count) + jnp.asarray(number, jnp.uint32)
    index = jnp.zeros((1,) * x.ndim, jnp.uint32)
    for axis in range(1, x.ndim):
        index = index * jnp.uint32(x.shape[axis])
        index = index + jax.lax.broadcasted_iota(jnp.uint32, (1, *x.shape[1:]), axis)
    bits = mix((index * jnp.uint32(0x9E3779B9)) ^ mix(row + seed[0]) ^ seed[1])
    keep = bits >= jnp.uint32(round(rate * 2**32))
    return jnp.where(keep, x * jnp.asarray(1 / (1 - rate), x.dtype), jnp.zeros((), x.dtype))


def rotary(x: jax.Array, positions: jax.Array, base: float) -> jax.Array:
    """Rotates pairs (i, i + d/2) of ``x [B, S, H, d]`` by angles of ``positions [B, S]``.

    RoFormer (Su et al. 2021), in the "rotate half" layout.
    """
    half = x.shape[-1] // 2
    frequencies = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = positions.astype(jnp.float32)[:, :, None, None] * frequencies.reshape(1, 1, 1, half)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    if platform() == "tpu":
        cos, sin = jnp.concatenate([cos, cos], -1), jnp.concatenate([-sin, sin], -1)
        return (x.astype(jnp.float32) * cos + _swapped(x) * sin).astype(x.dtype)
    first, second = x[..., :half].astype(jnp.float32), x[..., half:].astype(jnp.float32)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1)
    return rotated.astype(x.dtype)


def _swapped(x: jax.Array) -> jax.Array:
    """Both halves of the last dimension of ``x [B, S, H, d]`` in each other's place, in float32.

    A product with a permutation, which is exact: TPUs are slow at moving parts of their registers.
    """
    matrix = jnp.roll(jnp.eye(x.shape[-1], dtype=x.dtype), x.shape[-1] // 2, 0)
    precision = None if x.dtype == jnp.bfloat16 else jax.lax.Precision.HIGHEST
    contracted = (((3,), (0,)), ((), ()))
    return jax.lax.dot_general(x, matrix, contracted, precision, jnp.float32)
