"""Masked language modelling (Devlin et al. 2019), corrupted on the device inside the step."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from pretrain.objectives.base import Batch, Metrics
from pretrain.objectives.language import Language, content_keys, weigh

EVAL_MASK_RATE = 0.15  # held-out losses compare only at one rate, and one share of true masks
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


def choose_words(
    eligible: jax.Array, starts: jax.Array, rate: float, keys: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """As `choose_positions`, but words whole: at most as many positions, and nearly always as many.

    The algorithm of BERT's whole-word masking: words in a random order, each taken if all of it
    still fits. One longer than all that a row may have masked never is.

    Args:
      starts: bool ``[B, S]``, where a word begins; it goes on up to the next start.
    """
    seq_len = eligible.shape[1]
    count = num_masked(seq_len, rate)
    available = eligible.sum(-1)
    budget = jnp.round(rate * available.astype(jnp.float32)).astype(jnp.int32)
    budget = jnp.clip(budget, jnp.minimum(available, 1), count)

    def one_row(eligible, starts, budget, key):
        # Words by number: 0, 1, ...; `seq_len` stands for positions that are in none.
        word = jnp.where(eligible, jnp.cumsum(starts & eligible) - 1, seq_len)
        lengths = jnp.zeros(seq_len, jnp.int32).at[word].add(1, mode="drop")
        order = jnp.argsort(jax.random.uniform(key, (seq_len,)))
        lengths = lengths[order]

        def open_words(state):
            taken, left = state
            return ~taken & (lengths > 0) & (lengths <= left)

        def take(state):
            # What is skipped once is longer than what is left, and stays so: a pass takes the words
            # up to the next one to skip, and the passes together are the walk word by word.
            taken, left = state
            candidates = open_words(state)
            sizes = jnp.where(candidates, lengths, 0)
            new = candidates & (jnp.cumsum(sizes) <= left)
            return taken | new, left - jnp.where(new, lengths, 0).sum()

        taken = jnp.zeros(seq_len, bool)
        taken, _ = jax.lax.while_loop(lambda s: open_words(s).any(), take, (taken, budget))
        taken = jnp.zeros(seq_len, bool).at[order].set(taken)
        return taken.at[word].get(mode="fill", fill_value=False)

    chosen = jax.vmap(one_row)(eligible, starts, budget, keys)
    weights, positions = jax.lax.top_k(chosen.astype(jnp.float32), count)
    return positions.astype(jnp.int32), weights


def word_starts(batch: Batch, eligible: jax.Array, word_start: bytes) -> jax.Array:
    """Bool ``[B, S]``: where words begin, the first position of a segment among them."""
    table = jnp.asarray(np.frombuffer(word_start, np.bool_))
    segment_ids = batch["segment_ids"]
    follows = eligible[:, :-1] & (segment_ids[:, :-1] == segment_ids[:, 1:])
    first = ~jnp.pad(follows, ((0, 0), (1, 0)))
    return table[batch["tokens"]] | first


@dataclasses.dataclass(frozen=True)
class MaskedLM(Language):
    """Predicts masked pieces; the vocabulary projection runs on the masked positions only.

    ``mask_prob`` of the chosen positions become the mask, ``random_prob`` a random piece, the rest
    stay. With ``word_start``, a byte a piece that says whether it begins a word, whole words are
    chosen. What is drawn is new in every step, but for batches with ``mask_seeds [B]`` uint32: a
    row's mask is a function of its seed (`pretrain.data.static_masks`).
    """

    name: ClassVar[str] = "mlm"
    scores: ClassVar[tuple[str, ...]] = ("loss", "perplexity", "masked_accuracy")
    held_out: ClassVar[dict] = {"word_start": b"", "mask_prob": 0.8, "random_prob": 0.1}

    mask_id: int
    special_ids: tuple[int, ...]  # in order; never masked and never drawn
    num_pieces: int  # of the tokenizer, special ones included; the model may have more
    mask_rate: float
    mask_prob: float
    random_prob: float
    word_start: bytes = dataclasses.field(default=b"", kw_only=True)

    def corrupt(self, batch: Batch, key: jax.Array) -> Batch:
        if "mask_seeds" in batch:
            keys = jax.vmap(jax.random.key)(batch["mask_seeds"])
        else:
            keys = jax.random.split(key, batch["tokens"].shape[0])
        return self._mask(batch, self.mask_rate, keys)

    def _mask(self, batch: Batch, rate: float, keys: jax.Array) -> Batch:
        """Adds ``masked_positions``, ``masked_labels``, ``masked_weights`` ``[B, K]``."""
        tokens = batch["tokens"]
        rows = jnp.arange(tokens.shape[0])[:, None]
        keys = jax.vmap(lambda key: jax.random.split(key, 3))(keys)
        special = (tokens[..., None] == jnp.array([[self.special_ids]])).any(-1)
        eligible = ~special & (batch["segment_ids"] > 0)
        if self.word_start:
            starts = word_starts(batch, eligible, self.word_start)
            positions, weights = choose_words(eligible, starts, rate, keys[:, 0])
        else:
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
        return self.score_logits(self.masked_logits(params, hidden, batch), batch)

    def masked_logits(self, params: dict, hidden: jax.Array, batch: Batch) -> jax.Array:
        """Of the masked positions, ``[B, K, V]``."""
        masked, _ = self.predicted(hidden, batch)
        return self.model.apply({"params": params}, masked, method="logits")

    def score_logits(self, logits: jax.Array, batch: Batch) -> Metrics:
        """`score` from what `masked_logits` gives."""
        labels, weights = batch["masked_labels"], weigh(batch["masked_weights"], batch)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        hits = (logits.argmax(-1) == labels).astype(jnp.float32)
        total = weights.sum()
        return {
            "loss": ((losses * weights).sum(), total),
            "masked_accuracy": ((hits * weights).sum(), total),
        }

    def predicted(self, hidden: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
        masked = jnp.take_along_axis(hidden, batch["masked_positions"][..., None], axis=1)
        return masked, weigh(batch["masked_weights"], batch)

    def predict(self, params: dict, batch: Batch) -> Metrics:
        """Metrics at 15 % of the pieces; a row's mask is a function of its tokens alone."""
        keys = content_keys(batch["tokens"], EVAL_KEY)
        same_for_all = dataclasses.replace(self, **self.held_out)
        return self.metrics(params, same_for_all._mask(batch, EVAL_MASK_RATE, keys))

    def num_predicted(self, seq_len: int) -> int:
        return num_masked(seq_len, self.mask_rate)
