"""What a run says of itself: what its latency stands for."""

import shutil
import subprocess

import numpy as np
import pytest

from pretrain import config as configs
from pretrain import record, state, tasks
from tests import small_runs


@pytest.mark.parametrize(
    ("name", "arg", "words", "rows"),
    [("classify", "", 150, 20), ("linear", "ner", 60, 1), ("linear", "lr", 60, 1)],
)
def test_latency_is_of_the_whole_text_in_rows_of_the_trained_shape(
    name, arg, words, rows, small_data, monkeypatch
):
    task = tasks.build(configs.Reader(small_runs.config(name, small_data, arg)))
    kind = {"tokens": ["cat"] * words, "tags": None} if arg == "ner" else {"text": "cat " * words}
    task.splits["test"].examples = [kind]
    seen = []
    monkeypatch.setattr(state, "predict_fn", lambda *_: lambda _, row: seen.append(row) or 0)
    assert record.latency(task, {})["p50"] > 0
    whole = task.encoder.encode([kind], "data.test")
    count = len(whole["example"])
    assert count == rows and len(seen) == count * (record.WARMUP + record.REPEATS)
    column = "tokens" if name == "classify" else "features"
    trained = task.splits["train"].dataset[np.arange(1)]
    assert all(row[column].shape == trained[column].shape for row in seen)
    got = np.concatenate([row[column] for row in seen[:count]])
    np.testing.assert_array_equal(got, whole[column])


@pytest.mark.skipif(not shutil.which("git"), reason="needs git")
def test_revision_is_the_commit_and_says_whether_files_differ(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "CODE", tmp_path)
    assert record.revision() is None  # as where it is installed

    def git(*arguments):
        identity = ("-c", "user.name=a", "-c", "user.email=a@example.org")
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init")
    assert record.revision() is None  # nothing is committed
    (tmp_path / "a.py").write_text("1")
    git("add", "a.py")
    git("commit", "-m", "first")
    git("tag", "-a", "v1", "-m", "a release")
    assert record.revision() == git("rev-parse", "--short", "HEAD")
    (tmp_path / "a.py").write_text("2")
    assert record.revision() == git("rev-parse", "--short", "HEAD") + "-dirty"
