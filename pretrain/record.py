"""What a finished run says of itself: its model, data, environment and latency."""

import importlib.metadata
import os
import platform
import time
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from pretrain import sharding, state
from pretrain.config import Reader
from pretrain.data import docstrings
from pretrain.tasks import Task

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "sentencepiece")
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
        "seed": config.seed,
        "data": data | {"unigram_entropy": data["train"].get("unigram_entropy")},
        "environment": environment() | embedded_data(task),
    }


def embedded_data(task: Task) -> dict[str, Any]:
    """Where the text of docstrings came from: versions of packages and a hash of all content."""
    if not any(part.about["name"].startswith("docstrings:") for part in task.splits.values()):
        return {}
    about = {"content_hash": docstrings.content_hash(), "versions": docstrings.versions()}
    return {"docstrings": about}


def environment() -> dict[str, Any]:
    """Versions and devices."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "jax": jax.__version__,
        "backend": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "cpu_count": os.cpu_count(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def latency(task: Task, params: Any) -> dict[str, Any] | None:
    """Milliseconds from one text to its prediction, encoding included, on one device.

    None for language models, which predict nothing of a text as a whole, and where the parameters
    lie on several hosts.
    """
    split = task.splits.get("test", task.splits.get("validation"))
    if split is None or split.examples is None or jax.process_count() > 1:
        return None
    mesh = sharding.make_mesh(dict.fromkeys(sharding.AXES, 1), jax.local_devices()[:1])
    params = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
    predict = state.predict_fn(task.objective, mesh)
    spent = []
    for index in range(WARMUP + REPEATS):
        example = split.examples[index % len(split.examples)]
        start = time.perf_counter()
        columns = _one_shape(task.encoder.encode([example], "data.test"), task)
        jax.block_until_ready(predict(params, columns))
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


def _one_shape(columns: dict[str, np.ndarray], task: Task) -> dict[str, np.ndarray]:
    """The first row, as wide as the rows trained on, so that one compiled function serves all."""
    row = {name: values[:1] for name, values in columns.items()}
    if "features" in row:
        wide = task.splits["train"].dataset[np.arange(1)]
        for name, values in row.items():
            shape = wide[name].shape
            padded = np.zeros(shape, values.dtype)
            window = tuple(slice(0, min(a, b)) for a, b in zip(shape, values.shape, strict=True))
            padded[window] = values[window]
            row[name] = padded
    return row
