import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from pretrain import stats


def test_interval_of_tabulated_t():
    # Mean 2, standard error 1/sqrt(3); t(0.975, 2) = 4.302653 from printed tables.
    mean, low, high, n = stats.interval([1.0, 2.0, 3.0])
    assert (mean, n) == (2, 3)
    assert high - mean == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert mean - low == pytest.approx(high - mean)


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.99])
def test_interval_equals_scipy(confidence):
    values = np.random.default_rng(0).normal(size=7)
    _, low, high, _ = stats.interval(values, confidence)
    expected = scipy_stats.ttest_1samp(values, 0).confidence_interval(confidence)
    assert (low, high) == pytest.approx((expected.low, expected.high))


def test_one_value_has_no_interval():
    mean, low, high, n = stats.interval([0.7])
    assert (mean, n) == (0.7, 1)
    assert math.isnan(low) and math.isnan(high)


def test_equal_values_have_an_empty_interval():
    assert stats.interval([0.5, 0.5, 0.5]) == (0.5, 0.5, 0.5, 3)


def test_no_values_are_refused():
    with pytest.raises(ValueError, match="at least one"):
        stats.interval([])


def test_difference_equals_scipy_and_beats_unpaired():
    rng = np.random.default_rng(1)
    seed_effect = rng.normal(size=6)
    a = 0.3 + seed_effect + 0.01 * rng.normal(size=6)
    b = seed_effect + 0.01 * rng.normal(size=6)
    mean, low, high, _ = stats.difference(dict(enumerate(a)), dict(enumerate(b)))
    expected = scipy_stats.ttest_rel(a, b).confidence_interval(0.95)
    assert mean == pytest.approx(np.mean(a) - np.mean(b))
    assert (low, high) == pytest.approx((expected.low, expected.high))
    unpaired = scipy_stats.ttest_ind(a, b).confidence_interval(0.95)
    assert high - low < 0.2 * (unpaired.high - unpaired.low)


def test_difference_matches_seeds_and_not_places():
    made = stats.difference({0: 0.1, 1: 0.4, 2: 0.9}, {2: 0.8, 1: 0.2, 7: 0.0})
    # Seeds 1 and 2: .2 and .1; mean .15, deviation .070711, over sqrt(2): .05; t(0.975, 1).
    half = 12.706 * 0.05
    assert made == pytest.approx((0.15, 0.15 - half, 0.15 + half, 2), abs=1e-4)
    assert stats.difference({0: 1.0}, {1: 1.0}) is None


@pytest.mark.parametrize(
    "values, verdict",
    [
        ([0.2, 0.3, 0.25], "better"),
        ([-0.2, -0.3, -0.25], "worse"),
        ([-0.2, 0.3, 0.1], "undecided"),
        ([0.9], "one seed"),
    ],
)
def test_verdict_asks_for_the_whole_interval(values, verdict):
    assert stats.interval(values).verdict == verdict
