"""Batches for training and evaluation, prepared ahead of the device by Grain.

A dataset is anything with ``__len__()`` and ``__getitem__(indices)`` that returns a dict of arrays
with leading axis ``len(indices)``: the token store and `Columns` are two.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

import grain
import numpy as np

from pretrain.data import order
from pretrain.errors import UserError

Batch = dict[str, np.ndarray]

# Rows come from memory or the page cache: one thread keeps ahead of any training step.
_READ_OPTIONS = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)


class Dataset(Protocol):
    """Random access to rows.

    One whose examples are made anew in every epoch also has ``prepare(indices, epochs, seed)``,
    which training calls in place of indexing: a pure function of these, row by row
    (`pretrain.data.order.example_keys`). One whose ``stream`` is true has rows each of which
    continues the one before it.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, indices: np.ndarray) -> Batch: ...


class Columns:
    """An in-memory dataset: named arrays of equal length."""

    def __init__(self, columns: Mapping[str, np.ndarray]):
        self.columns = dict(columns)
        lengths = {name: len(column) for name, column in self.columns.items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"columns must be one or more arrays of equal length, got {lengths}")
        self._length = next(iter(lengths.values()))

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, indices: np.ndarray) -> Batch:
        return {name: column[indices] for name, column in self.columns.items()}


def train_batches(
    dataset: Dataset,
    *,
    batch_size: int,
    seed: int,
    start_step: int,
    num_steps: int,
    rows: np.ndarray | None = None,
) -> Iterator[Batch]:
    """Batches of steps `start_step` ... `num_steps` - 1, in the order of `order.batch_indices`.

    Of a stream in that of `order.stream_indices`.
    Batch `step` depends on (seed, step) alone, so that resuming is only a larger `start_step`.
    `batch_size` counts rows over all processes; `rows` are those of every batch that this one
    reads, by default all.
    """
    share = _share("train.batch_size", batch_size, rows)
    in_order = order.stream_indices if is_stream(dataset) else order.batch_indices

    def make_batch(step: int) -> Batch:
        indices = in_order(step, batch_size, len(dataset), seed)[share]
        if not hasattr(dataset, "prepare"):
            return dataset[indices]
        epochs = order.batch_epochs(step, batch_size, len(dataset))[share]
        return dataset.prepare(indices, epochs, seed)

    return _prefetched(make_batch, start_step, num_steps)


def eval_batches(
    dataset: Dataset, batch_size: int, *, rows: np.ndarray | None = None
) -> Iterator[Batch]:
    """Every row once, in order, in batches of one shape, with ``weights [n, ...]`` float32.

    The last batch is filled up with copies of row 0 that weigh 0; other rows keep the weight
    that the dataset gives them, or 1. `rows` as of `train_batches`.

    Of a stream each row of a batch continues that of the batch before; rows at its end are copies.
    """
    share = _share("evals.batch_size", batch_size, rows)

    def make_batch(step: int) -> Batch:
        if is_stream(dataset):
            indices = (step + num_steps * np.arange(batch_size))[share]
        else:
            indices = np.arange(step * batch_size, (step + 1) * batch_size)[share]
        real = indices < len(dataset)
        batch = dataset[np.where(real, indices, 0)]
        weights = batch.get("weights", np.ones(len(indices), np.float32))
        real = real.reshape(-1, *[1] * (weights.ndim - 1))
        return {**batch, "weights": np.where(real, weights, 0).astype(np.float32)}

    num_steps = -(-len(dataset) // batch_size)
    return _prefetched(make_batch, 0, num_steps)


def is_stream(dataset: Dataset) -> bool:
    """Whether each row continues the one before it."""
    return getattr(dataset, "stream", False)


def _share(key: str, batch_size: int, rows: np.ndarray | None) -> slice | np.ndarray:
    if batch_size < 1:
        raise UserError(f"{key}: found {batch_size} rows, expected at least 1")
    return slice(None) if rows is None else rows


class _Batches:
    """Whole batches as the elements of a Grain source: element `step` is batch `step`."""

    def __init__(self, make_batch: Callable[[int], Batch], num_steps: int):
        self._make_batch = make_batch
        self._num_steps = num_steps

    def __len__(self) -> int:
        return self._num_steps

    def __getitem__(self, step: int) -> Batch:
        return self._make_batch(step)


def _prefetched(make_batch: Callable[[int], Batch], start: int, stop: int) -> Iterator[Batch]:
    if start >= stop:
        return iter(())
    batches = grain.MapDataset.source(_Batches(make_batch, stop)).slice(slice(start, stop))
    return iter(batches.to_iter_dataset(_READ_OPTIONS))
