"""The order of training examples: a pure function of (seed, step).

Epoch `e` visits every example once, in the order of a pseudo-random permutation keyed by
(seed, e). The permutation is a Feistel network on pairs of numbers, brought to exactly
`num_examples` values by cycle walking (Black and Rogaway, "Ciphers with arbitrary finite domains",
2002): any element is computed on its own, so that nothing is shuffled, stored or restored.
"""

import functools
import hashlib
import math

import numpy as np

from pretrain.data.hashing import GOLDEN, mix

_NUM_ROUNDS = 8


def batch_indices(step: int, batch_size: int, num_examples: int, seed: int) -> np.ndarray:
    """Indices of the examples of batch `step`: int64 ``[batch_size]``.

    Batches run on across epochs: one that does not divide `num_examples` takes its rest from the
    next epoch's permutation.
    """
    if num_examples < 1:
        raise ValueError(f"num_examples is {num_examples}; expected at least 1")
    # Python integers first: the epoch and the place in it cannot overflow.
    epoch, start = divmod(step * batch_size, num_examples)
    parts = []
    while batch_size > 0:
        stop = min(start + batch_size, num_examples)
        parts.append(permute(np.arange(start, stop), num_examples, seed, epoch))
        batch_size -= stop - start
        epoch, start = epoch + 1, 0
    return np.concatenate(parts)


def batch_epochs(step: int, batch_size: int, num_examples: int) -> np.ndarray:
    """Epoch of each example of batch `step`: int64 ``[batch_size]``."""
    epoch, start = divmod(step * batch_size, num_examples)
    return epoch + (start + np.arange(batch_size)) // num_examples


def example_keys(seed: int, indices: np.ndarray, epochs: np.ndarray) -> np.ndarray:
    """What to draw an example's random choices from: uint64, one for each (seed, index, epoch)."""
    epoch_keys = mix(epochs.astype(np.uint64) + np.uint64(mix(seed + GOLDEN & 2**64 - 1)))
    return mix(epoch_keys + indices.astype(np.uint64))


def stream_indices(step: int, batch_size: int, num_examples: int, seed: int) -> np.ndarray:
    """Examples of batch `step` where row `r` continues row `r` of the batch before: int64.

    The examples are a ring. Rows begin evenly spaced on it, from a place that the seed chooses, and
    each goes round: `num_examples / batch_size` steps see every example about once.
    """
    starts = np.arange(batch_size) * num_examples // batch_size
    return (starts + int(permute(np.zeros(1), num_examples, seed, 0)[0]) + step) % num_examples


def permute(positions: np.ndarray, num_examples: int, seed: int, epoch: int) -> np.ndarray:
    """Images of `positions` (in ``[0, num_examples)``) under the permutation of (seed, epoch)."""
    # The network permutes pairs (left, right) of [0, columns) x [0, rows), slightly more than n.
    columns = math.isqrt(num_examples - 1) + 1
    rows = -(-num_examples // columns)
    keys = _round_keys(seed, epoch)
    indices = _feistel(positions.astype(np.uint64), columns, rows, keys)
    # Walking the cycle on to the next value inside keeps the map one-to-one.
    while (outside := indices >= num_examples).any():
        indices[outside] = _feistel(indices[outside], columns, rows, keys)
    return indices.astype(np.int64)


def _feistel(values: np.ndarray, columns: int, rows: int, keys: np.ndarray) -> np.ndarray:
    left, right = values % columns, values // columns
    for key in keys:
        left, right = right, (left + (mix(right + key) >> 1)) % columns  # halved: exact sums
        columns, rows = rows, columns
    return left + right * columns


@functools.lru_cache(maxsize=64)
def _round_keys(seed: int, epoch: int) -> np.ndarray:
    digest = hashlib.blake2b(f"{seed} {epoch}".encode(), digest_size=8 * _NUM_ROUNDS).digest()
    return np.frombuffer(digest, dtype="<u8").astype(np.uint64)
