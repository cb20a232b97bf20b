"""Prefix language modelling: a decoder that reads the beginning of a text in both directions."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from pretrain.objectives.base import Batch, Metrics
from pretrain.objectives.causal import CausalLM
from pretrain.objectives.language import content_keys

EVAL_KEY = 16


@dataclasses.dataclass(frozen=True)
class PrefixLM(CausalLM):
    """Predicts every token behind the prefix of its document (Liu et al. 2018; Raffel et al. 2020).

    A prefix has one to all but one of a document's tokens, uniformly; its positions see each other,
    those behind it see it and what comes before them.
    """

    name: ClassVar[str] = "prefix"
    scores: ClassVar[tuple[str, ...]] = ("loss", "perplexity", "accuracy")

    def corrupt(self, batch: Batch, key: jax.Array) -> Batch:
        return self._split(batch, jax.random.split(key, batch["tokens"].shape[0]))

    def _split(self, batch: Batch, keys: jax.Array) -> Batch:
        """Adds ``prefix [B, S]``: bool, whether a position is in the prefix of its document."""
        segment_ids = batch["segment_ids"]
        length = segment_ids.shape[1]
        count = jax.vmap(lambda ids: jnp.zeros(length + 1, jnp.int32).at[ids].add(1))(segment_ids)
        draw = jax.vmap(lambda key: jax.random.uniform(key, (length + 1,)))(keys)
        # In [1, count - 1]: the product may round up to its bound.
        split = 1 + (draw * (count - 1).astype(jnp.float32)).astype(jnp.int32)
        split = jnp.minimum(split, jnp.maximum(count - 1, 1))
        split = jnp.take_along_axis(split, segment_ids, axis=1)
        return batch | {"prefix": (batch["positions"] < split) & (segment_ids > 0)}

    def forward(self, params: dict, batch: Batch, **kwargs) -> jax.Array:
        return super().forward(params, batch, prefix=batch["prefix"], **kwargs)

    def predicted(self, hidden: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
        hidden, weights = super().predicted(hidden, batch)
        behind = ~jnp.roll(batch["prefix"], -1, axis=1)
        return hidden, weights * behind.astype(jnp.float32)

    def predict(self, params: dict, batch: Batch) -> Metrics:
        """Metrics with prefixes that are a function of a row's tokens, whatever the batch."""
        return self.metrics(params, self._split(batch, content_keys(batch["tokens"], EVAL_KEY)))
