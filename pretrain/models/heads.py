"""Heads on a backbone, and the models that join both: what every objective trains."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from pretrain.errors import UserError
from pretrain.fsdp import copies
from pretrain.models.layers import ACTIVATIONS, Dense, LayerNorm, dropout, product
from pretrain.models.options import POOLERS
from pretrain.models.transformer import TransformerConfig
from pretrain.sharding import constrain


class LMHead(nn.Module):
    """Vocabulary logits ``[..., D] -> [..., V]``, through the word embedding where it is tied."""

    config: TransformerConfig

    def setup(self):
        cfg = self.config
        if cfg.head_transform:
            self.transform = Dense(
                ("embed",), (cfg.embedding_width,), ("embed_out",), use_bias=cfg.bias,
                init_std=cfg.matrix_init_std, dtype=cfg.dtype,
            )  # fmt: skip
            self.norm = cfg.make_norm()
        if not cfg.tied:
            normal, names = nn.initializers.normal(cfg.init_std), ("embed", "vocab")
            width = cfg.embedding_width if cfg.head_transform else cfg.hidden_size
            self.kernel = self.param(
                "kernel", nn.with_logical_partitioning(normal, names), (width, cfg.vocab_size)
            )
        if cfg.head_bias:
            zeros = nn.with_logical_partitioning(nn.initializers.zeros, ("vocab",))
            self.bias = self.param("bias", zeros, (cfg.vocab_size,))

    def matrix(self, table: jax.Array, rows: int) -> jax.Array:
        """What a call multiplies with: `copies` for a batch of so many ``rows``.

        ``table``: the word embedding ``[V, E]``.
        """
        if self.config.tied:
            return copies(table.astype(self.config.dtype), rows, "vocab", "embed")
        return copies(self.kernel.astype(self.config.dtype), rows, "embed", "vocab")

    def __call__(self, hidden: jax.Array, matrix: jax.Array) -> jax.Array:
        cfg = self.config
        if cfg.head_transform:
            hidden = ACTIVATIONS[cfg.activation](self.transform(hidden))
            # Left to itself, the compiler makes wrong gradients of it on data x fsdp x tensor.
            names = ("batch", "length")[: hidden.ndim - 1]
            hidden = self.norm(constrain(hidden, *names, None))
        hidden = hidden / cfg.width_ratio
        logits = product(hidden, matrix, transposed=cfg.tied, dtype="float32")
        if cfg.head_bias:
            logits = logits + self.bias.reshape((1,) * (logits.ndim - 1) + (-1,))
        return logits

    def forward_flops(self) -> int:
        """Of one position."""
        cfg = self.config
        transform = cfg.hidden_size * cfg.embedding_width if cfg.head_transform else 0
        width = cfg.embedding_width if cfg.head_transform else cfg.hidden_size
        return 2 * (transform + width * cfg.vocab_size)


class LanguageModel(nn.Module):
    """Backbone and vocabulary head. Calling it gives hidden states; ``logits`` maps those on."""

    trunk: nn.Module
    lm_head: nn.Module

    def __call__(self, tokens, **inputs) -> jax.Array:
        return self.trunk(tokens, **inputs)

    def matrix(self, rows: int) -> Any:
        """What `logits` of a batch of so many ``rows`` are made with, for several calls to share.

        In a loop each would gather it anew, and add up its gradient over all devices.
        """
        return self.lm_head.matrix(self.trunk.output_table(), rows)

    def logits(self, hidden: jax.Array, matrix: Any = None) -> jax.Array:
        """``[..., D] -> [..., V]``, float32."""
        if matrix is None:
            matrix = self.matrix(len(hidden) if hidden.ndim > 1 else 0)
        return self.lm_head(hidden, matrix)

    def initialise(self, tokens: jax.Array) -> jax.Array:
        """Touches every parameter; for ``init``."""
        return self.logits(self.trunk(tokens))

    def forward_flops(self, seq_len: int, predicted: int, **lengths: int) -> int:
        """Of one row of which ``predicted`` positions get logits; ``lengths`` go to the trunk."""
        head = predicted * self.lm_head.forward_flops()
        return self.trunk.forward_flops(seq_len, **lengths) + head


class PairModel(LanguageModel):
    """Also tells of a pair of texts which of two things it is (NSP; Devlin et al. 2019).

    Its pooler is the one that a classifier with ``objective.pool`` "pooler" starts from.
    """

    def setup(self):
        cfg = self.trunk.config
        self.pooler = Pooler(cfg)
        self.pair_head = Dense(
            ("embed",), (2,), ("classes",), init_std=cfg.init_std, dtype=cfg.dtype
        )

    def pair_logits(self, hidden: jax.Array, segment_ids: jax.Array) -> jax.Array:
        """``[B, S, D] -> [B, 2]``, float32."""
        pooled = pool(hidden, segment_ids, POOLERS[self.trunk.config.pooler].position)
        pooled = self.pooler(pooled) / self.trunk.config.width_ratio
        return self.pair_head(pooled).astype(jnp.float32)

    def initialise(self, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Touches every parameter; for ``init``."""
        hidden = self.trunk(tokens)
        return self.logits(hidden), self.pair_logits(hidden, jnp.ones_like(tokens))


