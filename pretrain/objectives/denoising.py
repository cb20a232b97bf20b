"""Denoising autoencoding: an encoder reads the masked text, a decoder writes the whole one."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from pretrain.models.encoder_decoder import shift_right
from pretrain.objectives.base import Batch, Metrics
from pretrain.objectives.language import MASKED, Language, check_writes
from pretrain.objectives.mlm import MaskedLM


@dataclasses.dataclass(frozen=True)
class Denoising(MaskedLM):
    """Masks as `MaskedLM`; the loss is that of every token of the original, with teacher forcing.

    The "token masking" of BART (Lewis et al. 2020), the "BERT-style" objective of T5 (Raffel et al.
    2020). ``accuracy`` counts every token, ``masked_accuracy`` those that were drawn.
    """

    name: ClassVar[str] = "denoising"
    scores: ClassVar[tuple[str, ...]] = ("loss", "perplexity", "accuracy", *MASKED)

    chunk_size: int

    def __post_init__(self):
        check_writes(self)

    def _mask(self, batch: Batch, rate: float, keys: jax.Array) -> Batch:
        """Also adds ``targets [B, S]``, the original tokens."""
        return super()._mask(batch, rate, keys) | {"targets": batch["tokens"]}

    def forward(self, params: dict, batch: Batch, **kwargs) -> jax.Array:
        start_id = self.model.trunk.config.decoder_start_id
        return super().forward(
            params,
            batch,
            decoder_tokens=shift_right(batch["targets"], batch["segment_ids"], start_id),
            decoder_segment_ids=batch["segment_ids"],
            decoder_positions=batch["positions"],
            **kwargs,
        )

    def score(self, params: dict, hidden: jax.Array, batch: Batch) -> Metrics:
        targets, size = batch["targets"], self.chunk_size
        rows = jnp.arange(len(targets))[:, None]
        drawn = jnp.zeros(targets.shape).at[rows, batch["masked_positions"]]
        unseen = drawn.add(batch["masked_weights"])
        return self.score_tokens(params, hidden, targets, batch, size, unseen)

    def predicted(self, hidden: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """All real positions: the decoder writes each of them."""
        return Language.predicted(self, hidden, batch)

    def num_predicted(self, seq_len: int) -> int:
        return seq_len
