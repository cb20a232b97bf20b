"""Causal language modelling (Radford et al. 2019)."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from pretrain.objectives.base import Batch, Metrics
from pretrain.objectives.language import Language, weigh


def next_tokens(batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Labels int32 and weights float32 ``[B, S]``: the next token of the same document, if any.

    That of a row's last token is ``next_token [B]`` where rows go on, -1 for none.
    """
    labels = jnp.roll(batch["tokens"], -1, axis=1)
    segment_ids = batch["segment_ids"]
    same = (segment_ids == jnp.roll(segment_ids, -1, axis=1)) & (segment_ids > 0)
    after = batch.get("next_token", jnp.full_like(labels[:, 0], -1))
    labels = labels.at[:, -1].set(jnp.maximum(after, 0))
    same = same.at[:, -1].set(after >= 0)
    return labels, same.astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class CausalLM(Language):
    """Predicts every next token; ``chunk_size`` positions of a row have logits at a time."""

    name: ClassVar[str] = "causal"
    scores: ClassVar[tuple[str, ...]] = ("loss", "perplexity", "accuracy", "bits_per_byte")

    chunk_size: int

    def score(self, params: dict, hidden: jax.Array, batch: Batch) -> Metrics:
        labels, _ = next_tokens(batch)
        return self.score_tokens(params, hidden, labels, batch, self.chunk_size)

    def predicted(self, hidden: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
        return hidden, weigh(next_tokens(batch)[1], batch)

    def predict(self, params: dict, batch: Batch) -> Metrics:
        return self.metrics(params, batch)
