"""Durations as steps, and what recurs."""

import pytest

from pretrain.budget import Budget, Periodic, Units
from pretrain.errors import UserError

UNITS = Units(batch_size=8, num_rows=100, tokens_per_row=25.0, flops_per_row=1e6)


@pytest.mark.parametrize(
    "text, steps",
    [
        ("7 steps", 7),
        ("80 examples", 10),
        ("81 examples", 11),
        ("2 epochs", 25),
        ("1 epochs", 13),
        ("2000 tokens", 10),
        ("2001 tokens", 11),
        ("4e7 flops", 5),
        ("0.1 examples", 1),
    ],
)
def test_every_unit_becomes_enough_steps(text, steps):
    assert UNITS.budget(text, "train.budget") == Budget(steps)


def test_shares_and_seconds():
    assert UNITS.budget("10%", "evals.every", Budget(1000)) == Budget(100)
    assert UNITS.budget("3%", "evals.every", Budget(100)) == Budget(3)
    assert UNITS.budget("1%", "evals.every", Budget(20)) == Budget(1)
    assert UNITS.budget("90 seconds", "train.budget") == Budget(None, 90)
    assert UNITS.budget("10%", "evals.every", Budget(None, 90)) == Budget(None, 9)
    assert UNITS.budget("80 examples", "evals.every", Budget(None, 90)) == Budget(10)
    assert UNITS.span("10%", "optimizer.warmup", Budget(12)) == Budget(pytest.approx(1.2))
    with pytest.raises(UserError, match=r"config\.train\.budget: found '10%'"):
        UNITS.budget("10%", "train.budget")


def test_progress_ends_at_one():
    assert Budget(4).progress(1, 100.0) == 0.25
    assert Budget(4).progress(5, 0.0) == 1.0
    assert Budget(None, 10.0).progress(99, 2.5) == 0.25
    assert Budget(None, 10.0).progress(1, 11.0) == 1.0


def test_recurs_at_the_same_steps_wherever_a_run_goes_on():
    def due_at(start):
        periodic = Periodic(Budget(3), start, 0.0)
        return [step for step in range(start + 1, 13) if periodic.due(step, 0.0)]

    assert due_at(0) == [3, 6, 9, 12]
    assert due_at(3) == [6, 9, 12]
    assert due_at(5) == [6, 9, 12]


def test_recurs_once_for_periods_that_passed_together():
    periodic = Periodic(Budget(None, 10.0), 0, 25.0)
    assert not periodic.due(1, 29.0)
    assert periodic.due(2, 61.0)
    assert not periodic.due(3, 62.0)
