"""Reads files: plain text, JSON lines, CSV, TSV, CoNLL columns and Parquet; local or by fsspec URL.

All but Parquet may be compressed with gzip (``.gz``). Text is UTF-8. Everything is streamed.
"""

import csv
import glob
import gzip
import hashlib
import json
import os
import time
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO

import fsspec
from fsspec.implementations.local import LocalFileSystem

from pretrain.data import cache, conll
from pretrain.data.reading import Reading, Request, check_columns, first_line, to_example
from pretrain.errors import UserError

FORMATS = ("text", "jsonl", "csv", "tsv", "conll", "parquet")
_EXTENSIONS = {
    "txt": "text",
    "text": "text",
    "jsonl": "jsonl",
    "ndjson": "jsonl",
    "json": "jsonl",
    "csv": "csv",
    "tsv": "tsv",
    "conll": "conll",
    "iob": "conll",
    "bio": "conll",
    "parquet": "parquet",
}
_TASK_FORMATS = {
    "lm": ("text", "jsonl", "csv", "tsv", "parquet"),
    "classify": ("jsonl", "csv", "tsv", "parquet"),
    "tag": ("conll", "jsonl", "parquet"),
}
DOCUMENTS = ("paragraph", "line", "file")
_SETTLED = 2.0  # seconds, more than the coarsest clock of a file system
# What remote file systems call the version or the time of a file, surest first.
_TAGS = ("etag", "ETag", "md5Hash", "mtime", "LastModified", "last_modified", "updated")

Lines = Iterator[tuple[int, str]]  # (number from 1, content without the line end)


def read(spec: str, request: Request) -> Reading:
    """The `Reading` of the files that a path, glob or URL names."""
    if request.document not in DOCUMENTS:
        raise UserError(
            f"{request.setting('document')}={request.document}: expected one of "
            + ", ".join(DOCUMENTS)
        )
    if request.format and request.format not in FORMATS:
        raise UserError(
            f"{request.setting('format')}={request.format}: expected one of {', '.join(FORMATS)}"
        )
    filesystem, paths = _find(spec, request.key)
    formats = [_format(path, request) for path in paths]

    def examples() -> Iterator[dict]:
        for path, form in zip(paths, formats, strict=True):
            with _opened(filesystem, path) as file:
                yield from _READERS[form](file, path, request)

    def identity() -> str:
        states = {filesystem.unstrip_protocol(path): _state(filesystem, path) for path in paths}
        at = dict(zip(states, paths, strict=True))
        hashes = cache.remembered(states, lambda name: _sha256(filesystem, at[name]))
        parts = list(hashes.values())
        parts += [request.task, *formats, *request.columns]
        return json.dumps([*parts, request.document if "text" in formats else ""])

    return Reading(examples, identity)


def exists(spec: str) -> bool:
    """Whether `spec` is the path of a local file."""
    return fsspec.filesystem("file").exists(spec)


def _find(spec: str, key: str) -> tuple[fsspec.AbstractFileSystem, list[str]]:
    """The file system and the sorted paths that `spec` names."""
    try:
        filesystem, path = fsspec.core.url_to_fs(spec)
        if filesystem.isfile(path):
            return filesystem, [path]
        if filesystem.isdir(path):
            raise UserError(f"{key}={spec} is a folder; name its files, such as {spec}/*.txt")
        paths = sorted(filesystem.glob(path)) if glob.has_magic(path) else []
        paths = [path for path in paths if filesystem.isfile(path)]
    except UserError:
        raise
    except (ImportError, ValueError) as error:  # unknown protocol, or its package is missing
        raise UserError(f"{key}={spec}: {error}") from error
    except OSError as error:
        raise UserError(f"{key}={spec}: cannot be reached: {error}") from error
    if not paths:
        what = "no file matches" if glob.has_magic(spec) else "no such file"
        raise UserError(f"{key}={spec}: {what}")
    return filesystem, paths


def _format(path: str, request: Request) -> str:
    """How to read `path`: as `request.format` says, else by extension, else conll for tagging."""
    extension = path.removesuffix(".gz").rpartition("/")[2].rpartition(".")[2].lower()
    form = request.format or _EXTENSIONS.get(extension)
    if not request.format and request.task == "tag" and form in (None, "text"):
        form = "conll"  # btc.train, wikigold.conll.txt
    if form is None:
        raise UserError(
            f"{request.key}: cannot tell the format of {path} from its name; set "
            f"{request.setting('format')} to one of {', '.join(_TASK_FORMATS[request.task])}"
        )
    if form not in _TASK_FORMATS[request.task]:
        raise UserError(
            f"{request.key}: {path} would be read as {form}, which has no examples for the task "
            f"{request.task}; set {request.setting('format')} to one of "
            + ", ".join(_TASK_FORMATS[request.task])
        )
    return form


def _opened(filesystem: fsspec.AbstractFileSystem, path: str) -> BinaryIO:
    try:
        return filesystem.open(path, "rb")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error}") from error


