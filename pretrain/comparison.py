"""What the flat table of a study says: selection, scores, paired comparisons, costs.

Pure functions of the table, a list of rows as `pretrain.study` writes them to ``results.jsonl``:
one dict a run with ``name, model, task, labels, seed, init_from, status``, the finished ones with
``architecture, objective`` and the flattened contents of their ``result.json``.
"""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pretrain.errors import UserError
from pretrain.metrics import lower_is_better
from pretrain.stats import Interval, difference, interval

Row = dict[str, Any]

TWINS = ("pretrained", "scratch", "linear")  # what a distilled model is held against, if there
LABELLED = ("classify", "tag")  # every other objective is pretraining
SIZE_STEP = 1.25  # models whose non-embedding parameters differ by less count as equally large


def finished(rows: Iterable[Row]) -> list[Row]:
    """The rows of runs that have a result."""
    return [row for row in rows if row["status"] == "finished"]


def is_pretraining(row: Row) -> bool:
    """Whether a finished run trained a language model and not a labelled task."""
    return row.get("objective") not in LABELLED


def word_loss(values: Row, prefix: str) -> float | None:
    """Held-out loss in nats a word piece that the model does not see.

    Of replaced-token detection its generator's; of an encoder-decoder without sentinels, ends and
    what the encoder is told.
    """
    names = ("generator_loss", "masked_loss", "loss")
    return next((x for n in names if (x := values.get(prefix + n)) is not None), None)


def sign(metric: str) -> int:
    """1 where a larger value of the metric is better, else -1."""
    return -1 if lower_is_better(metric) else 1


def metric_name(metric: str) -> str:
    """How a metric is written for readers."""
    names = {"f1": "entity F1", "macro_f1": "macro F1", "mcc": "MCC"}
    return names.get(metric, metric.replace("_", " "))


def mean(values: Iterable[float | None]) -> float | None:
    """Mean of the values that are there; None where none is."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def median(values: Iterable[float | None]) -> float | None:
    """Of costs, which a busy machine makes large now and then; None where no value is there."""
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def select(rows: list[Row]) -> None:
    """Sets ``metric``, ``candidates`` and ``selected``, the latter by validation score alone.

    Runs that share (model, task, labels, seed) are candidates for one place in the comparison. Test
    scores play no part. Ties go to the earlier run, and unfinished runs are never selected.
    """
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        row.update(selected=False, candidates=0)
    for row in finished(rows):
        row["metric"] = _metric(row, rows)
        groups.setdefault((row["model"], row["task"], row["labels"], row["seed"]), []).append(row)
    for group in groups.values():
        best = group[0] if len(group) == 1 else max(group, key=_validation_rank)
        best["selected"] = True
        for row in group:
            row["candidates"] = len(group)


def _metric(row: Row, rows: Sequence[Row]) -> str:
    """The one metric of a task: what its runs choose their best step by, if any chooses."""
    if is_pretraining(row):
        return "loss"
    chosen = [r.get("selection.metric") for r in finished(rows) if r["task"] == row["task"]]
    default = "f1" if row["objective"] == "tag" else "accuracy"
    return next((metric for metric in chosen if metric not in (None, "loss")), default)


def _validation_rank(row: Row) -> float:
    value = row.get(f"scores.validation.{row['metric']}")
    if value is None:
        raise UserError(
            f"study run {row['name']!r}: no validation score {row['metric']!r}, expected one "
            f"because other runs share its model, task, labels and seed, and one is to be chosen"
        )
    return sign(row["metric"]) * value if math.isfinite(value) else -math.inf


@dataclass(frozen=True)
class Model:
    """A line of a task's comparison. ``pretraining`` is the objective of the run it starts from."""

    name: str
    kind: str  # "linear" | "scratch" | "pretrained" | "distilled"
    embedding: int
    other: int
    pretraining: str


@dataclass(frozen=True)
class Task:
    """The selected runs of one labelled task; scores by (model, labels), then by seed."""

    name: str
    metric: str
    models: dict[str, Model]
    labels: list[int]
    test: dict[tuple[str, int], dict[int, float]]
    validation: dict[tuple[str, int], dict[int, float]]
    rows: list[Row]

    def score(self, model: str, labels: int) -> Interval | None:
        """Test score over seeds, or None where the model was not run."""
        values = self.test.get((model, labels))
        return interval(values.values()) if values else None

    def ranking(self, labels: int) -> list[str]:
        """Models with a test score at a label count, best mean first."""
        names = [m for m in self.models if (m, labels) in self.test]
        return sorted(names, key=lambda m: -sign(self.metric) * self.score(m, labels).mean)

    def at_labels(self, model: str, labels: int) -> list[Row]:
        """The selected runs behind one score."""
        return [r for r in self.rows if r["model"] == model and num_labels(r) == labels]

    def kind(self, kind: str) -> list[Model]:
        """The models of one kind, in the order of the table."""
        return [m for m in self.models.values() if m.kind == kind]


def num_labels(row: Row) -> int:
    """Labelled examples of a run; 0 in the study means all there are."""
    return row["labels"] or row.get("data.train.examples") or 0


def tasks(rows: Sequence[Row]) -> list[Task]:
    """The labelled tasks of the table in its order, without runs that have no finite test score."""
    by_name = {row["name"]: row for row in rows}
    result: dict[str, Task] = {}
    for row in finished(rows):
        if is_pretraining(row) or not row["selected"]:
            continue
        task = result.get(row["task"])
        if task is None:
            task = Task(row["task"], row["metric"], {}, [], {}, {}, [])
        value = row.get(f"scores.test.{task.metric}")
        if value is None or not math.isfinite(value):
            continue
        result[task.name] = task
        model, labels, seed = row["model"], num_labels(row), row["seed"]
        if labels not in task.labels:
            task.labels.append(labels)
            task.labels.sort()
        if model not in task.models:
            roots = ancestors(row, by_name)
            task.models[model] = Model(
                name=model,
                kind=_kind(row),
                embedding=row.get("params.embedding") or 0,
                other=row.get("params.other") or 0,
                pretraining=(roots[-1].get("objective") or "") if roots else "",
            )
        task.rows.append(row)
        task.test.setdefault((model, labels), {})[seed] = value
        validation = row.get(f"scores.validation.{task.metric}")
        task.validation.setdefault((model, labels), {})[seed] = (
            math.nan if validation is None else validation
        )
    return list(result.values())


