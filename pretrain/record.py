"""What a finished run says of itself: its model, data, environment and latency."""

import importlib.metadata
import os
import pathlib
import platform
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from pretrain import processes, sharding, state
from pretrain.config import Reader
from pretrain.data import docstrings
from pretrain.tasks import Task

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "sentencepiece")
CODE = pathlib.Path(__file__).resolve().parents[1]
WARMUP, REPEATS = 20, 200


def describe(task: Task, params: dict[str, int], config: Reader) -> dict[str, Any]:
    """The part of ``result.json`` that is known before training."""
    name, model = task.objective.name, config.model.name
    data = {split: part.about for split, part in task.splits.items()}
    return {
        "task": name,
        "model": model,
        "label": config.label or f"{model}, {name}",
        "params": params,
        "init_from": config.init_from or None,
        "teacher": config.distill.teacher or None,
        "seed": config.seed,
        "data": data
        | {"unigram_entropy": data["train"].get("unigram_entropy")}
        | {"tokenizer": task.fingerprints.get("tokenizer")},
        "environment": environment() | embedded_data(task, config),
    }


def embedded_data(task: Task, config: Reader) -> dict[str, Any]:
    """Where the text of docstrings came from: versions of packages and a hash of all content."""
    names = [part.about["name"] for part in task.splits.values()]
    if task.encoder.tokenizer is not None:
        names.append(config.tokenizer.source)
    if not any(name.startswith("docstrings:") for name in names):
        return {}
    about = {"content_hash": docstrings.content_hash(), "versions": docstrings.versions()}
    return {"docstrings": about}


def revision() -> str | None:
    """The git commit of this code, with "-dirty" if files differ from it; None if installed."""
    if not (CODE / ".git").exists():
        return None
    command = ["git", "-C", str(CODE), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, check=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def environment() -> dict[str, Any]:
    """Versions and devices."""
    return {
        "revision": revision(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "jax": jax.__version__,
        "backend": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "cpu_count": os.cpu_count(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def latency(task: Task, params: Any) -> dict[str, Any] | None:
    """Milliseconds from one text to its prediction, encoding included, on one device.

    None for language models, which predict nothing of a text as a whole. Of several processes the
    first measures.
    """
    split = task.splits.get("test", task.splits.get("validation"))
    if split is None or split.examples is None:
        return None
    if processes.several():
        params = jax.tree.map(lambda x: sharding.replicate(x, x.sharding.mesh), params)
        params = jax.tree.map(lambda x: x.addressable_data(0), processes.settled(params))
        if not processes.first():
            return None
    mesh = sharding.make_mesh(dict.fromkeys(sharding.AXES, 1), jax.local_devices()[:1])
    params = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
    predict = state.predict_fn(task.objective, mesh)
    spent = []
    for index in range(WARMUP + REPEATS):
        example = split.examples[index % len(split.examples)]
        start = time.perf_counter()
        rows = _rows(task.encoder.encode([example], "data.test"), task)
        jax.block_until_ready([predict(params, row) for row in rows])
        spent.append(1e3 * (time.perf_counter() - start))
    p50, p95 = np.percentile(spent[WARMUP:], (50, 95))
    return {
        "p50": float(p50),
        "p95": float(p95),
        "batch": 1,
        "seq_len": task.encoder.seq_len,
        "warmup": WARMUP,
        "repeats": REPEATS,
        "device": jax.local_devices()[0].device_kind,
        "threads": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
    }


def _rows(columns: dict[str, np.ndarray], task: Task) -> Iterator[dict[str, np.ndarray]]:
    """The rows one by one, all of the width of those trained on: one compiled function's input.

    Of features beyond that width the last are left out.
    """
    shapes = {name: column.shape[1:] for name, column in columns.items()}
    if "features" in columns:
        wide = task.splits["train"].dataset[np.arange(1)]
        shapes = {name: wide[name].shape[1:] for name in columns}
    for index in range(len(columns["example"])):
        row = {}
        for name, column in columns.items():
            row[name] = np.zeros((1, *shapes[name]), column.dtype)
            part = tuple(slice(0, size) for size in np.minimum(shapes[name], column.shape[1:]))
            row[name][(0, *part)] = column[(index, *part)]
        yield row
