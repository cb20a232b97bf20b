"""The runner: order, keys, reuse, failure, selection, the flat table. Training is mostly a fake."""

import json
import math
import pathlib
import signal
import subprocess
import sys
import time
import types

import pytest
from ml_collections import ConfigDict

import pretrain
from pretrain import comparison, config, plots, results, study
from pretrain.errors import UserError
from tests import small_runs


def result(task="tag", validation=0.5, test=0.4, seconds=2.0):
    """What a finished run leaves."""
    metric = {"tag": "f1", "classify": "accuracy", "mlm": "loss"}[task]
    return {
        "task": task,
        "model": "transformer",
        "label": "as the run calls itself",
        "params": {"total": 30, "embedding": 10, "other": 20},
        "train": {"steps": 10, "tokens": 1000, "flops": 1e9, "seconds": seconds},
        "init_from": None,
        "seed": 99,
        "scores": {"validation": {metric: validation}, "test": {metric: test}},
        "selection": {"metric": metric, "step": 10},
        "latency_ms": {"p50": 1.0, "p95": 2.0},
        "data": {"train": {"name": "made up", "fingerprint": "ab", "examples": 50}},
        "environment": {"python": "3.11", "packages": {"jax": "0.10.2"}},
    }


def entry(name, **changes):
    return {"name": name, "config": "configs/ner.py", "task": "NER", "labels": 50, **changes}


@pytest.fixture
def trained(monkeypatch):
    """Calls of a fake training run; ``outcomes`` maps the key ``lr`` to a result or exception."""
    calls = []
    outcomes = {}

    def load(path, arg, overrides):
        return ConfigDict({"path": path, "arg": arg or "", "overrides": json.dumps(overrides)})

    def train(resolved, workdir):
        overrides = json.loads(resolved.overrides)
        calls.append((workdir.name, overrides))
        outcome = outcomes.get(overrides.get("lr"), result())
        if isinstance(outcome, Exception):
            raise outcome
        if outcome is not None:
            workdir.mkdir(parents=True, exist_ok=True)
            (workdir / "result.json").write_text(json.dumps(outcome))
        return outcome

    for picture in (
        "learning_curves",
        "score_versus_cost",
        "pretraining_curves",
        "score_versus_size",
    ):
        monkeypatch.setattr(plots, picture, lambda *_: b"PNG")  # slow, and test_plots has them
    monkeypatch.setattr(config, "load", load)
    monkeypatch.setattr(pretrain, "train", types.SimpleNamespace(train=train), raising=False)
    return types.SimpleNamespace(calls=calls, outcomes=outcomes)


def run(tmp_path, *entries, **options):
    study.run_study(ConfigDict({"title": "Test", "runs": tuple(entries)}), tmp_path, **options)
    return results.read(tmp_path)


def test_order_puts_each_run_behind_its_start():
    runs = study.parse_runs(
        [entry("c", init_from="b"), entry("d"), entry("b", init_from="a"), entry("a")]
    )
    assert [r.name for r in runs] == ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    "entries, words",
    [
        ([entry("a", init_from="b"), entry("b", init_from="a")], "circle: a -> b -> a"),
        ([entry("a", init_from="a")], "circle: a -> a"),
        ([entry("a", init_from="zz")], r"runs\[a\].init_from: no run is named 'zz'"),
        ([entry("a"), entry("a")], "'a' names two runs"),
        ([entry("a/../b")], r"runs\[0\].name: found 'a/../b'"),
        ([entry("a", sed=1)], r"runs\[0\]: unknown key 'sed'"),
        ([{"name": "a"}], r"runs\[0\].config: missing"),
    ],
)
def test_bad_run_lists_are_refused(entries, words):
    with pytest.raises(UserError, match=words):
        study.parse_runs(entries)


def test_key_follows_the_config_and_the_start_but_not_the_place(trained):
    def keys(workdir, lr, arg=""):
        entries = [entry("mlm", overrides={"lr": lr}), entry("ner", init_from="mlm", arg=arg)]
        return [p.key for p in study.plan(study.parse_runs(entries), pathlib.Path(workdir))]

    base = keys("/a", 0.1)
    assert keys("/b", 0.1) == base
    assert keys("/a", 0.1, arg="x")[0] == base[0]
    assert keys("/a", 0.1, arg="x")[1] != base[1]
    changed = keys("/a", 0.2)
    assert changed[0] != base[0] and changed[1] != base[1]
    assert trained.calls == []


