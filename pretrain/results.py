"""The flat table of a study, ``results.jsonl``: one JSON object a run, keys joined by dots."""

import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from pretrain import comparison
from pretrain.comparison import Row
from pretrain.config import flatten
from pretrain.errors import UserError
from pretrain.files import read_jsonl, to_json
from pretrain.page import write_atomic

CURVE_POINTS = 200  # at most about so many points of a loss curve
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
        row["curve"] = loss_curve(metrics, row["train.steps"], row["train.tokens"])
    return row


def loss_curve(path: pathlib.Path, steps: int, tokens: int) -> list[list[float]]:
    """``[[step, tokens, validation loss], ...]`` of a run that took ``steps`` over ``tokens``.

    A resumed run may have logged a step twice; the later line counts. Tokens of an evaluation are
    interpolated between the steps that logged them.
    """
    seen, losses = {0: 0.0, steps: float(tokens)}, {}
    for entry in read_jsonl(path):
        if "train/tokens" in entry:
            seen[entry["step"]] = float(entry["train/tokens"])
        if entry.get("validation/loss") is not None:  # null stands for nan
            losses[entry["step"]] = float(entry["validation/loss"])
    logged, evaluated = sorted(seen), sorted(losses)
    at = np.interp(evaluated, logged, [seen[s] for s in logged])
    curve = [[s, round(float(t)), losses[s]] for s, t in zip(evaluated, at, strict=True)]
    thin = max(1, math.ceil(len(curve) / CURVE_POINTS))
    return curve[::-thin][::-1]  # the last point stays


def write(workdir: pathlib.Path, rows: list[Row]) -> None:
    """Selects among candidates and writes the table."""
    comparison.select(rows)
    text = "".join(to_json(row) + "\n" for row in rows)
    write_atomic(workdir / "results.jsonl", text.encode())


def read(workdir: pathlib.Path) -> list[Row]:
    """The rows that `write` wrote."""
    path = workdir / "results.jsonl"
    if not path.exists():
        raise UserError(f"{path}: no such file, expected a study that has run")
    return [_with_nan(json.loads(line)) for line in path.read_text().splitlines()]


def _with_nan(row: Row) -> Row:
    """A score that is there but null was not a number: it ranks last, where a missing one fails."""
    return {k: math.nan if v is None and k.startswith("scores.") else v for k, v in row.items()}
