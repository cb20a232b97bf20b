"""Scores from predictions: windows of documents, words of sentences, totals of batches."""

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pretrain import evaluators, tasks
from pretrain.data.loader import Columns
from pretrain.data.store import Stats
from pretrain.errors import UserError
from tests import tiny


@dataclasses.dataclass(frozen=True)
class Table:
    """Predicts what ``params`` says for each token id: rows by their second token, or all."""

    name: str
    seq_len: ClassVar[int] = 6
    carries_memory: ClassVar[bool] = False

    @property
    def scores(self) -> tuple[str, ...]:
        return ("loss", "perplexity") + ("bits_per_byte",) * (self.name == "causal")

    def predict(self, params: jax.Array, batch: dict) -> Any:
        if self.name == "classify":
            return params[batch["tokens"][:, 1]]
        if self.name == "tag":
            return params["table"][batch["tokens"]]
        weights = batch["weights"]
        return {"loss": ((params[batch["tokens"][:, 1], 0] * weights).sum(), weights.sum() * 10)}


class Names:
    """The part of an encoder that evaluators read."""

    def __init__(self, *names):
        self.label_names, self.encode = names, encode


def evaluator(name, dataset, names=(), examples=None, batch_size=4, batches=0):
    split = tasks.Split(dataset, {}, examples)
    task = tasks.Task(Table(name), Names(*names), {"test": split})
    return evaluators.create(task, "test", tiny.mesh(data=2), batch_size, batches)


def tokens(second):
    rows = np.zeros((len(second), 6), np.int32)
    rows[:, 1] = second
    return rows


CLASSES = ("a", "b", "c")
LOG_PROBS = np.log(
    np.array([[0.9, 0.05, 0.05], [0.2, 0.45, 0.35], [0.1, 0.2, 0.7], [0.1, 0.8, 0.1]], np.float32)
)


@pytest.fixture
def documents():
    """Document 0 has two windows that disagree, 1 and 2 have one; the last batch is not full."""
    dataset = Columns(
        {
            "tokens": tokens([0, 1, 2, 3, 3]),
            "example": np.array([0, 0, 1, 2, 3], np.int32),
            "labels": np.array([0, 0, 2, 0, 1], np.int32),
            "weights": np.array([0.5, 0.5, 1, 1, 1], np.float32),
        }
    )
    examples = [{"text": f"text {i}"} for i in range(4)]
    return evaluator("classify", dataset, CLASSES, examples)


def test_windows_of_a_document_are_one_prediction(documents):
    """Mean log-probabilities: 0 is an `a` for its first window's sake; 2 is wrong."""
    scores = documents(jnp.asarray(LOG_PROBS))
    assert scores["accuracy"] == 3 / 4
    assert scores["macro_f1"] == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)
    records = list(documents.records(*documents.predict(jnp.asarray(LOG_PROBS))))
    assert [r["prediction"] for r in records] == ["a", "c", "b", "b"]
    assert [r["text"] for r in records] == [f"text {i}" for i in range(4)]
    merged = np.sqrt(np.exp(LOG_PROBS[0] + LOG_PROBS[1]))
    expected = dict(zip(CLASSES, merged / merged.sum(), strict=True))
    assert records[0]["probabilities"] == pytest.approx(expected, rel=1e-5)
    assert records[1]["probabilities"] == pytest.approx({"a": 0.1, "b": 0.2, "c": 0.7}, rel=1e-5)


def encode(examples, key="data.test"):
    """Two windows for numbers above 6; the model is wrong where a number is 1 modulo 3."""
    assert key == "data.test"
    windows = [1 + (int(e["text"]) > 6) for e in examples]
    example = np.repeat(np.arange(len(examples)), windows)
    kinds = np.array([int(e["text"]) % 3 for e in examples])
    return {
        "tokens": tokens(np.array([0, 3, 2])[kinds[example]]),
        "example": example.astype(np.int32),
        "labels": np.where(kinds == 1, 0, kinds)[example].astype(np.int32),
        "weights": (1 / np.array(windows))[example].astype(np.float32),
    }


