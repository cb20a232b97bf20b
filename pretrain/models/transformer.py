"""The trunk: one transformer encoder or decoder whose published shapes are declared options."""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from pretrain.models.layers import ACTIVATIONS, Dense, Embed, LayerNorm, dropout, rotary

# Chosen per run: they change neither the parameters' shapes nor their meaning.
RUNTIME_FIELDS = ("dropout", "attention_dropout", "dtype", "remat", "unroll")


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Shape and options of a transformer; meanings and defaults stand in ``pretrain.config``."""

    vocab_size: int
    num_layers: int
    hidden_size: int
    num_heads: int
    ffn_size: int
    max_positions: int
    type_vocab_size: int
    position: str
    rotary_base: float
    causal: bool
    norm_position: str
    norm_eps: float
    norm_bias: bool
    embedding_norm: bool
    activation: str
    gated: bool
    bias: bool
    head_transform: bool
    head_bias: bool
    init_std: float
    scale_residual_init: bool
    dropout: float
    attention_dropout: float
    dtype: str
    remat: str
    unroll: int

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def residual_init_std(self) -> float:
        """Of the projections that write to the residual stream."""
        scale = math.sqrt(2 * self.num_layers) if self.scale_residual_init else 1.0
        return self.init_std / scale


def attention_mask(segment_ids: jax.Array, causal: bool) -> jax.Array:
    """``[B, S]`` -> bool ``[B, 1, S, S]``: which keys (last) each query sees.

    Only positions of the same segment; padding (0) sees padding, so that no row is empty.
    """
    mask = segment_ids[:, None, :, None] == segment_ids[:, None, None, :]
    if causal:
        mask &= jnp.tril(jnp.ones((1, 1, *mask.shape[-2:]), bool))
    return mask


class Attention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017): ``x [B, S, D] -> [B, S, D]``."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x, mask, positions, deterministic: bool):
        cfg = self.config

        def project(name):
            return Dense(
                ("embed",),
                (cfg.num_heads, cfg.head_size),
                ("heads", "kv"),
                use_bias=cfg.bias,
                init_std=cfg.init_std,
                dtype=cfg.dtype,
                name=name,
            )(x)

        query, key, value = project("query"), project("key"), project("value")
        if cfg.position == "rotary":
            query = rotary(query, positions, cfg.rotary_base)
            key = rotary(key, positions, cfg.rotary_base)
        query, key, value = (x.swapaxes(1, 2) for x in (query * cfg.head_size**-0.5, key, value))
        scores = jnp.einsum("bhqd,bhkd->bhqk", query, key, preferred_element_type=jnp.float32)
        scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
        self.sow("intermediates", "attention_scores", scores)
        weights = nn.softmax(scores).astype(cfg.dtype)
        rng = None if deterministic else self.make_rng("dropout")
        weights = dropout(weights, cfg.attention_dropout, rng)
        context = jnp.einsum("bhqk,bhkd->bhqd", weights, value).swapaxes(1, 2)
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
                init_std=cfg.init_std,
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

    @nn.compact
    def __call__(self, x, mask, positions, deterministic: bool):
        cfg = self.config

        def norm(name):
            return LayerNorm(cfg.norm_eps, cfg.norm_bias, cfg.dtype, name=name)

        def drop(y):
            return dropout(y, cfg.dropout, None if deterministic else self.make_rng("dropout"))

        attention = Attention(cfg, name="attention")
        feed_forward = FeedForward(cfg, name="ffn")
        if cfg.norm_position == "pre":
            x = x + drop(attention(norm("attention_norm")(x), mask, positions, deterministic))
            x = x + drop(feed_forward(norm("ffn_norm")(x)))
        else:
            x = norm("attention_norm")(x + drop(attention(x, mask, positions, deterministic)))
            x = norm("ffn_norm")(x + drop(feed_forward(x)))
        x = nn.with_logical_constraint(x, ("batch", "length", None))
        self.sow("intermediates", "hidden", x)
        return x, None


class Transformer(nn.Module):
    """Embeddings and a scan over layers: token ids to hidden states."""

    config: TransformerConfig

    def setup(self):
        cfg = self.config
        width = dict(features=cfg.hidden_size, init_std=cfg.init_std, dtype=cfg.dtype)
        self.word = Embed(cfg.vocab_size, axis="vocab", **width)
        if cfg.position == "learned":
            self.position = Embed(cfg.max_positions, axis="positions", **width)
        if cfg.type_vocab_size:
            self.type = Embed(cfg.type_vocab_size, axis="types", **width)
        if cfg.embedding_norm:
            self.embedding_norm = LayerNorm(cfg.norm_eps, cfg.norm_bias, cfg.dtype)
        block = Block
        if cfg.remat != "none":
            policy = None if cfg.remat == "full" else getattr(jax.checkpoint_policies, cfg.remat)
            block = nn.remat(Block, policy=policy, prevent_cse=False, static_argnums=(4,))
        self.layers = nn.scan(
            block,
            variable_axes={"params": 0, "intermediates": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(nn.broadcast, nn.broadcast, nn.broadcast),
            length=cfg.num_layers,
            unroll=cfg.unroll,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(cfg)
        if cfg.norm_position == "pre":
            self.final_norm = LayerNorm(cfg.norm_eps, cfg.norm_bias, cfg.dtype)

    def __call__(
        self,
        tokens: jax.Array,
        *,
        segment_ids: jax.Array | None = None,
        positions: jax.Array | None = None,
        token_types: jax.Array | None = None,
        deterministic: bool = True,
    ) -> jax.Array:
        """Hidden states ``[B, S, D]`` of ``tokens [B, S]``.

        ``segment_ids [B, S]``: 0 is padding, positions attend within equal ids (default: all one).
        ``positions [B, S]`` default to 0, 1, ...; ``token_types [B, S]`` to 0.

        With ``mutable=["intermediates"]`` every layer tells what it passes on,
        ``hidden [L, B, S, D]``, and ``attention_scores [L, B, H, S, S]`` before the softmax.
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
            x = x + self.position(positions)
        if cfg.type_vocab_size:
            x = x + self.type(jnp.zeros_like(tokens) if token_types is None else token_types)
        if cfg.embedding_norm:
            x = self.embedding_norm(x)
        x = dropout(x, cfg.dropout, None if deterministic else self.make_rng("dropout"))
        x = nn.with_logical_constraint(x, ("batch", "length", None))
        mask = attention_mask(segment_ids, cfg.causal)
        x, _ = self.layers(x, mask, positions, deterministic)
        return self.final_norm(x) if cfg.norm_position == "pre" else x


def forward_flops(cfg: TransformerConfig, seq_len: int) -> int:
    """Floating-point operations of the trunk's matrix products for one row of ``seq_len`` tokens.

    A multiply-add counts as two. Causal attention counts half the pairs, as fused kernels do.
    """
    up = 2 if cfg.gated else 1
    per_token = 2 * (4 * cfg.hidden_size**2 + (up + 1) * cfg.hidden_size * cfg.ffn_size)
    pairs = seq_len * (seq_len + 1) // 2 if cfg.causal else seq_len**2
    attention = 2 * 2 * pairs * cfg.hidden_size
    return cfg.num_layers * (seq_len * per_token + attention)
