"""The trunk: one transformer encoder or decoder whose published shapes are declared options."""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from pretrain.errors import UserError
from pretrain.fsdp import all_but_copies, in_pieces
from pretrain.models.attention import KERNELS, SCORES, Masking, Shape, attention, masking
from pretrain.models.layers import (
    ACTIVATIONS,
    Dense,
    Embed,
    LayerNorm,
    RMSNorm,
    dropout,
    rotary,
)
from pretrain.models.options import (
    POLICIES,
    POOLERS,
    Widths,
    check_choices,
    check_divides,
    check_least,
    check_position_offset,
)
from pretrain.sharding import constrain

CHOICES = {
    "activation": tuple(ACTIVATIONS),
    "position": ("learned", "rotary"),
    "norm": ("layer", "rms"),
    "norm_position": ("post", "pre"),
    "pooler": tuple(POOLERS),
}


@dataclasses.dataclass(frozen=True)
class TransformerConfig(Widths):
    """Shape and options of a transformer; meanings and defaults stand in ``pretrain.schema``.

    A combination that makes no model is a `UserError`.
    """

    vocab_size: int
    num_layers: int
    hidden_size: int
    embedding_size: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    ffn_size: int
    max_positions: int
    position_offset: int
    type_vocab_size: int
    position: str
    rotary_base: float
    local_window: int
    global_every: int
    local_rotary_base: float
    causal: bool
    norm: str
    norm_position: str
    norm_eps: float
    norm_bias: bool
    first_norm: bool
    embedding_norm: bool
    activation: str
    gated: bool
    bias: bool
    pooler: str
    tied: bool
    head_transform: bool
    head_bias: bool
    init_std: float
    scale_residual_init: bool
    mup_base_width: int
    mup_base_head_size: int
    dropout: float
    attention_dropout: float
    dtype: str
    remat: str
    attention: str
    unroll: int

    def __post_init__(self):
        check_choices(self, CHOICES | {"attention": KERNELS})
        check_least(self, local_window=0, global_every=1)
        check_position_offset(self)
        if not self.head_size:
            check_divides(self, "num_heads", "hidden_size")
        if self.num_kv_heads:
            check_divides(self, "num_kv_heads", "num_heads")
        if (self.local_window > 0) != (self.global_every > 1):
            raise UserError(
                f"config.model.local_window: found {self.local_window} with global_every "
                f"{self.global_every}; expected both above 0 and 1 for local layers, or 0 and 1"
            )
        if self.position == "rotary" and self.head_width % 2:
            raise UserError(
                f"config.model.num_heads: {self.num_heads} makes heads of odd size "
                f"{self.head_width}; expected an even size for rotary positions"
            )
        if self.mup_base_head_size and not self.mup_base_width:
            raise UserError(
                f"config.model.mup_base_head_size: found {self.mup_base_head_size} with "
                "mup_base_width 0, the standard parametrisation; expected 0"
            )
        if not self.first_norm and self.norm_position != "pre":
            raise UserError(
                f"config.model.first_norm: found False with norm_position {self.norm_position!r}, "
                "expected pre"
            )
        if self.tied and not self.head_transform and self.embedding_width != self.hidden_size:
            raise UserError(
                f"config.model.embedding_size: {self.embedding_size} is not hidden_size "
                f"{self.hidden_size}, expected head_transform true, which projects back to it"
            )

    @property
    def head_width(self) -> int:
        return self.head_size or self.hidden_size // self.num_heads

    @property
    def attention_scale(self) -> float:
        """Of queries: 1 / sqrt(head size); beyond the head size of muP's base 1 / head size."""
        base = self.mup_base_head_size or self.head_width
        return self.head_width**-0.5 * math.sqrt(base / self.head_width)

    @property
    def kv_heads(self) -> int:
        return self.num_kv_heads or self.num_heads

    @property
    def embedding_width(self) -> int:
        return self.embedding_size or self.hidden_size

    @property
    def width_ratio(self) -> float:
        return self.hidden_size / self.mup_base_width if self.mup_base_width else 1.0

    @property
    def is_standard(self) -> bool:
        """Whether its parameters mean what they would without muP."""
        return self.width_ratio == 1 and self.attention_scale == self.head_width**-0.5

    @property
    def residual_init_std(self) -> float:
        """Of the projections that write to the residual stream."""
        scale = math.sqrt(2 * self.num_layers) if self.scale_residual_init else 1.0
        return self.matrix_init_std / scale

    def make_norm(self, name: str | None = None) -> nn.Module:
        """The norm that the options name."""
        if self.norm == "rms":
            return RMSNorm(self.norm_eps, self.dtype, name=name)
        return LayerNorm(self.norm_eps, self.norm_bias, self.dtype, name=name)


