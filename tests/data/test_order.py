"""The order of examples: permutations, and uniform ones as far as counting can tell."""

import numpy as np
import pytest

from pretrain.data import order

SIZES = [1, 2, 3, 5, 10, 1000, 1024, 1025, 4097]


@pytest.mark.parametrize("size", SIZES)
def test_permute_is_a_bijection(size):
    for seed, epoch in ((0, 0), (0, 1), (123456789, 7)):
        image = order.permute(np.arange(size), size, seed, epoch)
        assert image.dtype == np.int64
        np.testing.assert_array_equal(np.sort(image), np.arange(size))


def test_permute_is_elementwise():
    """The image of a position does not depend on what else is asked for."""
    whole = order.permute(np.arange(1000), 1000, 3, 2)
    some = np.array([999, 0, 17, 500])
    np.testing.assert_array_equal(order.permute(some, 1000, 3, 2), whole[some])


def test_huge_number_of_examples():
    positions = np.arange(10**12 - 500, 10**12)
    image = order.permute(positions, 10**12, 0, 0)
    assert len(set(image.tolist())) == 500
    assert (image.min() >= 0) and (image.max() < 10**12)
    assert abs(image.mean() / 10**12 - 0.5) < 0.07  # standard error 0.013


def test_epochs_and_seeds_differ():
    orders = {
        tuple(order.permute(np.arange(100), 100, seed, epoch))
        for seed in range(10)
        for epoch in range(10)
    }
    assert len(orders) == 100


def test_values_are_uniform_over_positions():
    """Chi-square of the table position x value over epochs: (n - 1)^2 degrees of freedom."""
    size, epochs = 11, 1000
    images = np.stack([order.permute(np.arange(size), size, 0, e) for e in range(epochs)])
    table = np.zeros((size, size))
    np.add.at(table, (np.tile(np.arange(size), epochs), images.ravel()), 1)
    expected = epochs / size
    statistic = ((table - expected) ** 2 / expected).sum() * (size - 1) / size
    freedom = (size - 1) ** 2
    assert abs(statistic - freedom) < 5 * np.sqrt(2 * freedom)


def test_neighbours_are_independent():
    """The step between the values of neighbouring positions: all non-zero ones equally often."""
    size, epochs = 13, 1000
    images = np.stack([order.permute(np.arange(size), size, 1, e) for e in range(epochs)])
    steps = np.diff(images, axis=1) % size
    counts = np.bincount(steps.ravel(), minlength=size)
    assert counts[0] == 0
    expected = epochs  # each of the size - 1 pairs of neighbours has one of size - 1 steps
    statistic = ((counts[1:] - expected) ** 2 / expected).sum()
    assert abs(statistic - (size - 2)) < 5 * np.sqrt(2 * (size - 2))


def test_all_permutations_of_three_occur_equally():
    orders = [tuple(order.permute(np.arange(3), 3, 0, e)) for e in range(1200)]
    _, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(counts) == 6
    assert ((counts - 200) ** 2 / 200).sum() < 25  # 5 degrees of freedom: p = 1.4e-4


@pytest.mark.parametrize("size, batch_size", [(10, 4), (7, 7), (5, 12), (1, 3), (1000, 32)])
def test_each_example_once_an_epoch(size, batch_size):
    num_epochs = 3
    steps = -(-num_epochs * size // batch_size)
    batches = [order.batch_indices(step, batch_size, size, seed=5) for step in range(steps)]
    assert {(batch.dtype, batch.shape) for batch in batches} == {
        (np.dtype(np.int64), (batch_size,))
    }
    stream = np.concatenate(batches)[: num_epochs * size].reshape(num_epochs, size)
    np.testing.assert_array_equal(np.sort(stream, axis=1), np.tile(np.arange(size), (3, 1)))


def test_steps_do_not_depend_on_history():
    forwards = [order.batch_indices(step, 4, 10, 0) for step in range(20)]
    for step in reversed(range(20)):
        np.testing.assert_array_equal(order.batch_indices(step, 4, 10, 0), forwards[step])


def test_far_steps():
    """Step times batch size beyond 2^63 stays exact, as the epoch is an integer of any size."""
    indices = order.batch_indices(2**62, 1024, 1000, 0)
    epoch, start = divmod(2**72, 1000)
    np.testing.assert_array_equal(
        indices[: 1000 - start], order.permute(np.arange(start, 1000), 1000, 0, epoch)
    )


def test_order_is_pinned():
    """A change here changes the data order of every run that is to be resumed or repeated."""
    np.testing.assert_array_equal(order.batch_indices(0, 10, 10, 0), [9, 7, 3, 5, 2, 6, 8, 4, 0, 1])


@pytest.mark.parametrize("batch_size, size", [(4, 10), (10, 4), (7, 7), (1, 3)])
def test_epochs_are_those_of_the_examples(batch_size, size):
    """Example number n of all is of epoch n // size; huge steps do not overflow."""
    found = np.concatenate([order.batch_epochs(step, batch_size, size) for step in range(20)])
    np.testing.assert_array_equal(found, np.arange(20 * batch_size) // size)
    assert order.batch_epochs(2**50, batch_size, size)[0] == 2**50 * batch_size // size


def test_examples_have_keys_of_their_own():
    indices, epochs = (x.ravel() for x in np.meshgrid(np.arange(200), np.arange(20)))
    keys = np.concatenate([order.example_keys(seed, indices, epochs) for seed in (0, 1, 2**63)])
    assert keys.dtype == np.uint64 and len(set(keys.tolist())) == len(keys)
    assert order.example_keys(1, indices[5:6], epochs[5:6])[0] == keys[len(indices) + 5]