def test_equal_runs_under_two_names_are_refused(tmp_path, trained):
    with pytest.raises(UserError, match="'s0' and 's1' have equal configs"):
        run(tmp_path, entry("s0", seed=0), entry("s1", seed=1))
    assert trained.calls == []


def test_second_call_reuses_and_an_interrupted_study_goes_on(tmp_path, trained, capsys):
    entries = [
        entry("mlm", config="configs/bert.py"),
        entry("ner", init_from="mlm", overrides={"lr": 1.0}),
    ]
    trained.outcomes[1.0] = RuntimeError("pulled the plug")
    with pytest.raises(UserError, match="'ner' failed"):
        run(tmp_path, *entries)
    del trained.outcomes[1.0]
    rows = run(tmp_path, *entries)
    names = [name.rsplit("-", 1)[0] for name, _ in trained.calls]
    assert names == ["mlm", "ner", "ner"]
    # The fine-tuning run starts from the folder of the pretraining run.
    folder, overrides = trained.calls[-1]
    assert overrides["init_from"] == str(tmp_path / "runs" / trained.calls[0][0])
    assert folder == f"ner-{rows[1]['key'][:8]}"
    run(tmp_path, *entries)
    assert len(trained.calls) == 3
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("[")]
    assert lines[-2] == "[1/2] mlm  f1 0.500  reused"
    assert lines[-1] == "[2/2] ner  f1 0.500  reused"


def test_a_failed_run_leaves_out_only_what_starts_from_it(tmp_path, trained, capsys):
    trained.outcomes[3.0] = RuntimeError("out of <memory>")
    trained.outcomes[4.0] = UserError("config.data.train: no such file")
    entries = [entry(f"r{i}", overrides={"lr": float(i)}) for i in (1, 3, 4, 5)]
    entries.append(entry("child", init_from="r3"))
    with pytest.raises(UserError) as caught:
        run(tmp_path, *entries)
    message = str(caught.value)
    assert "\n" not in message and message.startswith("study run 'r3' failed in ")
    for words in (
        "RuntimeError: out of <memory>",
        "'child' needs 'r3'",
        ": config.data.train: no such file",
    ):
        assert words in message
    rows = {row["name"]: row["status"] for row in results.read(tmp_path)}
    assert rows == {
        "r1": "finished",
        "r3": "failed",
        "r4": "failed",
        "r5": "finished",
        "child": "pending",
    }
    html = (tmp_path / "report.html").read_text()
    assert "out of &lt;memory&gt;" in html and "out of <memory>" not in html
    assert "1 run not finished: child." in html
    done = capsys.readouterr()
    assert "r4  failed" in done.out and done.err.count("Traceback") == 1  # ours, not the user's


def test_run_without_a_result_is_a_failure(tmp_path, trained):
    trained.outcomes[1.0] = None
    with pytest.raises(UserError, match=r"'a' failed .* without a result\.json"):
        run(tmp_path, entry("a", overrides={"lr": 1.0}))


@pytest.mark.usefixtures("trained")
def test_broken_result_names_the_file(tmp_path):
    rows = run(tmp_path, entry("a"))
    path = tmp_path / "runs" / rows[0]["folder"] / "result.json"
    path.write_text('{"task": ')
    with pytest.raises(UserError, match=r"result.json: broken result"):
        run(tmp_path, entry("a"))


@pytest.mark.usefixtures("trained")
def test_only_takes_matching_runs_and_what_they_start_from(tmp_path):
    entries = [
        entry("mlm", arg="m"),
        entry("ner-1", init_from="mlm", arg="1"),
        entry("ner-2", init_from="mlm", arg="2"),
        entry("other", arg="o"),
    ]
    rows = run(tmp_path, *entries, only="^ner-2")
    assert [r["name"] for r in rows if r["status"] == "finished"] == ["mlm", "ner-2"]
    with pytest.raises(UserError, match="no run matches"):
        run(tmp_path, *entries, only="zzz")
    with pytest.raises(UserError, match="no regular expression"):
        run(tmp_path, *entries, only="(")


