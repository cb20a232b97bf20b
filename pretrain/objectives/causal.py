"""Causal language modelling with a cross-entropy that never holds all logits of long rows."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import optax

from pretrain.objectives.base import Batch, Metrics
from pretrain.objectives.language import Language, weigh


def next_tokens(batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Labels int32 and weights float32 ``[B, S]``: the next token of the same document, if any."""
    labels = jnp.roll(batch["tokens"], -1, axis=1)
    segment_ids = batch["segment_ids"]
    same = (segment_ids == jnp.roll(segment_ids, -1, axis=1)) & (segment_ids > 0)
    same = same.at[:, -1].set(False)
    return labels, same.astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class CausalLM(Language):
    """Predicts every next token. ``chunk_size``: positions of a row whose logits exist at a time.

    A chunk has positions of every row, so that each device works on its own rows of every chunk.
    """

    name: ClassVar[str] = "causal"

    chunk_size: int

    def corrupt(self, batch: Batch, key: jax.Array) -> Batch:
        del key
        return batch

    def metrics(self, params: dict, batch: Batch, **kwargs) -> Metrics:
        hidden = self.hidden(params, batch, **kwargs)
        labels, weights = next_tokens(batch)
        weights = weigh(weights, batch)
        rows, length = labels.shape
        count = -(-length // self.chunk_size)
        padding = -length % count

        def chunks(x):
            """``[B, S, ...] -> [count, B, S / count, ...]``."""
            x = jnp.pad(x, [(0, 0), (0, padding)] + [(0, 0)] * (x.ndim - 2))
            return jnp.moveaxis(x.reshape(rows, -1, count, *x.shape[2:]), 2, 0)

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

    def predict(self, params: dict, batch: Batch) -> Metrics:
        return self.metrics(params, batch)

    def train_flops(self, seq_len: int) -> float:
        return 3.0 * self.model.forward_flops(seq_len, seq_len)
