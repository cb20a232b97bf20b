"""What an objective is: a model with a loss, as pure functions of parameters, batch and key."""

from typing import Protocol

import flax.linen as nn
import jax

Batch = dict[str, jax.Array]
Metrics = dict[str, tuple[jax.Array, jax.Array]]  # name -> (sum, weight)


class Objective(Protocol):
    """A frozen dataclass: equal objectives share one compiled step.

    ``corrupt`` sees the whole global batch, so that what it draws does not depend on how the batch
    is cut into micro-batches or laid out over devices. Losses are sums: the step divides once.
    """

    model: nn.Module

    def init(self, key: jax.Array) -> dict:
        """Variables, boxed with their logical axis names."""

    def corrupt(self, batch: Batch, key: jax.Array) -> Batch:
        """Draws what the loss needs at random (masks); the identity for most objectives."""

    def loss(
        self, params: dict, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, jax.Array, Metrics]:
        """``(loss_sum, weight_sum, metrics)`` over the rows of ``batch``; ``key`` is of dropout."""

    def penalty(self, params: dict) -> jax.Array | float:
        """Added to the *sum* of the losses of a batch; depends on the parameters alone."""

    def predict(self, params: dict, batch: Batch) -> jax.Array | Metrics:
        """Deterministic: metrics (language models) or log-probabilities (labelled tasks)."""

    def train_flops(self, seq_len: int) -> float:
        """Floating-point operations of one training row, forward and backward."""
