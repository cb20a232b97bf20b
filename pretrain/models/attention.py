"""Attention: the plain one, and kernels that compute the same without the scores in memory.

``model.attention`` names one of `KERNELS`, "auto" what the platform of the step has. Every kernel
sees what `attention_mask` and `near` say, and gives the numbers of the plain one up to rounding.
"""

import functools
import logging
from collections.abc import Callable
from typing import NamedTuple

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from pretrain.errors import UserError
from pretrain.models.layers import dropout
from pretrain.models.options import CONTEXT
from pretrain.sharding import constrain, is_split, layout, per_device, platform

KERNELS = ("auto", "plain", "splash", "cudnn")
FASTEST = {"tpu": "splash", "gpu": "cudnn", "cuda": "cudnn"}  # of a platform, where it can
LANES = 128  # a TPU's registers are as wide: blocks of keys and queries are multiples
BLOCK = 512  # positions at most; MaxText's default
VECTORS = "batch", None, "heads", None  # dimensions of queries, keys and values
SCORES = "scores"  # the collection in which the plain attention sows its masked scores

logger = logging.getLogger(__name__)


def attention_mask(
    segment_ids: jax.Array, causal: bool, prefix: jax.Array | None = None
) -> jax.Array:
    """``[B, S]`` -> bool ``[B, 1, S, S]``: which keys (last) each query sees.

    Only positions of the same segment; padding (0) sees padding, so that no row is empty. Causal:
    no later ones, but for those of the ``prefix``, bool ``[B, S]``, which all of their segment see.
    """
    mask = segment_ids[:, None, :, None] == segment_ids[:, None, None, :]
    if causal:
        earlier = jnp.tril(jnp.ones((1, 1, *mask.shape[-2:]), bool))
        mask &= earlier if prefix is None else earlier | prefix[:, None, None, :]
    return mask


def near(length: int, window: int) -> jax.Array:
    """Bool ``[1, 1, S, S]``: positions at most ``window`` apart."""
    place = jnp.arange(length)
    return (jnp.abs(place[:, None] - place[None, :]) <= window)[None, None]


def attention_scores(query: jax.Array, key: jax.Array) -> jax.Array:
    """``[B, H, Q, d]`` by ``[B, H, K, d]`` -> ``[B, H, Q, K]``, float32 whatever the inputs are."""
    key = constrain(key, "batch", "heads", None, None)  # of all positions: queries may be split
    return jnp.einsum("bhqd,bhkd->bhqk", query, key, preferred_element_type=jnp.float32)


def attend(
    module: nn.Module, scores: jax.Array, value: jax.Array, mask: jax.Array, deterministic: bool
) -> jax.Array:
    """Means ``[B, Q, H, d]`` of ``value [B, H, K, d]`` by the softmax of ``scores [B, H, Q, K]``.

    What ``mask``, bool ``[B, 1, Q, K]``, hides gets the least float32 and not minus infinity: a
    row that sees nothing would be NaN. ``module`` sows the masked scores in
    `SCORES`; of its config are the dropout of the weights and their ``dtype``.
    """
    cfg = module.config
    scores = constrain(scores, "batch", "heads", "length", None)
    value = constrain(value, "batch", "heads", None, None)
    scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
    if not module.is_initializing():  # of what is sown, init leaves out intermediates alone
        module.sow(SCORES, "attention_scores", scores)
    weights = nn.softmax(scores).astype(cfg.dtype)
    rng = None if deterministic else module.make_rng("dropout")
    weights = dropout(weights, cfg.attention_dropout, rng)
    context = jnp.einsum("bhqk,bhkd->bhqd", weights, value).swapaxes(1, 2)
    return checkpoint_name(context, CONTEXT)


class Shape(NamedTuple):
    """Of the attention that every layer of a trunk computes."""

    length: int
    heads: int
    kv_heads: int
    head_size: int
    dtype: str
    causal: bool
    window: int = 0  # of local layers, 0: there are none


