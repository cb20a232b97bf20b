"""Corrupted rows for encoder-decoders, prepared on the host: T5's spans and BART's infilling.

Whole batches at a time, without a loop over rows. What is drawn for a row is a function of its own
key alone, so that it does not depend on the batch or on the number of processes. Special tokens at
the ends of a document are never noise, and no span reaches over two documents.
"""

import dataclasses
import math

import numpy as np

from pretrain.data import order
from pretrain.data.hashing import GOLDEN, mix
from pretrain.data.loader import Batch, Dataset
from pretrain.data.sentences import Sentences
from pretrain.errors import UserError

_SPANS, _QUOTAS, _POISSON, _INSERTIONS, _SENTENCES = range(5)  # what a row's key draws


class Corrupted:
    """The rows of a token store, corrupted: anew in every epoch, and always alike when held out.

    ``stats`` are those of the text.
    """

    def __init__(self, rows: Dataset, noise: "SpanCorruption | Infilling"):
        self._rows, self._noise, self.stats = rows, noise, rows.stats

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, indices: np.ndarray) -> Batch:
        """Rows whose noise is a function of their tokens."""
        rows = self._rows[indices]
        return self._noise(rows, content_keys(rows["tokens"]))

    def prepare(self, indices: np.ndarray, epochs: np.ndarray, seed: int) -> Batch:
        """Rows as training sees them in these epochs."""
        return self._noise(self._rows[indices], order.example_keys(seed, indices, epochs))


def content_keys(tokens: np.ndarray) -> np.ndarray:
    """A hash of each row of ``tokens [n, S]``: uint64 ``[n]``."""
    places = np.arange(1, tokens.shape[1] + 1, dtype=np.uint64) * np.uint64(GOLDEN)
    return mix(mix(tokens.astype(np.uint64) + places[None]).sum(1))


def span_counts(tokens: int | np.ndarray, density: float, mean_span: float):
    """Tokens of noise, and spans that they form, of a row with so many ``tokens``: at least one."""
    noise = np.maximum(1, np.round(tokens * density)).astype(np.int64)
    return noise, np.maximum(1, np.round(noise / mean_span)).astype(np.int64)


def span_lengths(
    seq_len: int, density: float, mean_span: float, packing: bool
) -> tuple[int, int, int]:
    """How long rows are: of the text, of the targets, and how many sentinels these need.

    As T5's `random_spans_helper`: the longest text whose inputs, with a token for each span in
    place of its own, have ``seq_len`` tokens, the end token counted. The targets end with one too;
    in a packed row each document with a span does, and each span may be in another.
    """

    def inputs(tokens):
        noise, spans = span_counts(tokens, density, mean_span)
        return tokens - noise + spans

    tokens = seq_len
    while inputs(tokens + 1) <= seq_len:
        tokens += 1
    noise, spans = map(int, span_counts(tokens, density, mean_span))
    return tokens, noise + spans + (spans if packing else 1), spans


