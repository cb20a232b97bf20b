"""Encoder-decoders on rows that the loader has corrupted: span corruption and infilling."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from pretrain.models.encoder_decoder import shift_right
from pretrain.objectives.base import Batch, Metrics
from pretrain.objectives.language import MASKED, Language, check_writes, weigh


@dataclasses.dataclass(frozen=True)
class Spans(Language):
    """Span corruption (T5; Raffel et al. 2020): the decoder writes what the sentinels stand for.

    Batches are those of `pretrain.data.noise`: ``tokens [B, S]``, ``targets [B, T]``, and segment
    ids and positions of both. The loss is that of every token of the targets, with teacher forcing;
    ``masked_loss`` and ``masked_accuracy`` are of the text's own pieces (``hidden [B, T]``) alone,
    without sentinels and ends, which are easy.
    """

    name: ClassVar[str] = "spans"
    scores: ClassVar[tuple[str, ...]] = ("loss", "perplexity", "accuracy", *MASKED)

    chunk_size: int
    target_length: int

    def __post_init__(self):
        check_writes(self)

    def forward(self, params: dict, batch: Batch, **kwargs) -> jax.Array:
        """The decoder's ``[B, T, D]``; ``kwargs`` go to the model."""
        targets, segment_ids = batch["targets"], batch["target_segment_ids"]
        start = self.model.trunk.config.decoder_start_id
        return super().forward(
            params,
            batch,
            decoder_tokens=shift_right(targets, segment_ids, start),
            decoder_segment_ids=segment_ids,
            decoder_positions=batch["target_positions"],
            **kwargs,
        )

    def predicted(self, hidden: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
        return hidden, weigh((batch["target_segment_ids"] > 0).astype(jnp.float32), batch)

    def score(self, params: dict, hidden: jax.Array, batch: Batch) -> Metrics:
        targets, size = batch["targets"], self.chunk_size
        return self.score_tokens(params, hidden, targets, batch, size, batch["hidden"])

    def predict(self, params: dict, batch: Batch) -> Metrics:
        return self.metrics(params, batch)

    def train_flops(self, seq_len: int) -> float:
        length = self.target_length
        return 3.0 * self.model.forward_flops(seq_len, length, target_length=length)


@dataclasses.dataclass(frozen=True)
class Infilling(Spans):
    """Text infilling (BART; Lewis et al. 2020): the decoder writes the whole text.

    ``loss`` and ``accuracy`` count every token, ``masked_loss`` and ``masked_accuracy`` those that
    the encoder does not see.
    """

    name: ClassVar[str] = "infilling"
