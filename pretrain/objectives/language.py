"""What the objectives on raw text share, a cross-entropy in chunks among it."""

import abc
import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import optax

from pretrain.models.heads import LanguageModel
from pretrain.objectives.base import Batch, Metrics


@dataclasses.dataclass(frozen=True)
class Language(abc.ABC):
    """An objective over rows of packed documents; `score` is what a subclass adds."""

    scores: ClassVar[tuple[str, ...]]  # names of what is measured on held-out rows

    model: LanguageModel

    def init(self, key: jax.Array) -> dict:
        return self.model.init(key, jnp.zeros((1, 8), jnp.int32), method="initialise")

    @abc.abstractmethod
    def score(self, params: dict, hidden: jax.Array, batch: Batch) -> Metrics:
        """Sums of losses and of hits, with their weights, from what `forward` gives."""

    def metrics(self, params: dict, batch: Batch, **kwargs) -> Metrics:
        return self.score(params, self.forward(params, batch, **kwargs), batch)

    def forward(self, params: dict, batch: Batch, **kwargs) -> jax.Array:
        """``[B, S, D]``; ``kwargs`` go to the model."""
        return self.model.apply(
            {"params": params},
            batch["tokens"],
            segment_ids=batch["segment_ids"],
            positions=batch["positions"],
            **kwargs,
        )

    def loss(self, params: dict, batch: Batch, key: jax.Array):
        metrics = self.metrics(params, batch, deterministic=False, rngs={"dropout": key})
        return *metrics["loss"], metrics

    def penalty(self, params: dict) -> float:
        del params
        return 0.0

    def cross_entropy(
        self, params: dict, hidden: jax.Array, labels: jax.Array, chunk_size: int
    ) -> tuple[jax.Array, jax.Array]:
        """Of every position of ``hidden [B, S, D]``: loss, and 1 for a hit, float32 ``[B, S]``.

        Never holds all logits of long rows: those of ``chunk_size`` positions a row exist at a
        time. A chunk has positions of every row, so that each device works on its own rows.
        """
        rows, length = labels.shape
        count = -(-length // chunk_size)

        def chunks(x):
            """``[B, S, ...] -> [count, B, S / count, ...]``."""
            x = jnp.pad(x, [(0, 0), (0, -length % count)] + [(0, 0)] * (x.ndim - 2))
            return jnp.moveaxis(x.reshape(rows, -1, count, *x.shape[2:]), 2, 0)

        @jax.checkpoint
        def score(carry, chunk):
            hidden, labels = chunk
            logits = self.model.apply({"params": params}, hidden, method="logits")
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return carry, (losses, (logits.argmax(-1) == labels).astype(jnp.float32))

        _, scores = jax.lax.scan(score, None, (chunks(hidden), chunks(labels)))
        losses, hits = (jnp.moveaxis(x, 0, 2).reshape(rows, -1)[:, :length] for x in scores)
        return losses, hits


def weigh(weights: jax.Array, batch: Batch) -> jax.Array:
    """Weights ``[B, K]`` of positions times those of their rows, where a batch has any."""
    return weights * batch["weights"][:, None] if "weights" in batch else weights
