"""Whole runs, small: what they learn, write, repeat, choose and refuse."""

import math
import shutil

import jax
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from pretrain import config as configs
from pretrain import evaluate, evaluators, optim, tasks, train
from pretrain.checkpoint import BEST, LAST, Checkpointer, load_params
from pretrain.data import order
from pretrain.data.tokenizer import Tokenizer
from pretrain.errors import UserError
from pretrain.files import read_json, read_jsonl
from tests import small_runs, tiny

SEQ = "tiny,seq=32"


def params_of(workdir):
    params, step = load_params(workdir, tiny.mesh())
    return jax.device_get(params), step


def assert_equal(got, want):
    jax.tree.map(np.testing.assert_array_equal, got, want)


@pytest.fixture(scope="module")
def mlm(small_run):
    return small_run("bert", SEQ)


def test_a_run_learns_and_tells_what_it_did(mlm, small_data):
    result = read_json(mlm / "result.json")
    assert result["scores"]["validation"]["loss"] < math.log(300) - 0.5
    assert result["train"]["steps"] == 12 and result["train"]["examples"] == 96
    assert result["task"] == "mlm" and result["selection"] == {"metric": None, "step": 12}
    assert result["label"] == "BERT-tiny" and result["seed"] == 0 and not result["init_from"]
    config = small_runs.config("bert", small_data, SEQ)
    model = tasks.build(configs.Reader(config)).objective.model
    # 96 rows of 32 tokens, 5 of them masked; the backward pass costs twice the forward one.
    head = 5 * 2 * (16 * 16 + 16 * model.trunk.config.vocab_size)
    trunk = model.trunk.forward_flops(32)
    assert result["train"]["flops"] == 96 * 3 * (trunk + head)
    assert result["train"]["compile_seconds"] >= 0 < result["train"]["step_memory_bytes"]
    params, _ = params_of(mlm)
    assert result["params"]["total"] == sum(x.size for x in jax.tree.leaves(params))
    assert result["latency_ms"] is None
    config = small_runs.config("bert", small_data, SEQ)
    assert read_json(mlm / "config.json") == config.to_dict()
    assert result["config_hash"] == configs.digest(config)
    # The tokens seen, counted over the rows that the order says.
    store = tasks.build(configs.Reader(config)).splits["train"].dataset
    rows = np.concatenate([order.batch_indices(i, 8, len(store), 0) for i in range(12)])
    assert result["train"]["tokens"] == (store[rows]["segment_ids"] > 0).sum()


def test_evaluation_finds_the_scores_that_training_ended_with(mlm):
    want = read_json(mlm / "result.json")["scores"]["validation"]
    assert evaluate.evaluate(mlm) == pytest.approx(want, rel=1e-5)


def test_metrics_are_logged_at_their_steps(mlm):
    records = read_jsonl(mlm / "metrics.jsonl")
    training = [r for r in records if "train/loss" in r]
    validation = [r for r in records if "validation/loss" in r]
    assert [r["step"] for r in training] == list(range(1, 13))
    assert [r["step"] for r in validation] == [6, 12]
    assert training[0]["train/loss"] == pytest.approx(math.log(300), rel=0.05)
    result = read_json(mlm / "result.json")
    assert training[-1]["train/loss"] == result["train"]["final_loss"]
    assert validation[-1]["validation/loss"] == result["scores"]["validation"]["loss"]
    assert training[-1]["train/tokens"] == result["train"]["tokens"]
    rates = [r["train/lr"] for r in training]
    warmup = [1e-2 * min(1, (step / 12) / 0.1) for step in range(12)]
    after = [min(1, (1 - step / 12) / 0.9) for step in range(12)]
    assert rates == pytest.approx([a * b for a, b in zip(warmup, after, strict=True)], rel=1e-4)


def test_a_seed_repeats_bit_for_bit_and_another_differs(mlm, small_data, tmp_path):
    config = small_runs.config("bert", small_data, SEQ)
    train.train(config, tmp_path / "again")
    assert_equal(params_of(tmp_path / "again"), params_of(mlm))
    train.train(small_runs.config("bert", small_data, SEQ, seed=1), tmp_path / "other")
    ours, theirs = params_of(mlm)[0], params_of(tmp_path / "other")[0]
    assert not np.allclose(ours["trunk"]["word"]["embedding"], theirs["trunk"]["word"]["embedding"])