class Attention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017): ``x [B, S, D] -> [B, S, D]``.

    With fewer heads of keys and values than of queries, each serves several (Ainslie et al. 2023).
    """

    config: TransformerConfig

    @nn.compact
    def __call__(self, x, local, masking: Masking, positions, deterministic: bool):
        cfg = self.config

        def project(name, heads):
            return Dense(
                ("embed",),
                (heads, cfg.head_width),
                ("heads", "kv"),
                use_bias=cfg.bias,
                init_std=cfg.matrix_init_std,
                dtype=cfg.dtype,
                name=name,
            )(x)

        query = project("query", cfg.num_heads)
        key, value = project("key", cfg.kv_heads), project("value", cfg.kv_heads)
        for name, vectors in (("query", query), ("key", key), ("value", value)):
            self.sow("intermediates", f"{name}_vectors", vectors)
        base = cfg.rotary_base
        if cfg.local_window:
            base = jnp.where(local, cfg.local_rotary_base, cfg.rotary_base)
        if cfg.position == "rotary":
            query, key = rotary(query, positions, base), rotary(key, positions, base)
        query = query * cfg.attention_scale
        context = attention(self, query, key, value, masking, local, deterministic)
        return Dense(
            ("heads", "kv"),
            (cfg.hidden_size,),
            ("embed",),
            use_bias=cfg.bias,
            init_std=cfg.residual_init_std,
            dtype=cfg.dtype,
            name="out",
        )(context)


class FeedForward(nn.Module):
    """``x [B, S, D] -> [B, S, D]``; gated: ``W_out (act(W_gate x) * W_in x)`` (Shazeer 2020)."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x):
        cfg = self.config

        def up(name):
            return Dense(
                ("embed",),
                (cfg.ffn_size,),
                ("mlp",),
                use_bias=cfg.bias,
                init_std=cfg.matrix_init_std,
                dtype=cfg.dtype,
                name=name,
            )(x)

        activation = ACTIVATIONS[cfg.activation]
        hidden = activation(up("gate")) * up("in") if cfg.gated else activation(up("in"))
        return Dense(
            ("mlp",),
            (cfg.hidden_size,),
            ("embed",),
            use_bias=cfg.bias,
            init_std=cfg.residual_init_std,
            dtype=cfg.dtype,
            name="out",
        )(hidden)


class Block(nn.Module):
    """One layer: attention and feed-forward, each with a residual, norm after or before."""

    config: TransformerConfig
    attention_norm: bool = True

    @nn.compact
    def __call__(self, x, local, masking: Masking, positions, deterministic: bool):
        cfg = self.config
        attend = Attention(cfg, name="attention")
        feed_forward = FeedForward(cfg, name="ffn")

        def drop(y):
            return dropout(y, cfg.dropout, None if deterministic else self.make_rng("dropout"))

        if cfg.norm_position == "pre":
            y = cfg.make_norm("attention_norm")(x) if self.attention_norm else x
            x = x + drop(attend(y, local, masking, positions, deterministic))
            x = x + drop(feed_forward(cfg.make_norm("ffn_norm")(x)))
        else:
            y = drop(attend(x, local, masking, positions, deterministic))
            x = cfg.make_norm("attention_norm")(x + y)
            x = cfg.make_norm("ffn_norm")(x + drop(feed_forward(x)))
        x = constrain(x, "batch", "length", None)
        self.sow("intermediates", "hidden", x)
        return x, None


def rematerialised(block: type[nn.Module], remat: str, static_argnums: tuple[int, ...]):
    """``block`` under ``jax.checkpoint`` with the named policy.

    "none": as it is; where parameters are in pieces, only their copies are not kept.
    """
    if remat == "none" and not in_pieces():
        return block
    policy = all_but_copies if remat == "none" else POLICIES[remat]
    return nn.remat(block, policy=policy, prevent_cse=False, static_argnums=static_argnums)


