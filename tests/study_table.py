"""A made-up but lifelike results table for the tests of the page and its pictures."""

import hashlib
import math
from collections.abc import Mapping, Sequence

from pretrain import comparison

NER, CLASSES = "NER: Sphinx roles (silver)", "Classification: docstring to package"
ENTROPY = 6.81
PRETRAINED, SCRATCH = "tiny encoder, pretrained", "tiny encoder, from scratch"
SMALL, LINEAR = "small encoder, pretrained", "token logistic regression"
SCORES = {  # made-up test scores by model and labels, one a seed
    (NER, PRETRAINED): {50: (0.42, 0.51, 0.54), 200: (0.57, 0.58, 0.60), 1000: (0.68,)},
    (NER, SCRATCH): {50: (0.27, 0.28, 0.30), 200: (0.41, 0.42, 0.44), 1000: (0.576,)},
    (NER, SMALL): {50: (0.40, 0.47, 0.50), 200: (0.53, 0.55, 0.58), 1000: (0.66,)},
    (NER, LINEAR): {50: (0.22, 0.26, 0.33), 200: (0.49, 0.52, 0.53), 1000: (0.608,)},
    (CLASSES, PRETRAINED): {100: (0.33, 0.40, 0.46), 500: (0.51, 0.53, 0.55), 2000: (0.685,)},
    (CLASSES, SCRATCH): {100: (0.33, 0.37, 0.40), 500: (0.49, 0.50, 0.52), 2000: (0.672,)},
    (CLASSES, "logistic regression"): {
        100: (0.35, 0.37, 0.39),
        500: (0.54, 0.555, 0.57),
        2000: (0.662,),
        8000: (0.770,),
    },
    (CLASSES, "linear SVM"): {100: (0.36, 0.38, 0.40), 500: (0.55, 0.567, 0.58), 2000: (0.672,)},
}
PARAMETERS = {"tiny": (1_048_576, 396_544), "small": (2_097_152, 3_159_040)}
MACHINE = {
    "environment.python": "3.11.2",
    "environment.jax": "0.10.2",
    "environment.backend": "cpu",
    "environment.devices": 1,
    "environment.cpu_count": 2,
    "environment.packages.flax": "0.12.8",
    "environment.packages.numpy": "2.3.1",
}


def pretraining_row(size: str, seconds: float, loss: float, tokens: int = 3_600_000) -> dict:
    """A finished masked-language-model run with a falling loss curve."""
    embedding, other = PARAMETERS[size]
    points = [i / 12 for i in range(1, 13)]
    return {
        "name": f"mlm-{size}",
        "model": f"{size} encoder",
        "task": "pretraining",
        "labels": 0,
        "seed": 0,
        "init_from": "",
        "key": f"{size:0<64}",
        "status": "finished",
        "objective": "mlm",
        "architecture": "transformer",
        "params.total": embedding + other,
        "params.embedding": embedding,
        "params.other": other,
        "train.tokens": tokens,
        "train.steps": 1200,
        "train.flops": 6.0 * other * tokens,
        "train.seconds": seconds,
        "train.compile_seconds": 8.0,
        "scores.validation.loss": loss,
        "scores.validation.masked_accuracy": 0.31,
        "selection.metric": None,
        "data.validation.examples": 2331,  # documents of held-out text
        "data.unigram_entropy": ENTROPY,
        "data.train.name": "docstrings:corpus:train",
        "data.train.fingerprint": "ab" * 32,
        "data.train.examples": 61_000,
        "curve": [
            [round(1200 * x), round(tokens * x), loss + (6.9 - loss) * math.exp(-4 * x)]
            for x in points
        ],
        **MACHINE,
    }


def task_row(task: str, model: str, labels: int, seed: int, test: float, **changes) -> dict:
    """A finished fine-tuning or supervised run."""
    linear = "encoder" not in model
    size = model.split()[0]
    embedding, other = (0, 262_144) if linear else PARAMETERS[size]
    metric = "f1" if task == NER else "accuracy"
    seconds = (0.4 if linear else 6.0 if size == "tiny" else 14.0) * (labels / 200) ** 0.4
    return {
        "name": f"{task[:3].lower()}-{model.replace(' ', '-').replace(',', '')}-{labels}-s{seed}",
        "model": model,
        "task": task,
        "labels": labels,
        "seed": seed,
        "init_from": f"mlm-{size}" if "pretrained" in model else "",
        "key": hashlib.sha256(f"{task}{model}{labels}{seed}".encode()).hexdigest(),
        "status": "finished",
        "objective": "tag" if task == NER else "classify",
        "architecture": "linear" if linear else "transformer",
        "params.total": embedding + other,
        "params.embedding": embedding,
        "params.other": other,
        "train.tokens": labels * 45 * 10,
        "train.flops": 6.0 * other * labels * 45 * 10,
        "train.seconds": seconds,
        "train.compile_seconds": 2.0,
        "train.step_memory_bytes": 5_000_000 if linear else 41_000_000,
        f"scores.validation.{metric}": test + 0.01,
        f"scores.test.{metric}": test,
        "selection.metric": None if linear else metric,
        "data.validation.examples": 300,
        "latency_ms.p50": 0.21 if linear else 1.9 if size == "tiny" else 4.4,
        "latency_ms.p95": 0.30 if linear else 2.4 if size == "tiny" else 5.9,
        "data.train.name": "docstrings:roles:train",
        "data.train.fingerprint": "cd" * 32,
        "data.train.examples": labels,
        "data.test.name": "docstrings:roles:test",
        "data.test.fingerprint": "ef" * 32,
        "data.test.examples": 2929,
        **MACHINE,
        **changes,
    }


def table(
    scores: Mapping[tuple[str, str], Mapping[int, Sequence[float]]] = SCORES,
) -> list[dict]:
    """The whole table, selected."""
    rows = [pretraining_row("tiny", 155.0, 4.01), pretraining_row("small", 420.0, 4.43, 1_300_000)]
    rows += [
        task_row(task, model, labels, seed, value)
        for (task, model), by_labels in scores.items()
        for labels, values in by_labels.items()
        for seed, value in enumerate(values)
    ]
    comparison.select(rows)
    return rows
