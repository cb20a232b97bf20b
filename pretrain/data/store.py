"""The token store: a corpus as rows of fixed length on disk, memory-mapped.

A row is ``[CLS] document [SEP] [CLS] document [SEP] ... [PAD]``. Documents longer than a row are
divided into windows that fill rows; each window is a segment of its own.

As a stream (``stream=True``), for models that carry memory from row to row, a row goes on where the
one before it ends, also in the middle of a document.

On disk three ids beyond the vocabulary stand for padding, for the first token of a document, and
for that of a later window of one, as a tokenizer may have one special token for everything (GPT-2).
So the stored ids alone say where segments and documents begin: segment ids and positions are
computed when rows are read.

A store lies in a folder named by the hash of all that determines its content. It is written once,
atomically, and reused by everything that asks for the same.
"""

import dataclasses
import hashlib
import itertools
import json
import os
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import tqdm

from pretrain.data.cache import make_once
from pretrain.data.tokenizer import AnyTokenizer, texts_of
from pretrain.errors import UserError

_FORMAT = "store 3"  # Change it whenever the rows made from the same input change.
_TOKENS_FILE = "tokens.bin"
_META_FILE = "meta.json"

_DOCUMENTS_PER_BATCH = 1024
_OPEN_ROWS = 1024
_MIN_SEGMENT = 3  # [CLS], one piece, [SEP]
_SECONDS_BETWEEN_LINES = 10.0


@dataclasses.dataclass(frozen=True)
class Stats:
    """What a store holds. `num_tokens` counts all but padding, `num_bytes` the text in UTF-8;
    `unigram_entropy` is that of the pieces (special tokens left out), in nats."""

    num_rows: int
    num_tokens: int
    num_documents: int
    num_bytes: int
    unigram_entropy: float


class TokenStore:
    """A finished store, read-only; a dataset for `pretrain.data.loader`."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        meta = json.loads((self.path / _META_FILE).read_text())
        self.name: str = meta["source"]
        self.fingerprint: str = meta["source_fingerprint"]
        self.seq_len: int = meta["seq_len"]
        self.vocab_size: int = meta["vocab_size"]
        self._pad_id, self._cls_id = meta["pad_id"], meta["cls_id"]
        self.stream: bool = meta.get("stream", False)
        self.stats = Stats(**meta["stats"])
        file, dtype = self.path / _TOKENS_FILE, np.dtype(meta["dtype"])
        shape = (self.stats.num_rows, self.seq_len)
        expected = shape[0] * shape[1] * dtype.itemsize
        if (found := file.stat().st_size) != expected:
            raise UserError(f"{file}: {found} bytes, expected {expected}; delete {self.path}")
        # A plain array over the map: np.memmap's own indexing costs more than the read.
        self._tokens = np.asarray(np.memmap(file, dtype=dtype, mode="r", shape=shape))

    def __len__(self) -> int:
        return self.stats.num_rows

    @property
    def begins(self) -> np.ndarray:
        """Whether a document begins with a row: bool ``[len(self)]``."""
        return self._tokens[:, 0] == self.vocab_size + 1

    def __getitem__(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Rows `indices`, each column ``[len(indices), seq_len]`` int32.

        tokens: the ids. segment_ids: 1, 2, ... for the row's segments, 0 for padding. positions:
        from 0 in each segment, 0 for padding.

        Of a stream, segment 1 is the document that the row goes on with; one that begins with its
        row is segment 2, and positions are from 0 in each row. Also ``next_token [n]`` int32: what
        follows the row in its last document, -1 for nothing.
        """
        stored = self._tokens[indices]
        real = stored != self.vocab_size
        starts = stored > self.vocab_size
        tokens = stored.astype(np.int32)
        np.copyto(tokens, self._pad_id, where=~real)
        np.copyto(tokens, self._cls_id, where=starts)
        columns = np.arange(self.seq_len, dtype=np.int32)
        segment_start = np.maximum.accumulate(np.where(starts, columns, 0), axis=1)
        segment_ids = np.cumsum(starts, axis=1, dtype=np.int32) + self.stream
        rows = {
            "tokens": tokens,
            "segment_ids": segment_ids * real,
            "positions": (columns - segment_start) * real,
        }
        if self.stream:
            following = self._tokens[(indices + 1) % len(self), 0].astype(np.int32)
            rows["next_token"] = np.where(following < self.vocab_size, following, np.int32(-1))
        return rows


