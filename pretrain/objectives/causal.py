"""Causal language modelling with a cross-entropy that never holds all logits at once."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import optax

from pretrain.models.heads import LanguageModel
from pretrain.models.transformer import forward_flops
from pretrain.objectives.base import Batch, Metrics


def next_tokens(batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Labels int32 and weights float32 ``[B, S]``: the next token of the same document, if any."""
    labels = jnp.roll(batch["tokens"], -1, axis=1)
    segment_ids = batch["segment_ids"]
    same = (segment_ids == jnp.roll(segment_ids, -1, axis=1)) & (segment_ids > 0)
    same = same.at[:, -1].set(False)
    return labels, same.astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class CausalLM:
    """Predicts every next token. Peak memory grows with ``chunk_size``, not with the batch."""

    name: ClassVar[str] = "causal"

    model: LanguageModel
    chunk_size: int

    def init(self, key: jax.Array) -> dict:
        return self.model.init(key, jnp.zeros((1, 8), jnp.int32), method="initialise")

    def corrupt(self, batch: Batch, key: jax.Array) -> Batch:
        del key
        return batch

    def _losses(self, params: dict, batch: Batch, **kwargs) -> Metrics:
        hidden = self.model.apply(
            {"params": params},
            batch["tokens"],
            segment_ids=batch["segment_ids"],
            positions=batch["positions"],
            **kwargs,
        )
        labels, weights = next_tokens(batch)
        weights = weights * batch["weights"][:, None] if "weights" in batch else weights
        size = min(self.chunk_size, labels.size)
        padding = -labels.size % size

        def chunks(x):
            flat = x.reshape(labels.size, *x.shape[2:])
            flat = jnp.pad(flat, [(0, padding)] + [(0, 0)] * (flat.ndim - 1))
            return flat.reshape(-1, size, *flat.shape[1:])

        @jax.checkpoint
        def chunk_sums(sums, chunk):
            hidden, labels, weights = chunk
            logits = self.model.apply({"params": params}, hidden, method="logits")
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            hits = (logits.argmax(-1) == labels).astype(jnp.float32)
            return (sums[0] + (losses * weights).sum(), sums[1] + (hits * weights).sum()), None

        zeros = (jnp.zeros(()), jnp.zeros(()))
        (loss, hits), _ = jax.lax.scan(
            chunk_sums, zeros, (chunks(hidden), chunks(labels), chunks(weights))
        )
        return {"loss": (loss, weights.sum()), "accuracy": (hits, weights.sum())}

    def loss(self, params: dict, batch: Batch, key: jax.Array):
        metrics = self._losses(params, batch, deterministic=False, rngs={"dropout": key})
        return *metrics["loss"], metrics

    def penalty(self, params: dict) -> float:
        del params
        return 0.0

    def predict(self, params: dict, batch: Batch) -> Metrics:
        return self._losses(params, batch)

    def train_flops(self, seq_len: int) -> float:
        config = self.model.config
        transform = config.hidden_size**2 if config.head_transform else 0
        head = 2 * (transform + config.hidden_size * config.vocab_size)
        return 3.0 * (forward_flops(config, seq_len) + seq_len * head)