class Masking(flax.struct.PyTreeNode):
    """Which positions of a row see each other, and what computes the attention between them."""

    segment_ids: jax.Array  # [B, S]
    mask: jax.Array | None  # bool [B, 1, S, S]; None: the kernel needs none
    kernel: str = flax.struct.field(pytree_node=False)
    shape: Shape = flax.struct.field(pytree_node=False)


def masking(
    asked: str,
    shape: Shape,
    segment_ids: jax.Array,
    *,
    prefix: jax.Array | None = None,
    rate: float = 0.0,
    scores: bool = False,
) -> Masking:
    """What all layers share, with the kernel that `choose` finds; arguments as there."""
    kernel = choose(asked, shape, prefix=prefix is not None, rate=rate, scores=scores)
    mask = None
    if kernel != "splash":
        mask = attention_mask(segment_ids, shape.causal, prefix)
    return Masking(segment_ids, mask, kernel, shape)


def choose(asked: str, shape: Shape, *, prefix: bool, rate: float, scores: bool) -> str:
    """ "plain", "splash" or "cudnn", of what is ``asked`` by `KERNELS`.

    ``prefix``: a causal model sees some later positions too. ``rate``: of dropout that is applied
    to the weights. ``scores``: they are wanted. "auto" takes the plain attention where the
    platform's kernel cannot compute this, with a warning; asked for by name it is a `UserError`.
    """
    kernel = FASTEST.get(platform(), "plain") if asked == "auto" else asked
    if kernel == "plain":
        return kernel
    if prefix:
        reason = "sees no later positions in a prefix of a causal model"
    elif rate:
        reason = f"needs model.attention_dropout 0 and found {rate}"
    elif scores:
        reason = "has no attention scores in memory, which are asked for"
    elif is_split("length"):
        reason = "reads rows that are whole on a device (mesh.sequence 1)"
    else:
        reason = (_splash_refuses if kernel == "splash" else _cudnn_refuses)(shape)
    if not reason:
        return kernel
    if asked != "auto":
        raise UserError(
            f"config.model.attention: found {asked!r}, which {reason}; expected auto or plain"
        )
    _warn(f"attention is plain: {kernel} {reason}")
    return "plain"


@functools.lru_cache  # once, however many compilations
def _warn(note: str) -> None:
    logger.warning("%s", note)


def _splash_refuses(shape: Shape) -> str:
    if (found := platform()) != "tpu":
        return f"runs on a TPU, not on {found}"
    if shape.length % LANES:
        return f"takes rows of a multiple of {LANES} positions, not of {shape.length}"
    return ""


def _cudnn_refuses(shape: Shape) -> str:
    if FASTEST.get(found := platform()) != "cudnn":
        return f"runs on a GPU, not on {found}"
    return _cudnn_error(shape._replace(window=0))


@functools.lru_cache
def _cudnn_error(shape: Shape) -> str:
    """What JAX has against it: shapes, a type, a library that is not there."""
    query = jax.ShapeDtypeStruct((1, shape.length, shape.heads, shape.head_size), shape.dtype)
    key = jax.ShapeDtypeStruct((1, shape.length, shape.kv_heads, shape.head_size), shape.dtype)
    mask = jax.ShapeDtypeStruct((1, 1, shape.length, shape.length), bool)

    def loss(*arrays):
        return cudnn(*arrays, shape.causal).sum(dtype="float32")

    try:
        jax.eval_shape(jax.grad(loss), query, key, key, mask)
    except (NotImplementedError, RuntimeError, ValueError) as error:
        return f"cannot: {str(error).strip().rstrip('.')}"
    return ""