def build(
    source: Any,
    tokenizer: AnyTokenizer,
    *,
    seq_len: int,
    cache_dir: str | Path,
    packing: bool = True,
    stream: bool = False,
    progress: bool = True,
    key: str = "data.train",
) -> TokenStore:
    """The store of `source` in rows of `seq_len` tokens, built now or found finished in the cache.

    Memory stays bounded whatever the size of the corpus. Of several processes that want the same
    store one builds it and the others wait (`pretrain.data.cache.make_once`).

    Args:
      source: yields example dicts (`pretrain.data.sources`); has `name` and `fingerprint()`.
      packing: put several documents in a row where they fit; otherwise rows are documents, or
        windows of long ones, in the order of the source.
      stream: documents one behind the other, in that order, cut wherever a row is full.
      progress: show documents, tokens and tokens/s on stderr.
      key: the config key of `source`, for error messages.

    Raises:
      UserError: the corpus is empty or `seq_len` has no room for a token.
    """
    if seq_len < _MIN_SEGMENT:
        raise UserError(f"train.seq_len: {seq_len} is too short; expected at least {_MIN_SEGMENT}")
    settings = {"seq_len": seq_len, "packing": packing} | ({"stream": True} if stream else {})
    fingerprint = source.fingerprint()
    content = json.dumps([_FORMAT, fingerprint, tokenizer.fingerprint, settings], sort_keys=True)
    path = Path(cache_dir) / "stores" / hashlib.sha256(content.encode()).hexdigest()[:32]

    def make(building: Path) -> None:
        dtype = np.dtype("<u2" if tokenizer.vocab_size + 3 <= 2**16 else "<u4")
        with (
            open(building / _TOKENS_FILE, "wb") as file,
            _Progress(source.name, enabled=progress) as shown,
        ):
            layout = _Stream if stream else _Rows
            rows = layout(file, tokenizer, seq_len, dtype, packing)
            stats = _write(source, tokenizer, rows, shown)
        if not rows.num_rows:
            raise UserError(f"{key}: {source.name} holds no text; expected a document at least")
        meta = {
            "format": _FORMAT,
            "source": source.name,
            "source_fingerprint": fingerprint,
            "tokenizer_fingerprint": tokenizer.fingerprint,
            "vocab_size": tokenizer.vocab_size,
            "pad_id": tokenizer.pad_id,
            "cls_id": tokenizer.cls_id,
            **settings,
            "dtype": dtype.str,
            "stats": dataclasses.asdict(stats),
        }
        (building / _META_FILE).write_text(json.dumps(meta, indent=2) + "\n")

    make_once(path, make)
    return TokenStore(path)


def _write(source: Any, tokenizer: AnyTokenizer, rows: "_Rows", shown: "_Progress") -> Stats:
    """Encodes the corpus into `rows`."""
    counts = np.zeros(tokenizer.vocab_size, np.int64)
    num_documents = num_bytes = 0
    texts = texts_of(source)
    while batch := list(itertools.islice(texts, _DOCUMENTS_PER_BATCH)):
        encoded = [
            np.array(ids, np.int32)
            for ids in tokenizer.encode_batch(batch, num_threads=os.cpu_count() or 1)
        ]
        counts += np.bincount(np.concatenate(encoded), minlength=len(counts))
        num_documents += sum(len(ids) > 0 for ids in encoded)
        num_bytes += sum(len(text.encode("utf-8", "replace")) for text in batch)
        for ids in encoded:
            rows.add(ids)
        shown.update(len(batch), sum(map(len, encoded)))
    rows.close()
    counts[list(tokenizer.special_ids)] = 0
    frequencies = counts[counts > 0] / counts.sum()
    return Stats(
        num_rows=rows.num_rows,
        num_tokens=rows.num_tokens,
        num_documents=num_documents,
        num_bytes=num_bytes,
        unigram_entropy=float(-(frequencies * np.log(frequencies)).sum()),
    )


