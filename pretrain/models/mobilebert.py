"""MobileBERT: deep and narrow layers between bottlenecks (Sun et al. 2020)."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from pretrain.errors import UserError
from pretrain.fsdp import copies
from pretrain.models.attention import SCORES, attend, attention_mask, attention_scores
from pretrain.models.layers import (
    ACTIVATIONS,
    Dense,
    Embed,
    LayerNorm,
    dropout,
    product,
)
from pretrain.models.options import Widths, check_choices, check_divides, check_least
from pretrain.models.transformer import rematerialised
from pretrain.sharding import constrain

CHOICES = {
    "attention_input": ("full", "shared", "bottleneck"),
    "norm": ("none", "layer"),
    "activation": tuple(ACTIVATIONS),
    "pooler": ("bert", "none"),
}


@dataclasses.dataclass(frozen=True)
class MobileBertConfig(Widths):
    """Shape and options of a MobileBERT; meanings and defaults stand in ``pretrain.schema``.

    A combination that makes no model is a `UserError`.
    """

    vocab_size: int
    num_layers: int
    hidden_size: int
    embedding_size: int
    bottleneck_size: int
    num_heads: int
    ffn_size: int
    num_ffns: int
    max_positions: int
    type_vocab_size: int
    attention_input: str
    norm: str
    norm_eps: float
    outer_norm_eps: float
    activation: str
    pooler: str
    init_std: float
    dropout: float
    attention_dropout: float
    dtype: str
    remat: str
    unroll: int

    def __post_init__(self):
        check_choices(self, CHOICES)
        check_least(self, num_ffns=1)
        check_divides(self, "num_heads", "bottleneck_size")
        if self.embedding_size > self.hidden_size:
            raise UserError(
                f"config.model.embedding_size: found {self.embedding_size}, expected at most "
                f"hidden_size {self.hidden_size}"
            )

    @property
    def causal(self) -> bool:
        return False

    def make_norm(self, eps: float, name: str | None = None) -> nn.Module:
        """The norm that the options name; ``eps`` means nothing to `NoNorm`."""
        if self.norm == "none":
            return NoNorm(self.dtype, name=name)
        return LayerNorm(eps, dtype=self.dtype, name=name)

    def dense(self, size: int, axes: tuple[str, str], name: str | None = None) -> Dense:
        """A dense layer to ``size``; ``axes`` name the dimension contracted and the new one."""
        return Dense(
            axes[:1], (size,), axes[1:], init_std=self.init_std, dtype=self.dtype, name=name
        )


class NoNorm(nn.Module):
    """``x * scale + bias``, in float32: what MobileBERT has in place of layer norm."""

    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape, row = x.shape[-1:], (1,) * (x.ndim - 1) + x.shape[-1:]
        scale, bias = (
            self.param(name, nn.with_logical_partitioning(start, ("norm",)), shape)
            for name, start in (("scale", nn.initializers.ones), ("bias", nn.initializers.zeros))
        )
        y = x.astype(jnp.float32) * scale.reshape(row) + bias.reshape(row)
        return y.astype(self.dtype)


def trigrams(words: jax.Array, segment_ids: jax.Array) -> jax.Array:
    """``[next, current, previous]`` words of every position: ``[B, S, E] -> [B, S, 3E]``.

    At the edges of a row the missing neighbour is zeros, and so it is at the border to another
    document of a packed row, which therefore sees what it would see in a row of its own. A padding
    position (segment 0) counts as what it holds: the last token of a padded text is followed by
    the embedding of the padding piece, as in the published model (whose every row is one text).
    """
    length = words.shape[1]
    padded = jnp.pad(words, ((0, 0), (1, 1), (0, 0)))
    segments = jnp.pad(segment_ids, ((0, 0), (1, 1)))

    def neighbour(start):
        other = segments[:, start : start + length]
        seen = (other == segment_ids) | (other == 0)
        return jnp.where(seen[:, :, None], padded[:, start : start + length], 0)

    return jnp.concatenate([neighbour(2), words, neighbour(0)], -1)


class Attention(nn.Module):
    """Multi-head attention whose values may come from another, wider input.

    ``query_key [B, S, Dq], value [B, S, Dv] -> [B, S, bottleneck]``.
    """

    config: MobileBertConfig

    @nn.compact
    def __call__(self, query_key, value, mask, deterministic: bool):
        cfg = self.config
        head_width = cfg.bottleneck_size // cfg.num_heads

        def project(name, x):
            return Dense(
                ("embed",),
                (cfg.num_heads, head_width),
                ("heads", "kv"),
                init_std=cfg.init_std,
                dtype=cfg.dtype,
                name=name,
            )(x).swapaxes(1, 2)

        query = project("query", query_key) * head_width**-0.5
        key, value = project("key", query_key), project("value", value)
        context = attend(self, attention_scores(query, key), value, mask, deterministic)
        return Dense(
            ("heads", "kv"),
            (cfg.bottleneck_size,),
            ("embed",),
            init_std=cfg.init_std,
            dtype=cfg.dtype,
            name="out",
        )(context)


class FeedForward(nn.Module):
    """``x [B, S, bottleneck] -> [B, S, bottleneck]``, with its residual and norm."""

    config: MobileBertConfig
    norm_eps: float

    @nn.compact
    def __call__(self, x):
        cfg = self.config
        y = ACTIVATIONS[cfg.activation](cfg.dense(cfg.ffn_size, ("embed", "mlp"), "in")(x))
        y = cfg.dense(cfg.bottleneck_size, ("mlp", "embed"), "out")(y)
        return cfg.make_norm(self.norm_eps, "norm")(x + y)


class Block(nn.Module):
    """One layer: down into the bottleneck, attention, a stack of feed-forwards, and up again."""

    config: MobileBertConfig

    @nn.compact
    def __call__(self, x, mask, deterministic: bool):
        cfg = self.config

        def down(name):
            y = cfg.dense(cfg.bottleneck_size, ("embed", "embed_out"), name)(x)
            return cfg.make_norm(cfg.norm_eps, f"{name}_norm")(y)

        y = down("bottleneck")
        if cfg.attention_input == "shared":
            query_key, value = down("shared_bottleneck"), x
        else:
            query_key = value = y if cfg.attention_input == "bottleneck" else x
        attention = Attention(cfg, name="attention")(query_key, value, mask, deterministic)
        y = cfg.make_norm(cfg.norm_eps, "attention_norm")(y + attention)
        for i in range(cfg.num_ffns):
            last = i == cfg.num_ffns - 1
            y = FeedForward(cfg, cfg.outer_norm_eps if last else cfg.norm_eps, name=f"ffn_{i}")(y)
        y = cfg.dense(cfg.hidden_size, ("embed", "embed_out"), "output")(y)
        y = constrain(y, "batch", "length", None)
        y = dropout(y, cfg.dropout, None if deterministic else self.make_rng("dropout"))
        x = cfg.make_norm(cfg.norm_eps, "output_norm")(x + y)
        x = constrain(x, "batch", "length", None)
        self.sow("intermediates", "hidden", x)
        return x, None


class MobileBert(nn.Module):
    """Embeddings of trigrams and a scan over layers: token ids to hidden states."""

    config: MobileBertConfig

    def setup(self):
        cfg = self.config
        table = dict(init_std=cfg.init_std, dtype=cfg.dtype)
        self.word = Embed(cfg.vocab_size, cfg.embedding_size, axis="vocab", **table)
        self.position = Embed(cfg.max_positions, cfg.hidden_size, axis="positions", **table)
        self.type = Embed(cfg.type_vocab_size, cfg.hidden_size, axis="types", **table)
        self.embedding_projection = cfg.dense(cfg.hidden_size, ("embed", "embed_out"))
        self.embedding_norm = cfg.make_norm(cfg.outer_norm_eps)
        self.layers = nn.scan(
            rematerialised(Block, cfg.remat, static_argnums=(3,)),
            variable_axes={"params": 0, "intermediates": 0, SCORES: 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(nn.broadcast, nn.broadcast),
            length=cfg.num_layers,
            unroll=cfg.unroll,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(cfg)

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

        With ``mutable=["intermediates"]`` the model tells ``embedded [B, S, D]``, and every layer
        what it passes on, ``hidden [L, B, S, D]``; the collection `SCORES` is of the
        ``attention_scores [L, B, H, S, S]`` before the softmax.
        """
        cfg = self.config
        if tokens.shape[1] > cfg.max_positions:
            raise ValueError(f"{tokens.shape[1]} tokens a row, max_positions {cfg.max_positions}")
        if segment_ids is None:
            segment_ids = jnp.ones_like(tokens)
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        x = self.embedding_projection(trigrams(self.word(tokens), segment_ids))
        x = constrain(x, "batch", "length", None)
        x = x + self.position(positions)
        x = x + self.type(jnp.zeros_like(tokens) if token_types is None else token_types)
        x = self.embedding_norm(x)
        x = dropout(x, cfg.dropout, None if deterministic else self.make_rng("dropout"))
        x = constrain(x, "batch", "length", None)
        self.sow("intermediates", "embedded", x)
        return self.layers(x, attention_mask(segment_ids, causal=False), deterministic)[0]

    def output_table(self) -> jax.Array:
        """The word embedding ``[V, E]``: the tied part of the vocabulary head."""
        return self.word.embedding

    def forward_flops(self, seq_len: int) -> int:
        """Floating-point operations of the matrix products for one row of ``seq_len`` tokens.

        A multiply-add counts as two.
        """
        cfg = self.config
        hidden, inner = cfg.hidden_size, cfg.bottleneck_size
        query_key, value = {
            "full": (hidden, hidden),
            "shared": (inner, hidden),
            "bottleneck": (inner, inner),
        }[cfg.attention_input]
        bottlenecks = (3 if cfg.attention_input == "shared" else 2) * hidden * inner
        attention = (2 * query_key + value + inner) * inner
        layer = bottlenecks + attention + cfg.num_ffns * 2 * inner * cfg.ffn_size
        per_token = 2 * (3 * cfg.embedding_size * hidden + cfg.num_layers * layer)
        return seq_len * per_token + cfg.num_layers * 2 * 2 * seq_len**2 * inner


