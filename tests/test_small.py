"""Small models end to end: what independent implementations give, and what they must learn."""

import json

import jax
import numpy as np
import pytest
from sklearn.svm import LinearSVC

from pretrain import config as configs
from pretrain import sharding, tasks, train
from pretrain.checkpoint import load_params
from pretrain.errors import UserError
from pretrain.evaluate import evaluate
from pretrain.predict import predict
from tests import small_runs
from tools import linear_reference
from tools.linear_reference import matrix

LINEAR = str(small_runs.ROOT / "configs" / "linear.py")


@pytest.mark.parametrize("arg", ["lr", "svm", "hinge"])
def test_accuracy_on_docstrings_is_scikit_learns(arg, tmp_path):
    """On equal features, within 0.3 points."""
    changes = {"data.limit": 300, "model.num_features": 2**11, "model.ngrams": 1}
    changes["train.budget"] = "600 steps" if arg == "hinge" else "300 steps"
    config = configs.load(LINEAR, arg, changes | {"data.validation": ""})
    result = train.train(config, tmp_path)
    assert result["data"]["test"]["examples"] > 1000
    score = result["scores"]["test"]["accuracy"]
    assert score == pytest.approx(linear_reference.accuracies(config)["test"], abs=0.003)


def test_nbsvm_is_an_svm_on_log_count_ratios_of_each_class(tmp_path):
    """Of equal features, between naive Bayes and the machine that scikit-learn finds."""
    changes = {"data.limit": 300, "model.num_features": 2**11}
    config = configs.load(LINEAR, "nbsvm", changes | {"data.validation": ""})
    score = train.train(config, tmp_path)["scores"]["test"]["accuracy"]
    splits = tasks.build(configs.Reader(config)).splits
    found = []
    for label in range(splits["train"].dataset.columns["values"].shape[-1]):
        examples, labels = matrix(splits["train"], 2**11, label)
        svm = LinearSVC(C=1.0, max_iter=20_000, intercept_scaling=100.0)
        svm.fit(examples, labels == label)
        weights = svm.coef_[0]
        weights = np.where(weights != 0, 0.75 * np.abs(weights[weights != 0]).mean(), 0)
        weights += 0.25 * svm.coef_[0]
        examples, labels = matrix(splits["test"], 2**11, label)
        found.append(examples @ weights + 0.25 * svm.intercept_[0])
    assert len(labels) > 1000
    assert score == pytest.approx((np.argmax(found, 0) == labels).mean(), abs=0.003)


def scores(name, data, tmp_path, arg, **changes):
    config = small_runs.config(name, data, arg, **changes)
    return train.train(config, tmp_path)["scores"]["test"]


@pytest.mark.parametrize("arg", ["nbsvm", "fasttext"])
def test_linear_classifiers_learn_which_words_make_a_class(arg, small_data, tmp_path):
    changes = {"train__budget": "300 epochs", "optimizer__lr": 0.1} if arg == "fasttext" else {}
    found = scores("linear", small_data, tmp_path, arg, **changes)
    assert found["accuracy"] > 0.8
    assert evaluate(tmp_path, str(small_data / "test.tsv")) == found
    (told,) = predict(tmp_path, ["the cat and a horse"])
    assert told["prediction"] == max(told["probabilities"], key=told["probabilities"].get)
    assert sum(told["probabilities"].values()) == pytest.approx(1)


def test_characters_join_words(small_data, tmp_path):
    assert scores("linear", small_data, tmp_path, "lr,chars")["accuracy"] > 0.9
    with pytest.raises(UserError, match="config argument 'chars': found with 'ner'"):
        configs.load(LINEAR, "ner,chars")


def test_crfs_learn_entities(small_data, tmp_path):
    assert scores("linear", small_data, tmp_path / "linear", "crf")["f1"] > 0.9
    changes = {"train__budget": "20 epochs"}
    found = scores("bilstm", small_data, tmp_path / "bilstm", "ner", **changes)
    assert found["f1"] > 0.8
    config = json.loads((tmp_path / "bilstm" / tasks.CONFIG).read_text())
    assert config["objective"]["crf"]
    (told,) = predict(tmp_path / "bilstm", ["the new Paris sees Ada"])
    assert [span["text"] for span in told["spans"]] == [["Paris"], ["Ada"]]


def test_bilstms_classify_and_go_on_from_each_other(small_data, tmp_path):
    changes = {"train__budget": "15 epochs"}
    assert scores("bilstm", small_data, tmp_path / "a", "classify", **changes)["accuracy"] > 0.8
    further = {"init_from": str(tmp_path / "a"), "train__budget": "1 steps", "optimizer__lr": 0.0}
    found = scores("bilstm", small_data, tmp_path / "b", "classify", **further)
    assert found["accuracy"] > 0.8, "its words and its weights"


def test_a_transformer_may_have_a_crf(small_run):
    workdir = small_run("ner", "tiny,crf")
    mesh = sharding.make_mesh(dict.fromkeys(sharding.AXES, 1), jax.local_devices()[:1])
    params, _ = load_params(workdir, mesh)
    assert set(params) == {"crf", "tagging_head", "trunk"}
    assert all(np.abs(scores).max() > 0 for scores in params["crf"].values()), "they learn"
    (told,) = predict(workdir, ["the new Paris sees Ada"])
    assert len(told["prediction"]) == 5


@pytest.mark.parametrize(
    "name, arg, changes, said",
    [
        ("linear", "hinge", {"objective__loss": "log"}, r"objective\.loss: found 'log', expected"),
        ("linear", "lr", {"objective__loss": "hinge"}, r"name: found 'lbfgs' with .*hinge"),
        ("linear", "crf", {"objective__loss": "squared_hinge"}, r"loss: found 'squared_hinge'"),
        ("linear", "lr", {"model__ngrams": 0}, r"model\.ngrams: found 0 with char_ngrams 0"),
        ("linear", "lr", {"model__weighting": "bm25"}, r"model\.weighting: found 'bm25', expected"),
        ("linear", "nbsvm", {"model__beta": 1.5}, r"model\.beta: found 1\.5, expected from 0 to 1"),
        ("linear", "nbsvm", {"model__embedding_size": 8}, r"embedding_size: found 8 with"),
        ("linear", "fasttext", {"model__beta": 0.25}, r"beta: found 0\.25 with embedding_size 16"),
        ("linear", "lr", {"model__min_ngrams": 3}, r"model\.min_ngrams: found lengths from 3 to 2"),
        ("bilstm", "classify", {"objective__pool": "max"}, r"objective\.pool: found 'max' with"),
        ("bilstm", "ner", {"init_from": "{}"}, r"init_from: .* holds a linear model"),
    ],
)  # fmt: skip
def test_bad_input_is_one_clear_error(name, arg, changes, said, small_data, small_run, tmp_path):
    other = str(small_run("linear", "lr"))
    changes = {k: v.format(other) if isinstance(v, str) else v for k, v in changes.items()}
    with pytest.raises(UserError, match=said) as caught:
        train.train(small_runs.config(name, small_data, arg, **changes), tmp_path / "run")
    assert "\n" not in str(caught.value)
