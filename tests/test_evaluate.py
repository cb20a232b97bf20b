"""Scores of finished runs, on their own and on other data, and what they predicted."""

import json
import subprocess
import sys

import pytest
from sklearn.metrics import accuracy_score
from sklearn.metrics import f1_score as macro_f1

from pretrain import evaluate, evaluators
from pretrain.errors import UserError
from pretrain.files import read_json, read_jsonl
from tests import small_runs


def test_scores_are_those_that_training_ended_with(small_run):
    for arg in ("lr", "ner"):
        workdir = small_run("linear", arg)
        want = read_json(workdir / "result.json")["scores"]["test"]
        assert evaluate.evaluate(workdir) == pytest.approx(want, rel=1e-5)


def test_other_sources_in_other_columns(small_run, tmp_path):
    """One right and one wrong label, in a file of another format."""
    other = tmp_path / "other.jsonl"
    other.write_text(
        '{"words": "the cat and dog", "kind": "animals"}\n{"words": "a horse", "kind": "plants"}\n'
    )
    columns = {"text": "words", "label": "kind"}
    scores = evaluate.evaluate(small_run("linear", "lr"), str(other), columns=columns)
    assert scores["accuracy"] == 0.5
    with pytest.raises(UserError, match=r"other\.jsonl:1: no column '0'.*: set --text to one of"):
        evaluate.evaluate(small_run("linear", "lr"), str(other))
    unknown = tmp_path / "unknown.tsv"
    unknown.write_text("a rock\tminerals\n")
    with pytest.raises(UserError, match="--source: example 0 has the label 'minerals'"):
        evaluate.evaluate(small_run("linear", "lr"), str(unknown))
    with pytest.raises(UserError, match=r"--source=.*none\.tsv: no such file"):
        evaluate.evaluate(small_run("linear", "lr"), str(tmp_path / "none.tsv"))


def test_a_run_of_many_devices_is_evaluated_on_those_there_are(small_run, tmp_path):
    workdir = tmp_path / "run"
    workdir.symlink_to(small_run("linear", "lr"))
    moved = tmp_path / "moved"
    moved.mkdir()
    for entry in workdir.iterdir():
        (moved / entry.name).symlink_to(entry.resolve())
    config = read_json(moved / "config.json")
    (moved / "config.json").unlink()
    (moved / "config.json").write_text(json.dumps(config | {"mesh": {"data": 64, "fsdp": 4}}))
    assert evaluate.evaluate(moved) == evaluate.evaluate(workdir)


def test_a_run_without_data_to_evaluate_on(small_run, tmp_path):
    for entry in small_run("linear", "lr").iterdir():
        (tmp_path / entry.name).symlink_to(entry)
    config = read_json(tmp_path / "config.json")
    config["data"] |= {"test": "", "validation": ""}
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"--source: the run has no data\.test or data\.valid"):
        evaluate.evaluate(tmp_path)


def test_a_run_that_goes_on_says_so(small_run, tmp_path, capsys):
    workdir = small_run("linear", "lr")
    scores = evaluate.evaluate(workdir)
    assert capsys.readouterr().err == ""
    for entry in workdir.iterdir():
        (tmp_path / entry.name).symlink_to(entry)
    (tmp_path / "result.json").unlink()
    assert evaluate.evaluate(tmp_path) == scores
    step = read_json(workdir / "result.json")["train"]["steps"]
    assert capsys.readouterr().err == f"{tmp_path}: not finished: scores of step {step}\n"


def test_validation_data_serve_where_there_are_no_test_data(small_run, tmp_path):
    for entry in small_run("linear", "lr").iterdir():
        (tmp_path / entry.name).symlink_to(entry)
    config = read_json(tmp_path / "config.json")
    (tmp_path / "config.json").unlink()
    config["data"] |= {"test": "", "validation": config["data"]["train"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    name, _ = evaluate.run(tmp_path)
    assert name.endswith("train.tsv")


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "pretrain.evaluate", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=small_runs.ROOT,
        timeout=120,
    )


def test_predictions_are_written_once(small_run, small_data, tmp_path):
    """The scores follow from them, and an existing file is not overwritten."""
    workdir = f"--workdir={small_run('linear', 'lr')}"
    out = tmp_path / "predictions.jsonl"
    done = command(workdir, f"--predictions={out}", f"--source={small_data / 'train.tsv'}")
    assert done.returncode == 0, done.stderr
    scores, records = json.loads(done.stdout), read_jsonl(out)
    gold, predicted = [r["label"] for r in records], [r["prediction"] for r in records]
    assert len(records) == 60
    assert scores["accuracy"] == pytest.approx(accuracy_score(gold, predicted))
    assert scores["macro_f1"] == pytest.approx(macro_f1(gold, predicted, average="macro"))
    assert scores["source"].endswith("train.tsv")
    before = out.read_bytes()
    again = command(workdir, f"--predictions={out}")
    assert again.returncode == 1 and out.read_bytes() == before
    assert again.stderr == f"error: --predictions: {out} exists; expected a new file\n"


def test_what_cannot_be_done_is_told_before_anything_is_computed(small_run, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "load_params", None)
    monkeypatch.setattr(evaluate.tasks, "read_split", None)
    classifier, language = small_run("linear", "lr"), small_run("gpt", "tiny,seq=32")
    for workdir, options, said in (
        (classifier, {"predictions": tmp_path / "no" / "a.jsonl"}, "--predictions: .*not a folder"),
        (classifier, {"predictions": tmp_path}, "--predictions: .* exists; expected a new file"),
        (language, {"predictions": tmp_path / "a.jsonl"}, "a language model .causal. labels noth"),
        (classifier, {"columns": {"tags": "t"}}, "--tags: the task classify reads format, text, l"),
        (classifier, {"batch_size": -1}, "--batch_size: found -1, expected at least 1"),
    ):
        with pytest.raises(UserError, match=said):
            evaluate.run(workdir, **options)


def test_scores_and_predictions_come_from_one_pass(small_run, tmp_path, monkeypatch):
    """And a failure on the way leaves no file."""
    workdir, out = small_run("linear", "ner"), tmp_path / "out.jsonl"
    passes = []
    stacked = evaluators.Batches.stacked
    monkeypatch.setattr(
        evaluators.Batches, "stacked", lambda *args: passes.append(1) or stacked(*args)
    )
    name, scores = evaluate.run(workdir, predictions=out)
    assert len(passes) == 1 and len(read_jsonl(out)) == 30 and name.endswith("test.conll")
    assert scores == evaluate.evaluate(workdir)

    def broken(*_):
        yield {"text": "first"}
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluators.EntityScores, "records", broken)
    with pytest.raises(KeyboardInterrupt):
        evaluate.run(workdir, predictions=tmp_path / "other.jsonl")
    assert [p.name for p in tmp_path.iterdir()] == ["out.jsonl"]
