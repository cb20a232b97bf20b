"""What masked and causal language modelling share."""

import abc
import dataclasses

import jax
import jax.numpy as jnp

from pretrain.models.heads import LanguageModel
from pretrain.objectives.base import Batch, Metrics


@dataclasses.dataclass(frozen=True)
class Language(abc.ABC):
    """An objective over rows of packed documents; `metrics` is what a subclass adds."""

    model: LanguageModel

    def init(self, key: jax.Array) -> dict:
        return self.model.init(key, jnp.zeros((1, 8), jnp.int32), method="initialise")

    @abc.abstractmethod
    def metrics(self, params: dict, batch: Batch, **kwargs) -> Metrics:
        """Sums of losses and of hits, with their weights; ``kwargs`` go to the model."""

    def hidden(self, params: dict, batch: Batch, **kwargs) -> jax.Array:
        """``[B, S, D]``."""
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


def weigh(weights: jax.Array, batch: Batch) -> jax.Array:
    """Weights ``[B, K]`` of positions times those of their rows, where a batch has any."""
    return weights * batch["weights"][:, None] if "weights" in batch else weights