def attention(
    module: nn.Module,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    masking: Masking,
    local: jax.Array,
    deterministic: bool,
) -> jax.Array:
    """Means ``[B, S, H, d]`` of ``value [B, S, K, d]`` by ``query [B, S, H, d]``, which is scaled.

    Each of the ``K`` heads of ``key`` and ``value`` serves ``H / K`` of the queries. ``local``,
    bool: whether the layer is, if there are any. ``module`` as of `attend`.
    """
    shape, mask = masking.shape, masking.mask
    if masking.kernel == "splash":
        window = shape.window
        return splash(query, key, value, masking.segment_ids, local, shape.causal, window)
    if shape.window:
        mask = mask & (~local | near(shape.length, shape.window))
    if masking.kernel == "cudnn":
        return _per_device(functools.partial(cudnn, causal=shape.causal), query, key, value, mask)
    key, value = (_repeated(x, shape.heads) for x in (key, value))
    query, key, value = (x.swapaxes(1, 2) for x in (query, key, value))
    return attend(module, attention_scores(query, key), value, mask, deterministic)


def _repeated(x: jax.Array, heads: int) -> jax.Array:
    """``[B, S, K, d]`` -> ``[B, S, H, d]``."""
    return x if x.shape[2] == heads else jnp.repeat(x, heads // x.shape[2], axis=2)


def cudnn(query, key, value, mask, causal: bool) -> jax.Array:
    """cuDNN's fused attention; segments and windows are a bias, which is in memory."""
    return jax.nn.dot_product_attention(
        query, key, value, mask=mask, scale=1.0, is_causal=causal, implementation="cudnn"
    )


def splash(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segment_ids: jax.Array,
    local: jax.Array,
    causal: bool,
    window: int = 0,
    interpret: bool = False,
) -> jax.Array:
    """JAX's Pallas kernel for TPUs, which passes over blocks that a layer's mask hides.

    Arguments as of `attention` and `Shape`. ``interpret``: on any platform, slowly.
    """

    def own(query, key, value, segment_ids, local):
        length, heads = query.shape[1:3]
        arrays = *(x.swapaxes(1, 2) for x in (query, key, value)), segment_ids

        def run(window):
            return jax.vmap(_splash_kernel(heads, length, causal, window, interpret))(*arrays)

        if not window:
            return run(0).swapaxes(1, 2)
        context = jax.lax.cond(local, lambda: run(window), lambda: run(0))
        return context.swapaxes(1, 2)

    return _per_device(own, query, key, value, segment_ids, jnp.asarray(local))


def _splash_kernel(
    heads: int, length: int, causal: bool, window: int, interpret: bool
) -> Callable[..., jax.Array]:
    """For one row: ``[H, S, d]``, twice ``[K, S, d]`` and segments ``[S]``."""
    from jax.experimental.pallas.ops.tpu import splash_attention  # takes long, few need it

    shape = (length, length)
    if window:
        mask = splash_attention.LocalMask(shape, (window, 0 if causal else window), 0)
    elif causal:
        mask = splash_attention.CausalMask(shape)
    else:
        mask = splash_attention.FullMask(shape)
    block = max(n for n in range(LANES, BLOCK + 1, LANES) if length % n == 0)
    names = "block_q", "block_kv", "block_q_dkv", "block_kv_dkv", "block_q_dq", "block_kv_dq"
    kernel = splash_attention.make_splash_mha_single_device(
        splash_attention.MultiHeadMask([mask] * heads),
        block_sizes=splash_attention.BlockSizes(**dict.fromkeys(names, block)),
        residual_checkpoint_name=CONTEXT,
        interpret=interpret,
    )
    return lambda query, key, value, ids: kernel(
        query, key, value, splash_attention.SegmentIds(ids, ids)
    )


def _per_device(function: Callable, query, key, value, *others: jax.Array) -> jax.Array:
    """``function`` of each device's rows and heads; ``others``: arrays ``[B, ...]``, or scalars."""
    if layout(key.shape, *VECTORS) != layout(query.shape, *VECTORS):
        key, value = (_repeated(x, query.shape[2]) for x in (key, value))
    rows = (("batch", *(None,) * (x.ndim - 1)) if x.ndim else () for x in others)
    return per_device(function, (query, key, value, *others), [VECTORS] * 3 + [*rows])
