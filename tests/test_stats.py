import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from pretrain import stats


def test_mean_interval_of_tabulated_t():
    # Mean 2, standard error 1/sqrt(3); t(0.975, 2) = 4.302653 from printed tables.
    mean, low, high = stats.mean_interval([1.0, 2.0, 3.0])
    assert mean == 2
    assert high - mean == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert mean - low == pytest.approx(high - mean)


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.99])
def test_mean_interval_equals_scipy(confidence):
    values = np.random.default_rng(0).normal(size=7)
    _, low, high = stats.mean_interval(values, confidence)
    expected = scipy_stats.ttest_1samp(values, 0).confidence_interval(confidence)
    assert (low, high) == pytest.approx((expected.low, expected.high))


def test_one_value_has_no_interval():
    mean, low, high = stats.mean_interval([0.7])
    assert mean == 0.7
    assert math.isnan(low)
    assert math.isnan(high)


def test_equal_values_have_an_empty_interval():
    assert stats.mean_interval([0.5, 0.5, 0.5]) == (0.5, 0.5, 0.5)


def test_paired_difference_equals_scipy_and_beats_unpaired():
    rng = np.random.default_rng(1)
    seed_effect = rng.normal(size=6)
    a = 0.3 + seed_effect + 0.01 * rng.normal(size=6)
    b = seed_effect + 0.01 * rng.normal(size=6)
    mean, low, high = stats.paired_difference(a, b)
    expected = scipy_stats.ttest_rel(a, b).confidence_interval(0.95)
    assert mean == pytest.approx(np.mean(a) - np.mean(b))
    assert (low, high) == pytest.approx((expected.low, expected.high))
    unpaired = scipy_stats.ttest_ind(a, b).confidence_interval(0.95)
    assert high - low < 0.2 * (unpaired.high - unpaired.low)


def test_bootstrap_interval_of_an_accuracy_is_binomial():
    # Resampling n items of which a share p is right draws Binomial(n, p).
    correct = np.arange(400) < 300
    mean, low, high = stats.bootstrap_interval(correct)
    assert mean == 0.75
    exact = scipy_stats.binom.ppf([0.025, 0.975], 400, 0.75) / 400
    assert (low, high) == pytest.approx(exact, abs=0.0026)  # one item


def test_bootstrap_interval_equals_scipy_on_real_values():
    values = np.random.default_rng(2).normal(3, 1, 200)
    _, low, high = stats.bootstrap_interval(values, 0.9)
    expected = scipy_stats.bootstrap(
        (values,), np.mean, confidence_level=0.9, method="percentile", rng=0
    ).confidence_interval
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=0.01)


def test_bootstrap_interval_repeats_by_seed_and_counts_resamples():
    values = np.random.default_rng(3).normal(size=50)
    first = stats.bootstrap_interval(values, seed=1, resamples=500)
    assert first == stats.bootstrap_interval(values, seed=1, resamples=500)
    assert first != stats.bootstrap_interval(values, seed=2, resamples=500)


@pytest.mark.parametrize("function", [stats.mean_interval, stats.bootstrap_interval])
def test_no_values_are_refused(function):
    with pytest.raises(ValueError, match="at least one"):
        function([])


def test_unequal_pairs_are_refused():
    with pytest.raises(ValueError, match="3 and 2"):
        stats.paired_difference([1, 2, 3], [1, 2])
