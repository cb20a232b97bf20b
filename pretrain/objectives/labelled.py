"""Losses of the labelled tasks, for every model that gives class logits."""

import abc
import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from pretrain.objectives.base import Batch, Metrics

LOSSES = {
    "softmax": optax.softmax_cross_entropy_with_integer_labels,
    # One-vs-rest with squared hinge, as LIBLINEAR's default linear SVM.
    "squared_hinge": lambda logits, labels: jnp.square(
        nn.relu(1.0 - logits * (2.0 * jax.nn.one_hot(labels, logits.shape[-1]) - 1.0))
    ).sum(-1),
}


@dataclasses.dataclass(frozen=True)
class Labelled(abc.ABC):
    """Classification of rows (``labels [B]``) or tagging of positions (``labels [B, S]``).

    ``C`` is the inverse strength of an L2 penalty on the kernels, as in scikit-learn: it minimises
    ``sum(loss) + |kernel|^2 / (2 C)`` over the training set. A batch that is only a ``share`` of it
    gets that share of the penalty.
    """

    name: ClassVar[str]

    model: nn.Module
    loss_name: str
    C: float
    share: float

    def init(self, key: jax.Array) -> dict:
        return self.model.init(key, self.model.example())

    def corrupt(self, batch: Batch, key: jax.Array) -> Batch:
        del key
        return batch

    @abc.abstractmethod
    def weights(self, batch: Batch) -> jax.Array:
        """float32 of the shape of ``labels``."""

    def loss(self, params: dict, batch: Batch, key: jax.Array):
        metrics = self.metrics(params, batch, deterministic=False, rngs={"dropout": key})
        return *metrics["loss"], metrics

    def metrics(self, params: dict, batch: Batch, **kwargs) -> Metrics:
        return self.score(params, self.forward(params, batch, **kwargs), batch)

    def forward(self, params: dict, batch: Batch, **kwargs) -> jax.Array:
        """Class logits ``[B, (S,) C]``; ``kwargs`` go to the model."""
        return self.model.apply({"params": params}, batch, **kwargs)

    def score(self, params: dict, logits: jax.Array, batch: Batch) -> Metrics:
        """Sums of losses and of hits, with their weights, from what `forward` gives."""
        del params
        labels, weights = batch["labels"], self.weights(batch)
        loss_sum = (LOSSES[self.loss_name](logits, labels) * weights).sum()
        hits = jnp.where(logits.argmax(-1) == labels, weights, 0.0).sum()
        total = weights.sum()
        return {"loss": (loss_sum, total), "accuracy": (hits, total)}

    def penalty(self, params: dict) -> jax.Array | float:
        if not self.C:
            return 0.0
        leaves = jax.tree_util.tree_leaves_with_path(params)
        kernels = [leaf for path, leaf in leaves if path[-1].key == "kernel"]
        return sum(jnp.square(k).sum() for k in kernels) * self.share / (2.0 * self.C)

    def predict(self, params: dict, batch: Batch) -> jax.Array:
        """Log-probabilities ``[B, (S,) C]``; for the hinge, of the softmax of the margins."""
        return nn.log_softmax(self.forward(params, batch))

    def train_flops(self, seq_len: int) -> float:
        """``seq_len``: tokens, or for linear models non-zero features, of a row."""
        return 3.0 * self.model.forward_flops(seq_len)


@dataclasses.dataclass(frozen=True)
class Classification(Labelled):
    """One label a row."""

    name: ClassVar[str] = "classify"

    def weights(self, batch: Batch) -> jax.Array:
        return batch["weights"]


@dataclasses.dataclass(frozen=True)
class Tagging(Labelled):
    """One label a word, read at the word's first sub-word."""

    name: ClassVar[str] = "tag"

    def weights(self, batch: Batch) -> jax.Array:
        return batch["label_mask"] * batch["weights"][:, None]
