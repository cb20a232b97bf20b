"""Replaced-token detection (Clark et al. 2020), the replacements drawn at random."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import optax

from pretrain.objectives.base import Batch, Metrics
from pretrain.objectives.language import weigh
from pretrain.objectives.mlm import MaskedLM


@dataclasses.dataclass(frozen=True)
class ReplacedTokenDetection(MaskedLM):
    """Tells of every token whether it was replaced; ``model`` gives one logit a token.

    Replacements are uniform over the pieces: random token substitution (Di Liello et al. 2022). One
    that happens to be the original counts as the original. ``detected`` is the accuracy on the
    replaced tokens.
    """

    name: ClassVar[str] = "rtd"
    scores: ClassVar[tuple[str, ...]] = ("loss", "accuracy", "detected")

    def _mask(self, batch: Batch, rate: float, keys: jax.Array) -> Batch:
        """Also adds ``originals [B, S]``."""
        return super()._mask(batch, rate, keys) | {"originals": batch["tokens"]}

    def score(self, params: dict, logits: jax.Array, batch: Batch) -> Metrics:
        del params
        replaced = batch["tokens"] != batch["originals"]
        weights = weigh((batch["segment_ids"] > 0).astype(jnp.float32), batch)
        losses = optax.sigmoid_binary_cross_entropy(logits, replaced.astype(jnp.float32))
        hits = ((logits > 0) == replaced).astype(jnp.float32)
        changed = weights * replaced.astype(jnp.float32)
        total = weights.sum()
        return {
            "loss": ((losses * weights).sum(), total),
            "accuracy": ((hits * weights).sum(), total),
            "detected": ((hits * changed).sum(), changed.sum()),
        }

    def train_flops(self, seq_len: int) -> float:
        return 3.0 * self.model.forward_flops(seq_len)
