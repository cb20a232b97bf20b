"""How far a mean over seeds, or a difference of two models, can be trusted."""

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np


class Interval(NamedTuple):
    """A mean over ``n`` seeds with its interval; ``low`` and ``high`` are nan for one seed."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def verdict(self) -> str:
        """For a difference: on which side of zero the whole interval lies."""
        if self.n < 2:
            return "one seed"
        return "better" if self.low > 0 else "worse" if self.high < 0 else "undecided"


def interval(values: Iterable[float], confidence: float = 0.95) -> Interval:
    """Mean of at least one value with Student's t interval, n - 1 degrees of freedom."""
    from scipy import stats  # slow to import, and training itself never needs it

    values = np.asarray(list(values), np.float64)
    if not values.size:
        raise ValueError("an interval needs at least one value")
    mean = float(values.mean())
    if values.size == 1:
        return Interval(mean, math.nan, math.nan, 1)
    quantile = stats.t.ppf(0.5 + confidence / 2, values.size - 1)
    half = float(quantile * values.std(ddof=1) / math.sqrt(values.size))
    return Interval(mean, mean - half, mean + half, values.size)


def difference(a: Mapping[int, float], b: Mapping[int, float]) -> Interval | None:
    """Mean of ``a - b`` over the seeds that both have; None where they share none.

    What the runs of a seed have in common, such as the labelled sample, cancels: the interval is
    much sharper than two separate ones.
    """
    seeds = sorted(a.keys() & b.keys())
    return interval(a[s] - b[s] for s in seeds) if seeds else None
