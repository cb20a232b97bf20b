"""Pairs of texts for next-sentence and sentence-order prediction.

Rows are ``[CLS] A [SEP] B [SEP]``, made from a window of one document that is divided between two
sentences:

- "nsp" (Devlin et al. 2019): B is what follows A, or, half the time, a piece of another document;
- "sop" (Lan et al. 2020): B is what follows A, or, half the time, the two are swapped.

``pair_labels`` are 0 where B follows A, else 1.
"""

from typing import Any

import numpy as np

from pretrain.data import order
from pretrain.data.loader import Batch
from pretrain.data.store import TokenStore
from pretrain.data.tokenizer import AnyTokenizer
from pretrain.errors import UserError

KINDS = ("nsp", "sop")
NUM_SPECIAL = 3  # [CLS] A [SEP] B [SEP]
_HELD_OUT_SEED = 0
_TRIES = 10  # to draw another document
_ENDS = (".", "!", "?", "\u3002", "\uff01", "\uff1f", "\n", "\u010a")  # the last is "\n" as bytes
_QUOTES = "\"')]\u201d\u2019\u00bb"


def sentence_ends(pieces: AnyTokenizer) -> np.ndarray:
    """Whether a piece ends a sentence, quotation marks behind it aside: bool ``[vocab_size]``."""
    return np.array([piece.rstrip(_QUOTES).endswith(_ENDS) for piece in pieces.pieces])


class SentencePairs:
    """A dataset of pairs over a store of windows, one document or window a row.

    A pair is a function of the seed, the row's index and the epoch. Held-out rows (those that are
    indexed) are always the same. A window of a single piece holds no pair: its ``pair_weights`` is
    0, and 1 for the others.
    """

    def __init__(
        self, rows: TokenStore, pieces: AnyTokenizer, kind: str, seq_len: int, short_rate: float
    ):
        """Of a store without packing whose rows are ``seq_len`` - 1 tokens long.

        Args:
          kind: one of `KINDS`.
          seq_len: tokens of a row, all three special ones included.
          short_rate: share of the pairs that are cut to a length drawn from 2 to the longest.
        """
        if kind == "nsp" and rows.stats.num_documents < 2:
            raise UserError(
                f"config.objective.sentence_pairs: found 'nsp' with {rows.stats.num_documents} "
                f"document in {rows.name}, expected two or more, to draw B from another"
            )
        self._rows, self._kind, self._short_rate = rows, kind, short_rate
        self._seq_len = seq_len
        self._ids = pieces.cls_id, pieces.sep_id, pieces.pad_id
        self._starts = pieces.word_start
        self._ends = sentence_ends(pieces)

    @property
    def stats(self) -> Any:
        return self._rows.stats

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, indices: np.ndarray) -> Batch:
        return self.prepare(indices, np.zeros_like(indices), _HELD_OUT_SEED)

    def prepare(self, indices: np.ndarray, epochs: np.ndarray, seed: int) -> Batch:
        """Columns of ``len(indices)`` rows.

        ``tokens``, ``segment_ids`` (1; 0 for padding), ``positions`` and ``token_types`` (0 up to
        the first ``[SEP]``, then 1) are int32 ``[n, seq_len]``; ``pair_labels`` int32 and
        ``pair_weights`` float32 ``[n]``.
        """
        cls_id, sep_id, pad_id = self._ids
        shape = len(indices), self._seq_len
        columns = np.arange(self._seq_len, dtype=np.int32)[None]
        tokens = np.full(shape, pad_id, np.int32)
        lengths, firsts = np.zeros((2, len(indices), 1), np.int32)
        labels, weights = np.zeros(len(indices), np.int32), np.ones(len(indices), np.float32)
        keys = order.example_keys(seed, indices, epochs)
        for row, (index, key) in enumerate(zip(indices.tolist(), keys.tolist(), strict=True)):
            first, second, labels[row] = self._pair(index, np.random.default_rng(key))
            weights[row] = len(second) > 0
            ids = [cls_id, *first, sep_id, *second, *([sep_id] * (len(second) > 0))]
            tokens[row, : len(ids)] = ids
            lengths[row], firsts[row] = len(ids), len(first) + 2
        real = columns < lengths
        return {
            "tokens": tokens,
            "segment_ids": real.astype(np.int32),
            "positions": columns * real,
            "token_types": ((columns >= firsts) & real).astype(np.int32),
            "pair_labels": labels,
            "pair_weights": weights,
        }

    def _pair(self, index: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, int]:
        """A, B and the label; an empty B where the window is too short for two."""
        window = self._window(index)
        longest = self._seq_len - NUM_SPECIAL
        if rng.random() < self._short_rate:
            longest = int(rng.integers(2, longest, endpoint=True))
        dropped = max(len(window) - longest, 0)
        start = int(rng.integers(dropped, endpoint=True))  # as much in front as behind, on average
        window = window[start : start + longest]
        changed = bool(rng.random() < 0.5)
        if len(window) < 2:
            return window, window[:0], 0
        cut = int(rng.choice(self._cuts(window)))
        first, second = window[:cut], window[cut:]
        if not changed:
            return first, second, 0
        if self._kind == "sop":
            return second, first, 1
        other = self._elsewhere(index, rng)
        if other is None:
            return window, window[:0], 0
        begin = int(rng.choice([0, *self._sentences(other)]))
        return first, other[begin : begin + longest - cut], 1

    def _window(self, index: int) -> np.ndarray:
        """The pieces of a row, special tokens left out."""
        row = self._rows[np.array([index])]
        return row["tokens"][0, 1 : row["segment_ids"][0].sum() - 1]

    def _sentences(self, window: np.ndarray) -> np.ndarray:
        """Where sentences begin, but for the first."""
        return 1 + np.flatnonzero(self._ends[window[:-1]] & self._starts[window[1:]])

    def _cuts(self, window: np.ndarray) -> np.ndarray:
        """Where a window can be divided: between sentences, else between words, else anywhere."""
        for cuts in (self._sentences(window), 1 + np.flatnonzero(self._starts[window[1:]])):
            if len(cuts):
                return cuts
        return np.arange(1, len(window))

    def _elsewhere(self, index: int, rng: np.random.Generator) -> np.ndarray | None:
        """A window of another document, or None where luck has it that none is found."""
        for _ in range(_TRIES):
            other = int(rng.integers(len(self)))
            if other != index and not self._same_document(*sorted((index, other))):
                return self._window(other)
        return None

    def _same_document(self, first: int, last: int) -> bool:
        """Whether all rows from ``first`` on are full up to ``last``.

        A document that ends with its row counts as one with the next: that is never wrong here.
        """
        size = 1
        while first < last:
            rows = self._rows[np.arange(first, min(first + size, last))]
            if (rows["segment_ids"][:, -1] == 0).any():
                return False
            first, size = first + size, 2 * size
        return True
