"""The one hash behind data order, slices and hashed features: fixed on every machine."""

import numpy as np

_MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio: SplitMix64 steps its state by it


def mix(x: int | np.ndarray) -> int | np.ndarray:
    """The finaliser of SplitMix64 (Steele et al. 2014): mixes all 64 bits, merges no two values.

    Takes and returns an integer in [0, 2^64), or an array of uint64.
    """
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & _MASK
    return x ^ (x >> 31)