@pytest.mark.usefixtures("trained")
def test_row_keeps_the_labels_of_the_study_and_flattens_the_result(tmp_path):
    (row,) = run(tmp_path, entry("a", model="M", seed=3, overrides={"x.y": 1}))
    expected = {
        "name": "a",
        "model": "M",
        "task": "NER",
        "labels": 50,
        "seed": 3,
        "init_from": "",
        "status": "finished",
        "objective": "tag",
        "architecture": "transformer",
        "scores.test.f1": 0.4,
        "train.seconds": 2.0,
        "environment.packages.jax": "0.10.2",
        "selected": True,
        "candidates": 1,
    }
    assert {k: row[k] for k in expected} == expected
    assert "curve" not in row


def test_selection_uses_validation_and_never_test(tmp_path, trained):
    trained.outcomes[1.0] = result(validation=0.7, test=0.1)
    trained.outcomes[2.0] = result(validation=0.6, test=0.9)
    trained.outcomes[3.0] = result(validation=float("nan"), test=1.0)
    entries = [entry(f"lr{i}", model="M", overrides={"lr": float(i)}) for i in (2, 1, 3)]
    rows = run(tmp_path, *entries, entry("alone", model="N"))
    chosen = {row["name"]: (row["selected"], row["candidates"]) for row in rows}
    assert chosen == {"lr2": (False, 3), "lr1": (True, 3), "lr3": (False, 3), "alone": (True, 1)}
    (task,) = comparison.tasks(rows)
    assert task.test[("M", 50)] == {0: 0.1}


def test_selection_takes_the_lowest_loss(tmp_path, trained):
    trained.outcomes[1.0] = result("mlm", validation=4.0)
    trained.outcomes[2.0] = result("mlm", validation=3.0)
    entries = [entry(f"lr{i}", model="M", overrides={"lr": float(i)}) for i in (1, 2)]
    rows = run(tmp_path, *entries)
    assert [row["selected"] for row in rows] == [False, True]


def test_selection_without_validation_score_is_refused():
    rows = [
        {"name": n, "model": "M", "task": "T", "labels": 1, "seed": 0, "status": "finished"}
        | {"objective": "tag", "selection.metric": "f1"}
        for n in "ab"
    ]
    with pytest.raises(UserError, match="'a': no validation score 'f1'"):
        comparison.select(rows)


def test_curve_holds_the_held_out_losses_and_the_later_line_counts(tmp_path):
    lines = [
        {"step": 10, "train/loss": 6.0, "train/tokens": 100},
        {"step": 20, "train/tokens": 300, "validation/loss": 9.0},
        {"step": 15, "train/tokens": 200, "validation/loss": 5.5},
        {"step": 20, "train/tokens": 300, "validation/loss": 5.0},
    ]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(x) + "\n" for x in lines) + '{"step": 30, "val')
    assert results.loss_curve(path) == [[15, 200, 5.5], [20, 300, 5.0]]
    assert results.loss_curve(tmp_path / "absent.jsonl") == []
    line = lines[-1] | {"validation/loss": 0.3, "validation/generator_loss": 4.0}
    path.write_text(json.dumps(line) + "\n")
    assert results.loss_curve(path) == [[20, 300, 4.0]]  # of pieces, not of what was replaced


def test_a_score_that_is_null_is_there_but_not_a_number(tmp_path):
    """It ranks last among candidates, is null again in the table, and leaves a gap in the curve."""
    labels = dict(model="M", task="T", labels=1, seed=0)
    rows = [
        results.finished_row(
            labels | {"name": name},
            {"task": "tag", "scores": {"validation": {"f1": score}}, "selection": {"metric": "f1"}},
            tmp_path / "metrics.jsonl",
        )
        for name, score in (("a", None), ("b", 0.1))
    ]
    results.write(tmp_path, rows)
    assert '"scores.validation.f1": null' in (tmp_path / "results.jsonl").read_text()
    diverged, chosen = results.read(tmp_path)
    assert chosen["selected"] and not diverged["selected"]
    assert math.isnan(diverged["scores.validation.f1"])
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "validation/loss": null}\n')
    assert results.loss_curve(tmp_path / "metrics.jsonl") == []


