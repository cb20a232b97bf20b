import math
import warnings

import jax.numpy as jnp
import numpy as np
import pytest

from pretrain import metrics


def sklearn_scores(labels, predictions):
    from sklearn import metrics as sk

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {
            "accuracy": sk.accuracy_score(labels, predictions),
            "macro_f1": sk.f1_score(labels, predictions, average="macro"),
            "mcc": sk.matthews_corrcoef(labels, predictions),
        }


@pytest.mark.parametrize("seed", range(20))
def test_classification_scores_equal_sklearn_on_random_ids(seed):
    rng = np.random.default_rng(seed)
    classes = int(rng.integers(2, 8))
    labels = rng.integers(0, classes, 60)
    predictions = np.where(rng.random(60) < 0.5, labels, rng.integers(0, classes, 60))
    ours = metrics.classification_scores(labels, predictions, classes)
    assert ours == pytest.approx(sklearn_scores(labels, predictions), abs=1e-12)


@pytest.mark.parametrize(
    ("labels", "predictions"),
    [
        ([0, 0, 0], [0, 0, 0]),  # one class, all right
        ([1, 1, 1], [2, 2, 2]),  # one class, all wrong
        ([0, 1, 2, 3], [1, 1, 1, 1]),  # constant prediction
        ([2, 2, 2], [0, 1, 2]),  # constant label
        ([0, 1, 1, 0], [1, 0, 0, 1]),  # perfectly inverted: mcc -1
        ([4], [4]),
        ([0, 4, 4, 0], [0, 4, 0, 0]),  # classes 1..3 never occur and must not dilute macro-F1
    ],
)
def test_classification_scores_equal_sklearn_on_degenerate_ids(labels, predictions):
    ours = metrics.classification_scores(np.array(labels), np.array(predictions), 5)
    assert ours == pytest.approx(sklearn_scores(labels, predictions), abs=1e-12)


@pytest.mark.parametrize(
    ("labels", "predictions"), [([], []), ([0, 1], [0]), ([0, 5], [0, 1]), ([-1, 0], [0, 0])]
)
def test_classification_scores_refuse_bad_ids(labels, predictions):
    with pytest.raises(ValueError):
        metrics.classification_scores(np.array(labels, int), np.array(predictions, int), 5)


def seqeval_scores(gold, predicted):
    from seqeval.metrics import classification_report

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report = classification_report(gold, predicted, output_dict=True)
    scores = {}
    for kind, row in report.items():
        if kind in ("macro avg", "weighted avg"):
            continue
        suffix = "" if kind == "micro avg" else f"/{kind}"
        scores[f"precision{suffix}"] = row["precision"]
        scores[f"recall{suffix}"] = row["recall"]
        scores[f"f1{suffix}"] = row["f1-score"]
    return scores


def test_entity_scores_of_the_seqeval_readme():
    gold = [
        ["O", "O", "O", "B-MISC", "I-MISC", "I-MISC", "O"],
        ["B-PER", "I-PER", "O"],
    ]
    predicted = [
        ["O", "O", "B-MISC", "I-MISC", "I-MISC", "I-MISC", "O"],
        ["B-PER", "I-PER", "O"],
    ]
    scores = metrics.entity_scores(gold, predicted)
    assert scores["f1"] == 0.5
    assert scores["f1/MISC"] == 0.0
    assert scores["f1/PER"] == 1.0


def test_entity_scores_repair_invalid_tags_as_the_seqeval_readme():
    # In strict mode seqeval gives 0 here; its default, like conlleval, gives 0.5.
    gold = [["B-NP", "I-NP", "O"]]
    predicted = [["I-NP", "I-NP", "O"]]
    assert metrics.entity_scores(gold, predicted)["f1"] == 1.0
    gold = [["O", "O", "O", "B-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]
    predicted = [["O", "O", "B-MISC", "I-MISC", "B-MISC", "I-MISC", "O"], ["I-PER", "I-PER", "O"]]
    assert metrics.entity_scores(gold, predicted) == pytest.approx(seqeval_scores(gold, predicted))


@pytest.mark.parametrize("seed", range(30))
def test_entity_scores_equal_seqeval_on_random_tags(seed):
    rng = np.random.default_rng(seed)
    names = np.array(["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "B-X-Y", "I-X-Y"])
    lengths = rng.integers(1, 12, 25)
    gold = [rng.choice(names, n, p=[0.4] + [0.1] * 6).tolist() for n in lengths]
    predicted = [
        [tag if rng.random() < 0.6 else str(rng.choice(names)) for tag in tags] for tags in gold
    ]
    ours = metrics.entity_scores(gold, predicted)
    assert ours == pytest.approx(seqeval_scores(gold, predicted), abs=1e-12)


def test_entity_scores_without_entities_are_zero():
    scores = metrics.entity_scores([["O", "O"], []], [["O", "O"], []])
    assert scores == {"precision": 0.0, "recall": 0.0, "f1": 0.0}


@pytest.mark.parametrize("predicted", [[["O"]], [["O"], ["O"]], [["O", "O"], ["O"], ["O"]]])
def test_entity_scores_refuse_unequal_sentences(predicted):
    with pytest.raises(ValueError, match="same sentences"):
        metrics.entity_scores([["O", "O"], ["O"]], predicted)


@pytest.mark.parametrize("seed", range(10))
def test_spans_equal_seqeval(seed):
    from seqeval.metrics.sequence_labeling import get_entities

    rng = np.random.default_rng(seed)
    tags = rng.choice(["O", "B-A", "I-A", "B-B", "I-B"], 200).tolist()
    assert metrics.spans(tags) == [(t, start, end + 1) for t, start, end in get_entities(tags)]


@pytest.mark.parametrize("tag", ["S-PER", "PER", "B", "I-", ""])
def test_spans_refuse_other_schemes(tag):
    with pytest.raises(ValueError, match="IOB2"):
        metrics.spans(["O", tag])


def test_totals_give_the_weighted_mean():
    totals = metrics.add({}, {"loss": (jnp.float32(6.0), jnp.int32(2)), "accuracy": (1, 2)})
    before = dict(totals)
    merged = metrics.add(totals, {"loss": (1.0, 2.0), "extra": (0.0, 0.0)})
    assert totals == before  # the argument is left alone
    result = metrics.finalize(merged)
    assert result["loss"] == 7 / 4
    assert result["accuracy"] == 0.5
    assert math.isnan(result["extra"])


def test_totals_do_not_depend_on_the_split():
    rng = np.random.default_rng(0)
    values, weights = rng.random(1000), rng.random(1000)
    totals = {}
    for chunk in np.split(np.arange(1000), [1, 30, 31, 700]):
        weighted = (values * weights)[chunk].sum()
        totals = metrics.add(totals, {"loss": (weighted, weights[chunk].sum())})
    assert metrics.finalize(totals)["loss"] == pytest.approx(np.average(values, weights=weights))


def test_perplexity_and_bits_per_byte_of_uniform_guesses():
    # A uniform guess over 256 symbols: perplexity 256; one symbol per byte costs 8 bits.
    assert metrics.perplexity(math.log(256)) == pytest.approx(256)
    assert metrics.bits_per_byte(1000 * math.log(256), 1000) == pytest.approx(8)
    assert metrics.bits_per_byte(1000 * math.log(256), 4000) == pytest.approx(2)
    assert metrics.perplexity(1e4) == math.inf
