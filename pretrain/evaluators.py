"""Held-out scores of live or finished parameters: one small class for each kind of objective."""

import math
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from pretrain import metrics, sharding, state
from pretrain.data import labels
from pretrain.data.loader import Batch, Columns, Dataset, eval_batches, is_stream
from pretrain.errors import UserError
from pretrain.objectives.base import Objective
from pretrain.tasks import LANGUAGE_MODELS, Split, Task

Scores = dict[str, float]
_real_tokens = jax.jit(state.real_tokens)


def create(task: Task, split: str, mesh: Mesh, batch_size: int, batches: int = 0):
    """The evaluator of one split of a task, or of a `sample` of about ``batches`` (0: all)."""
    kinds = {"classify": ClassificationScores, "tag": EntityScores}
    kind = kinds.get(task.objective.name, LanguageModelScores)
    part = sample(task, split, batch_size, batches) if batches else task.splits[split]
    run = Batches(task.objective, part, mesh, batch_size)
    if task.objective.name in LANGUAGE_MODELS:
        return kind(run)
    return kind(run, task.encoder.label_names)


class Rows:
    """Some rows of a token store; ``stats`` are of all."""

    def __init__(self, store: Dataset, rows: np.ndarray):
        self._store, self._rows, self.stats = store, rows, store.stats
        self.stream = is_stream(store)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, indices: np.ndarray) -> Batch:
        return self._store[self._rows[indices]]


