"""Files that are never seen half written, most of them JSON."""

import json
import math
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from pretrain.errors import UserError


def to_json(value: Any, **options: Any) -> str:
    """JSON text; numbers that JSON does not have, nan and the infinities, become null."""
    return json.dumps(_finite(value), allow_nan=False, **options)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes UTF-8 so that the file is the old one or the new one, never a part."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_json(path: pathlib.Path, value: object) -> None:
    """Writes indented JSON; see `to_json` and `write_text`."""
    write_text(path, to_json(value, indent=2, sort_keys=True) + "\n")


def write_jsonl(path: pathlib.Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Writes one JSON object a line; see `to_json` and `write_text`."""
    write_text(path, "".join(to_json(record, ensure_ascii=False) + "\n" for record in records))


def write_npz(path: pathlib.Path, **arrays: np.ndarray) -> None:
    """Writes a NumPy archive of exactly this name, whole or not at all."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def check_new(path: pathlib.Path, flag: str) -> None:
    """`UserError` unless a file can be made there that does not exist yet."""
    if path.exists():
        raise UserError(f"{flag}: {path} exists; expected a new file")
    if not path.parent.is_dir():
        raise UserError(f"{flag}: {path.parent} is not a folder; expected an existing one")


def check_new_folder(path: pathlib.Path, what: str) -> None:
    """`UserError` unless ``path`` does not exist or is an empty folder."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{what}: {path} exists and is not empty; expected a new folder")


def read_json(path: pathlib.Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def read_jsonl(path: pathlib.Path) -> list[dict]:
    """Records of a JSON-lines file; a last line cut off by a crash is left out."""
    records = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8").split("\n"):
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError:
                break
    return records
