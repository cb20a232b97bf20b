"""Layers shared by all models: dense, norm, embedding, dropout, rotary angles.

Parameters are float32 and carry logical axis names (``pretrain.sharding`` maps them to a mesh);
``dtype`` is the type of the activations.
"""

import math
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from pretrain.sharding import constrain, gathered, is_split


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
    x: jax.Array, matrix: jax.Array, *, transposed: bool = False, dtype: str | None = None
) -> jax.Array:
    """``x [..., I]`` by ``matrix [I, O]``, or ``[O, I]`` transposed: ``[..., O]`` of ``dtype``."""

    def dot(x):
        contracted = (((x.ndim - 1,), (1 if transposed else 0,)), ((), ()))
        return jax.lax.dot_general(x, matrix, contracted, preferred_element_type=dtype)

    if is_split("length"):  # devices have parts of every row: no part of the flat B x S positions
        return dot(x)
    # One two-dimensional product: the CPU backend is slow on anything else, going backward.
    return dot(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], -1)


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
        inputs = math.prod(in_shape)
        x = x.reshape(*leading, inputs).astype(self.dtype)
        kernel = gathered(kernel.astype(self.dtype), *self.in_axes, *self.out_axes)
        y = product(x, kernel.reshape(inputs, -1))
        if self.use_bias:
            bias = self.param(
                "bias",
                nn.with_logical_partitioning(nn.initializers.zeros, tuple(self.out_axes)),
                tuple(self.out_shape),
            )
            y = y + bias.astype(self.dtype).reshape((1,) * len(leading) + (-1,))
        y = y.reshape(*leading, *self.out_shape)
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
        table = gathered(jnp.asarray(self.embedding), self.axis, "embed")
        rows = table.at[ids].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
        return rows.astype(self.dtype)


def attention_scores(query: jax.Array, key: jax.Array) -> jax.Array:
    """``[B, H, Q, d]`` by ``[B, H, K, d]`` -> ``[B, H, Q, K]``, float32 whatever the inputs are."""
    key = constrain(key, "batch", "heads", None, None)  # of all positions: queries may be split
    return jnp.einsum("bhqd,bhkd->bhqk", query, key, preferred_element_type=jnp.float32)


def attend(
    module: nn.Module, scores: jax.Array, value: jax.Array, mask: jax.Array, deterministic: bool
) -> jax.Array:
    """Means ``[B, Q, H, d]`` of ``value [B, H, K, d]`` by the softmax of ``scores [B, H, Q, K]``.

    What ``mask``, bool ``[B, 1, Q, K]``, hides gets the least float32 and not minus infinity: a
    row that sees nothing would be NaN. ``module`` tells the masked scores as
    ``attention_scores``; of its config are the dropout of the weights and their ``dtype``.
    """
    cfg = module.config
    scores = constrain(scores, "batch", "heads", "length", None)
    value = constrain(value, "batch", "heads", None, None)
    scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
    module.sow("intermediates", "attention_scores", scores)
    weights = nn.softmax(scores).astype(cfg.dtype)
    rng = None if deterministic else module.make_rng("dropout")
    weights = dropout(weights, cfg.attention_dropout, rng)
    return jnp.einsum("bhqk,bhkd->bhqd", weights, value).swapaxes(1, 2)


def mix(word: jax.Array) -> jax.Array:
    """A bijection of uint32 whose output bits all depend on all input bits (MurmurHash3 final)."""
    word = (word ^ (word >> 16)) * jnp.uint32(0x85EBCA6B)
    word = (word ^ (word >> 13)) * jnp.uint32(0xC2B2AE35)
    return word ^ (word >> 16)


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Inverted dropout; ``key=None`` or ``rate=0`` returns ``x``.

    The mask hashes each element's index with the key: cheaper than a counter-based generator, it
    fuses into what surrounds it, and does not depend on how ``x`` is laid out over devices.
    """
    if key is None or rate == 0.0:
        return x
    seed = jax.random.bits(key, (2,), jnp.uint32)
    # One hash of the row's place in the leading dimension, one of the element's place in its row:
    # neither index leaves 32 bits, and a sharded dimension stays an iota.
    row = jax.lax.broadcasted_iota(jnp.uint32, (x.shape[0],) + (1,) * (x.ndim - 1), 0)
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
    first, second = x[..., :half].astype(jnp.float32), x[..., half:].astype(jnp.float32)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1)
    return rotated.astype(x.dtype)