def _sha256(filesystem: fsspec.AbstractFileSystem, path: str) -> str:
    digest = hashlib.sha256()
    with _opened(filesystem, path) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _state(filesystem: fsspec.AbstractFileSystem, path: str) -> str | None:
    """What changes whenever the content does, as far as the file system tells; None: it does not.

    A local file that has just been written may change again without a new time.
    """
    try:
        if isinstance(filesystem, LocalFileSystem):
            found = os.stat(path)
            settled = time.time() - found.st_mtime > _SETTLED
            return f"{found.st_size} {found.st_mtime_ns}" if settled else None
        info = filesystem.info(path)
    except OSError:
        return None  # reading it tells what is wrong
    tags = [str(info[key]) for key in _TAGS if info.get(key)]
    return f"{info.get('size')} {tags[0]}" if tags else None


def _unpacked(file: BinaryIO, path: str) -> BinaryIO:
    return gzip.GzipFile(fileobj=file) if path.endswith(".gz") else file


def _lines(file: BinaryIO, path: str) -> Lines:
    """The numbered lines of a UTF-8 file, which end at "\\n" only; a gzip file is unpacked."""
    number = 0
    try:
        for number, line in enumerate(_unpacked(file, path), start=1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            yield number, line.decode("utf-8").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}:{number}: not UTF-8 text: {error.reason}") from error
    except (EOFError, gzip.BadGzipFile, OSError, zlib.error) as error:
        raise UserError(f"{path}:{number + 1}: cannot be read further: {error}") from error


def _read_text(file: BinaryIO, path: str, request: Request) -> Iterator[dict]:
    lines = (line for _, line in _lines(file, path))
    if request.document == "line":
        texts = lines
    elif request.document == "paragraph":
        texts = _paragraphs(lines)
    else:
        texts = iter(["".join(f"{line}\n" for line in lines)])
    for text in texts:
        if text.strip():
            yield {"text": text}


def _paragraphs(lines: Iterator[str]) -> Iterator[str]:
    """Runs of lines without a blank one (which may hold spaces)."""
    collected: list[str] = []
    for line in lines:
        if line.strip():
            collected.append(line)
        elif collected:
            yield "\n".join(collected)
            collected = []
    yield "\n".join(collected)


def _read_jsonl(file: BinaryIO, path: str, request: Request) -> Iterator[dict]:
    for number, line in _lines(file, path):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            hint = "; a JSON array is not JSON lines: write one object a line"
            raise UserError(
                f"{where}: broken JSON: {error}{hint if line.lstrip()[0] == '[' else ''}"
            ) from error
        if not isinstance(record, dict):
            raise UserError(f"{where}: expected one JSON object a line, found {line[:40]!r}")
        check_columns(list(record), request, where)
        yield from _present(to_example(record, request, where))


def _read_csv(file: BinaryIO, path: str, request: Request) -> Iterator[dict]:
    return _read_table(_csv_rows(file, path), path, request)


def _read_tsv(file: BinaryIO, path: str, request: Request) -> Iterator[dict]:
    rows = ((number, line.split("\t")) for number, line in _lines(file, path) if line.strip())
    return _read_table(rows, path, request)


def _csv_rows(file: BinaryIO, path: str) -> Iterator[tuple[int, list[str]]]:
    """(number of the last line, cells) of a CSV file with standard quoting."""
    csv.field_size_limit(1 << 30)
    reader = csv.reader((line + "\n" for _, line in _lines(file, path)), strict=True)
    try:
        for row in reader:
            if row:
                yield reader.line_num, row
    except csv.Error as error:
        raise UserError(f"{path}:{reader.line_num}: broken CSV: {error}") from error


def _read_table(
    rows: Iterator[tuple[int, list[str]]], path: str, request: Request
) -> Iterator[dict]:
    """Rows as examples; columns named by numbers mean that there is no header."""
    by_place = all(column.isdecimal() for column in request.columns)
    header: list[str] | None = None
    for number, cells in rows:
        where = f"{path}:{number}"
        if header is None:
            header = [str(place) for place in range(len(cells))] if by_place else cells
            check_columns(header, request, where)
            if not by_place:
                continue
        if len(cells) != len(header):
            raise UserError(f"{where}: {len(cells)} columns; expected {len(header)} as above")
        record = dict(zip(header, cells, strict=True))
        yield from _present(to_example(record, request, where))


def _read_conll(file: BinaryIO, path: str, _request: Request) -> Iterator[dict]:
    return conll.sentences(_lines(file, path), path)


def _read_parquet(file: BinaryIO, path: str, request: Request) -> Iterator[dict]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(file)
        check_columns(table.schema_arrow.names, request, path)
        row = 0
        for batch in table.iter_batches(batch_size=1024, columns=request.columns):
            for record in batch.to_pylist():
                row += 1
                yield from _present(to_example(record, request, f"{path}: row {row}"))
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: broken Parquet: {first_line(error)}") from error


def _present(example: dict | None) -> Iterator[dict]:
    if example is not None:
        yield example


_READERS: dict[str, Callable[[BinaryIO, str, Request], Iterator[dict]]] = {
    "text": _read_text,
    "jsonl": _read_jsonl,
    "csv": _read_csv,
    "tsv": _read_tsv,
    "conll": _read_conll,
    "parquet": _read_parquet,
}
