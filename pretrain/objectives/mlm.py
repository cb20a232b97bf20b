"""Masked language modelling (Devlin et al. 2019), corrupted on the device inside the step."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import optax

from pretrain.models.heads import LanguageModel
from pretrain.models.transformer import forward_flops
from pretrain.objectives.base import Batch, Metrics

EVAL_MASK_RATE = 0.15  # held-out losses compare across training rates only at one rate
EVAL_KEY = 15


def num_masked(seq_len: int, rate: float) -> int:
    """Masked positions of a full row: the width of every gathered array."""
    return max(1, round(rate * seq_len))


def choose_positions(
    eligible: jax.Array, rate: float, keys: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Draws ``round(rate * n)`` (at least one) of the ``n`` eligible positions of each row.

    Args:
      eligible: bool ``[B, S]``.
      rate: fraction of the eligible positions.
      keys: random keys ``[B]``, one a row.

    Returns:
      Positions int32 ``[B, K]``, distinct in a row, and weights float32 ``[B, K]``: 1 for a drawn
      position, 0 for the filling of rows with fewer than ``K``.
    """
    seq_len = eligible.shape[1]
    count = num_masked(seq_len, rate)
    uniform = jax.vmap(lambda key: jax.random.uniform(key, (seq_len,)))(keys)
    _, positions = jax.lax.top_k(jnp.where(eligible, uniform, -1.0), count)
    available = eligible.sum(-1)
    wanted = jnp.clip(jnp.round(rate * available), jnp.minimum(available, 1), count)
    weights = jnp.arange(count)[None, :] < wanted[:, None]
    return positions.astype(jnp.int32), weights.astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class MaskedLM:
    """Predicts masked pieces; the vocabulary projection runs on the masked positions only."""

    name: ClassVar[str] = "mlm"

    model: LanguageModel
    mask_id: int
    num_special: int  # pieces 0 .. num_special - 1 are never masked and never drawn
    mask_rate: float
    mask_prob: float
    random_prob: float

    def init(self, key: jax.Array) -> dict:
        return self.model.init(key, jnp.zeros((1, 8), jnp.int32), method="initialise")

    def corrupt(self, batch: Batch, key: jax.Array) -> Batch:
        return self._mask(batch, self.mask_rate, jax.random.split(key, batch["tokens"].shape[0]))

    def _mask(self, batch: Batch, rate: float, keys: jax.Array) -> Batch:
        """Adds ``masked_positions``, ``masked_labels``, ``masked_weights`` ``[B, K]``."""
        tokens = batch["tokens"]
        rows = jnp.arange(tokens.shape[0])[:, None]
        keys = jax.vmap(lambda key: jax.random.split(key, 3))(keys)
        positions, weights = choose_positions(tokens >= self.num_special, rate, keys[:, 0])
        labels = tokens[rows, positions]
        draw = jax.vmap(lambda key: jax.random.uniform(key, positions.shape[1:]))(keys[:, 1])
        vocab_size = self.model.config.vocab_size
        pieces = jax.vmap(
            lambda key: jax.random.randint(key, positions.shape[1:], self.num_special, vocab_size)
        )(keys[:, 2])
        replaced = jnp.where(draw < self.mask_prob, self.mask_id, labels)
        swapped = (draw >= self.mask_prob) & (draw < self.mask_prob + self.random_prob)
        replaced = jnp.where(swapped, pieces, replaced)
        replaced = jnp.where(weights > 0, replaced, labels)
        return batch | {
            "tokens": tokens.at[rows, positions].set(replaced),
            "masked_positions": positions,
            "masked_labels": labels,
            "masked_weights": weights,
        }

    def _losses(self, params: dict, batch: Batch, **kwargs) -> Metrics:
        hidden = self.model.apply(
            {"params": params},
            batch["tokens"],
            segment_ids=batch["segment_ids"],
            positions=batch["positions"],
            **kwargs,
        )
        hidden = jnp.take_along_axis(hidden, batch["masked_positions"][..., None], axis=1)
        logits = self.model.apply({"params": params}, hidden, method="logits")
        labels, weights = batch["masked_labels"], batch["masked_weights"]
        weights = weights * batch["weights"][:, None] if "weights" in batch else weights
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        hits = (logits.argmax(-1) == labels).astype(jnp.float32)
        total = weights.sum()
        return {
            "loss": ((losses * weights).sum(), total),
            "masked_accuracy": ((hits * weights).sum(), total),
        }

    def loss(self, params: dict, batch: Batch, key: jax.Array):
        metrics = self._losses(params, batch, deterministic=False, rngs={"dropout": key})
        return *metrics["loss"], metrics

    def penalty(self, params: dict) -> float:
        del params
        return 0.0

    def predict(self, params: dict, batch: Batch) -> Metrics:
        """Metrics at 15 %; a row's mask is a function of its tokens, whatever the batch."""
        tokens = batch["tokens"].astype(jnp.uint32)
        digest = (tokens * _odd(tokens.shape[1])[None, :]).sum(-1)
        keys = jax.vmap(lambda row: jax.random.fold_in(jax.random.key(EVAL_KEY), row))(digest)
        return self._losses(params, self._mask(batch, EVAL_MASK_RATE, keys))

    def train_flops(self, seq_len: int) -> float:
        config = self.model.config
        transform = config.hidden_size**2 if config.head_transform else 0
        head = 2 * (transform + config.hidden_size * config.vocab_size)
        masked = num_masked(seq_len, self.mask_rate)
        return 3.0 * (forward_flops(config, seq_len) + masked * head)


def _odd(length: int) -> jax.Array:
    """Distinct odd multipliers, one a position."""
    return jnp.arange(length, dtype=jnp.uint32) * jnp.uint32(0x9E3779B2) + jnp.uint32(1)
