"""Masked language modelling together with a question about two pieces of text."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import optax

from pretrain.models.heads import PairModel
from pretrain.objectives.base import Batch, Metrics
from pretrain.objectives.language import weigh
from pretrain.objectives.mlm import MaskedLM


@dataclasses.dataclass(frozen=True)
class SentencePairLM(MaskedLM):
    """Also tells whether B follows A: next-sentence prediction, sentence-order prediction.

    Rows are ``[CLS] A [SEP] B [SEP]`` (`pretrain.data.pairs`) with ``token_types [B, S]`` and, as
    in BERT, ``pair_labels [B]``: 0 where B follows A, 1 where it does not. ``pair_weights [B]`` are
    0 for rows that hold no pair. The loss is the mean over the masked positions plus the mean over
    the pairs; ``loss`` among the metrics is the former alone, ``pair_loss`` the latter.
    """

    scores: ClassVar[tuple[str, ...]] = (*MaskedLM.scores, "pair_loss", "pair_accuracy")

    model: PairModel

    def corrupt(self, batch: Batch, key: jax.Array) -> Batch:
        batch = super().corrupt(batch, key)
        # A step divides by the number of masked positions: of the whole batch, as is this ratio.
        masked = weigh(batch["masked_weights"], batch).sum()
        scale = masked / jnp.maximum(_pair_weights(batch).sum(), 1.0)
        return batch | {"pair_scale": jnp.full(batch["tokens"].shape[0], scale)}

    def forward(self, params: dict, batch: Batch, **kwargs) -> jax.Array:
        return super().forward(params, batch, token_types=batch.get("token_types"), **kwargs)

    def combined(self, metrics: Metrics, batch: Batch) -> jax.Array:
        return metrics["loss"][0] + batch["pair_scale"][0] * metrics["pair_loss"][0]

    def score(self, params: dict, hidden: jax.Array, batch: Batch) -> Metrics:
        logits = self.model.apply(
            {"params": params}, hidden, batch["segment_ids"], method="pair_logits"
        )
        labels, weights = batch["pair_labels"], _pair_weights(batch)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        hits = (logits.argmax(-1) == labels).astype(jnp.float32)
        total = weights.sum()
        return super().score(params, hidden, batch) | {
            "pair_loss": ((losses * weights).sum(), total),
            "pair_accuracy": ((hits * weights).sum(), total),
        }


def _pair_weights(batch: Batch) -> jax.Array:
    """float32 ``[B]``."""
    return weigh(batch["pair_weights"][:, None], batch)[:, 0]
