"""Npz: arrays of users are returned unchanged, or refused with the reason."""

import numpy as np
import pytest

from mslice_jax import data
from mslice_jax.data import DataError


def arrays():
    """Colour images of three classes."""
    rng = np.random.default_rng(0)
    return {
        "x_train": rng.integers(0, 256, (30, 16, 8, 3)).astype(np.uint8),
        "y_train": np.arange(30) % 3,
        "x_test": rng.integers(0, 256, (7, 16, 8, 3)).astype(np.uint8),
        "y_test": np.arange(7) % 3,
    }


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_gives_back_the_arrays(tmp_path, save):
    save(tmp_path / "mine.npz", **arrays(), something_else=np.zeros(3))
    dataset = data.load("npz", tmp_path / "mine.npz")
    for key, array in arrays().items():
        np.testing.assert_array_equal(getattr(dataset, key), array)
    assert dataset.num_classes == 3
    pixels = arrays()["x_train"].astype(np.float64)
    assert dataset.mean == pytest.approx(pixels.mean(axis=(0, 1, 2)))
    assert dataset.std == pytest.approx(pixels.std(axis=(0, 1, 2)))
    assert (dataset.pad, dataset.flip) == (2, True)
    # A folder stands for its one file; a path may be a string.
    folder = data.load("npz", str(tmp_path), train_examples=5)
    assert len(folder.x_train) == 5


def test_npz_of_grey_floats(tmp_path):
    grey = arrays()
    grey["x_train"] = grey["x_train"][..., 0] / 255
    grey["x_test"] = grey["x_test"][..., 0] / 255
    grey["x_train"][:] = 0.5
    np.savez(tmp_path / "grey.npz", **grey)
    dataset = data.load("npz", tmp_path)
    assert dataset.image_shape == (16, 8, 1)
    assert dataset.x_train.dtype == dataset.x_test.dtype == np.float32
    assert not dataset.flip
    assert (dataset.mean, dataset.std) == ((0.5,), (1.0,))  # not divided by zero


def changed(**changes):
    """`arrays` with some of them replaced; None leaves one out."""
    merged = {**arrays(), **changes}
    return {key: value for key, value in merged.items() if value is not None}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (changed(y_test=None), "expected the arrays x_train.*; y_test missing"),
        (changed(x_train=np.zeros((30, 8), np.uint8)), r"x_train of shape .*\(30, 8\)"),
        (changed(x_test=np.zeros((0, 16, 8, 3), np.uint8)), "x_test .* none of them 0"),
        (changed(x_train=np.zeros((30, 16, 8, 3), int)), "x_train as uint8 .* int64"),
        (changed(x_test=np.zeros((7, 16, 8, 1), np.uint8)), r"one shape.*\(16, 8, 1\)"),
        (changed(x_test=np.zeros((7, 16, 8, 3))), "one kind.*uint8.*float32"),
        (changed(y_train=np.arange(29) % 3), "30 images and y_train 29 labels"),
        (changed(y_test=np.arange(8) % 3), "7 images and y_test 8 labels"),
        (changed(y_train=np.zeros((30, 1), int)), r"y_train as integers .*\(30, 1\)"),
        (changed(y_train=np.zeros((30, 1), int)), r"Drop the axis .*y_train\[:, 0\]"),
        (
            changed(y_test=np.eye(3)[np.arange(7) % 3]),
            r"One-hot .*numpy\.argmax\(y_test, axis=1\)",
        ),
        (changed(y_train=np.arange(30) % 3.0), r"y_train\.astype\(numpy\.int32\)"),
        (changed(y_train=np.array(["a"] * 30)), r"numpy\.unique\(y_train"),
        (
            changed(x_train=np.zeros((30, 3, 16, 8), np.uint8)),
            r"channels last.*numpy\.moveaxis\(x_train, 1, -1\)",
        ),
        (changed(y_train=np.arange(30) / 3), "y_train as integers .* float64"),
        (changed(y_train=np.arange(30) % 3 - 1), "y_train to count from 0; .* -1"),
        (changed(y_test=np.arange(7)), "below 3, .* y_test has 6"),
        (changed(y_train=np.arange(30) + 500), "number the classes .* has 529"),
        (changed(y_train=np.zeros(30, int)), "two classes"),
        (changed(y_train=np.array([{}] * 30)), "plain arrays.*make it again"),
    ],
)
def test_npz_of_another_form(tmp_path, content, message):
    np.savez(tmp_path / "mine.npz", **content)
    with pytest.raises(DataError, match=rf"mine\.npz.*{message}"):
        data.load("npz", tmp_path / "mine.npz")


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_npz_with_a_pixel_that_is_no_number(tmp_path, value):
    images = np.zeros((30, 16, 8, 3))
    images[12, 3, 3, 1] = value
    floats = changed(x_train=images, x_test=np.zeros((7, 16, 8, 3)))
    np.savez(tmp_path / "mine.npz", **floats)
    with pytest.raises(DataError, match="x_train without nan and infinity; image 12"):
        data.load("npz", tmp_path)


def test_npz_that_was_cut_short_or_changed(tmp_path):
    np.savez_compressed(tmp_path / "good.npz", **arrays())
    good = (tmp_path / "good.npz").read_bytes()
    middle = len(good) // 2
    for content in (
        b"",
        b"x_train,y_train\n0,1\n",
        good[:10],
        good[:middle],
        good[:-1],
        good[:middle] + bytes([good[middle] ^ 255]) + good[middle + 1 :],
    ):
        file = tmp_path / "bad.npz"
        file.write_bytes(content)
        with pytest.raises(DataError, match=r"bad\.npz cannot be read .*make it again"):
            data.load("npz", file)


def test_npz_that_holds_a_single_array(tmp_path):
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(DataError, match=r"one\.npy cannot be read .*numpy\.savez"):
        data.load("npz", tmp_path / "one.npy")


def test_npz_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match="--data-dir"):
        data.load("npz")
    with pytest.raises(DataError, match=r"no file .*none\.npz; make one"):
        data.load("npz", tmp_path / "none.npz")
    with pytest.raises(DataError, match="one npz file in the folder .* there are 0"):
        data.load("npz", tmp_path)
    for name in ("a.npz", "b.npz"):
        np.savez(tmp_path / name, **arrays())
    with pytest.raises(DataError, match=r"there are 2: a\.npz, b\.npz"):
        data.load("npz", tmp_path)


def test_npz_that_is_a_folder_of_tfds(tmp_path):
    (tmp_path / "dataset_info.json").write_text("{}")
    with pytest.raises(DataError, match="is a data set of TFDS.*--dataset imagenet"):
        data.load("npz", tmp_path)


def test_images_of_few_pixels_are_no_channels(tmp_path):
    # Three pixels high and four wide: the last axis may be the channels.
    images = np.zeros((30, 3, 4, 4), np.uint8)
    np.savez(tmp_path / "mine.npz", **changed(x_train=images, x_test=images[:7]))
    assert data.load("npz", tmp_path).image_shape == (3, 4, 4)