def unmeasured(result):
    keep = {k: v for k, v in result.items() if k not in ("latency_ms", "environment")}
    measured = ("seconds", "compile_seconds", "peak_rss_bytes")
    return keep | {"train": {k: v for k, v in result["train"].items() if k not in measured}}


def test_a_finished_run_is_only_reported(mlm, small_data, capsys, monkeypatch):
    monkeypatch.setattr(tasks, "build", None)
    before = (mlm / "metrics.jsonl").read_bytes()
    got = train.train(small_runs.config("bert", small_data, SEQ), mlm)
    assert got == read_json(mlm / "result.json") and "finished before" in capsys.readouterr().out
    assert (mlm / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(("name", "arg"), [("bert", SEQ), ("classify", ""), ("linear", "lr")])
def test_a_run_killed_after_its_last_step_still_gets_its_scores(name, arg, small_run, small_data):
    """Between the last checkpoint and ``result.json``."""
    workdir = small_run(name, arg)
    want = read_json(workdir / "result.json")
    (workdir / "result.json").unlink()
    got = train.train(small_runs.config(name, small_data, arg), workdir)
    assert unmeasured(got) == unmeasured(want)


def test_fine_tuning_starts_from_the_pretrained_parameters(mlm, small_data, tmp_path, caplog):
    config = small_runs.config("ner", small_data, init_from=str(mlm), model__num_layers=3)
    config = train.resolve(config)
    assert config.model.num_layers == 1, "the model is the pretrained one"
    assert "the source's values replace" in caplog.text and "model.num_layers" in caplog.text
    task = tasks.build(configs.Reader(config))
    assert (
        task.encoder.tokenizer.fingerprint == Tokenizer.load(mlm / Tokenizer.file_name).fingerprint
    )
    got, counters = train.start(
        task,
        optim.create(**config.optimizer),
        tiny.mesh(data=8),
        jax.random.key(0),
        config.init_from,
        tmp_path,
    )
    assert_equal(got.params["trunk"], params_of(mlm)[0]["trunk"])
    assert np.std(got.params["tagging_head"]["kernel"]) == pytest.approx(0.02, rel=0.5)
    assert counters.examples == 0 and int(got.step) == 0


def test_a_run_goes_on_on_another_mesh(mlm, small_data, tmp_path, monkeypatch):
    """Begun on one, ended on two others: as the run that was on data x 8 all the time."""
    save, workdir = Checkpointer.save, tmp_path / "run"

    def save_and_stop(self, train_state, *rest):
        save(self, train_state, *rest)
        self.wait()
        raise KeyboardInterrupt

    monkeypatch.setattr(Checkpointer, "save", save_and_stop)
    meshes = (
        {"data": 1, "fsdp": 4, "tensor": 2},
        {"data": 1, "fsdp": 2, "tensor": 2, "sequence": 2},
    )
    for mesh in meshes:
        changes = {f"mesh__{axis}": size for axis, size in mesh.items()}
        config = small_runs.config("bert", small_data, SEQ, checkpoint__every="5 steps", **changes)
        with pytest.raises(KeyboardInterrupt):
            train.train(config, workdir)
    monkeypatch.undo()
    assert [p.name for p in (workdir / LAST).iterdir()] == ["10"]
    config = small_runs.config("bert", small_data, SEQ, checkpoint__every="5 steps")
    train.train(config, workdir)
    assert read_json(workdir / "config.json") == config.to_dict()
    (got, step), (want, last) = params_of(workdir), params_of(mlm)
    assert step == last == 12
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-4), got, want)


def test_the_best_step_by_validation_is_what_a_run_stands_for(small_data, tmp_path, monkeypatch):
    """With held-out losses that are lowest at the second of four evaluations."""
    losses = iter([5.0, 3.0, 4.0, 3.5, 3.0])
    monkeypatch.setattr(
        evaluators.LanguageModelScores, "__call__", lambda *_: {"loss": next(losses)}
    )
    save = Checkpointer.save

    def checked(self, train_state, meta):
        if self._manager.directory.name == LAST:
            best = tmp_path / "run" / BEST / str(meta["best_step"])
            assert best.is_dir(), "a checkpoint names a best step that is not on disk yet"
        save(self, train_state, meta)

    monkeypatch.setattr(Checkpointer, "save", checked)
    config = small_runs.config(
        "bert",
        small_data,
        SEQ,
        evals__every="3 steps",
        checkpoint__every="3 steps",
        checkpoint__keep=9,
        checkpoint__best="loss",
    )
    result = train.train(config, tmp_path / "run")
    assert result["selection"] == {"metric": "loss", "step": 6}
    assert result["scores"] == {"validation": {"loss": 3.0}}
    assert [p.name for p in (tmp_path / "run" / BEST).iterdir()] == ["6"]
    params, step = params_of(tmp_path / "run")
    assert step == 6
    for number in (3, 6, 9, 12):  # the parameters after so many steps
        (tmp_path / str(number) / LAST).mkdir(parents=True)
        (tmp_path / str(number) / LAST / str(number)).symlink_to(
            tmp_path / "run" / LAST / str(number)
        )
    assert_equal(params, params_of(tmp_path / "6")[0])
    word = [params_of(tmp_path / n)[0]["trunk"]["word"]["embedding"] for n in ("3", "6", "12")]
    assert (word[0] != word[1]).any() and (word[1] != word[2]).any()