def test_a_sample_has_whole_examples():
    """Of eight documents with one or two windows, one batch of four rows holds numbers 0 and 4."""
    examples = [{"text": t} for t in "91147711"]
    examples[4] = {"text": "8"}
    limited = evaluator("classify", Columns(encode(examples)), CLASSES, examples, batches=1)
    predicted = limited.predict(jnp.asarray(LOG_PROBS))
    assert limited.scores(*predicted)["accuracy"] == 1.0, "the other six are wrong"
    records = list(limited.records(*predicted))
    assert [(r["text"], r["prediction"]) for r in records] == [("9", "a"), ("8", "c")]
    everything = evaluator("classify", Columns(encode(examples)), CLASSES, examples, batches=3)
    assert everything(jnp.asarray(LOG_PROBS))["accuracy"] == 2 / 8


def test_entities_of_words_in_their_order():
    """A sentence cut in two rows; sub-words and padding are not read."""
    names = ("O", "B-X", "I-X")
    wanted = np.log(np.full((8, 3), 0.01, np.float32))
    wanted[[1, 2, 3, 4], [0, 1, 2, 1]] = 0.0  # token 1 is O, 2 B-X, 3 I-X, 4 B-X; 7 unread
    rows = np.array([[0, 1, 2, 7, 3, 0], [0, 1, 4, 0, 0, 0], [0, 2, 3, 0, 0, 0]], np.int32)
    mask = np.isin(rows, [1, 2, 3, 4]).astype(np.float32)
    word = np.full((3, 6), -1, np.int32)
    word[0, [1, 2, 4]], word[1, [1, 2]], word[2, [1, 2]] = [0, 1, 2], [3, 4], [0, 1]
    labels = np.zeros((3, 6), np.int32)
    labels[0, [2, 4]] = [1, 2]  # gold: O B-X I-X O O / B-X I-X
    labels[2, [1, 2]] = [1, 2]
    columns = {
        "tokens": rows,
        "labels": labels,
        "label_mask": mask,
        "word": word,
        "example": np.array([0, 0, 1], np.int32),
        "weights": np.ones(3, np.float32),
    }
    examples = [{"tokens": list("pqrst")}, {"tokens": list("uv")}]
    entities = evaluator("tag", Columns(columns), names, examples)
    scores = entities({"table": jnp.asarray(wanted)})
    assert (scores["precision"], scores["recall"]) == (pytest.approx(2 / 3), 1.0)
    assert scores["f1/X"] == scores["f1"] == pytest.approx(0.8)
    records = list(entities.records(*entities.predict({"table": jnp.asarray(wanted)})))
    assert records[0]["prediction"] == ["O", "B-X", "I-X", "O", "B-X"]
    assert records[0]["spans"] == [
        {"type": "X", "start": 1, "end": 3, "text": ["q", "r"]},
        {"type": "X", "start": 4, "end": 5, "text": ["t"]},
    ]
    assert records[1]["spans"] == [{"type": "X", "start": 0, "end": 2, "text": ["u", "v"]}]


def test_a_random_fields_transitions_decide_between_equal_words():
    """Without them all tags would be equally good; here O, B-X and I-X take turns, from O on."""
    names = ("O", "B-X", "I-X")
    rows = np.array([[0, 1, 1, 1, 1, 0], [0, 1, 1, 0, 0, 0]], np.int32)
    columns = {
        "tokens": rows,
        "labels": np.zeros((2, 6), np.int32),
        "label_mask": (rows > 0).astype(np.float32),
        "word": np.where(rows > 0, np.arange(6) - 1, -1).astype(np.int32),
        "example": np.array([0, 1], np.int32),
        "weights": np.ones(2, np.float32),
    }
    crf = {
        "transitions": jnp.roll(jnp.eye(3), 1, axis=1),  # [from, to]
        "start": jnp.array([0.5, 0.0, 0.0]),
        "end": jnp.zeros(3),
    }
    entities = evaluator("tag", Columns(columns), names)
    _, predicted = entities.predict({"table": jnp.zeros((2, 3)), "crf": crf})
    assert predicted == [["O", "B-X", "I-X", "O"], ["O", "B-X"]]


