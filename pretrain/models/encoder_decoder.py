"""Encoder-decoders, T5 (Raffel et al. 2020) and BART (Lewis et al. 2020), by declared options."""

import dataclasses
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from pretrain.errors import UserError
from pretrain.models import transformer
from pretrain.models.attention import SCORES, attend, attention_mask, attention_scores
from pretrain.models.heads import LMHead
from pretrain.models.layers import Dense, Embed, LayerNorm, RMSNorm, dropout
from pretrain.models.options import (
    WITHOUT_NORM,
    Widths,
    check_choices,
    check_divides,
    check_least,
    check_position_offset,
)
from pretrain.sharding import constrain

CHOICES = transformer.CHOICES | {
    "position": ("learned", "relative"),
    "reads": ("decoder", "encoder"),
    "pooler": WITHOUT_NORM,
}


@dataclasses.dataclass(frozen=True)
class EncoderDecoderConfig(Widths):
    """Shape and options of both stacks; meanings and defaults stand in ``pretrain.schema``.

    A combination that makes no model is a `UserError`.
    """

    vocab_size: int
    num_layers: int
    num_decoder_layers: int
    hidden_size: int
    num_heads: int
    head_size: int
    ffn_size: int
    max_positions: int
    position: str
    position_offset: int
    relative_buckets: int
    relative_distance: int
    norm: str
    norm_position: str
    norm_eps: float
    embedding_norm: bool
    scale_embedding: bool
    scale_scores: bool
    activation: str
    gated: bool
    bias: bool
    pooler: str
    tied: bool
    scale_logits: bool
    head_bias: bool
    decoder_start_id: int
    reads: str
    init_std: float
    fan_in_init: bool
    dropout: float
    attention_dropout: float
    dtype: str
    remat: str
    unroll: int

    # What the trunk's options have besides, for the parts shared with it.
    causal = False  # the encoder, and through it every decoder position, sees the whole text
    head_transform = False

    def __post_init__(self):
        check_choices(self, CHOICES)
        check_least(self, decoder_start_id=0)
        check_position_offset(self)
        if not self.head_size:
            check_divides(self, "num_heads", "hidden_size")
        if 0 < self.vocab_size <= self.decoder_start_id:
            raise UserError(
                f"config.model.decoder_start_id: found {self.decoder_start_id}, expected an id "
                f"below vocab_size {self.vocab_size}"
            )
        if self.relative_buckets < 4 or self.relative_buckets % 4:
            raise UserError(
                f"config.model.relative_buckets: found {self.relative_buckets}, expected a "
                "multiple of 4"
            )
        if self.relative_distance <= self.relative_buckets // 2:
            raise UserError(
                f"config.model.relative_distance: found {self.relative_distance}, expected more "
                f"than half of relative_buckets {self.relative_buckets}"
            )

    @property
    def decoder_layers(self) -> int:
        return self.num_decoder_layers or self.num_layers

    @property
    def head_width(self) -> int:
        return self.head_size or self.hidden_size // self.num_heads

    @property
    def embedding_width(self) -> int:
        return self.hidden_size

    @property
    def query_init_std(self) -> float:
        return self.init_std * (self.head_width**-0.5 if self.fan_in_init else 1.0)

    @property
    def attention_init_std(self) -> float:
        """Of the projections from the heads back to the hidden states."""
        inputs = self.num_heads * self.head_width
        return inputs**-0.5 if self.fan_in_init else self.init_std

    @property
    def residual_init_std(self) -> float:
        """Of the feed-forward block's projection back to the hidden states."""
        return self.ffn_size**-0.5 if self.fan_in_init else self.init_std

    def make_norm(self, name: str | None = None) -> nn.Module:
        """The norm that the options name."""
        if self.norm == "rms":
            return RMSNorm(self.norm_eps, self.dtype, name=name)
        return LayerNorm(self.norm_eps, True, self.dtype, name=name)


