"""What a run writes of itself, also after a crash, and what it shows."""

import json
import math

import jax.numpy as jnp
import pytest

from pretrain import logs
from pretrain.budget import Budget
from pretrain.errors import UserError
from pretrain.files import read_jsonl
from pretrain.logs import Logs, Progress, clock
from pretrain.monitor import Counters, Monitor


def test_resuming_drops_the_records_of_lost_steps(tmp_path):
    first = Logs(tmp_path, 0)
    for step in (1, 2, 3, 4):
        first.write(step, {"train/loss": 1.0 / step})
    first.close()
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 5, "train/lo')  # cut off by the crash
    again = Logs(tmp_path, 2)
    again.write(3, {"train/loss": 7.0})
    again.close()
    assert [(r["step"], r["train/loss"]) for r in read_jsonl(path)] == [(1, 1.0), (2, 0.5), (3, 7)]
    assert list((tmp_path / "tensorboard").glob("events.*"))
    assert not list(tmp_path.glob("*.part"))


def test_clock():
    assert [clock(s) for s in (0, 59.6, 3725)] == ["00:00", "01:00", "1:02:05"]


def test_plain_lines_come_now_and_then(capsys, monkeypatch):
    monkeypatch.setattr(logs, "SECONDS_BETWEEN_LINES", 0.0)
    progress = Progress(0.5)
    progress.update(0.75, "step 3  loss 2.000")
    progress.note("a note")
    progress.close()
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith(" 75.0%  step 3  loss 2.000  eta 00:00") and shown[1] == "a note"
    monkeypatch.setattr(logs, "SECONDS_BETWEEN_LINES", 1e6)
    Progress(0.0).update(0.1, "too early")
    assert capsys.readouterr().out == ""


def metrics(loss, **others):
    values = {"loss": loss, "tokens": 100.0, **others}
    return {name: (jnp.float32(v), jnp.ones(())) for name, v in values.items()}


def monitor(folder, counters, log_every=1, step=0):
    return Monitor(folder, counters, Budget(10), Budget(log_every), step)


def test_each_record_has_the_tokens_of_its_own_step(tmp_path):
    """Though it is read when the next step has been counted already."""
    counters = Counters()
    with monitor(tmp_path, counters, log_every=2) as running:
        for step in range(1, 6):
            running.stepped(step, metrics(10.0 - step))
        running.evaluated(5, {"loss": 4.0, "f1/PER": 0.5})
    records = [
        {k: v for k, v in r.items() if k not in ("seconds", "train/tokens_per_second")}
        for r in read_jsonl(tmp_path / "metrics.jsonl")
    ]
    assert records == [
        {"step": 2, "train/loss": 8.0, "train/tokens": 200},
        {"step": 4, "train/loss": 6.0, "train/tokens": 400},
        {"step": 5, "validation/loss": 4.0, "validation/f1/PER": 0.5, "train/tokens": 500},
    ]
    assert counters.loss == 5.0 and json.dumps(records)


def test_utilization_is_that_of_the_time_since_the_last_record(tmp_path, monkeypatch):
    """Steps of 3 TFLOP in 2 s, on devices that do 10 TFLOP/s together; evaluation aside."""
    now = [100.0]
    monkeypatch.setattr(logs.time, "monotonic", lambda: now[0])
    counters = Counters()
    with Monitor(tmp_path, counters, Budget(10), Budget(2), 0, 3e12, 1e13) as running:
        for step in range(1, 6):
            now[0] += 2.0
            running.stepped(step, metrics(1.0))
            if step == 3:
                running.flush()
                now[0] += 50.0
                running.evaluated(3, {"loss": 4.0})
    records = read_jsonl(tmp_path / "metrics.jsonl")
    found = {r["step"]: r["train/mfu"] for r in records if "train/mfu" in r}
    # Step n is read when n + 1 has been dispatched. Step 2: 6 TFLOP in 6 s; step 4, after the
    # evaluation: 3 TFLOP in 4 s.
    assert found == {2: pytest.approx(0.1), 4: pytest.approx(3 / 40)}


def test_scores_that_are_no_numbers_are_null(tmp_path):
    with monitor(tmp_path, Counters()) as running:
        running.evaluated(5, {"loss": math.nan, "perplexity": math.inf})
    (record,) = read_jsonl(tmp_path / "metrics.jsonl")
    assert record["validation/loss"] is None and record["validation/perplexity"] is None


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_diverged_loss_ends_the_run(tmp_path, loss):
    with monitor(tmp_path, Counters()) as running:
        running.stepped(1, metrics(1.0))
        running.stepped(2, metrics(loss))
        with pytest.raises(UserError, match=r"diverged: the loss is (nan|inf) at step 2"):
            running.stepped(3, metrics(1.0))


def test_convergence_is_seen(tmp_path):
    counters = Counters()
    with monitor(tmp_path, counters) as running:
        running.stepped(1, metrics(1.0, converged=0.0))
        running.flush()
        assert not counters.converged
        running.stepped(2, metrics(1.0, converged=1.0, evaluations=3.0))
        running.flush()
        assert counters.converged and counters.evaluations == 4