def dense(columns, num_features):
    lanes = np.zeros((*columns["document"].shape, num_features), np.float32)
    place = np.indices(columns["features"].shape)
    np.add.at(lanes, (place[0], columns["document"][place[0], place[1]], columns["features"]),
              columns["values"])  # fmt: skip
    real = columns["weights"] > 0
    return lanes[real], columns["labels"][real]


def test_logistic_regression_is_scikit_learns(small_data, tmp_path, caplog):
    """The same features and C: the same coefficients, and the same accuracy."""
    config = small_runs.config("linear", small_data, "lr", objective__C=3.0)
    result = train.train(config, tmp_path)
    splits = tasks.build(configs.Reader(config)).splits
    data = {s: splits[s].dataset[np.arange(len(splits[s].dataset))] for s in ("train", "test")}
    size = config.model.num_features
    reference = LogisticRegression(C=3.0, tol=1e-8, max_iter=1000)
    reference.fit(*dense(data["train"], size))
    accuracy = reference.score(*dense(data["test"], size))
    assert result["scores"]["test"]["accuracy"] == pytest.approx(accuracy, abs=0.003)
    params, _ = params_of(tmp_path)
    kernel = params["kernel"] - params["kernel"].mean(1, keepdims=True)
    np.testing.assert_allclose(kernel.T, reference.coef_, atol=5e-3)
    assert result["train"]["steps"] < 100, "converged before the budget's end"
    rows = len(data["train"]["labels"])  # of several documents each
    assert rows < 60 and result["train"]["examples"] == rows * result["train"]["steps"]
    # Every step evaluates loss and gradient once, and at least once more in its line search.
    nonzero = (data["train"]["values"] > 0).sum()
    evaluations = result["train"]["flops"] / (3 * 2 * nonzero * 3)
    assert evaluations == pytest.approx(round(evaluations), rel=1e-6)
    assert 2 * result["train"]["steps"] - 1 <= evaluations < 4 * result["train"]["steps"]
    assert result["latency_ms"]["p50"] > 0 and result["latency_ms"]["repeats"] == 5
    assert "config.optimizer.tolerance" not in caplog.text
    config.train.budget = "2 steps"
    train.train(config, tmp_path / "short")
    assert "config.optimizer.tolerance (0.0001)" in caplog.text


