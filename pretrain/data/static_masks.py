"""Rows whose masks repeat: BERT's data was masked once for ten passes (Devlin et al. 2019)."""

from typing import Any

import numpy as np

from pretrain.data import order
from pretrain.data.loader import Batch, Dataset


class StaticMasks:
    """A dataset that is the same every ``duplicates`` epochs, masks and all.

    Adds ``mask_seeds [n]`` uint32, from which `pretrain.objectives.mlm` draws a row's mask: a
    function of the run's seed, the row's index, and the epoch modulo ``duplicates``.
    """

    def __init__(self, rows: Dataset, duplicates: int):
        self.rows, self._duplicates = rows, duplicates

    @property
    def stats(self) -> Any:
        return self.rows.stats

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, indices: np.ndarray) -> Batch:
        return self.rows[indices] | _seeds(0, indices, np.zeros_like(indices))

    def prepare(self, indices: np.ndarray, epochs: np.ndarray, seed: int) -> Batch:
        """Rows ``indices``, each as of its epoch."""
        epochs = epochs % self._duplicates
        if hasattr(self.rows, "prepare"):
            rows = self.rows.prepare(indices, epochs, seed)
        else:
            rows = self.rows[indices]
        return rows | _seeds(seed, indices, epochs)


def _seeds(seed: int, indices: np.ndarray, epochs: np.ndarray) -> Batch:
    keys = order.example_keys(seed, indices, epochs)
    return {"mask_seeds": (keys >> np.uint64(32)).astype(np.uint32)}
