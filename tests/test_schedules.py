"""Learning rates against their closed forms, in every unit of budget."""

import math

import pytest

from pretrain import schedules, schema
from pretrain.budget import Budget, Units
from pretrain.errors import UserError

UNITS = Units(batch_size=8, num_rows=100, tokens_per_row=25.0, flops_per_row=1e6)
KEYS = {key: schema.OPTIMIZERS["adamw"][key] for key in schedules.KEYS}
RUN = Budget(1000)


def rate(whole=RUN, **options):
    return schedules.create(KEYS | {"lr": 2.0} | options, UNITS, whole)


@pytest.mark.parametrize(
    "options, scales",
    [
        ({}, [0, 0.5, 1, 4 / 9, 0]),
        ({"end": 0.1}, [0, 0.5, 1, 0.1 + 0.9 * 4 / 9, 0.1]),
        ({"schedule": "cosine"}, [0, 0.5, 1, 0.5 + 0.5 * math.cos(math.pi * 5 / 9), 0]),
        ({"schedule": "constant"}, [0, 0.5, 1, 1, 1]),
        ({"schedule": "inverse_sqrt"}, [0, 0.5, 1, 6**-0.5, 10**-0.5]),
        ({"schedule": "inverse_sqrt", "end": 0.4}, [0, 0.5, 1, 6**-0.5, 0.4]),
        ({"schedule": "wsd", "decay": "50%"}, [0, 0.5, 1, 0.8, 0]),
        ({"schedule": "wsd", "decay": "20%"}, [0, 0.5, 1, 1, 0]),
        (
            {"schedule": "wsd", "decay": "500 steps", "decay_shape": "sqrt", "end": 0.1},
            [0, 0.5, 1, 0.1 + 0.9 * (1 - 0.2**0.5), 0.1],
        ),
        (
            {"schedule": "wsd", "decay": "50%", "decay_shape": "cosine"},
            [0, 0.5, 1, 0.5 + 0.5 * math.cos(math.pi * 0.2), 0],
        ),
        ({"warmup": "", "schedule": "linear"}, [1, 0.95, 0.9, 0.4, 0]),
    ],
    ids=str,
)
def test_rates_at_known_points(options, scales):
    """At 0, 5, 10, 60 and 100 % of the run, whether it is counted in steps or in seconds."""
    steps = rate(**options)
    assert [steps(s, -1.0) / 2 for s in (0, 50, 100, 600, 1000)] == pytest.approx(scales)
    if options.get("decay") != "500 steps":
        seconds = rate(Budget(None, 90.0), **options)
        found = [seconds(10**6, s) / 2 for s in (0, 4.5, 9, 54, 90)]
        assert found == pytest.approx(scales)


@pytest.mark.parametrize(
    "text, steps",
    [
        ("10%", 100),
        ("40 steps", 40),
        ("800 examples", 100),
        ("2 epochs", 25),
        ("5000 tokens", 25),
        ("2e8 flops", 25),
    ],
)
def test_lengths_come_in_any_unit(text, steps):
    """The rate is half of the peak halfway through the warm-up, and at the end of the decay."""
    assert rate(warmup=text)(1, 0.0) == pytest.approx(2.0 / steps)
    wsd = rate(schedule="wsd", decay=text, warmup="")
    assert wsd(1000 - steps, 0.0) == 2.0
    assert wsd(1000 - 1, 0.0) == pytest.approx(2.0 / steps)


def test_a_warmup_in_steps_of_a_run_in_seconds():
    """And the other way round: the fall counts from the start, the warm-up scales it."""
    for name, fall in (("linear", 0.75), ("constant", 1.0), ("wsd", 1.0)):
        decay = {"decay": "10%"} if name == "wsd" else {}
        found = rate(Budget(None, 100.0), schedule=name, warmup="40 steps", **decay)(10, 25.0)
        assert found == pytest.approx(2 * fall * 10 / 40)
    assert rate(warmup="50 seconds")(250, 10.0) == pytest.approx(2 * 0.75 * 10 / 50)
    found = rate(Budget(None, 100.0), schedule="inverse_sqrt", warmup="40 steps")(160, 25.0)
    assert found == pytest.approx(2 * 0.5)


def test_a_share_keeps_fractions_of_a_step():
    assert rate(Budget(12), warmup="10%")(1, 0.0) == pytest.approx(2 / 1.2)


def test_an_optimizer_without_a_rate_is_told_zero():
    assert schedules.create(schema.OPTIMIZERS["lbfgs"], UNITS, RUN)(5, 1.0) == 0.0


@pytest.mark.parametrize(
    "options, said",
    [
        ({"schedule": "linaer"}, "schedule: found 'linaer', expected one of linear, cosine, inver"),
        (
            {"decay_shape": "cubic"},
            "decay_shape: found 'cubic', expected one of linear, cosine, sq",
        ),
        (
            {"decay_shape": "sqrt"},
            "decay_shape: found 'sqrt' with schedule 'linear', expect",
        ),
        ({"schedule": "constant", "end": 0.1}, "end: found 0.1 with schedule 'constant', expected"),
        ({"warmup": "10"}, "warmup: found '10', expected a positive number and one of steps"),
        ({"warmup": "0%"}, "warmup: found '0%', expected a positive number"),
        ({"warmup": "2000 steps"}, "warmup: found '2000 steps', longer than the run"),
        ({"schedule": "wsd"}, "decay: found '' with schedule 'wsd', expected how long"),
        ({"decay": "10%"}, "decay: found '10%' with schedule 'linear', expected ''"),
        (
            {"schedule": "wsd", "decay": "5 seconds"},
            "decay: found '5 seconds', expected steps, tok",
        ),
        (
            {"schedule": "wsd", "decay": "60%", "warmup": "50%"},
            "warmup: found '50%' and decay '60%', longer than the run",
        ),
        ({"schedule": "inverse_sqrt", "warmup": ""}, "warmup: found '' with schedule 'inverse_sq"),
    ],
    ids=str,
)
def test_what_makes_no_schedule_is_a_clear_error(options, said):
    with pytest.raises(UserError, match=rf"^config\.optimizer\.{said}") as caught:
        rate(**options)
    assert "\n" not in str(caught.value)