class Transformer(nn.Module):
    """Embeddings and a scan over layers: token ids to hidden states."""

    config: TransformerConfig

    def setup(self):
        cfg = self.config
        width = dict(features=cfg.embedding_width, init_std=cfg.init_std, dtype=cfg.dtype)
        self.word = Embed(cfg.vocab_size, axis="vocab", **width)
        if cfg.position == "learned":
            rows = cfg.max_positions + cfg.position_offset
            self.position = Embed(rows, axis="positions", **width)
        if cfg.type_vocab_size:
            self.type = Embed(cfg.type_vocab_size, axis="types", **width)
        if cfg.embedding_norm:
            self.embedding_norm = cfg.make_norm()
        if cfg.embedding_width != cfg.hidden_size:
            self.embedding_projection = Dense(
                ("embed",),
                (cfg.hidden_size,),
                ("embed_out",),
                init_std=cfg.matrix_init_std,
                dtype=cfg.dtype,
            )
        block = rematerialised(Block, cfg.remat, static_argnums=(5,))
        if not cfg.first_norm:
            self.first_layer = block(cfg, attention_norm=False)
        self.layers = nn.scan(
            block,
            variable_axes={"params": 0, "intermediates": 0, SCORES: 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast),
            length=cfg.num_layers - (not cfg.first_norm),
            unroll=cfg.unroll,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(cfg)
        if cfg.norm_position == "pre":
            self.final_norm = cfg.make_norm()

    def __call__(
        self,
        tokens: jax.Array,
        *,
        segment_ids: jax.Array | None = None,
        positions: jax.Array | None = None,
        token_types: jax.Array | None = None,
        prefix: jax.Array | None = None,
        deterministic: bool = True,
    ) -> jax.Array:
        """Hidden states ``[B, S, D]`` of ``tokens [B, S]``.

        ``segment_ids [B, S]``: 0 is padding, positions attend within equal ids (default: all one).
        ``positions [B, S]`` default to 0, 1, ...; ``token_types [B, S]`` to 0. ``prefix``, bool
        ``[B, S]``: positions of a causal model that all of their segment see (default: none).

        With ``mutable=["intermediates"]`` the trunk tells ``embedded [B, S, D]``, and every layer
        what it passes on, ``hidden [L, B, S, D]``; the collection `SCORES` is of the
        ``attention_scores [L, B, H, S, S]`` before the softmax, which only the plain attention has.
        A first layer without norm stands by itself (see `layer_outputs`).
        """
        cfg = self.config
        if tokens.shape[1] > cfg.max_positions:
            raise ValueError(f"{tokens.shape[1]} tokens a row, max_positions {cfg.max_positions}")
        if segment_ids is None:
            segment_ids = jnp.ones_like(tokens)
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        x = self.word(tokens)
        if cfg.position == "learned":
            x = x + self.position(positions + cfg.position_offset)
        if cfg.type_vocab_size:
            x = x + self.type(jnp.zeros_like(tokens) if token_types is None else token_types)
        if cfg.embedding_norm:
            x = self.embedding_norm(x)
        x = dropout(x, cfg.dropout, None if deterministic else self.make_rng("dropout"))
        if cfg.embedding_width != cfg.hidden_size:
            x = self.embedding_projection(x)
        x = constrain(x, "batch", "length", None)
        self.sow("intermediates", "embedded", x)
        masking = self.masking(segment_ids, prefix, deterministic)
        local = jnp.arange(cfg.num_layers) % cfg.global_every != 0
        if not cfg.first_norm:
            x, _ = self.first_layer(x, local[0], masking, positions, deterministic)
            local = local[1:]
        x, _ = self.layers(x, local, masking, positions, deterministic)
        return self.final_norm(x) if cfg.norm_position == "pre" else x

    def masking(
        self, segment_ids: jax.Array, prefix: jax.Array | None, deterministic: bool
    ) -> Masking:
        """What every layer's attention needs to know."""
        cfg = self.config
        shape = Shape(
            length=segment_ids.shape[1],
            heads=cfg.num_heads,
            kv_heads=cfg.kv_heads,
            head_size=cfg.head_width,
            dtype=cfg.dtype,
            causal=cfg.causal,
            window=cfg.local_window,
        )
        return masking(
            "plain" if self.is_initializing() else cfg.attention,
            shape,
            segment_ids,
            prefix=prefix,
            rate=0.0 if deterministic else cfg.attention_dropout,
            scores=self.is_mutable_collection(SCORES),
        )

    def output_table(self) -> jax.Array:
        """The word embedding ``[V, E]``, for a tied vocabulary head."""
        return self.word.embedding

    def forward_flops(self, seq_len: int) -> int:
        """Floating-point operations of the matrix products for one row of ``seq_len`` tokens.

        A multiply-add counts as two. Causal attention counts half the pairs, and local attention
        those within the window, as fused kernels do.
        """
        cfg = self.config
        inner, kv = cfg.num_heads * cfg.head_width, cfg.kv_heads * cfg.head_width
        ffn = (3 if cfg.gated else 2) * cfg.hidden_size * cfg.ffn_size
        per_token = 2 * (2 * cfg.hidden_size * (inner + kv) + ffn)
        everywhere = -(-cfg.num_layers // cfg.global_every)
        pairs = everywhere * count_pairs(seq_len, seq_len, cfg.causal)
        pairs += (cfg.num_layers - everywhere) * count_pairs(seq_len, cfg.local_window, cfg.causal)
        projected = cfg.embedding_width if cfg.embedding_width != cfg.hidden_size else 0
        return (
            cfg.num_layers * seq_len * per_token
            + 2 * 2 * pairs * inner
            + seq_len * 2 * projected * cfg.hidden_size
        )


def count_pairs(seq_len: int, window: int, causal: bool) -> int:
    """Pairs of positions of a row at most ``window`` apart, in both directions or one."""
    reach = min(window, seq_len - 1)
    before = reach * seq_len - reach * (reach + 1) // 2
    return seq_len + (before if causal else 2 * before)


def layer_outputs(sown: dict, name: str = "hidden") -> jax.Array:
    """What all layers have sown under ``name``, in order: ``[L, ...]``."""
    stacked = _find(sown["layers"], name)
    first = sown.get("first_layer")
    return stacked if first is None else jnp.concatenate([_find(first, name)[None], stacked])


def _find(layer: dict, name: str) -> jax.Array:
    return layer[name][0] if name in layer else layer["attention"][name][0]
