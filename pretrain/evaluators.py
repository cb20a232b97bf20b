"""Held-out scores of live or finished parameters: one small class for each kind of objective."""

import itertools
import math
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from pretrain import metrics, sharding, state
from pretrain.data import labels
from pretrain.data.loader import eval_batches
from pretrain.errors import UserError
from pretrain.objectives.base import Objective
from pretrain.tasks import LANGUAGE_MODELS, Split, Task

Scores = dict[str, float]


def create(task: Task, split: str, mesh: Mesh, batch_size: int, batches: int = 0):
    """The evaluator of one split of a task; ``batches`` limits how much is read (0: all)."""
    kinds = {"classify": ClassificationScores, "tag": EntityScores}
    kind = kinds.get(task.objective.name, LanguageModelScores)
    run = Batches(task.objective, task.splits[split], mesh, batch_size, batches)
    if task.objective.name in LANGUAGE_MODELS:
        return kind(run)
    return kind(run, task.encoder.label_names)


class Batches:
    """Runs ``objective.predict`` over a split, batch by batch, in order."""

    def __init__(self, objective: Objective, split: Split, mesh: Mesh, size: int, limit: int):
        sharding.check_batch("evals.batch_size", size, mesh)
        self.objective, self.split = objective, split
        self._mesh, self._size, self._limit = mesh, size, limit or None

    def __call__(self, params: dict) -> Iterator[tuple[dict[str, np.ndarray], Any]]:
        """Yields ``(batch of this process's rows, prediction for all rows)``."""
        predict = state.predict_fn(self.objective, self._mesh)
        batches = eval_batches(
            self.split.dataset,
            self._size,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        for batch in itertools.islice(batches, self._limit):
            inputs = sharding.to_global(batch, self._mesh)
            yield batch, jax.device_get(predict(params, inputs))

    def stacked(self, params: dict) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """All rows' columns and predictions ``[n, ...]``."""
        predictions = np.concatenate([prediction for _, prediction in self(params)])
        rows = np.arange(min(len(predictions), len(self.split.dataset)))
        return self.split.dataset[rows], predictions[: len(rows)]


class LanguageModelScores:
    """Loss, perplexity and accuracy; bits per byte where every token is predicted."""

    def __init__(self, run: Batches):
        self._run = run
        causal = run.objective.name == "causal"
        special = ("accuracy", "bits_per_byte") if causal else ("masked_accuracy",)
        self.names = ("loss", "perplexity", *special)

    def __call__(self, params: dict) -> Scores:
        totals, rows = {}, 0.0
        for batch, sums in self._run(params):
            totals = metrics.add(totals, sums)
            rows += float((batch["weights"] > 0).sum())
        scores = metrics.finalize(totals)
        scores["perplexity"] = metrics.perplexity(scores["loss"])
        if self._run.objective.name == "causal":
            stats = self._run.split.dataset.stats
            seen = rows * jax.process_count() / stats.num_rows
            nats, _ = totals["loss"]
            scores["bits_per_byte"] = metrics.bits_per_byte(nats, stats.num_bytes * seen)
        return scores


class ClassificationScores:
    """Accuracy, macro-F1 and Matthews correlation over documents; windows are averaged."""

    names = ("accuracy", "macro_f1", "mcc")

    def __init__(self, run: Batches, label_names: list[str]):
        self._run, self._names = run, label_names

    def _documents(self, params: dict) -> tuple[np.ndarray, np.ndarray]:
        """Labels ``[n]`` and log-probabilities ``[n, C]`` of the split's documents."""
        columns, log_probs = self._run.stacked(params)
        merged = labels.merge_windows(log_probs, columns["example"], columns["weights"])
        gold = np.zeros(len(merged), np.int64)
        gold[columns["example"]] = columns["labels"]
        return gold, merged

    def __call__(self, params: dict) -> Scores:
        gold, log_probs = self._documents(params)
        return metrics.classification_scores(gold, log_probs.argmax(-1), len(self._names))

    def predictions(self, params: dict) -> Iterator[dict[str, Any]]:
        """One record a document: text, gold label if known, prediction and probabilities."""
        _, log_probs = self._documents(params)
        for example, row in zip(self._run.split.examples, log_probs, strict=True):
            row = np.exp(row - np.logaddexp.reduce(row))
            yield example | {
                "prediction": self._names[int(row.argmax())],
                "probabilities": {n: float(p) for n, p in zip(self._names, row, strict=True)},
            }


class EntityScores:
    """Entity precision, recall and F1, micro-averaged and for each type."""

    names = ("f1", "precision", "recall")

    def __init__(self, run: Batches, label_names: list[str]):
        self._run, self._names = run, label_names

    def _sentences(self, params: dict) -> tuple[list[list[str]], list[list[str]]]:
        columns, log_probs = self._run.stacked(params)
        gold = labels.words_from_predictions(columns, columns["labels"], self._names)
        return gold, labels.decode_tags(columns, log_probs, self._names)

    def __call__(self, params: dict) -> Scores:
        return metrics.entity_scores(*self._sentences(params))

    def predictions(self, params: dict) -> Iterator[dict[str, Any]]:
        """One record a sentence: tokens, gold tags if known, predicted tags and spans."""
        _, predicted = self._sentences(params)
        for example, tags in zip(self._run.split.examples, predicted, strict=True):
            found = [
                {"type": kind, "start": start, "end": end, "text": example["tokens"][start:end]}
                for kind, start, end in metrics.spans(tags)
            ]
            yield example | {"prediction": tags, "spans": found}


def check_metric(metric: str, evaluator: LanguageModelScores | ClassificationScores | EntityScores):
    """`UserError` unless ``config.checkpoint.best`` names a score of the evaluator."""
    if metric.split("/")[0] not in evaluator.names:
        raise UserError(
            f"config.checkpoint.best: found {metric!r}, expected one of "
            f"{', '.join(evaluator.names)}"
        )


def improves(metric: str, scores: Scores, best: float) -> bool:
    """Whether ``scores[metric]`` beats the best so far (nan: none yet).

    Losses, perplexities and bits per byte should be low, everything else high. A score that is not
    a number, or of an entity type that does not occur, beats nothing.
    """
    new = scores.get(metric, math.nan)
    if math.isnan(new) or math.isnan(best):
        return not math.isnan(new)
    lower = metric in ("loss", "perplexity", "bits_per_byte")
    return new < best if lower else new > best