CONFIG = """
from ml_collections import ConfigDict
def get_config(arg=None):
    return ConfigDict(dict(title="T", runs={runs!r}))
"""


def program(folder, *entries) -> list[str]:
    """The command of a study of real runs."""
    (folder / "study.py").write_text(CONFIG.format(runs=tuple(entries)))
    command = [sys.executable, "-m", "pretrain.study", f"--config={folder / 'study.py'}"]
    return [*command, f"--workdir={folder / 'work'}"]


def small_entry(data, name, **changes):
    overrides = small_runs.overrides("linear", "svm", data) | changes
    return dict(name=name, config="configs/linear.py", arg="svm", task="T", overrides=overrides)


def test_a_study_killed_in_the_middle_goes_on_and_tells_of_a_bad_run(tmp_path):
    """Each signal comes while a run is under way; what was finished before is not run again."""
    small_runs.write_data(tmp_path)
    runs = [small_entry(tmp_path, f"s{i}", seed=i) | {"seed": i} for i in range(3)]
    runs.insert(1, small_entry(tmp_path, "bad", **{"data.train": str(tmp_path / "missing.tsv")}))
    command = program(tmp_path, *runs)
    stamps = {}
    codes = {signal.SIGKILL: (-9,), signal.SIGTERM: (-15, 143), signal.SIGINT: (-2, 130)}
    for index, (sent, expected) in enumerate(codes.items()):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        try:
            while process.poll() is None and not list(tmp_path.glob(f"work/runs/s{index}-*/*")):
                time.sleep(0.001)
            process.send_signal(sent)
            out, _ = process.communicate(timeout=100)
        finally:
            process.kill()
        assert process.returncode in expected, out.decode()
        for path in tmp_path.glob("work/runs/*/result.json"):
            stamps.setdefault(path, path.stat().st_mtime_ns)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert len(stamps) == 2  # of s0 and s1
    assert all(path.stat().st_mtime_ns == at for path, at in stamps.items())
    status = [(row["name"], row["status"]) for row in results.read(tmp_path / "work")]
    good = [(f"s{i}", "finished") for i in range(3)]
    assert status == [good[0], ("bad", "failed"), *good[1:]]
    assert "Incomplete: 1 run failed: bad." in (tmp_path / "work" / "report.md").read_text()
    assert done.returncode == 1 and "Traceback" not in done.stderr
    (line,) = [x for x in done.stderr.splitlines() if x.startswith("error: ")]
    assert "study run 'bad' failed" in line and "missing.tsv" in line


@pytest.mark.parametrize("variant, sizes", [("quick", 1), ("full", 4)])
def test_quickstart_pairs_every_encoder_with_itself_from_scratch(variant, sizes):
    runs = study.parse_runs(
        config.load(str(small_runs.ROOT / "configs/quickstart.py"), variant).runs
    )
    planned = {p.run.name: p for p in study.plan(runs, pathlib.Path("unused"))}
    pretrained = [r for r in runs if r.task == "pretraining"]
    rates = [r.overrides["optimizer.lr"] for r in pretrained]
    assert len(pretrained) == sizes and rates == sorted(set(rates), reverse=True)
    tuned = [r for r in runs if r.init_from]
    assert tuned and {r.init_from for r in tuned} == {r.name for r in pretrained}
    for run in tuned:
        twin = planned[run.name.replace("pretrained", "scratch")].run
        assert run.overrides == twin.overrides and run.load() == twin.load()


def test_imdb_trains_twins_alike():
    """On each number of labels: as long whatever a network starts from, and on the same sample."""
    for name in ("imdb_study", "imdb_rates"):
        runs = study.parse_runs(config.load(str(small_runs.ROOT / f"configs/{name}.py")).runs)
        groups = {}
        for run in runs:
            if run.task != "pretraining" and run.config.endswith("imdb.py"):
                same = ("data.limit", "train.budget", "seed", "data.train", "data.test")
                what = tuple(run.overrides.get(key) for key in same)
                groups.setdefault((run.labels, run.seed), set()).add(what)
        assert groups and all(len(found) == 1 for found in groups.values())
        for run in runs:
            assert not run.teacher or run.teacher.endswith(f"-{run.labels}-s{run.seed}")
