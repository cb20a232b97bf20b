"""Losses of the labelled tasks, for every model that gives class logits."""

import abc
import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from pretrain.models import crf
from pretrain.objectives.base import Batch, Metrics, Objective


def _slack(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """How much each class's margin falls short of 1, one against the rest."""
    return nn.relu(1.0 - logits * (2.0 * jax.nn.one_hot(labels, logits.shape[-1]) - 1.0))


LOSSES = {
    "softmax": optax.softmax_cross_entropy_with_integer_labels,
    # One-vs-rest linear SVMs as LIBLINEAR has them, by default with the squared hinge.
    "squared_hinge": lambda logits, labels: jnp.square(_slack(logits, labels)).sum(-1),
    "hinge": lambda logits, labels: _slack(logits, labels).sum(-1),
}
PENALISED = ("kernel", "transitions")  # by name: those of a CRF too, as in CRFsuite


@dataclasses.dataclass(frozen=True)
class Labelled(Objective):
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

    @abc.abstractmethod
    def weights(self, batch: Batch) -> jax.Array:
        """float32 of the shape of ``labels``."""

    def row_weights(self, logits: jax.Array, batch: Batch) -> jax.Array:
        del logits
        weights = self.weights(batch)
        return weights.reshape(weights.shape[0], -1).sum(-1)

    def forward(self, params: dict, batch: Batch, **kwargs) -> jax.Array:
        """Class logits ``[B, (S,) C]``; ``kwargs`` go to the model."""
        return self.model.apply({"params": params}, batch, **kwargs)

    def score(self, params: dict, logits: jax.Array, batch: Batch) -> Metrics:
        """Sums of losses and of hits, with their weights, from what `forward` gives."""
        labels, weights = batch["labels"], self.weights(batch)
        loss_sum = self.loss_sum(params, logits, batch)
        hits = jnp.where(logits.argmax(-1) == labels, weights, 0.0).sum()
        total = weights.sum()
        return {"loss": (loss_sum, total), "accuracy": (hits, total)}

    def loss_sum(self, params: dict, logits: jax.Array, batch: Batch) -> jax.Array:
        """The weighted losses of a batch, from what `forward` gives."""
        del params
        return (LOSSES[self.loss_name](logits, batch["labels"]) * self.weights(batch)).sum()

    def penalty(self, params: dict) -> jax.Array | float:
        if not self.C:
            return 0.0
        leaves = jax.tree_util.tree_leaves_with_path(params)
        kernels = [leaf for path, leaf in leaves if path[-1].key in PENALISED]
        return sum(jnp.square(k).sum() for k in kernels) * self.share / (2.0 * self.C)

    def predict(self, params: dict, batch: Batch) -> jax.Array:
        """Log-probabilities ``[B, (S,) C]``; for the hinge, of the softmax of the margins."""
        return nn.log_softmax(self.forward(params, batch))

    def train_flops(self, seq_len: int) -> float:
        """``seq_len``: tokens, or for linear models non-zero features, of a row."""
        return 3.0 * self.model.forward_flops(seq_len)


@dataclasses.dataclass(frozen=True)
class Classification(Labelled):
    """One label a row, or one each of the documents in it (``labels`` and ``weights [B, L]``)."""

    name: ClassVar[str] = "classify"

    def weights(self, batch: Batch) -> jax.Array:
        return batch["weights"]


@dataclasses.dataclass(frozen=True)
class Tagging(Labelled):
    """One label a word, read at the word's first sub-word.

    With ``crf`` a conditional random field joins the words of a sentence: the loss of a sentence is
    its tags' negative log-likelihood. Like the losses of single words these are summed, and divided
    once by the number of words: both have one scale, and batches may be cut anywhere.
    """

    name: ClassVar[str] = "tag"

    crf: bool = False

    def init(self, key: jax.Array) -> dict:
        variables = super().init(key)
        if self.crf:
            scores = crf.init_scores(self.model.num_classes)
            variables = {**variables, "params": {**variables["params"], "crf": scores}}
        return variables

    def loss_sum(self, params: dict, logits: jax.Array, batch: Batch) -> jax.Array:
        if not self.crf:
            return super().loss_sum(params, logits, batch)
        is_first, is_last = batch["word"] == 0, batch["sentence_end"].astype(bool)
        chain = crf.Chain(batch["label_mask"] > 0, is_first, is_last)
        losses = crf.negative_log_likelihood(params["crf"], logits, batch["labels"], chain)
        return (losses * batch["weights"]).sum()

    def weights(self, batch: Batch) -> jax.Array:
        return batch["label_mask"] * batch["weights"][:, None]
