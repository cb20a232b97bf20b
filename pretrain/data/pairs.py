"""Pairs of texts for next-sentence and sentence-order prediction.

Rows are ``[CLS] A [SEP] B [SEP]``, made from whole sentences of one document, as many as fit, that
are divided between two of them:

- "nsp" (Devlin et al. 2019): B is what follows A, or, half the time, a piece of another document;
- "sop" (Lan et al. 2020): B is what follows A, or, half the time, the two are swapped.

``pair_labels`` are 0 where B follows A, else 1. Where and how the parts begin and end, and how long
they are, says nothing of the label: only the text does.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pretrain.data import order
from pretrain.data.loader import Batch
from pretrain.data.sentences import Sentences
from pretrain.data.store import TokenStore
from pretrain.data.tokenizer import AnyTokenizer
from pretrain.errors import UserError

KINDS = ("nsp", "sop")
NUM_SPECIAL = 3  # [CLS] A [SEP] B [SEP]
_HELD_OUT_SEED = 0
_TRIES = 10  # to draw another document
_UNITS = ("sentences", "words", "pieces")  # what is not cut, if there are two of them


class SentencePairs:
    """A dataset of pairs over a store of windows, one document or window a row.

    A pair is a function of the seed, the row's index and the epoch. Held-out rows (those that are
    indexed) are always the same. ``pair_weights`` is 0 where a text has no two words or pieces to
    divide, or luck finds no other document, else 1.
    """

    def __init__(
        self, rows: TokenStore, pieces: AnyTokenizer, kind: str, seq_len: int, short_rate: float
    ):
        """Of a store without packing whose rows are ``seq_len`` - 1 tokens long.

        Args:
          kind: one of `KINDS`.
          seq_len: tokens of a row, all three special ones included.
          short_rate: share of the pairs whose longest length is drawn, from 2 to that of a row.
        """
        if kind == "nsp" and rows.stats.num_documents < 2:
            raise UserError(
                f"config.objective.sentence_pairs: found 'nsp' with {rows.stats.num_documents} "
                f"document in {rows.name}, expected two or more, to draw B from another"
            )
        self._rows, self._kind, self._short_rate = rows, kind, short_rate
        self._seq_len = seq_len
        self._ids = pieces.cls_id, pieces.sep_id, pieces.pad_id
        self._sentences = Sentences.of(pieces)
        self._documents = np.cumsum(rows.begins)  # the number of each row's

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
        """A, B and the label; an empty B where the text is too short for two, or no other found."""
        longest = self._seq_len - NUM_SPECIAL
        if rng.random() < self._short_rate:
            longest = int(rng.integers(2, longest, endpoint=True))
        changed = bool(rng.random() < 0.5)
        text, unit, places = self._window(index, longest, _UNITS, rng)
        if not unit:
            return text[:longest], text[:0], 0
        begin, cut, end = places[0], int(rng.choice(places[1:-1])), places[-1]
        before, after = text[begin:cut], text[cut:end]
        if not changed:
            return before, after, 0
        if self._kind == "sop":
            return after, before, 1
        other = self._elsewhere(index, unit, longest, len(after), longest - len(before), rng)
        if other is None:
            return text[begin:end], text[:0], 0
        return before, other, 1

    def _window(
        self, index: int, longest: int, units: Sequence[str], rng: np.random.Generator
    ) -> tuple[np.ndarray, str, np.ndarray]:
        """A text, its unit, and where the units begin and end that fit into ``longest`` pieces.

        The first of ``units`` of which there are two; an empty one where there are of none.
        """
        text, size, first = self._read(index)
        start = int(rng.integers(max(size - longest, 0), endpoint=True))
        text, size, first = text[start:], size - start, first and not start
        for unit in units:
            places = self._places(text, unit, first)
            if len(places) and places[-1] - places[0] > longest:
                places = places[rng.integers(2) :]  # so that other epochs see what does not fit
            places = places[places - places[:1] <= longest]
            if len(places) > 2 and places[0] < size:
                return text, unit, places
        return text, "", places

    def _read(self, index: int) -> tuple[np.ndarray, int, bool]:
        """The pieces of a row and of the next one of its document, if any.

        Also how many are the row's own, and whether its document begins with it.
        """
        document = self._documents[index]
        last = index + 1 < len(self) and self._documents[index + 1] == document
        rows = self._rows[np.arange(index, index + 1 + last)]
        sizes = rows["segment_ids"].sum(1) - 2
        text = [row[1 : 1 + size] for row, size in zip(rows["tokens"], sizes, strict=True)]
        first = index == 0 or self._documents[index - 1] != document
        return np.concatenate(text), int(sizes[0]), bool(first)

    def _places(self, text: np.ndarray, unit: str, first: bool) -> np.ndarray:
        """Where units begin and end in a text, in order; ``first`` where its document begins.

        Words are cut where no sentence ends and pieces where no word does, so that both parts look
        alike.
        """
        words = np.append(self._sentences.word_start[text], True)
        stops = np.append(self._sentences.begun(text), self._sentences.ended(text)[-1:])
        if unit == "pieces":
            return np.flatnonzero(~words)
        if unit == "words":
            return np.flatnonzero(words & ~stops)
        stops[0] = first
        return np.flatnonzero(stops)

    def _elsewhere(
        self,
        index: int,
        unit: str,
        longest: int,
        length: int,
        room: int,
        rng: np.random.Generator,
    ) -> np.ndarray | None:
        """What could be B in another document, as near as can be to ``length``, at most ``room``.

        It ends as a true B does, where the units end that fit, and begins behind the first of them.
        None where luck has it that no other document is found; of several near enough the first.
        """
        found, nearest = None, np.inf
        for _ in range(_TRIES):
            other = int(rng.integers(len(self)))
            if self._documents[other] == self._documents[index]:
                continue
            text, known, places = self._window(other, longest, (unit,), rng)
            lengths = places[-1:] - places[1:-1]
            gaps = np.where(lengths <= room, abs(lengths - length), np.inf)
            if known and gaps.min() < nearest:
                found, nearest = text[places[1 + gaps.argmin()] : places[-1]], gaps.min()
            if nearest <= 0.1 * length:
                break
        return found