POOLS = ("first", "last", "mean", "pooler")


def pool(hidden: jax.Array, segment_ids: jax.Array, how: str) -> jax.Array:
    """``[B, S, D] -> [B, D]``: the first position, the last real one, or the mean of the real."""
    real = segment_ids > 0
    if how == "mean":
        weights = real.astype(jnp.float32)
        weights /= jnp.maximum(weights.sum(-1, keepdims=True), 1.0)
        return jnp.einsum("bsd,bs->bd", hidden, weights.astype(hidden.dtype))
    if how == "last":
        last = jnp.maximum(real.sum(-1) - 1, 0)
        return jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]
    return hidden[:, 0]


class Pooler(nn.Module):
    """The dense layer of ``model.pooler`` (`POOLERS`): ``[..., D] -> [..., D]``."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, pooled: jax.Array) -> jax.Array:
        cfg = self.config
        style = POOLERS[cfg.pooler]
        if not style.activation:
            return pooled
        pooled = Dense(
            ("embed",), (cfg.hidden_size,), ("embed_out",), use_bias=style.bias,
            init_std=cfg.matrix_init_std, dtype=cfg.dtype, name="dense",
        )(pooled)  # fmt: skip
        pooled = ACTIVATIONS[style.activation](pooled)
        if style.norm:
            pooled = LayerNorm(cfg.norm_eps, cfg.norm_bias, cfg.dtype, name="norm")(pooled)
        return pooled


class Encoder(nn.Module):
    """A backbone without a head: hidden states; with its published pooler, if it has one."""

    trunk: nn.Module
    has_pooler: bool

    def setup(self):
        if self.has_pooler:
            self.pooler = Pooler(self.trunk.config)

    def __call__(self, tokens, **inputs) -> jax.Array:
        return self.trunk(tokens, **inputs)

    def pooled(self, hidden: jax.Array, segment_ids: jax.Array) -> jax.Array:
        """``[B, S, D] -> [B, D]``."""
        return self.pooler(pool(hidden, segment_ids, POOLERS[self.trunk.config.pooler].position))

    def initialise(self, tokens: jax.Array) -> jax.Array:
        """Touches every parameter; for ``init``."""
        hidden = self.trunk(tokens)
        return self.pooled(hidden, jnp.ones_like(tokens)) if self.has_pooler else hidden


class LabelModel(nn.Module):
    """What the models with class labels share."""

    trunk: nn.Module
    num_classes: int

    def example(self) -> dict[str, jax.Array]:
        """A batch to initialise with."""
        ids = jnp.ones((1, 8), jnp.int32)
        return {"tokens": ids, "segment_ids": ids}

    def forward_flops(self, seq_len: int) -> int:
        """Of one row; the head's are too few to count."""
        return self.trunk.forward_flops(seq_len)

    def read(self, batch: dict[str, jax.Array], deterministic: bool) -> jax.Array:
        """Hidden states ``[B, S, D]``; ``token_types`` and ``characters`` are optional."""
        inputs = {name: batch[name] for name in ("token_types", "characters") if name in batch}
        return self.trunk(
            batch["tokens"],
            segment_ids=batch["segment_ids"],
            deterministic=deterministic,
            **inputs,
        )

    def classify(self, x: jax.Array, name: str, use_bias: bool = True) -> jax.Array:
        """``[..., D] -> [..., C]``, float32."""
        cfg = self.trunk.config
        logits = Dense(
            ("embed",), (self.num_classes,), ("classes",), use_bias=use_bias,
            init_std=cfg.init_std, dtype=cfg.dtype, name=name,
        )(x / cfg.width_ratio)  # fmt: skip
        return logits.astype(jnp.float32)


