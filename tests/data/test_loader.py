"""Batches against plain loops over the order and over the rows."""

import itertools

import numpy as np
import pytest

from pretrain.data import loader, order
from pretrain.data.loader import Columns
from pretrain.errors import UserError


def dataset(count: int, **extra: np.ndarray) -> Columns:
    rows = np.arange(count, dtype=np.int32)
    return Columns({"tokens": rows[:, None] * 10 + np.arange(3, dtype=np.int32), **extra})


def rows_of(batch: dict[str, np.ndarray]) -> list[int]:
    return (batch["tokens"][:, 0] // 10).tolist()


def test_columns():
    columns = Columns({"a": np.arange(5), "b": np.arange(10).reshape(5, 2)})
    assert len(columns) == 5
    batch = columns[np.array([4, 0, 4])]
    assert batch["a"].tolist() == [4, 0, 4]
    assert batch["b"].tolist() == [[8, 9], [0, 1], [8, 9]]
    with pytest.raises(ValueError, match="'a': 5, 'b': 4"):
        Columns({"a": np.arange(5), "b": np.arange(4)})
    with pytest.raises(ValueError):
        Columns({})


def test_train_batches_follow_the_order():
    batches = loader.train_batches(dataset(10), batch_size=4, seed=3, start_step=0, num_steps=8)
    found = [rows_of(batch) for batch in batches]
    assert found == [order.batch_indices(step, 4, 10, 3).tolist() for step in range(8)]
    assert sorted(itertools.chain(*found[:5])) == sorted(2 * list(range(10)))


def test_resuming_equals_continuing():
    options = {"batch_size": 6, "seed": 1, "num_steps": 50}
    whole = list(loader.train_batches(dataset(11), start_step=0, **options))
    rest = list(loader.train_batches(dataset(11), start_step=37, **options))
    assert (len(whole), len(rest)) == (50, 13)
    for a, b in zip(whole[37:], rest, strict=True):
        np.testing.assert_array_equal(a["tokens"], b["tokens"])
    assert list(loader.train_batches(dataset(11), start_step=50, **options)) == []


def test_endless_training_starts_at_once():
    batches = loader.train_batches(
        dataset(7), batch_size=2, seed=0, start_step=2**40 - 2, num_steps=2**40
    )
    assert [rows_of(batch) for batch in batches] == [
        order.batch_indices(step, 2, 7, 0).tolist() for step in (2**40 - 2, 2**40 - 1)
    ]


def test_processes_read_the_rows_that_they_hold():
    """Which need not follow each other, and may be those of others too."""
    options = {"batch_size": 8, "seed": 0, "start_step": 2, "num_steps": 9}
    whole = loader.train_batches(dataset(13), **options)
    held = [[0, 1, 4, 5], [2, 3, 6, 7], [6, 7]]
    shares = [loader.train_batches(dataset(13), rows=np.array(x), **options) for x in held]
    for batch, *parts in zip(whole, *shares, strict=True):
        rows = np.array(rows_of(batch))
        assert [rows_of(part) for part in parts] == [rows[x].tolist() for x in held]


@pytest.mark.parametrize("count, batch_size", [(10, 4), (8, 4), (3, 8), (1, 1)])
def test_eval_batches_see_each_row_once(count, batch_size):
    batches = list(loader.eval_batches(dataset(count), batch_size))
    seen = []
    for batch in batches:
        assert batch["tokens"].shape == (batch_size, 3)
        assert (batch["weights"].dtype, batch["weights"].shape) == (np.float32, (batch_size,))
        assert set(batch["weights"].tolist()) <= {0.0, 1.0}
        rows = np.array(rows_of(batch))
        seen += rows[batch["weights"] == 1].tolist()
        assert (rows[batch["weights"] == 0] == 0).all()
    assert seen == list(range(count))


def test_eval_batches_keep_the_rows_weights():
    weights = np.array([0.5, 0.25, 1.0], np.float32)
    (batch,) = loader.eval_batches(dataset(3, weights=weights), 5)
    assert batch["weights"].tolist() == [0.5, 0.25, 1.0, 0.0, 0.0]


def test_eval_shares_make_up_the_batch():
    whole = loader.eval_batches(dataset(10), 4)
    shares = [loader.eval_batches(dataset(10), 4, rows=np.array(x)) for x in ([0, 1], [2, 3])]
    for batch, *parts in zip(whole, *shares, strict=True):
        for name, column in batch.items():
            np.testing.assert_array_equal(column, np.concatenate([part[name] for part in parts]))


def test_batches_have_rows():
    """Refused by the call itself, before anything is read."""
    with pytest.raises(UserError, match=r"train\.batch_size: found 0 rows"):
        loader.train_batches(dataset(9), batch_size=0, seed=0, start_step=0, num_steps=1)
    with pytest.raises(UserError, match=r"evals\.batch_size: found 0 rows"):
        loader.eval_batches(dataset(9), 0)


def test_errors_of_the_dataset_reach_the_caller():
    class Broken(Columns):
        def __getitem__(self, indices):
            raise UserError("rows are gone")

    batches = loader.train_batches(
        Broken({"a": np.arange(3)}), batch_size=2, seed=0, start_step=0, num_steps=3
    )
    with pytest.raises(UserError, match="rows are gone"):
        next(batches)