class _Rows:
    """Lays documents out in rows and writes the rows to `file`.

    Packing is best fit (Johnson et al., 1974) over a bounded number of open rows: a segment goes
    into the row with the least room that is enough. When all open rows are too full and no more
    may be opened, the fullest is written.
    """

    def __init__(
        self,
        file: BinaryIO,
        tokenizer: AnyTokenizer,
        seq_len: int,
        dtype: np.dtype,
        packing: bool,
    ):
        self._file = file
        self._padding = tokenizer.vocab_size
        self._start, self._later = tokenizer.vocab_size + 1, tokenizer.vocab_size + 2
        self._end = tokenizer.sep_id
        self._seq_len = seq_len
        self._dtype = dtype
        self._packing = packing
        self._rows = np.full((_OPEN_ROWS, seq_len), self._padding, dtype)
        self._unused = list(range(_OPEN_ROWS))
        # _open[room] lists the open rows with `room` tokens left; bit `room` of _rooms is set
        # where that list is not empty, so that one shift finds the best fit.
        self._open: list[list[int]] = [[] for _ in range(seq_len + 1)]
        self._rooms = 0
        self._filled = 0  # of the only open row of a stream
        self.num_rows = 0
        self.num_tokens = 0

    def add(self, ids: np.ndarray) -> None:
        """Adds one document."""
        size = self._seq_len - 2
        num_full = len(ids) // size
        if num_full:
            full = np.empty((num_full, self._seq_len), self._dtype)
            full[0, 0], full[1:, 0] = self._start, self._later
            full[:, 1:-1] = ids[: num_full * size].reshape(num_full, size)
            full[:, -1] = self._end
            self.num_tokens += full.size
            self._emit(full)
        if num_full * size < len(ids):
            self._place(ids[num_full * size :], self._later if num_full else self._start)

    def close(self) -> None:
        """Writes the rows still open, the fullest first."""
        while self._rooms:
            self._write_fullest()

    def _place(self, ids: np.ndarray, first: int) -> None:
        needed = len(ids) + 2
        row, room = self._take(needed)
        start = self._seq_len - room
        segment = self._rows[row, start : start + needed]
        segment[0] = first
        segment[1:-1] = ids
        segment[-1] = self._end
        self.num_tokens += needed
        room -= needed
        if self._packing and room >= _MIN_SEGMENT:
            self._open[room].append(row)
            self._rooms |= 1 << room
        else:
            self._release(row)

    def _take(self, needed: int) -> tuple[int, int]:
        """A row with room for `needed` tokens, and its room."""
        if fitting := self._rooms >> needed:
            room = needed + _lowest_bit(fitting)
            return self._pop(room), room
        if not self._unused:
            self._write_fullest()
        return self._unused.pop(), self._seq_len

    def _write_fullest(self) -> None:
        self._release(self._pop(_lowest_bit(self._rooms)))

    def _pop(self, room: int) -> int:
        row = self._open[room].pop()
        if not self._open[room]:
            self._rooms &= ~(1 << room)
        return row

    def _release(self, row: int) -> None:
        self._emit(self._rows[row : row + 1])
        self._rows[row] = self._padding
        self._unused.append(row)

    def _emit(self, rows: np.ndarray) -> None:
        self._file.write(rows.tobytes())
        self.num_rows += len(rows)


class _Stream(_Rows):
    """Lays documents out one behind the other; only the last row may have padding."""

    def add(self, ids: np.ndarray) -> None:
        if not len(ids):
            return
        whole = np.empty(self._filled + len(ids) + 2, self._dtype)
        whole[: self._filled] = self._rows[0, : self._filled]
        whole[self._filled] = self._start
        whole[self._filled + 1 : -1] = ids
        whole[-1] = self._end
        self.num_tokens += len(ids) + 2
        full = len(whole) // self._seq_len * self._seq_len
        self._emit(whole[:full].reshape(-1, self._seq_len))
        self._filled = len(whole) - full
        self._rows[0, : self._filled] = whole[full:]

    def close(self) -> None:
        if self._filled:
            self._rows[0, self._filled :] = self._padding
            self._emit(self._rows[:1])
            self._filled = 0


def _lowest_bit(bits: int) -> int:
    return (bits & -bits).bit_length() - 1


class _Progress:
    """Documents, tokens and tokens/s on stderr: a bar on a terminal, a line now and then else."""

    def __init__(self, name: str, *, enabled: bool):
        self._name = name
        self._enabled = enabled
        self._documents = self._tokens = 0
        self._started = self._shown = time.monotonic()
        on_terminal = enabled and sys.stderr.isatty()
        self._bar = tqdm.tqdm(desc=f"tokenize {name}", unit=" documents") if on_terminal else None

    def update(self, documents: int, tokens: int) -> None:
        self._documents += documents
        self._tokens += tokens
        if self._bar is not None:
            self._bar.set_postfix_str(self._rate(), refresh=False)
            self._bar.update(documents)
        elif self._enabled and time.monotonic() - self._shown >= _SECONDS_BETWEEN_LINES:
            self._print()

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None):
        if self._bar is not None:
            self._bar.close()
        elif self._enabled and kind is None:
            self._print()

    def _rate(self) -> str:
        seconds = max(time.monotonic() - self._started, 1e-9)
        return f"{self._tokens:,} tokens, {self._tokens / seconds:,.0f} tokens/s"

    def _print(self) -> None:
        self._shown = time.monotonic()
        line = f"tokenize {self._name}: {self._documents:,} documents, {self._rate()}"
        print(line, file=sys.stderr, flush=True)
