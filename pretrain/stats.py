"""Intervals: how far a mean over seeds, a difference of two models, or a test score can be trusted.

Every function returns (estimate, low, high). Where there are too few values for an interval, low
and high are nan, which plots draw as nothing and tables must print as such.
"""

import math
from collections.abc import Sequence

import numpy as np

Interval = tuple[float, float, float]


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Mean over seeds with Student's t interval, n - 1 degrees of freedom.

    Raises:
        ValueError: without any value.
    """
    from scipy import stats  # Slow to import, and training itself never needs it.

    values = np.asarray(values, np.float64)
    if not values.size:
        raise ValueError("an interval needs at least one value")
    mean = float(values.mean())
    if values.size == 1:
        return mean, math.nan, math.nan
    quantile = stats.t.ppf(0.5 + confidence / 2, values.size - 1)
    half = float(quantile * values.std(ddof=1) / math.sqrt(values.size))
    return mean, mean - half, mean + half


def paired_difference(a: Sequence[float], b: Sequence[float], confidence: float = 0.95) -> Interval:
    """Mean of a - b with its t interval, where a[i] and b[i] share a seed and a sample.

    What the pair has in common cancels, so this is much sharper than comparing two intervals.

    Raises:
        ValueError: where the lengths differ, or there is no pair.
    """
    if len(a) != len(b):
        raise ValueError(f"pairs need equally many values, found {len(a)} and {len(b)}")
    return mean_interval(np.subtract(a, b), confidence)


def bootstrap_interval(
    values: Sequence[float], confidence: float = 0.95, *, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """Mean over test items with a percentile bootstrap interval (Efron 1979).

    Covers the choice of test items, which intervals over seeds leave out. For an accuracy give
    0 and 1 per item; for two models on the same items give the differences -1, 0, 1.

    Args:
        values: [n] one number per test item.
        confidence: probability mass of the interval.
        resamples: how many test sets are drawn.
        seed: of the drawing; the same arguments give the same interval.

    Raises:
        ValueError: without any value.
    """
    values = np.asarray(values, np.float64)
    if not values.size:
        raise ValueError("an interval needs at least one value")
    # How often each distinct value is drawn is multinomial: 0/1 items cost two draws, not n.
    distinct, counts = np.unique(values, return_counts=True)
    rng = np.random.default_rng(seed)
    means = np.empty(resamples)
    rows = max(1, 10_000_000 // distinct.size)  # Bounds the memory where most values differ.
    for start in range(0, resamples, rows):
        size = min(rows, resamples - start)
        drawn = rng.multinomial(values.size, counts / values.size, size=size)
        means[start : start + size] = drawn @ distinct / values.size
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(values.mean()), float(low), float(high)