def sample(task: Task, split: str, batch_size: int, batches: int) -> Split:
    """About so many batches of a split, evenly spaced: the same in every run.

    Of labelled examples, whole ones: as many as fill about so many rows. Of a stream, stretches of
    rows, one for each row of a batch.
    """
    count = batches * batch_size

    def evenly(count: int, total: int) -> np.ndarray:
        return np.arange(count) * total // count

    part = task.splits[split]
    total = len(part.dataset)
    if count >= total:
        return part
    if is_stream(part.dataset):
        starts = evenly(batch_size, total // batches) * batches
        rows = (starts[:, None] + np.arange(batches)).ravel()
        return Split(Rows(part.dataset, rows), part.about)
    if part.examples is None:
        return Split(Rows(part.dataset, evenly(count, total)), part.about)
    chosen = evenly(max(1, count * len(part.examples) // total), len(part.examples))
    examples = [part.examples[i] for i in chosen]
    return Split(Columns(task.encoder.encode(examples, f"data.{split}")), part.about, examples)


class Batches:
    """Runs ``objective.predict`` over a split, batch by batch, in order."""

    def __init__(self, objective: Objective, split: Split, mesh: Mesh, size: int):
        sharding.check_batch("evals.batch_size", size, mesh)
        self.objective, self.split = objective, split
        self._mesh, self._size = mesh, size

    def __call__(self, params: dict) -> Iterator[tuple[dict[str, jax.Array], Any]]:
        """Yields ``(batch, prediction for its rows)``, both of the rows of all processes."""
        predict = state.predict_fn(self.objective, self._mesh)
        memory = {}
        if self.objective.carries_memory:
            memory = state.initial_memory(self.objective, self._mesh, self._size, held_out=True)
        rows = sharding.local_rows(self._mesh, self._size)
        batches = eval_batches(self.split.dataset, self._size, rows=rows)
        for batch in batches:
            inputs = sharding.to_global(batch, self._mesh)
            if self.objective.carries_memory:
                found, memory = predict(params, inputs | {"memory": memory})
            else:
                found = predict(params, inputs)
            yield inputs, jax.device_get(found)

    def stacked(self, params: dict) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """All rows' columns and predictions ``[n, ...]``."""
        predictions = np.concatenate([prediction for _, prediction in self(params)])
        rows = np.arange(len(self.split.dataset))
        return self.split.dataset[rows], predictions[: len(rows)]


class LanguageModelScores:
    """Those that the objective names: loss, perplexity, accuracy, bits per byte."""

    def __init__(self, run: Batches):
        self._run, self.names = run, run.objective.scores

    def __call__(self, params: dict) -> Scores:
        totals, tokens = {}, 0
        for batch, sums in self._run(params):
            totals = metrics.add(totals, sums)
            tokens += int(_real_tokens(batch))
        scores = metrics.finalize(totals)
        if "perplexity" in self.names:
            scores["perplexity"] = metrics.perplexity(scores["loss"])
        if "bits_per_byte" in self.names:
            stats = self._run.split.dataset.stats  # of a sample: bytes in proportion to tokens
            seen = tokens / stats.num_tokens
            nats, _ = totals["loss"]
            scores["bits_per_byte"] = metrics.bits_per_byte(nats, stats.num_bytes * seen)
        return scores


class LabelledScores:
    """Scores and records that follow from one pass over a split, `predict`."""

    def __init__(self, run: Batches, label_names: list[str]):
        self._run, self._names = run, label_names

    def __call__(self, params: dict) -> Scores:
        return self.scores(*self.predict(params))


class ClassificationScores(LabelledScores):
    """Accuracy, macro-F1 and Matthews correlation over documents; windows are averaged."""

    names = ("accuracy", "macro_f1", "mcc")

    def predict(self, params: dict) -> tuple[np.ndarray, np.ndarray]:
        """Labels ``[n]`` and log-probabilities ``[n, C]`` of the split's documents."""
        columns, log_probs = self._run.stacked(params)
        counts = columns["weights"] > 0  # [n], or [n, L] where rows hold several documents
        example, weights = columns["example"][counts], columns["weights"][counts]
        merged = labels.merge_windows(log_probs[counts], example, weights)
        gold = np.zeros(len(merged), np.int64)
        gold[example] = columns["labels"][counts]
        return gold, merged

    def scores(self, gold: np.ndarray, log_probs: np.ndarray) -> Scores:
        return metrics.classification_scores(gold, log_probs.argmax(-1), len(self._names))

    def records(self, _gold: np.ndarray, log_probs: np.ndarray) -> Iterator[dict[str, Any]]:
        """One a document: text, gold label if known, prediction and probabilities."""
        for example, row in zip(self._run.split.examples, log_probs, strict=True):
            row = np.exp(row - np.logaddexp.reduce(row))
            yield example | {
                "prediction": self._names[int(row.argmax())],
                "probabilities": {n: float(p) for n, p in zip(self._names, row, strict=True)},
            }


class EntityScores(LabelledScores):
    """Entity precision, recall and F1, micro-averaged and for each type."""

    names = ("f1", "precision", "recall")

    @property
    def types(self) -> list[str]:
        """Of the entities that the labels tell apart."""
        return sorted({name[2:] for name in self._names if name != "O"})

    def predict(self, params: dict) -> tuple[list[list[str]], list[list[str]]]:
        """Gold and predicted tags of the split's sentences."""
        columns, log_probs = self._run.stacked(params)
        gold = labels.words_from_predictions(columns, columns["labels"], self._names)
        crf = jax.device_get(params.get("crf"))
        return gold, labels.decode_tags(columns, log_probs, self._names, crf)

    def scores(self, gold: list[list[str]], predicted: list[list[str]]) -> Scores:
        return metrics.entity_scores(gold, predicted)

    def records(self, _gold: Any, predicted: list[list[str]]) -> Iterator[dict[str, Any]]:
        """One a sentence: tokens, gold tags if known, predicted tags and spans."""
        for example, tags in zip(self._run.split.examples, predicted, strict=True):
            found = [
                {"type": kind, "start": start, "end": end, "text": example["tokens"][start:end]}
                for kind, start, end in metrics.spans(tags)
            ]
            yield example | {"prediction": tags, "spans": found}


def check_metric(metric: str, evaluator: LanguageModelScores | LabelledScores):
    """`UserError` unless ``config.checkpoint.best`` names a score of the evaluator."""
    name, slash, kind = metric.partition("/")
    types = evaluator.types if isinstance(evaluator, EntityScores) else ()
    if name not in evaluator.names or (slash and kind not in types):
        known = [*evaluator.names, *(f"f1/{kind}" for kind in types)]
        raise UserError(
            f"config.checkpoint.best: found {metric!r}, expected one of {', '.join(known)}"
        )


def improves(metric: str, scores: Scores, best: float) -> bool:
    """Whether ``scores[metric]`` beats the best so far (nan: none yet).

    A score that is not a number, or of an entity type that does not occur, beats nothing.
    """
    new = scores.get(metric, math.nan)
    if math.isnan(new) or math.isnan(best):
        return not math.isnan(new)
    return new < best if metrics.lower_is_better(metric) else new > best