class Classifier(LabelModel):
    """Backbone and classification head: class logits ``[B, C]`` of a row of tokens.

    On the last position the head has no bias: the convention of GPT-2 and Llama checkpoints.
    """

    pool: str
    head_dropout: float

    @nn.compact
    def __call__(self, batch: dict[str, jax.Array], *, deterministic: bool = True) -> jax.Array:
        cfg, segment_ids = self.trunk.config, batch["segment_ids"]
        hidden = self.read(batch, deterministic)

        def drop(x):
            return dropout(
                x, self.head_dropout, None if deterministic else self.make_rng("dropout")
            )

        if self.pool == "pooler":
            style = POOLERS[cfg.pooler]
            pooled = pool(hidden, segment_ids, style.position)
            pooled = Pooler(cfg, name="pooler")(drop(pooled) if style.dropout else pooled)
        else:
            pooled = pool(hidden, segment_ids, self.pool)
        return self.classify(drop(pooled), "classification_head", use_bias=self.pool != "last")


class Tagger(LabelModel):
    """Backbone and tagging head: tag logits ``[B, S, C]`` of every position.

    With ``has_pooler`` the dense layer of `POOLERS` stands before it (ModernBERT); a pooler that
    has none is a `UserError`.
    """

    head_dropout: float
    has_pooler: bool = False

    def __post_init__(self):
        name = self.trunk.config.pooler
        if self.has_pooler and not POOLERS[name].activation:
            raise UserError(
                f"config.model.pooler: found {name!r}, which has no layer for objective.pooler "
                "True; expected another, or objective.pooler False"
            )
        super().__post_init__()

    @nn.compact
    def __call__(self, batch: dict[str, jax.Array], *, deterministic: bool = True) -> jax.Array:
        hidden = self.read(batch, deterministic)
        if self.has_pooler:
            hidden = Pooler(self.trunk.config, name="pooler")(hidden)
        rng = None if deterministic else self.make_rng("dropout")
        return self.classify(dropout(hidden, self.head_dropout, rng), "tagging_head")


class DiscriminatorHead(nn.Module):
    """Logits ``[..., D] -> [...]`` that a token was replaced (ELECTRA; Clark et al. 2020)."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, hidden: jax.Array) -> jax.Array:
        cfg = self.config
        hidden = Dense(
            ("embed",), (cfg.hidden_size,), ("embed_out",),
            init_std=cfg.matrix_init_std, dtype=cfg.dtype, name="transform",
        )(hidden)  # fmt: skip
        hidden = ACTIVATIONS[cfg.activation](hidden) / cfg.width_ratio
        logits = Dense(
            ("embed",), (1,), ("classes",), init_std=cfg.init_std, dtype=cfg.dtype, name="out"
        )(hidden)
        return logits[..., 0].astype(jnp.float32)


class Discriminator(nn.Module):
    """Backbone and replaced-token head: ``[B, S]`` logits of every position."""

    trunk: nn.Module

    def setup(self):
        self.discriminator_head = DiscriminatorHead(self.trunk.config)

    def __call__(self, tokens, **inputs) -> jax.Array:
        return self.discriminator_head(self.trunk(tokens, **inputs))

    def initialise(self, tokens: jax.Array) -> jax.Array:
        """Touches every parameter; for ``init``."""
        return self(tokens)

    def forward_flops(self, seq_len: int) -> int:
        """Of one row."""
        width = self.trunk.config.hidden_size
        return self.trunk.forward_flops(seq_len) + seq_len * 2 * width * (width + 1)