class Store(Columns):
    """A data set that knows how many bytes its text has, as token stores do: four a token."""

    def __init__(self, seconds, lengths=None):
        segment_ids = np.arange(6) < np.array(lengths or [6] * len(seconds))[:, None]
        super().__init__({"tokens": tokens(seconds), "segment_ids": segment_ids.astype(np.int32)})
        count = int(segment_ids.sum())
        self.stats = Stats(len(seconds), count, len(seconds), 4 * count, unigram_entropy=1.0)


@pytest.mark.parametrize("name", ["mlm", "causal"])
def test_language_models_are_scored_over_all_rows(name):
    """The copies of row 0 that fill the last batch weigh nothing."""
    losses = np.array([[30.0], [20], [10], [7], [5]], np.float32)
    scores = evaluator(name, Store([0, 1, 2, 3, 4]))(jnp.asarray(losses))
    assert scores["loss"] == pytest.approx(72 / 50)
    assert scores["perplexity"] == pytest.approx(math.exp(72 / 50))
    if name == "causal":
        assert scores["bits_per_byte"] == pytest.approx(72 / math.log(2) / 120)
    else:
        assert "bits_per_byte" not in scores


def test_a_sample_of_a_store_is_evenly_spaced():
    """Not its beginning, and in bits per byte of just the rows' own text."""
    losses = np.array([[30.0], [20], [10], [7], [5]], np.float32)
    store = Store([0, 0, 1, 1, 2, 2, 3, 3, 4, 4], [6, 1, 6, 1, 2, 1, 6, 1, 6, 1])
    partial = evaluator("causal", store, batches=1)  # rows 0, 2, 5 and 7
    scores = partial(jnp.asarray(losses))
    assert scores["loss"] == pytest.approx(67 / 40)
    assert scores["bits_per_byte"] == pytest.approx(67 / math.log(2) / (4 * (6 + 6 + 1 + 1)))
    assert partial(jnp.asarray(losses)) == scores


def test_batches_divide_over_the_mesh():
    with pytest.raises(UserError, match=r"config\.evals\.batch_size: 3 rows do not divide"):
        evaluator("mlm", Store([0]), batch_size=3)


def test_better_is_lower_for_losses_and_higher_for_the_rest():
    improves = evaluators.improves
    for metric in ("loss", "perplexity", "bits_per_byte"):
        assert improves(metric, {metric: 1.0}, 2.0) and not improves(metric, {metric: 2.0}, 2.0)
    for metric in ("accuracy", "f1", "f1/PER", "mcc"):
        assert improves(metric, {metric: 2.0}, 1.0) and not improves(metric, {metric: 1.0}, 1.0)
    assert improves("f1", {"f1": 0.0}, math.nan), "the first score is the best so far"
    assert not improves("f1", {"f1": math.nan}, math.nan)
    assert not improves("loss", {"loss": math.nan}, 5.0)
    assert not improves("f1/LOC", {"f1": 1.0}, 0.0), "a type that does not occur"
    entities = evaluators.EntityScores(None, ["O", "B-PER", "I-PER"])
    documents = evaluators.ClassificationScores(None, ["a", "b"])
    with pytest.raises(UserError, match=r"checkpoint\.best: found 'f2', expected one of f1, prec"):
        evaluators.check_metric("f2", entities)
    evaluators.check_metric("f1/PER", entities)
    for metric, scores in (("f1/PERS", entities), ("accuracy/x", documents)):
        with pytest.raises(
            UserError, match=rf"checkpoint\.best: found '{metric}', expected one of"
        ):
            evaluators.check_metric(metric, scores)
