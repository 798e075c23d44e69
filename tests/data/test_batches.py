"""Batches: every example once an epoch; seed and step determine a batch."""

import itertools
import math

import numpy as np
import pytest

from mslice_jax.data import (
    DataError,
    epoch_order,
    eval_batches,
    steps_per_epoch,
    train_batch,
    train_batches,
)

X = np.arange(23, dtype=np.float32).reshape(23, 1, 1, 1)
Y = np.arange(23, dtype=np.int32) + 100


def labels_of(steps, seed=3, batch_size=4):
    return [train_batch(X, Y, batch_size, seed=seed, step=s)[1].tolist() for s in steps]


def test_an_epoch_goes_through_all_examples_once():
    for epoch in range(5):
        assert sorted(epoch_order(23, seed=1, epoch=epoch)) == list(range(23))
    # 23 examples are 5 batches of 4, and 3 are left over.
    assert steps_per_epoch(23, 4) == 5
    first, second = labels_of(range(5)), labels_of(range(5, 10))
    for epoch in (first, second):
        seen = list(itertools.chain(*epoch))
        assert len(seen) == len(set(seen)) == 20
    assert first != second
    # The examples left over change, so that all are used in the long run.
    assert set(itertools.chain(*labels_of(range(50)))) == set(Y.tolist())


def test_images_keep_their_labels():
    for step in range(12):
        images, labels = train_batch(X, Y, 4, seed=0, step=step)
        assert images.shape == (4, 1, 1, 1)
        np.testing.assert_array_equal(images.ravel() + 100, labels)


def test_a_batch_depends_on_seed_and_step_alone():
    in_order = labels_of(range(17))
    assert labels_of(reversed(range(17))) == in_order[::-1]
    assert labels_of(range(17), seed=4) != in_order
    resumed = train_batches(X, Y, 4, seed=3, start=9)
    assert [next(resumed)[1].tolist() for _ in range(8)] == in_order[9:]


def test_all_orders_are_equally_likely():
    # Each of the 24 orders of 4 examples; Hoeffding's bound for one in a million.
    count = 20_000
    seen = [tuple(epoch_order(4, seed=0, epoch=e).tolist()) for e in range(count)]
    for order in itertools.permutations(range(4)):
        often = seen.count(order) / count
        assert often == pytest.approx(1 / 24, abs=math.sqrt(math.log(2e6) / 2 / count))


def test_orders_of_examples_do_not_change():
    # If this changes, a run of an older version resumes with other examples: say so
    # in CHANGELOG.md, and only then write the new order here.
    order = epoch_order(8, seed=2**40, epoch=10**6)
    assert order.tolist() == [0, 3, 5, 6, 7, 2, 4, 1]


def test_a_shared_order_cannot_be_changed():
    with pytest.raises(ValueError, match="read-only"):
        epoch_order(8, seed=0, epoch=0)[0] = 1


@pytest.mark.parametrize("size", [0, -4, 24])
def test_a_batch_that_examples_cannot_fill(size):
    with pytest.raises(DataError, match=f"between 1 and the 23 .* got {size}"):
        train_batches(X, Y, size, seed=0)


@pytest.mark.parametrize("size", [1, 4, 23, 40])
def test_evaluation_sees_each_example_once_in_one_shape(size):
    batches = list(eval_batches(X, Y, size))
    for images, labels, weights in batches:
        assert images.shape == (size, 1, 1, 1)
        assert labels.shape == weights.shape == (size,)
        assert (images.dtype, labels.dtype) == (X.dtype, Y.dtype)
    images, labels, weights = (
        np.concatenate(arrays) for arrays in zip(*batches, strict=True)
    )
    assert weights.dtype == np.float32
    np.testing.assert_array_equal(weights, [1] * 23 + [0] * (len(weights) - 23))
    np.testing.assert_array_equal(images[:23], X)
    np.testing.assert_array_equal(labels[:23], Y)


def test_evaluation_in_batches_of_none():
    with pytest.raises(DataError, match="1 or more; got 0"):
        next(eval_batches(X, Y, 0))


def test_the_parts_of_the_hosts_are_the_batch():
    x, y = np.arange(20.0), np.arange(20)
    for step in (0, 3):
        whole = train_batch(x, y, 6, seed=1, step=step)
        parts = [
            train_batch(x, y, 6, seed=1, step=step, host=(number, 3))
            for number in range(3)
        ]
        for index in range(2):
            together = np.concatenate([part[index] for part in parts])
            np.testing.assert_array_equal(together, whole[index])
    with pytest.raises(DataError, match="4 hosts divide"):
        train_batch(x, y, 6, seed=1, step=0, host=(0, 4))
    with pytest.raises(DataError, match="4 hosts divide"):
        train_batches(x, y, 6, seed=1, host=(0, 4))  # before the first batch