def shift_right(tokens: jax.Array, segment_ids: jax.Array, start_id: int) -> jax.Array:
    """The decoder's input ``[B, S]`` for the text ``tokens``: in each segment the token before."""
    before = jnp.pad(tokens[:, :-1], ((0, 0), (1, 0)))
    inside = jnp.pad(segment_ids[:, 1:] == segment_ids[:, :-1], ((0, 0), (1, 0)))
    return jnp.where(inside, before, start_id)


def same_segment(query_ids: jax.Array, key_ids: jax.Array) -> jax.Array:
    """``[B, T]`` and ``[B, S]`` -> bool ``[B, 1, T, S]``; padding (0) sees padding."""
    return query_ids[:, None, :, None] == key_ids[:, None, None, :]


@functools.cache
def _buckets(count: int, max_distance: int) -> np.ndarray:
    """The bucket of each distance from 0 to ``max_distance``, on one side.

    Half of the buckets are single distances; the others grow by one factor up to the last, which
    begins just below ``max_distance``. In whole numbers: rounded logarithms would depend on the
    machine.
    """
    exact = count // 2
    steps = count - exact
    table = list(range(exact))
    for distance in range(exact, max_distance + 1):
        passed = [
            distance**steps * exact**k >= max_distance**k * exact**steps for k in range(1, steps)
        ]
        table.append(exact + sum(passed))
    return np.array(table, np.int32)


