"""The flat table of a study, ``results.jsonl``: one JSON object a run, keys joined by dots."""

import math
import pathlib
from collections.abc import Mapping
from typing import Any

from pretrain import comparison
from pretrain.comparison import Row
from pretrain.config import flatten
from pretrain.errors import UserError
from pretrain.files import read_jsonl, write_jsonl

FILE = "results.jsonl"
# What a result says of itself in words that the study uses for its own labels.
RENAMED = {"task": "objective", "model": "architecture"}


def finished_row(
    labels: Mapping[str, Any], result: Mapping[str, Any], metrics: pathlib.Path
) -> Row:
    """A finished run: the study's labels, its flattened ``result.json``, its pretraining curve.

    Args:
        labels: ``name, model, task, labels, seed, init_from, key, folder``; they win over equal
            keys of the result, whose ``task`` and ``model`` become ``objective``, ``architecture``.
        result: contents of ``result.json``.
        metrics: path of ``metrics.jsonl``.
    """
    flat = {RENAMED.get(key, key): value for key, value in flatten(result).items()}
    flat = _with_nan({k: v for k, v in flat.items() if k not in labels})
    row = {**labels, "status": "finished", **flat}
    if comparison.is_pretraining(row):
        row["curve"] = loss_curve(metrics)
    return row


def loss_curve(path: pathlib.Path) -> list[list[float]]:
    """``[[step, tokens seen, held-out loss], ...]``; what a resumed run logged last counts.

    The loss is `comparison.word_loss`.
    """
    curve = {}
    for entry in read_jsonl(path):
        loss = comparison.word_loss(entry, "validation/")
        if loss is not None:  # null stands for nan
            curve[entry["step"]] = [entry["step"], entry["train/tokens"], loss]
    return [curve[step] for step in sorted(curve)]


def write(workdir: pathlib.Path, rows: list[Row]) -> None:
    """Selects among candidates and writes the table."""
    comparison.select(rows)
    write_jsonl(workdir / FILE, rows)


def read(workdir: pathlib.Path) -> list[Row]:
    """The rows that `write` wrote."""
    path = workdir / FILE
    if not path.exists():
        raise UserError(f"{path}: no such file, expected a study that has run")
    return [_with_nan(row) for row in read_jsonl(path)]


def _with_nan(row: Row) -> Row:
    """A score that is there but null was not a number: it ranks last, where a missing one fails."""
    return {k: math.nan if v is None and k.startswith("scores.") else v for k, v in row.items()}