class MobileBertLMHead(nn.Module):
    """Vocabulary logits ``[..., D] -> [..., V]``.

    Only the first ``E`` dimensions of the transformed hidden state meet the word embedding
    ``[V, E]``; the other ``D - E`` have a matrix of their own, which no other part of the model
    shares. The transform's norm is a layer norm, whatever the body has.
    """

    config: MobileBertConfig

    def setup(self):
        cfg = self.config
        self.transform = cfg.dense(cfg.hidden_size, ("embed", "embed_out"))
        self.norm = LayerNorm(cfg.norm_eps, dtype=cfg.dtype)
        normal, zeros = nn.initializers.normal(cfg.init_std), nn.initializers.zeros
        self.kernel = self.param(
            "kernel",
            nn.with_logical_partitioning(normal, ("embed", "vocab")),
            (cfg.hidden_size - cfg.embedding_size, cfg.vocab_size),
        )
        self.bias = self.param(
            "bias", nn.with_logical_partitioning(zeros, ("vocab",)), (cfg.vocab_size,)
        )

    def matrix(self, table: jax.Array, rows: int) -> tuple[jax.Array, jax.Array]:
        """What a call multiplies with: `copies` for a batch of so many ``rows``."""
        dtype = self.config.dtype
        shared = copies(table.astype(dtype), rows, "vocab", "embed")
        return shared, copies(self.kernel.astype(dtype), rows, "embed", "vocab")

    def __call__(self, hidden: jax.Array, matrix: tuple[jax.Array, jax.Array]) -> jax.Array:
        hidden = ACTIVATIONS[self.config.activation](self.transform(hidden))
        # Left to itself, the compiler makes wrong gradients of it on data x fsdp x tensor.
        names = ("batch", "length")[: hidden.ndim - 1]
        hidden = self.norm(constrain(hidden, *names, None))
        shared, own = jnp.split(hidden, [self.config.embedding_size], axis=-1)
        logits = product(shared, matrix[0], transposed=True, dtype="float32")
        logits = logits + self.bias.reshape((1,) * (logits.ndim - 1) + (-1,))
        return logits + product(own, matrix[1], dtype="float32")

    def forward_flops(self) -> int:
        """Of one position."""
        cfg = self.config
        return 2 * cfg.hidden_size * (cfg.hidden_size + cfg.vocab_size)