def relative_buckets(
    queries: int, keys: int, *, bidirectional: bool, count: int, max_distance: int
) -> np.ndarray:
    """T5's bucket of every pair of positions, int32 ``[queries, keys]`` below ``count``."""
    offset = np.arange(keys)[None, :] - np.arange(queries)[:, None]
    if bidirectional:
        table = _buckets(count // 2, max_distance)
        return table[np.minimum(np.abs(offset), max_distance)] + (offset > 0) * (count // 2)
    return _buckets(count, max_distance)[np.clip(-offset, 0, max_distance)]


class RelativeBias(nn.Module):
    """What all layers of a stack add to their attention scores: float32 ``[1, H, S, S]``.

    Distances are of places in the row: inside a segment they are those of its positions.
    """

    config: EncoderDecoderConfig
    bidirectional: bool

    @nn.compact
    def __call__(self, length: int) -> jax.Array:
        cfg = self.config
        table = self.param(
            "embedding",
            nn.with_logical_partitioning(nn.initializers.normal(cfg.init_std), (None, "heads")),
            (cfg.relative_buckets, cfg.num_heads),
        )
        buckets = relative_buckets(
            length,
            length,
            bidirectional=self.bidirectional,
            count=cfg.relative_buckets,
            max_distance=cfg.relative_distance,
        )
        return jnp.moveaxis(table[jnp.asarray(buckets, jnp.int32)], -1, 0)[None]


class Attention(nn.Module):
    """Attention of ``x [B, T, D]`` to ``memory [B, S, D]``: ``[B, T, D]``.

    ``mask``: bool ``[B, 1, T, S]``; ``bias``: float32 ``[1, H, T, S]`` or None.
    """

    config: EncoderDecoderConfig

    @nn.compact
    def __call__(self, x, memory, mask, bias, deterministic: bool):
        cfg = self.config

        def project(name, inputs, init_std):
            return Dense(
                ("embed",),
                (cfg.num_heads, cfg.head_width),
                ("heads", "kv"),
                use_bias=cfg.bias,
                init_std=init_std,
                dtype=cfg.dtype,
                name=name,
            )(inputs).swapaxes(1, 2)

        query = project("query", x, cfg.query_init_std)
        key = project("key", memory, cfg.init_std)
        value = project("value", memory, cfg.init_std)
        if cfg.scale_scores:
            query = query * cfg.head_width**-0.5
        scores = attention_scores(query, key)
        if bias is not None:
            scores = scores + bias
        context = attend(self, scores, value, mask, deterministic)
        return Dense(
            ("heads", "kv"),
            (cfg.hidden_size,),
            ("embed",),
            use_bias=cfg.bias,
            init_std=cfg.attention_init_std,
            dtype=cfg.dtype,
            name="out",
        )(context)


class Block(nn.Module):
    """One layer; with ``memory``, the encoder's states, also attention to these."""

    config: EncoderDecoderConfig

    @nn.compact
    def __call__(self, x, mask, bias, memory, memory_mask, deterministic: bool):
        cfg = self.config

        def residual(x, name, layer):
            """Around one sub-layer, with its norm before or behind."""
            norm = cfg.make_norm(f"{name}_norm")
            y = layer(norm(x) if cfg.norm_position == "pre" else x)
            y = dropout(y, cfg.dropout, None if deterministic else self.make_rng("dropout"))
            return x + y if cfg.norm_position == "pre" else norm(x + y)

        attention = Attention(cfg, name="attention")
        x = residual(x, "attention", lambda y: attention(y, y, mask, bias, deterministic))
        if memory is not None:
            cross = Attention(cfg, name="cross_attention")
            x = residual(
                x, "cross_attention", lambda y: cross(y, memory, memory_mask, None, deterministic)
            )
        x = residual(x, "ffn", transformer.FeedForward(cfg, name="ffn"))
        x = constrain(x, "batch", "length", None)
        self.sow("intermediates", "hidden", x)
        return x, None


class Stack(nn.Module):
    """The encoder or the decoder: word vectors ``[B, S, D]`` to hidden states."""

    config: EncoderDecoderConfig
    num_layers: int
    causal: bool

    def setup(self):
        cfg = self.config
        if cfg.position == "learned":
            rows = cfg.max_positions + cfg.position_offset
            self.position = Embed(
                rows, cfg.hidden_size, "positions", init_std=cfg.init_std, dtype=cfg.dtype
            )
        else:
            self.relative = RelativeBias(cfg, bidirectional=not self.causal)
        if cfg.embedding_norm:
            self.embedding_norm = cfg.make_norm()
        self.layers = nn.scan(
            transformer.rematerialised(Block, cfg.remat, static_argnums=(6,)),
            variable_axes={"params": 0, "intermediates": 0, SCORES: 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(nn.broadcast,) * 5,
            length=self.num_layers,
            unroll=cfg.unroll,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(cfg)
        if cfg.norm_position == "pre":
            self.final_norm = cfg.make_norm()

    def __call__(
        self, x, segment_ids, positions, deterministic: bool, memory=None, memory_ids=None
    ) -> jax.Array:
        cfg, length = self.config, x.shape[1]
        if length > cfg.max_positions:
            raise ValueError(f"{length} tokens a row, max_positions {cfg.max_positions}")
        bias = None
        if cfg.position == "learned":
            x = x + self.position(positions + cfg.position_offset)
        else:
            bias = self.relative(length)
        if cfg.embedding_norm:
            x = self.embedding_norm(x)
        x = dropout(x, cfg.dropout, None if deterministic else self.make_rng("dropout"))
        x = constrain(x, "batch", "length", None)
        self.sow("intermediates", "embedded", x)
        mask = attention_mask(segment_ids, self.causal)
        memory_mask = None if memory is None else same_segment(segment_ids, memory_ids)
        x, _ = self.layers(x, mask, bias, memory, memory_mask, deterministic)
        return self.final_norm(x) if cfg.norm_position == "pre" else x


class EncoderDecoder(nn.Module):
    """A bidirectional encoder and a causal decoder that attends to it, over one word embedding."""

    config: EncoderDecoderConfig

    def setup(self):
        cfg = self.config
        init_std = 1.0 if cfg.fan_in_init else cfg.init_std
        self.word = Embed(
            cfg.vocab_size, cfg.hidden_size, "vocab", init_std=init_std, dtype=cfg.dtype
        )
        self.encoder = Stack(cfg, cfg.num_layers, causal=False)
        if cfg.reads == "decoder":
            self.decoder = Stack(cfg, cfg.decoder_layers, causal=True)

    def __call__(
        self,
        tokens: jax.Array,
        *,
        segment_ids: jax.Array | None = None,
        positions: jax.Array | None = None,
        token_types: jax.Array | None = None,
        decoder_tokens: jax.Array | None = None,
        decoder_segment_ids: jax.Array | None = None,
        decoder_positions: jax.Array | None = None,
        deterministic: bool = True,
    ) -> jax.Array:
        """The decoder's hidden states ``[B, T, D]``; with ``reads`` "encoder", the encoder's.

        ``segment_ids [B, S]``: 0 is padding, every attention is within equal ids (default: all
        one). ``positions [B, S]`` default to 0, 1, ...; token types have no meaning here.

        ``decoder_tokens [B, T]`` are what the decoder is fed, start token included; their segment
        ids and positions default as the encoder's do. Without them it is fed the text itself,
        shifted right in each segment, so that its state at a position has seen the whole text
        through the encoder and, by itself, what comes before.

        With ``mutable=["intermediates"]`` each stack tells ``embedded [B, S, D]``, and its layers
        ``hidden [L, B, S, D]``; the collection `SCORES` is of the
        ``attention_scores [L, B, H, S, S]`` before the softmax.
        """
        del token_types
        cfg = self.config
        segment_ids, positions = _defaults(tokens, segment_ids, positions)
        memory = self.encoder(self._embed(tokens), segment_ids, positions, deterministic)
        if cfg.reads == "encoder":
            return memory
        if decoder_tokens is None:
            decoder_tokens = shift_right(tokens, segment_ids, cfg.decoder_start_id)
            decoder_segment_ids, decoder_positions = segment_ids, positions
        decoder_segment_ids, decoder_positions = _defaults(
            decoder_tokens, decoder_segment_ids, decoder_positions
        )
        return self.decoder(
            self._embed(decoder_tokens),
            decoder_segment_ids,
            decoder_positions,
            deterministic,
            memory,
            segment_ids,
        )

    def _embed(self, tokens: jax.Array) -> jax.Array:
        cfg = self.config
        return self.word(tokens) * (math.sqrt(cfg.hidden_size) if cfg.scale_embedding else 1.0)

    def output_table(self) -> jax.Array:
        """The word embedding ``[V, D]``, for a tied vocabulary head."""
        return self.word.embedding

    def forward_flops(self, seq_len: int, target_length: int = 0) -> int:
        """Floating-point operations of the matrix products for one row of ``seq_len`` tokens.

        A multiply-add counts as two. The decoder, whose rows have ``target_length`` tokens (0: as
        many as the encoder's), sees half the pairs of its own.
        """
        cfg, targets = self.config, target_length or seq_len
        inner = cfg.num_heads * cfg.head_width
        projection = cfg.hidden_size * inner
        ffn = (3 if cfg.gated else 2) * cfg.hidden_size * cfg.ffn_size
        encoder = seq_len * (4 * projection + ffn) + 2 * inner * seq_len**2
        if cfg.reads == "encoder":
            return 2 * cfg.num_layers * encoder
        seen = transformer.count_pairs(targets, targets, True) + targets * seq_len
        decoder = targets * (6 * projection + ffn) + seq_len * 2 * projection + 2 * inner * seen
        return 2 * (cfg.num_layers * encoder + cfg.decoder_layers * decoder)


class EncoderDecoderLMHead(LMHead):
    """Vocabulary logits of the decoder's states: ``[..., D] -> [..., V]``."""

    config: EncoderDecoderConfig

    def __call__(self, hidden: jax.Array, matrix: jax.Array) -> jax.Array:
        cfg = self.config
        return super().__call__(
            hidden * cfg.hidden_size**-0.5 if cfg.scale_logits else hidden, matrix
        )


def _defaults(tokens, segment_ids, positions) -> tuple[jax.Array, jax.Array]:
    if segment_ids is None:
        segment_ids = jnp.ones_like(tokens)
    if positions is None:
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    return segment_ids, positions
