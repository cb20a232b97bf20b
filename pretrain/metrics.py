"""Scores of models, as pure NumPy functions, and the (sum, weight) pairs that steps report.

Losses and accuracies are never averaged twice: a step gives `{name: (sum, weight)}`, pairs of many
steps, micro-batches or devices are added, and the division happens once, in `finalize`.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Totals = dict[str, tuple[float, float]]


def lower_is_better(metric: str) -> bool:
    """Whether a score should be low; all others should be high."""
    return metric.endswith(("loss", "perplexity", "bits_per_byte"))


def add(totals: Totals, metrics: Mapping[str, tuple[Any, Any]]) -> Totals:
    """Returns `totals` with one step's `{name: (sum, weight)}` added, in double precision.

    Start from `{}`. The pairs may hold device arrays; reading them waits for the device.
    """
    merged = dict(totals)
    for name, (value, weight) in metrics.items():
        old_value, old_weight = merged.get(name, (0.0, 0.0))
        merged[name] = (old_value + float(value), old_weight + float(weight))
    return merged


def finalize(totals: Totals) -> dict[str, float]:
    """The weighted means of accumulated pairs; nan where nothing was counted."""
    return {
        name: value / weight if weight else math.nan for name, (value, weight) in totals.items()
    }


def perplexity(loss: float) -> float:
    """exp of a mean loss in nats per token; inf where that overflows."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def bits_per_byte(total_nats: float, total_bytes: float) -> float:
    """A summed loss in bits per UTF-8 byte of the text: comparable across tokenizers."""
    return total_nats / math.log(2) / total_bytes


def classification_scores(
    labels: np.ndarray, predictions: np.ndarray, num_classes: int
) -> dict[str, float]:
    """Accuracy, macro-F1 and Matthews correlation of class ids, as scikit-learn computes them.

    Args:
        labels: [n] integers in [0, num_classes).
        predictions: [n] integers in [0, num_classes).
        num_classes: the number of classes that exist.

    Returns:
        `accuracy`, `macro_f1` (over the classes that occur among labels or predictions) and `mcc`
        (Gorodkin 2004; 0 where labels or predictions are all the same class).

    Raises:
        ValueError: on empty or unequal inputs, or an id out of range.
    """
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    if labels.ndim != 1 or labels.shape != predictions.shape or not labels.size:
        raise ValueError(
            f"labels {labels.shape} and predictions {predictions.shape} must be equally many"
        )
    for name, ids in (("labels", labels), ("predictions", predictions)):
        if ids.min() < 0 or ids.max() >= num_classes:
            raise ValueError(f"{name} must lie in [0, {num_classes}): {ids.min()}..{ids.max()}")

    pairs = labels.astype(np.int64) * num_classes + predictions
    confusion = np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)
    correct = confusion.diagonal()
    true, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
    present = true + predicted > 0
    f1 = 2 * correct[present] / (true + predicted)[present]

    total, right = labels.size, int(correct.sum())
    covariance = right * total - int(true @ predicted)
    variances = total**2 - int(true @ true), total**2 - int(predicted @ predicted)
    return {
        "accuracy": right / total,
        "macro_f1": float(f1.mean()),
        "mcc": covariance / math.sqrt(math.prod(variances)) if all(variances) else 0.0,
    }


def spans(tags: Sequence[str]) -> list[tuple[str, int, int]]:
    """Entities of one sentence as (type, start, end), words start..end-1.

    Tags are IOB2. An entity begins at every B-, and at an I- that continues no entity of its own
    type, which is how conlleval and seqeval's default mode repair invalid sequences.

    Raises:
        ValueError: on a tag that is neither O nor begins with B- or I-.
    """
    found, start, current = [], 0, None
    for i, tag in enumerate(tags):
        prefix, _, kind = tag.partition("-")
        if tag != "O" and (prefix not in ("B", "I") or not kind):
            raise ValueError(f"tag {tag!r} is not IOB2: expected O, B-type or I-type")
        if prefix == "I" and kind == current:
            continue
        if current is not None:
            found.append((current, start, i))
        start, current = i, kind if tag != "O" else None
    if current is not None:
        found.append((current, start, len(tags)))
    return found


def entity_scores(
    gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]
) -> dict[str, float]:
    """Entity-level precision, recall and F1 as conlleval and seqeval's default mode compute them.

    An entity counts when its type and both its ends agree.

    Args:
        gold: IOB2 tags, one list per sentence.
        predicted: as many tags for as many sentences; invalid sequences are repaired (`spans`).

    Returns:
        `precision`, `recall`, `f1` over all entities, and `precision/X`, `recall/X`, `f1/X` for
        each type that occurs. A score without anything to count is 0.

    Raises:
        ValueError: where sentences or their lengths differ.
    """
    if [len(tags) for tags in gold] != [len(tags) for tags in predicted]:
        raise ValueError("gold and predicted must hold the same sentences, a tag per word")
    correct, in_gold, in_predicted = Counter(), Counter(), Counter()
    for gold_tags, predicted_tags in zip(gold, predicted, strict=True):
        gold_spans, predicted_spans = set(spans(gold_tags)), set(spans(predicted_tags))
        in_gold.update(kind for kind, *_ in gold_spans)
        in_predicted.update(kind for kind, *_ in predicted_spans)
        correct.update(kind for kind, *_ in gold_spans & predicted_spans)

    scores = _precision_recall_f1(correct.total(), in_predicted.total(), in_gold.total())
    for kind in sorted(in_gold | in_predicted):
        by_type = _precision_recall_f1(correct[kind], in_predicted[kind], in_gold[kind])
        scores |= {f"{name}/{kind}": value for name, value in by_type.items()}
    return scores


def _precision_recall_f1(correct: int, predicted: int, gold: int) -> dict[str, float]:
    return {
        "precision": correct / predicted if predicted else 0.0,
        "recall": correct / gold if gold else 0.0,
        "f1": 2 * correct / (predicted + gold) if predicted + gold else 0.0,
    }