BAD = {
    "batch_size": ({"train.batch_size": 12}, r"config\.train\.batch_size: 12 rows .*multiple of 8"),
    "accumulate": ({"train.accumulate": 3}, r"config\.train\.batch_size: 8 rows .*multiple of 24"),
    "evals": ({"evals.batch_size": 12}, r"config\.evals\.batch_size: 12 rows do not divide"),
    "range": ({"train.accumulate": 0}, r"config\.train\.accumulate: found 0, expected at least 1"),
    "mesh": ({"mesh.fsdp": 3}, r"config\.mesh: found .*does not fit 8 devices"),
    "whole": ({"mesh.data": 1, "mesh.tensor": 8}, r"config\.mesh: .* splits no dimension of"),
    "budget": ({"train.budget": "2 hours"}, r"config\.train\.budget: found '2 hours'"),
    "period": ({"checkpoint.every": "often"}, r"config\.checkpoint\.every: found 'often'"),
    "schedule": ({"optimizer.schedule": "step"}, r"config\.optimizer\.schedule: found 'step'"),
    "file": ({"data.train": "no.txt"}, r"data\.train=no\.txt: no such file"),
    "init_from": ({"init_from": "{tmp}/no"}, r"config\.init_from: no config\.json in '.*/no'"),
    "unfinished": ({"init_from": "{tmp}/early"}, r"config\.init_from: .*early has not finished"),
    "family": ({"init_from": "{tmp}/linear"}, r"config\.init_from: .* holds a linear model, exp"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_leaves_no_trace(case, small_data, tmp_path):
    """The workdir is not made, so that the corrected command can have it."""
    linear = tmp_path / "linear"
    linear.mkdir()
    (linear / "config.json").write_text('{"model": {"name": "linear"}}')
    (linear / "result.json").write_text("{}")
    (tmp_path / "early").mkdir()
    (tmp_path / "early" / "config.json").write_text("{}")
    changes, said = BAD[case]
    changes = {k: v.format(tmp=tmp_path) if k == "init_from" else v for k, v in changes.items()}
    config = small_runs.config("bert", small_data, SEQ, **changes)
    with pytest.raises(UserError, match=said) as caught:
        train.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert "\n" not in str(caught.value)


def contents(folder):
    return {p: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_another_runs_workdir_is_refused_and_left_as_it_is(mlm, small_data):
    before = contents(mlm)
    changed = small_runs.config("bert", small_data, SEQ, optimizer__lr=0.5, seed=3)
    said = r"holds a run with another config \(optimizer\.lr: 0\.01 there, 0\.5 here; seed: 0"
    with pytest.raises(UserError, match=said):
        train.train(changed, mlm)
    assert contents(mlm) == before


def test_init_from_a_run_without_checkpoint(mlm, small_data, tmp_path):
    lost = tmp_path / "lost"
    lost.mkdir()
    for name in ("config.json", "result.json", "tokenizer.model"):
        (lost / name).write_bytes((mlm / name).read_bytes())
    with pytest.raises(UserError, match=r"lost: no checkpoint found; expected the workdir"):
        train.train(
            small_runs.config("classify", small_data, init_from=str(lost)), tmp_path / "run"
        )


def test_checkpoints_of_an_unknown_run_are_left_alone(mlm, small_data, tmp_path):
    for entry in mlm.iterdir():
        if entry.name != "config.json":
            (tmp_path / entry.name).symlink_to(entry)
    other = small_runs.config("bert", small_data, SEQ, model__hidden_size=32)
    with pytest.raises(UserError, match=r"holds checkpoints or a result but no config\.json"):
        train.train(other, tmp_path)


def test_a_run_without_its_best_step_stands_for_its_last(small_run, small_data, tmp_path):
    """A kill between two evaluations can leave none: the newer had taken the place of the older."""
    workdir = tmp_path / "run"
    shutil.copytree(small_run("classify", ""), workdir)
    shutil.rmtree(workdir / BEST)
    (workdir / "result.json").unlink()
    result = train.train(small_runs.config("classify", small_data), workdir)
    assert result["selection"] == {"metric": "accuracy", "step": result["train"]["steps"]}


def test_a_run_does_not_go_on_with_other_data(small_data, tmp_path):
    text = (small_data / "train.tsv").read_text()
    (tmp_path / "mine.tsv").write_text(text)
    config = small_runs.config("linear", small_data, "svm", data__train=str(tmp_path / "mine.tsv"))
    workdir = tmp_path / "run"
    train.train(config, workdir)
    (workdir / "result.json").unlink()
    before = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
    (tmp_path / "mine.tsv").write_text(text + "a new one\tminerals\n")
    with pytest.raises(UserError, match=r"was begun on other data: train changed since"):
        train.train(config, workdir)
    assert before == {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}


def test_a_diverged_run_ends_with_its_last_checkpoint(small_data, tmp_path):
    config = small_runs.config(
        "bert", small_data, SEQ, optimizer__lr=1e30, checkpoint__every="1 steps"
    )
    with pytest.raises(UserError, match=r"diverged: the loss is (nan|inf) at step \d+ of .*lower"):
        train.train(config, tmp_path)
    _, step = params_of(tmp_path)
    logged = [r["step"] for r in read_jsonl(tmp_path / "metrics.jsonl") if "train/loss" in r]
    assert 0 < step <= logged[-1] < 12
    assert not (tmp_path / "result.json").exists()


def test_unknown_best_metric_names_the_known_ones(small_data, tmp_path):
    config = small_runs.config("bert", small_data, SEQ, checkpoint__best="accurracy")
    said = r"config\.checkpoint\.best: found 'accurracy', expected one of loss, .*masked_accuracy"
    with pytest.raises(UserError, match=said):
        train.train(config, tmp_path)
    assert not list(tmp_path.iterdir()), "the corrected command can use the folder"
