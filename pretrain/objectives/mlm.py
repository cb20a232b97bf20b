"""Masked language modelling (Devlin et al. 2019), corrupted on the device inside the step."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import optax

from pretrain.objectives.base import Batch, Metrics
from pretrain.objectives.language import Language, weigh

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
    wanted = jnp.round(rate * available.astype(jnp.float32)).astype(jnp.int32)
    wanted = jnp.clip(wanted, jnp.minimum(available, 1), count)
    weights = jnp.arange(count)[None, :] < wanted[:, None]
    return positions.astype(jnp.int32), weights.astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class MaskedLM(Language):
    """Predicts masked pieces; the vocabulary projection runs on the masked positions only."""

    name: ClassVar[str] = "mlm"
    scores: ClassVar[tuple[str, ...]] = ("loss", "perplexity", "masked_accuracy")

    mask_id: int
    special_ids: tuple[int, ...]  # in order; never masked and never drawn
    num_pieces: int  # of the tokenizer, special ones included; the model may have more
    mask_rate: float
    mask_prob: float
    random_prob: float

    def corrupt(self, batch: Batch, key: jax.Array) -> Batch:
        return self._mask(batch, self.mask_rate, jax.random.split(key, batch["tokens"].shape[0]))

    def _mask(self, batch: Batch, rate: float, keys: jax.Array) -> Batch:
        """Adds ``masked_positions``, ``masked_labels``, ``masked_weights`` ``[B, K]``."""
        tokens = batch["tokens"]
        rows = jnp.arange(tokens.shape[0])[:, None]
        keys = jax.vmap(lambda key: jax.random.split(key, 3))(keys)
        special = (tokens[..., None] == jnp.array([[self.special_ids]])).any(-1)
        eligible = ~special & (batch["segment_ids"] > 0)
        positions, weights = choose_positions(eligible, rate, keys[:, 0])
        labels = tokens[rows, positions]
        draw = jax.vmap(lambda key: jax.random.uniform(key, positions.shape[1:]))(keys[:, 1])
        count = self.num_pieces - len(self.special_ids)
        drawn = jax.vmap(lambda key: jax.random.randint(key, positions.shape[1:], 0, count))(
            keys[:, 2]
        )
        pieces = self._ordinary(drawn)
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

    def _ordinary(self, index: jax.Array) -> jax.Array:
        """The ids of ordinary pieces, by their places 0, 1, ... among the ordinary ones."""
        # As many special ids lie below an ordinary one as have fewer ordinary ids below them.
        below = jnp.array([[[special - i for i, special in enumerate(self.special_ids)]]])
        return index + (index[..., None] >= below).sum(-1, dtype=index.dtype)

    def score(self, params: dict, hidden: jax.Array, batch: Batch) -> Metrics:
        hidden = jnp.take_along_axis(hidden, batch["masked_positions"][..., None], axis=1)
        logits = self.model.apply({"params": params}, hidden, method="logits")
        labels, weights = batch["masked_labels"], weigh(batch["masked_weights"], batch)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        hits = (logits.argmax(-1) == labels).astype(jnp.float32)
        total = weights.sum()
        return {
            "loss": ((losses * weights).sum(), total),
            "masked_accuracy": ((hits * weights).sum(), total),
        }

    def predict(self, params: dict, batch: Batch) -> Metrics:
        """Metrics at 15 %; a row's mask is a function of its tokens, whatever the batch."""
        tokens = batch["tokens"].astype(jnp.uint32)
        digest = (tokens * _odd(tokens.shape[1])[None, :]).sum(-1)
        keys = jax.vmap(lambda row: jax.random.fold_in(jax.random.key(EVAL_KEY), row))(digest)
        return self.metrics(params, self._mask(batch, EVAL_MASK_RATE, keys))

    def train_flops(self, seq_len: int) -> float:
        return 3.0 * self.model.forward_flops(seq_len, num_masked(seq_len, self.mask_rate))


def _odd(length: int) -> jax.Array:
    """Distinct odd multipliers, one a position."""
    return jnp.arange(length, dtype=jnp.uint32) * jnp.uint32(0x9E3779B2) + jnp.uint32(1)