@dataclasses.dataclass(frozen=True)
class SpanCorruption:
    """T5's (Raffel et al. 2020): the encoder reads the text with a sentinel for each span.

    The targets are the spans, each behind its sentinel. Sentinels count from the first in every
    document. Exactly `span_counts` of a row are noise, spread over its documents in proportion to
    their lengths; the lengths of spans and of what stands between are uniform among all that have
    these sums. As in T5 spans do not touch, but they may begin and end anywhere in a document.
    """

    seq_len: int  # of the inputs
    density: float  # share of a row's tokens that is noise, special ones counted
    mean_span: float
    packing: bool  # several documents a row
    sentinel_ids: tuple[int, ...]
    pad_id: int
    end_id: int  # behind the spans of each document
    start: bool = True  # whether inputs keep a document's first token: T5's tokenizer has none

    def __post_init__(self):
        _, _, spans = self.lengths
        if spans > len(self.sentinel_ids):
            raise UserError(
                f"config.train.seq_len: found {self.seq_len}, rows of {spans} spans with "
                f"objective.noise_density {self.density} and mean_span {self.mean_span}, expected "
                f"at most {len(self.sentinel_ids)} spans: as many sentinels has the tokenizer, or "
                "objective.num_sentinels where it has none"
            )

    @property
    def lengths(self) -> tuple[int, int, int]:
        return span_lengths(self.seq_len, self.density, self.mean_span, self.packing)

    @property
    def target_length(self) -> int:
        return self.lengths[1]

    def __call__(self, rows: Batch, keys: np.ndarray) -> Batch:
        """``tokens``, ``targets``, ``segment_ids`` and ``positions`` of both, and ``hidden``.

        ``hidden [n, T]`` float32 is 1 for the targets that are pieces of the text.

        Args:
          rows: of a token store, ``[n, lengths[0]]``.
          keys: uint64 ``[n]``.
        """
        segment_ids = rows["segment_ids"]
        noise, spans = self._quotas(segment_ids, keys)
        whole = _real(segment_ids) - noise.sum(1) + spans.sum(1) <= self.seq_len
        if not whole.all():
            # So many documents of one or two tokens that no spans of theirs are long enough.
            rows = {name: column.copy() for name, column in rows.items()}
            for column in rows.values():
                column[~whole, self.seq_len :] = 0
            segment_ids = rows["segment_ids"]
            noise, spans = self._quotas(segment_ids, keys)
        layout = _Layout(segment_ids, rows["positions"], noise)
        masked, starts = layout.draw(_uniform(keys, _SPANS, segment_ids.shape[1]), spans)

        tokens = rows["tokens"]
        number = layout.number(starts)
        sentinels = np.array(self.sentinel_ids, np.int32)[np.maximum(number, 0)]
        inputs = _Writer(segment_ids, self.seq_len, self.pad_id)
        inputs.emit(layout.real & ~masked & (self.start | ~layout.first_token), tokens)
        inputs.emit(starts, sentinels)
        targets = _Writer(segment_ids, self.target_length, self.pad_id)
        targets.emit(starts, sentinels)
        targets.emit(masked, tokens)
        targets.emit(layout.last & (layout.of(spans) > 0), np.int32(self.end_id))
        columns = inputs.columns() | targets.columns("target_", tokens="targets")
        easy = np.isin(columns["targets"], [self.pad_id, self.end_id, *self.sentinel_ids])
        return columns | {"hidden": np.where(easy, 0.0, 1.0).astype(np.float32)}

    def _quotas(self, segment_ids: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tokens of noise and spans of every document: int64 ``[n, documents + 1]``."""
        draws = _uniform(keys, _QUOTAS, 2)
        content = np.maximum(_sizes(segment_ids) - 2, 0)
        noise, spans = span_counts(_real(segment_ids), self.density, self.mean_span)
        spans = np.minimum(spread(spans, content, draws[:, 0]), (content + 1) // 2)
        room = np.where(spans > 0, content - spans + 1, 0)  # a token between two spans
        each = np.minimum(spread(noise, spans, draws[:, 1]), room)
        # What short documents have no room for goes to the others.
        left = noise[:, None] - each.sum(1, keepdims=True)
        before = np.cumsum(room - each, axis=1) - (room - each)
        return each + np.clip(left - before, 0, room - each), spans


@dataclasses.dataclass(frozen=True)
class Infilling:
    """BART's (Lewis et al. 2020): each span becomes one mask, and the targets are the text.

    Lengths of spans are Poisson; one of length 0 puts a mask between two tokens. Exactly
    ``round(density * n)`` of a row's ``n`` ordinary tokens are noise, in each document its share:
    the last span of a document is cut to that. Spans do not touch. With ``sentences`` those of each
    document are shuffled first.
    """

    seq_len: int
    density: float
    mean_span: float
    mask_id: int
    pad_id: int
    sentences: Sentences | None = None

    def __call__(self, rows: Batch, keys: np.ndarray) -> Batch:
        """``tokens``, ``targets``, ``segment_ids`` and ``positions`` of both, and ``hidden``.

        ``hidden [n, S]`` float32 is 1 for the tokens of the targets that the encoder does not see.
        """
        segment_ids, positions, original = rows["segment_ids"], rows["positions"], rows["tokens"]
        length = segment_ids.shape[1]
        content = np.maximum(_sizes(segment_ids) - 2, 0)
        total = np.round(content.sum(1) * self.density)
        total = np.minimum(total, content.sum(1) // 2).astype(np.int64)  # each span wants a gap
        noise = spread(total, content, _uniform(keys, _QUOTAS, 1)[:, 0])
        layout = _Layout(segment_ids, positions, noise)
        tokens, place = original, None
        if self.sentences is not None:
            place = self._shuffled(original, layout, _uniform(keys, _SENTENCES, length))
            tokens = np.take_along_axis(original, place, axis=1)
        drawn, insertions = self._poisson(layout, total, _uniform(keys, _POISSON, length))
        spans = layout.count(drawn)
        masked, starts = layout.draw(_uniform(keys, _SPANS, length), spans, drawn)

        # Of the tokens before which a mask may be put, as many as lengths of 0 were drawn; never so
        # many that a row becomes longer.
        insertions = np.minimum(insertions, total - spans.sum(1))
        free = layout.real & (positions > 0) & (~masked | starts)
        chances = np.where(free, _uniform(keys, _INSERTIONS, length), 2.0)
        inserted = np.zeros_like(free)
        first = np.arange(length)[None] < insertions[:, None]
        np.put_along_axis(inserted, np.argsort(chances, axis=1), first, axis=1)
        inputs = _Writer(segment_ids, self.seq_len, self.pad_id)
        inputs.emit(inserted & free, np.int32(self.mask_id))
        inputs.emit(starts, np.int32(self.mask_id))
        inputs.emit(layout.real & ~masked, tokens)
        hidden = masked.astype(np.float32)
        if place is not None:
            np.put_along_axis(hidden, place, masked.astype(np.float32), axis=1)
        targets = {"targets": original, "hidden": hidden}
        targets |= {"target_segment_ids": segment_ids, "target_positions": positions}
        return inputs.columns() | targets

    def _poisson(
        self, layout: "_Layout", total: np.ndarray, uniform: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Where spans begin among the tokens of noise, all of a document's at its beginning.

        Lengths are drawn until they make up ``total [n]``: also how many of 0 there were among
        them, ``[n]``.
        """
        lengths = _poisson(uniform, self.mean_span)
        ends = np.cumsum(lengths, axis=1)
        zeros = ((lengths == 0) & (ends < total[:, None])).sum(1)
        begins = np.zeros((len(ends), ends.shape[1] + 1), bool)
        np.put_along_axis(begins, np.minimum(ends, ends.shape[1]), True, axis=1)
        number = np.cumsum(layout.noise, axis=1) - 1
        starts = np.take_along_axis(begins, np.maximum(number, 0), axis=1)
        return layout.noise & (starts | layout.first), zeros

    def _shuffled(self, tokens: np.ndarray, layout: "_Layout", uniform: np.ndarray) -> np.ndarray:
        """Places ``[n, S]`` of the tokens, the sentences of each document in random order."""
        inside = layout.real & ~layout.first_token & ~layout.last
        begins = layout.first_token | self.sentences.begun(tokens)
        begins[:, 1:] |= layout.first_token[:, :-1]
        columns = np.arange(tokens.shape[1])[None]
        start = np.maximum.accumulate(np.where(begins, columns, 0), axis=1)
        chances = 0.25 + 0.5 * np.take_along_axis(uniform, start, axis=1)
        chances = np.where(inside, chances, np.where(layout.last, 0.9, 0.1))
        return np.argsort(layout.segments + chances, axis=1, kind="stable")


def spread(total: np.ndarray, shares: np.ndarray, draw: np.ndarray) -> np.ndarray:
    """``total [n]`` things over the columns of ``shares [n, m]`` int, in proportion to these.

    Each column gets its part rounded up or down, in expectation its part (systematic sampling with
    one number in [0, 1) a row, ``draw [n]``), and all together ``total``. Without shares nothing.
    """
    ends = np.cumsum(shares, axis=1) * total[:, None] / np.maximum(shares.sum(1), 1)[:, None]
    return np.diff(np.floor(ends + draw[:, None]).astype(np.int64), axis=1, prepend=0)


class _Layout:
    """The documents of rows, and how much of each is noise.

    Documents are contiguous and padding is behind them. Noise is first counted off at the beginning
    of its document (``noise``), then laid out (`draw`).
    """

    def __init__(self, segment_ids: np.ndarray, positions: np.ndarray, noise: np.ndarray):
        self._ids = segment_ids
        self.real = segment_ids > 0
        self.segments = np.where(self.real, segment_ids, noise.shape[1])
        amount = self.of(noise)
        self.noise = self.real & (positions < amount)
        self.first_token = self.real & (positions == 0)
        self.first = self.first_token | (self.real & (positions == amount))
        self.last = self.real.copy()
        self.last[:, :-1] &= segment_ids[:, :-1] != segment_ids[:, 1:]
        self._columns = np.broadcast_to(np.arange(segment_ids.shape[1]), segment_ids.shape)
        self._shape = noise.shape

    def of(self, counts: np.ndarray) -> np.ndarray:
        """``[n, documents + 1] -> [n, S]``: each token's document's."""
        return np.take_along_axis(counts, self._ids, axis=1)

    def count(self, mask: np.ndarray) -> np.ndarray:
        """``[n, S]`` bool ``-> [n, documents + 1]``: how many of each document."""
        return _sizes(np.where(mask, self._ids, 0), self._shape[1])

    def number(self, starts: np.ndarray) -> np.ndarray:
        """``[n, S]``: how many ``starts`` the document has before a token; it begins with none."""
        total = np.cumsum(starts, axis=1)
        begin = np.maximum.accumulate(np.where(self.first_token, self._columns, 0), axis=1)
        return total - np.take_along_axis(total, begin, axis=1) - 1

    def draw(
        self, uniform: np.ndarray, spans: np.ndarray, drawn: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Which tokens are noise, and which of these begin a span: bool ``[n, S]``, both.

        The noise of a document is cut into its ``spans [n, documents + 1]``, the rest into one part
        more, all cuts equally likely; the parts take turns. ``drawn`` tells the cuts of the noise
        where they are known.
        """
        parts = self.of(spans) + ~self.noise
        group = 2 * self.segments + ~self.noise
        begin = np.maximum.accumulate(np.where(self.first, self._columns, 0), axis=1)
        by_chance = np.argsort(group + np.where(self.first, 0.0, uniform), axis=1)
        rank = np.empty_like(by_chance)
        np.put_along_axis(rank, by_chance, self._columns - begin, axis=1)
        starts = self.real & (rank < parts)
        if drawn is not None:
            starts = np.where(self.noise, drawn, starts)
        part = np.cumsum(starts, axis=1)
        part -= np.take_along_axis(part, begin, axis=1)
        turn = self.segments * (2 * uniform.shape[1] + 2) + 2 * part + self.noise
        in_turn = np.argsort(turn, axis=1, kind="stable")
        masked, starts = (
            np.take_along_axis(x, in_turn, axis=1) for x in (self.noise, starts & self.noise)
        )
        return masked, starts


class _Writer:
    """Puts together rows of ``length`` from what each column of other rows gives."""

    def __init__(self, segment_ids: np.ndarray, length: int, pad_id: int):
        self._segment_ids, self._length, self._pad_id = segment_ids, length, pad_id
        self._parts: list[tuple[np.ndarray, np.ndarray]] = []

    def emit(self, where: np.ndarray, values: np.ndarray) -> None:
        """One value from each column of ``where``, behind what it has given before."""
        self._parts.append((where, np.broadcast_to(values, where.shape)))

    def columns(self, prefix: str = "", tokens: str = "tokens") -> Batch:
        given = np.stack([where for where, _ in self._parts], axis=2)
        values = np.stack([values for _, values in self._parts], axis=2)
        flat = given.reshape(len(given), -1)
        row, source = np.nonzero(flat)
        place = (np.cumsum(flat, axis=1) - 1)[row, source]
        written = np.full((len(given), self._length), self._pad_id, np.int32)
        segment_ids = np.zeros_like(written)
        written[row, place] = values.reshape(len(given), -1)[row, source]
        segment_ids[row, place] = self._segment_ids[row, source // len(self._parts)]
        columns = np.arange(self._length, dtype=np.int32)[None]
        begins = np.diff(segment_ids, axis=1, prepend=0) != 0
        start = np.maximum.accumulate(np.where(begins, columns, 0), axis=1)
        positions = np.where(segment_ids > 0, columns - start, 0).astype(np.int32)
        return {
            tokens: written,
            f"{prefix}segment_ids": segment_ids,
            f"{prefix}positions": positions,
        }


def _real(segment_ids: np.ndarray) -> np.ndarray:
    return (segment_ids > 0).sum(1)


def _sizes(segment_ids: np.ndarray, width: int | None = None) -> np.ndarray:
    """Tokens of each segment of each row: int64 ``[n, width]``, none of padding."""
    width = width or int(segment_ids.max()) + 1
    flat = segment_ids + width * np.arange(len(segment_ids))[:, None]
    sizes = np.bincount(flat.ravel(), minlength=width * len(segment_ids)).reshape(-1, width)
    sizes[:, 0] = 0
    return sizes


def _uniform(keys: np.ndarray, purpose: int, count: int) -> np.ndarray:
    """Numbers in (0, 1): float64 ``[n, count]``."""
    own = mix(keys.astype(np.uint64) ^ np.uint64(mix(purpose + 1)))
    steps = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(GOLDEN)
    return ((mix(own[:, None] + steps[None]) >> np.uint64(11)) + 0.5) * 2.0**-53


def _poisson(uniform: np.ndarray, mean: float) -> np.ndarray:
    """Poisson numbers by inversion; those of chances below 1e-12 are cut off."""
    most = int(mean + 12 * math.sqrt(mean) + 12)
    logs = [k * math.log(mean) - mean - math.lgamma(k + 1) for k in range(most)]
    return np.searchsorted(np.cumsum(np.exp(logs)), uniform)
