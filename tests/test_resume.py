"""Exact resume: real processes, really killed, against runs that nothing disturbed."""

import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import jax
import numpy as np
import pytest

from pretrain.checkpoint import BEST, LAST, load_params
from pretrain.files import read_json, read_jsonl
from tests import small_runs, tiny

TIMES = ("seconds", "train/tokens_per_second")


class Program:
    """``python -m pretrain.train`` on a workdir, with one device."""

    def __init__(self, data: pathlib.Path, name: str, arg: str = "", **changes):
        changes = {key.replace("__", "."): value for key, value in changes.items()}
        values = small_runs.overrides(name, arg, data) | changes
        self._command = [
            sys.executable,
            "-m",
            "pretrain.train",
            f"--config=configs/{name}.py:{arg}",
        ]
        self._command += [f"--config.{key}={value}" for key, value in values.items()]

    def __call__(
        self,
        workdir: pathlib.Path,
        sent: signal.Signals | None = None,
        when: Callable[[], bool] = lambda: False,
    ) -> tuple[int, str]:
        """Exit code and output of a run, which gets a signal as soon as ``when`` is true."""
        process = subprocess.Popen(
            [*self._command, f"--workdir={workdir}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=small_runs.ROOT,
        )
        try:
            while sent is not None and process.poll() is None:
                if when():
                    process.send_signal(sent)
                    break
                time.sleep(0.001)
            out, _ = process.communicate(timeout=200)
        finally:
            process.kill()
        return process.returncode, out


def last_logged(workdir):
    steps = [r["step"] for r in read_jsonl(workdir / "metrics.jsonl")]
    return max(steps, default=0)


def writing(workdir, step):
    """Whether a checkpoint of ``step`` or later is half written."""
    names = [p.name for p in (workdir / LAST).glob("*tmp*")]
    return any(int(name.split(".")[0]) >= step for name in names)


def untimed(workdir):
    """The metrics, and the result, but for what the clock says."""
    records = [
        {k: v for k, v in r.items() if k not in TIMES}
        for r in read_jsonl(workdir / "metrics.jsonl")
    ]
    result = read_json(workdir / "result.json")
    measured = ("seconds", "compile_seconds", "peak_rss_bytes")
    train = {k: v for k, v in result["train"].items() if k not in measured}
    del result["latency_ms"]
    return records, result | {"train": train}


def assert_same(workdir, reference):
    for name in (BEST, LAST):
        assert (workdir / name).is_dir() == (reference / name).is_dir()
    got, want = (load_params(folder, tiny.mesh()) for folder in (workdir, reference))
    assert got[1] == want[1]
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(got[0]), jax.device_get(want[0]))
    (records, result), (wanted, wanted_result) = untimed(workdir), untimed(reference)
    assert records == wanted
    assert result == wanted_result


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("resume")


@pytest.fixture(scope="module")
def pretraining(small_data):
    return Program(
        small_data,
        "bert",
        "tiny,seq=32",
        train__budget="24 steps",
        checkpoint__every="3 steps",
        evals__every="25%",
    )


@pytest.fixture(scope="module")
def pretrained(pretraining, folder):
    """The workdir of a run that nothing disturbed."""
    code, out = pretraining(folder / "whole")
    assert code == 0, out
    steps = [r["step"] for r in read_jsonl(folder / "whole" / "metrics.jsonl") if "train/loss" in r]
    assert steps == list(range(1, 25))
    return folder / "whole"


def test_pretraining_that_was_killed_and_terminated(pretraining, pretrained, folder):
    """By SIGKILL while a checkpoint is being written, then by SIGTERM between two."""
    workdir = folder / "disturbed"
    code, _ = pretraining(workdir, signal.SIGKILL, lambda: writing(workdir, 6))
    assert code == -signal.SIGKILL and not (workdir / "result.json").exists()
    assert last_logged(workdir) >= 6

    code, out = pretraining(workdir, signal.SIGTERM, lambda: last_logged(workdir) >= 8)
    assert code == 128 + signal.SIGTERM
    assert f"continuing {workdir} at step " in out
    saved = [int(p.name) for p in (workdir / LAST).iterdir()]
    assert f"SIGTERM: saved at step {saved[0]}; the same command goes on" in out
    assert len(saved) == 1 and 8 <= saved[0] < 24
    assert last_logged(workdir) == saved[0], "all it did is saved"
    assert "Traceback" not in out and "error" not in out.lower()

    code, out = pretraining(workdir)
    assert code == 0, out
    assert f"continuing {workdir} at step {saved[0]}" in out
    assert_same(workdir, pretrained)


def test_fine_tuning_that_was_killed_keeps_its_best_step(pretrained, folder, small_data, small_run):
    """Killed while the best step so far is written; with an average, a teacher, frozen parts."""
    program = Program(
        small_data,
        "classify",
        init_from=pretrained,
        distill__teacher=small_run("linear", "lr"),
        distill__logits=0.5,
        train__budget="60 steps",
        train__batch_size=16,
        objective__pool="mean",
        optimizer__ema=0.5,
        optimizer__freeze="trunk/position/.*",
        evals__every="5 steps",
        checkpoint__every="8 steps",
    )
    whole, workdir = folder / "tuned", folder / "disturbed-tuned"
    code, out = program(whole)
    assert code == 0, out
    before, after = (load_params(run, tiny.mesh())[0]["trunk"] for run in (pretrained, whole))
    for name, same in (("position", True), ("word", False)):
        old, new = (jax.device_get(tree[name]["embedding"]) for tree in (before, after))
        assert (old == new).all() == same, name
    best = read_json(whole / "result.json")["selection"]["step"]
    assert best > 10, "or no better step comes after the one that is killed"

    def writing_best():
        return any((workdir / BEST).glob("*tmp*")) and last_logged(workdir) > 8

    code, _ = program(workdir, signal.SIGKILL, writing_best)
    assert code == -signal.SIGKILL
    code, out = program(workdir)
    assert code == 0, out
    assert_same(workdir, whole)
