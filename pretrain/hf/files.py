"""Safetensors files of a checkpoint directory: one, or shards with an index."""

import contextlib
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import ml_dtypes  # noqa: F401  (makes NumPy know bfloat16, which safetensors then reads)
import numpy as np
import safetensors
import safetensors.numpy

from pretrain.errors import UserError
from pretrain.files import write_text

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
UNSAFE = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.ckpt.index", "*.msgpack", "*.h5", "*.pkl")
FLOATS = ("F64", "F32", "F16", "BF16")
SHARD_BYTES = 5 * 10**9  # of a file, at most, as save_pretrained has it


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """A JSON object from a file; `UserError` for anything else."""
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a JSON file ({error})") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: found a JSON {type(value).__name__}, expected an object")
    return value


class Weights:
    """The tensors of a directory, read one by one. Use it as a context manager.

    Attributes:
      where: the file (the index, for shards) that errors name.
    """

    def __init__(self, directory: pathlib.Path):
        self._files = _find(directory)
        self.where = directory / (INDEX if (directory / INDEX).is_file() else WEIGHTS)
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "Weights":
        self._open = {}
        for file in dict.fromkeys(self._files.values() if isinstance(self._files, dict) else ()):
            self._open[file] = self._enter(file)
        if not isinstance(self._files, dict):
            whole = self._enter(self._files)
            self._open[self._files] = whole
            self._files = dict.fromkeys(whole.keys(), self._files)
        for name, file in self._files.items():
            if name not in self._open[file].keys():  # noqa: SIM118  (no mapping)
                raise UserError(f"{file}: lacks tensor {name!r}, which {self.where} says is in it")
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def _enter(self, file: pathlib.Path):
        try:
            return self._stack.enter_context(safetensors.safe_open(file, "np"))
        except (safetensors.SafetensorError, OSError) as error:
            raise UserError(f"{file}: not a safetensors file ({error})") from error

    @property
    def names(self) -> list[str]:
        """Of all tensors, sorted."""
        return sorted(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._open[self._files[name]].get_slice(name).get_shape())

    def read(self, name: str) -> np.ndarray:
        """One tensor as float32, whatever float type the file has."""
        file = self._open[self._files[name]]
        if (dtype := file.get_slice(name).get_dtype()) not in FLOATS:
            raise UserError(
                f"{self._files[name]}: tensor {name!r} is {dtype}, expected one of "
                f"{', '.join(FLOATS)}"
            )
        return file.get_tensor(name).astype(np.float32, copy=False)


def _find(directory: pathlib.Path) -> pathlib.Path | dict[str, pathlib.Path]:
    """The one file of a directory, or that of each tensor."""
    if not directory.is_dir():
        raise UserError(f"{directory}: not a folder; expected one that save_pretrained wrote")
    if (directory / INDEX).is_file():
        weight_map = read_json(directory / INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise UserError(f"{directory / INDEX}: no weight_map, expected that of save_pretrained")
        files = {}
        for name, shard in weight_map.items():
            files[name] = directory / str(shard)
            if pathlib.PurePath(str(shard)).name != shard or not files[name].is_file():
                raise UserError(
                    f"{directory / INDEX}: tensor {name!r} is in {shard!r}, which is not a file of "
                    "that folder"
                )
        return files
    if (directory / WEIGHTS).is_file():
        return directory / WEIGHTS
    found = sorted(path.name for pattern in UNSAFE for path in directory.glob(pattern))
    if found:
        raise UserError(
            f"{directory}: found {found[0]}, expected {WEIGHTS}; only safetensors are read. "
            "Convert it where torch and transformers are installed: config = transformers."
            "AutoConfig.from_pretrained(SRC_DIR); getattr(transformers, config.architectures[0])."
            "from_pretrained(SRC_DIR).save_pretrained(NEW_DIR, safe_serialization=True); "
            "transformers.AutoTokenizer.from_pretrained(SRC_DIR).save_pretrained(NEW_DIR)"
        )
    raise UserError(f"{directory}: no {WEIGHTS} and no {INDEX}, expected one of them")


def write_weights(
    directory: pathlib.Path,
    tensors: Iterator[tuple[str, np.ndarray]],
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes float32 tensors to one file, or to shards with an index where they are more.

    No more than one shard is in memory at a time.
    """
    shards: list[list[str]] = []
    held: dict[str, np.ndarray] = {}
    total = size = 0

    def flush() -> None:
        part = directory / f"{len(shards)}.part"
        part.touch()
        mode = part.stat().st_mode  # the usual one: safetensors makes the file private
        safetensors.numpy.save_file(held, part, metadata={"format": "pt"})
        part.chmod(mode)
        shards.append(list(held))
        held.clear()

    for name, array in tensors:
        if held and size + array.nbytes > shard_bytes:
            flush()
            size = 0
        held[name] = array
        size += array.nbytes
        total += array.nbytes
    flush()
    weight_map: dict[str, str] = {}
    for index, names in enumerate(shards):
        file = WEIGHTS
        if len(shards) > 1:
            file = f"model-{index + 1:05d}-of-{len(shards):05d}.safetensors"
        (directory / f"{index}.part").rename(directory / file)
        weight_map |= dict.fromkeys(names, file)
    if len(shards) > 1:
        about: Mapping[str, Any] = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_text(directory / INDEX, json.dumps(about, indent=2, sort_keys=True) + "\n")