def _kind(row: Row) -> str:
    if row.get("teacher"):
        return "distilled"
    if row["init_from"]:
        return "pretrained"
    return "linear" if row["architecture"] == "linear" else "scratch"


def ancestors(row: Row, by_name: Mapping[str, Row]) -> list[Row]:
    """The runs that a run starts from, nearest first; empty where one is missing from the table."""
    chain: list[Row] = []
    while row["init_from"]:
        row = by_name.get(row["init_from"])
        if row is None or row["status"] != "finished" or row in chain:
            return []
        chain.append(row)
    return chain


def pretraining_cost(row: Row, by_name: Mapping[str, Row]) -> dict[str, float] | None:
    """Tokens, flops and seconds spent before this run, following ``init_from`` to its end.

    A teacher's own cost is no part of it. Zeros for a run from scratch; None where the table lacks
    a run that it starts from.
    """
    chain = ancestors(row, by_name)
    if row["init_from"] and not chain:
        return None
    costs = ("tokens", "flops", "seconds")
    return {k: sum(r.get(f"train.{k}") or 0 for r in chain) for k in costs}


@dataclass(frozen=True)
class Comparison:
    """``a`` against ``b`` at one label count; ``gain`` is positive where ``a`` is better."""

    question: (
        str  # "pretraining" | "distillation" | "size, pretrained" | "size, scratch" | "linear"
    )
    a: str
    b: str
    labels: int
    gain: Interval


def comparisons(task: Task) -> list[Comparison]:
    """All paired comparisons that the page makes for a task.

    "pretraining": each pretrained model against the one from scratch with as many parameters;
    "linear": each pretrained or distilled model against the linear model with the best mean
    validation score;
    "distillation": each model that had a teacher against one of the same size that had none,
    pretrained if there is one, else from scratch, else linear;
    "size": each model against the next smaller of its kind and pretraining objective.
    """
    pairs = [
        ("pretraining", model.name, labels, scratch)
        for model in task.kind("pretrained")
        if (scratch := counterpart(task, model))
        for labels in task.labels
    ]
    pairs += [
        ("distillation", model.name, labels, twin)
        for model in task.kind("distilled")
        if (twin := next(filter(None, (counterpart(task, model, kind) for kind in TWINS)), None))
        for labels in task.labels
    ]
    pairs += [
        (f"size, {larger.kind}", larger.name, labels, smaller.name)
        for larger, smaller in size_pairs(task)
        for labels in task.labels
    ]
    pairs += [
        ("linear", model.name, labels, linear)
        for model in (*task.kind("pretrained"), *task.kind("distilled"))
        for labels in task.labels
        if (linear := best_linear(task, labels))
    ]
    return [
        Comparison(question, a, b, labels, paired)
        for question, a, labels, b in pairs
        if (paired := gain(task, a, b, labels))
    ]


def gain(task: Task, a: str, b: str, labels: int) -> Interval | None:
    """Paired difference in test score over common seeds, positive where ``a`` is better."""
    one, two = task.test.get((a, labels), {}), task.test.get((b, labels), {})
    return difference(one, two) if sign(task.metric) > 0 else difference(two, one)


def counterpart(task: Task, model: Model, kind: str = "scratch") -> str | None:
    """The model of a kind with as many parameters; among several the like-named.

    Equal within 1 %, since a head has as many outputs as its sample has labels.
    """
    same = [
        m.name
        for m in task.kind(kind)
        if math.isclose(m.embedding, model.embedding, rel_tol=0.01)
        and math.isclose(m.other, model.other, rel_tol=0.01)
    ]
    return max(same, key=lambda name: _common_prefix(name, model.name), default=None)


def _common_prefix(a: str, b: str) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), len(a))


def _common_end(a: str, b: str) -> int:
    return _common_prefix(a[::-1], b[::-1])


def best_linear(task: Task, labels: int) -> str | None:
    """The linear model with the best mean validation score at a label count."""

    def rank(name: str) -> float:
        values = task.validation[name, labels].values()
        score = sign(task.metric) * mean(values)
        return score if math.isfinite(score) else -math.inf

    names = [m.name for m in task.kind("linear") if (m.name, labels) in task.test]
    return max(names, key=rank, default=None)


def size_pairs(task: Task) -> list[tuple[Model, Model]]:
    """(larger, smaller) neighbours in size among models of one kind and pretraining objective.

    Of several that are the next smaller ones, the like-named: "mini decoder" is held against "tiny
    decoder" and not against "tiny encoder".
    """
    groups: dict[tuple[str, str], list[Model]] = {}
    for model in task.models.values():
        if model.kind in ("scratch", "pretrained"):
            groups.setdefault((model.kind, model.pretraining), []).append(model)
    pairs = []
    for group in groups.values():
        for larger in sorted(group, key=lambda m: m.other):
            smaller = [m for m in group if larger.other > SIZE_STEP * m.other]
            most = max((m.other for m in smaller), default=0)
            like = [m for m in smaller if most <= SIZE_STEP * m.other]
            if like:
                pairs.append((larger, max(like, key=lambda m: _common_end(m.name, larger.name))))
    return pairs
