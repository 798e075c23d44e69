"""Digits: the images, their split, and parts of it."""

import sys

import numpy as np
import pytest

from mslice_jax import data
from mslice_jax.data import DataError

# Images of each digit, from the description of the data set.
DIGITS = (178, 182, 177, 183, 181, 182, 181, 179, 174, 180)


def pixel_rows(images):
    """Images as sorted rows, to compare sets of images without their order."""
    rows = images.reshape(len(images), -1)
    return rows[np.lexsort(rows.T)]


def test_the_split_of_digits_is_fixed():
    dataset = data.load("digits")
    assert dataset.image_shape == (8, 8, 1)
    assert dataset.num_classes == 10
    assert (dataset.x_train.dtype, dataset.y_train.dtype) == (np.uint8, np.int32)
    # Every fifth of each class is a test image.
    fifths = [count // 5 for count in DIGITS]
    assert np.bincount(dataset.y_test).tolist() == fifths
    rest = [count - fifth for count, fifth in zip(DIGITS, fifths, strict=True)]
    assert np.bincount(dataset.y_train).tolist() == rest
    # Together they are the original, without duplicates.
    from sklearn.datasets import load_digits

    both = np.concatenate([dataset.x_train, dataset.x_test])
    np.testing.assert_array_equal(pixel_rows(both), pixel_rows(load_digits().images))
    # The first image of the original is a 0, its fifth 0 the first test image.
    zeros = load_digits().images[load_digits().target == 0]
    np.testing.assert_array_equal(dataset.x_train[0, ..., 0], zeros[0])
    tests = dataset.x_test[dataset.y_test == 0, ..., 0]
    np.testing.assert_array_equal(tests[0], zeros[4])

    other = data.load("digits", seed=9)
    np.testing.assert_array_equal(other.x_test, dataset.x_test)
    np.testing.assert_array_equal(other.x_train, dataset.x_train)


def test_digits_are_never_mirrored():
    dataset = data.load("digits")
    assert (dataset.pad, dataset.flip) == (1, False)


def test_statistics_are_those_of_the_training_pixels():
    dataset = data.load("digits")
    pixels = dataset.x_train.astype(np.float64)
    assert dataset.mean == pytest.approx([pixels.mean()])
    assert dataset.std == pytest.approx([pixels.std()])
    # Fewer examples are normalized alike, so that their networks can be compared.
    fewer = data.load("digits", train_examples=20)
    assert (fewer.mean, fewer.std) == (dataset.mean, dataset.std)


def test_more_train_examples_contain_the_fewer():
    whole = data.load("digits")
    few, more = (data.load("digits", train_examples=n, seed=4) for n in (100, 300))
    assert (len(few.x_train), len(few.y_train)) == (100, 100)
    assert len(few.x_test) == len(whole.x_test)
    labelled = [
        {(x.tobytes(), int(y)) for x, y in zip(d.x_train, d.y_train, strict=True)}
        for d in (few, more, whole)
    ]
    assert labelled[0] < labelled[1] < labelled[2]
    again = data.load("digits", train_examples=100, seed=4)
    np.testing.assert_array_equal(again.x_train, few.x_train)
    other = data.load("digits", train_examples=100, seed=5)
    assert not np.array_equal(other.x_train, few.x_train)
    everything = data.load("digits", train_examples=len(whole.x_train))
    np.testing.assert_array_equal(everything.x_train, whole.x_train)


@pytest.mark.parametrize("count", [0, -1, 1443])
def test_bad_numbers_of_examples(count):
    with pytest.raises(DataError, match=f"between 1 and the 1442 .* got {count}"):
        data.load("digits", train_examples=count)


def test_digits_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(DataError, match=r"pip install .mslice_jax\[experiments\]"):
        data.load("digits")


def test_unknown_name():
    with pytest.raises(DataError, match="'mnist'.* digits, cifar10, cifar100, npz"):
        data.load("mnist")
