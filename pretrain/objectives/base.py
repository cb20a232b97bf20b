"""What an objective is: a model with a loss, as pure functions of parameters, batch and key."""

import abc
from typing import Any, ClassVar, Self

import flax.linen as nn
import jax

Batch = dict[str, jax.Array]
Metrics = dict[str, tuple[jax.Array, jax.Array]]  # name -> (sum, weight)


class Objective(abc.ABC):
    """Subclasses are frozen dataclasses: equal objectives share one compiled step.

    ``corrupt`` sees the whole global batch, so that what it draws does not depend on how the batch
    is cut into micro-batches or laid out over devices; `pretrain.models.layers.dropout` counts rows
    of the whole batch to the same end. Losses are sums: the step divides once.
    """

    name: str
    model: nn.Module
    carries_memory: ClassVar[bool] = False  # to the next batch: one value more of loss and predict

    @abc.abstractmethod
    def init(self, key: jax.Array) -> dict:
        """Variables, boxed with their logical axis names."""

    def init_teacher(self, key: jax.Array) -> dict:
        """As `init`, of a teacher: parameters that the loss needs and no update changes."""
        del key
        return {"params": {}}

    def initial_memory(self, rows: int, held_out: bool = False) -> Any:
        """What the first batch has as ``memory``: a tree of arrays, rows first; none by default.

        A later batch has what `loss`, or `predict`, gave as its last value for the one before.
        """
        del rows, held_out
        return {}

    def bind(self, teacher: dict, progress: jax.Array) -> Self:
        """This objective within a step, where it knows the teacher and the budget's share spent."""
        del teacher, progress
        return self

    def moving(self, params: dict) -> dict | None:
        """Which elements an update may change: trees of what broadcasts to them; None: all.

        What it may not change stays whatever the optimizer says: weight decay and momentum move
        parameters without a gradient too.
        """
        del params
        return None

    def corrupt(self, batch: Batch, key: jax.Array) -> Batch:
        """Draws what the loss needs at random (masks); the identity for most objectives."""
        del key
        return batch

    def loss(
        self, params: dict, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, jax.Array, Metrics]:
        """``(loss_sum, weight_sum, metrics)`` over the rows of ``batch``; ``key`` is of dropout."""
        metrics = self.metrics(params, batch, deterministic=False, rngs={"dropout": key})
        return self.combined(metrics, batch), metrics["loss"][1], metrics

    def combined(self, metrics: Metrics, batch: Batch) -> jax.Array:
        """The sum that is minimised: that of ``loss``, unless there are several losses."""
        del batch
        return metrics["loss"][0]

    def metrics(self, params: dict, batch: Batch, **kwargs: Any) -> Metrics:
        """Sums of losses and of hits, with their weights; ``kwargs`` go to the model."""
        return self.score(params, self.forward(params, batch, **kwargs), batch)

    @abc.abstractmethod
    def forward(self, params: dict, batch: Batch, **kwargs: Any) -> Any:
        """What the model gives for a corrupted batch; ``kwargs`` go to the model."""

    @abc.abstractmethod
    def score(self, params: dict, output: Any, batch: Batch) -> Metrics:
        """The metrics, "loss" among them, of what `forward` gave."""

    @abc.abstractmethod
    def row_weights(self, output: Any, batch: Batch) -> jax.Array:
        """``[B]``: what each row counts in the loss; they sum up to its weight."""

    def penalty(self, params: dict) -> jax.Array | float:
        """Added to the *sum* of the losses of a batch; depends on the parameters alone."""
        del params
        return 0.0

    @abc.abstractmethod
    def predict(self, params: dict, batch: Batch) -> jax.Array | Metrics:
        """Deterministic: metrics (language models) or log-probabilities (labelled tasks)."""

    @abc.abstractmethod
    def train_flops(self, seq_len: int) -> float:
        """Floating-point operations of one training row, forward and backward."""
