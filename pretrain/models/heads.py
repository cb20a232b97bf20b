"""Heads on the trunk, and the models that join both: what every objective trains."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from pretrain.models.layers import ACTIVATIONS, Dense, LayerNorm, dropout
from pretrain.models.transformer import Transformer, TransformerConfig, forward_flops


class LMHead(nn.Module):
    """Vocabulary logits through the transposed word embedding: ``[..., D] -> [..., V]``."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, hidden: jax.Array, embedding: jax.Array) -> jax.Array:
        cfg = self.config
        if cfg.head_transform:
            hidden = Dense(
                ("embed",), (cfg.hidden_size,), ("embed_out",), init_std=cfg.init_std,
                dtype=cfg.dtype, name="transform",
            )(hidden)  # fmt: skip
            hidden = ACTIVATIONS[cfg.activation](hidden)
            hidden = LayerNorm(cfg.norm_eps, cfg.norm_bias, cfg.dtype, name="norm")(hidden)
        flat = hidden.reshape(-1, hidden.shape[-1])
        logits = jax.lax.dot_general(
            flat,
            embedding.astype(cfg.dtype),
            (((1,), (1,)), ((), ())),
            preferred_element_type=jnp.float32,
        )
        if cfg.head_bias:
            bias = self.param(
                "bias",
                nn.with_logical_partitioning(nn.initializers.zeros, ("vocab",)),
                (cfg.vocab_size,),
            )
            logits = logits + bias[None, :]
        return logits.reshape(*hidden.shape[:-1], cfg.vocab_size)


class LanguageModel(nn.Module):
    """Trunk and tied vocabulary head. Calling it gives hidden states; ``logits`` maps those on."""

    config: TransformerConfig

    def setup(self):
        self.trunk = Transformer(self.config)
        self.lm_head = LMHead(self.config)

    def __call__(self, tokens, **inputs) -> jax.Array:
        return self.trunk(tokens, **inputs)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """``[..., D] -> [..., V]``, float32."""
        return self.lm_head(hidden, self.trunk.word.embedding)

    def initialise(self, tokens: jax.Array) -> jax.Array:
        """Touches every parameter; for ``init``."""
        return self.logits(self.trunk(tokens))

    def forward_flops(self, seq_len: int, predicted: int) -> int:
        """Of one row of which ``predicted`` positions get logits."""
        cfg = self.config
        transform = cfg.hidden_size**2 if cfg.head_transform else 0
        head = 2 * (transform + cfg.hidden_size * cfg.vocab_size)
        return forward_flops(cfg, seq_len) + predicted * head


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


class LabelModel(nn.Module):
    """What the models with class labels share."""

    config: TransformerConfig

    def example(self) -> dict[str, jax.Array]:
        """A batch to initialise with."""
        ids = jnp.ones((1, 8), jnp.int32)
        return {"tokens": ids, "segment_ids": ids}

    def forward_flops(self, seq_len: int) -> int:
        """Of one row; the head's are too few to count."""
        return forward_flops(self.config, seq_len)


class Classifier(LabelModel):
    """Trunk and classification head: class logits ``[B, C]`` of a row of tokens."""

    num_classes: int
    pool: str
    head_dropout: float

    @nn.compact
    def __call__(self, batch: dict[str, jax.Array], *, deterministic: bool = True) -> jax.Array:
        cfg = self.config
        hidden = Transformer(cfg, name="trunk")(
            batch["tokens"], segment_ids=batch["segment_ids"], deterministic=deterministic
        )
        pooled = pool(hidden, batch["segment_ids"], self.pool)
        if self.pool == "pooler":
            pooled = Dense(
                ("embed",), (cfg.hidden_size,), ("embed_out",), init_std=cfg.init_std,
                dtype=cfg.dtype, name="pooler",
            )(pooled)  # fmt: skip
            pooled = jnp.tanh(pooled)
        rng = None if deterministic else self.make_rng("dropout")
        pooled = dropout(pooled, self.head_dropout, rng)
        logits = Dense(
            ("embed",), (self.num_classes,), ("classes",), init_std=cfg.init_std, dtype=cfg.dtype,
            name="classification_head",
        )(pooled)  # fmt: skip
        return logits.astype(jnp.float32)


class Tagger(LabelModel):
    """Trunk and tagging head: tag logits ``[B, S, C]`` of every position."""

    num_classes: int
    head_dropout: float

    @nn.compact
    def __call__(self, batch: dict[str, jax.Array], *, deterministic: bool = True) -> jax.Array:
        cfg = self.config
        hidden = Transformer(cfg, name="trunk")(
            batch["tokens"], segment_ids=batch["segment_ids"], deterministic=deterministic
        )
        rng = None if deterministic else self.make_rng("dropout")
        hidden = dropout(hidden, self.head_dropout, rng)
        logits = Dense(
            ("embed",), (self.num_classes,), ("classes",), init_std=cfg.init_std, dtype=cfg.dtype,
            name="tagging_head",
        )(hidden)  # fmt: skip
        return logits.astype(jnp.float32)
