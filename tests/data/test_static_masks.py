"""Masks that come again after so many epochs."""

import jax
import numpy as np

from pretrain.data import order
from pretrain.data.loader import Columns, eval_batches, train_batches
from pretrain.data.static_masks import StaticMasks
from tests import tiny

ROWS, DUPLICATES = 12, 3
DATA = StaticMasks(Columns(tiny.lm_batch(ROWS)), DUPLICATES)
CORRUPT = jax.jit(tiny.mlm().corrupt)


def epochs(count: int, batch_size: int, seed: int = 0) -> list[dict[int, bytes]]:
    """By epoch, what each row looks like to the model, by index; batches reach over epochs."""
    found: list[dict[int, bytes]] = [{} for _ in range(count)]
    steps = count * ROWS // batch_size
    batches = train_batches(DATA, batch_size=batch_size, seed=seed, start_step=0, num_steps=steps)
    for step, batch in enumerate(batches):
        seen = jax.device_get(CORRUPT(batch, jax.random.key(step)))["tokens"]
        indices = order.batch_indices(step, batch_size, ROWS, seed)
        for place, (index, row) in enumerate(zip(indices.tolist(), seen, strict=True)):
            found[(step * batch_size + place) // ROWS][index] = row.tobytes()
    return found


def test_masks_repeat_with_the_period_and_only_then():
    found = epochs(2 * DUPLICATES, batch_size=8)
    assert all(len(epoch) == ROWS for epoch in found)
    for epoch in range(DUPLICATES):
        assert found[epoch] == found[epoch + DUPLICATES]
    for index in range(ROWS):
        assert len({epoch[index] for epoch in found}) == DUPLICATES


def test_masks_depend_on_the_seed_and_not_on_the_size_of_batches():
    found = epochs(2 * DUPLICATES, batch_size=8)
    assert epochs(2 * DUPLICATES, batch_size=4) == found
    other = epochs(2 * DUPLICATES, batch_size=8, seed=1)
    assert all(other[e][i] != found[e][i] for e in range(DUPLICATES) for i in range(ROWS))


def test_a_dataset_that_is_made_anew_repeats_as_well():
    class Counting(Columns):
        def prepare(self, indices, epochs, seed):
            return self[indices] | {"epoch": epochs + 100 * seed}

    data = StaticMasks(Counting(tiny.lm_batch(ROWS)), DUPLICATES)
    batch = data.prepare(np.arange(4), np.array([0, 2, 3, 7]), seed=1)
    assert batch["epoch"].tolist() == [100, 102, 100, 101]


def test_rows_that_are_indexed_have_seeds_too():
    """As the whole training set at once has."""
    (batch,) = eval_batches(DATA, ROWS)
    assert batch["mask_seeds"].dtype == np.uint32 and len(set(batch["mask_seeds"].tolist())) == ROWS
