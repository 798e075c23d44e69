"""A folder of class folders: labels, what is held out, files that cannot be read."""

import itertools
import pickle
import re

import numpy as np
import pytest
from PIL import Image

from experiments import inputs
from experiments.settings import ImageSettings
from mslice_jax import data
from mslice_jax.data import DataError

COLOURS = {"blue": (0, 0, 240), "green": (0, 240, 0), "red": (240, 0, 0)}


def write(folder, counts, suffix="jpg"):
    """Images of 9 x 12 pixels by class, each of its class's colour."""
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            image = Image.new("RGB", (12, 9), COLOURS[name])
            image.save(folder / name / f"{number}.{suffix}")


def labels_of(images):
    """The number of each image's class, by its colour: blue 0, green 1, red 2."""
    return 2 - images.reshape(len(images), -1, 3).mean(axis=1).argmax(axis=1)


def names_of(files):
    return {files.names[number].decode() for number in range(len(files))}


@pytest.fixture(scope="module")
def divided(tmp_path_factory):
    """train and val, with images deeper down, and files that are none."""
    folder = tmp_path_factory.mktemp("divided")
    write(folder / "train", {"red": 6, "blue": 5, "green": 4})
    write(folder / "train" / "red" / "more", {"red": 2}, "PNG")
    write(folder / "val", {"red": 3, "blue": 2, "green": 1})
    (folder / "train" / "red" / "notes.txt").write_text("no image")
    (folder / "train" / "red" / "._0.jpg").write_text("no image")
    (folder / "train" / ".cache").mkdir()
    (folder / "README.md").write_text("no image")
    return folder


def test_every_image_arrives_with_its_label(divided):
    dataset = data.read_folder(divided, image_size=8)
    assert repr(dataset) == (
        "ImageDataset(folder: 17 training and 6 test images, given as 8 x 8 x 3 "
        "uint8, 3 classes)"
    )
    epoch = list(itertools.islice(dataset.train_batches(17, seed=0), 1))
    for images, labels in epoch:
        np.testing.assert_array_equal(labels, labels_of(images))
        assert np.bincount(labels).tolist() == [5, 4, 8]  # in the order of the names
    parts = list(dataset.eval_batches(4))
    kept = [labels[weights == 1] for _, labels, weights in parts]
    assert np.bincount(np.concatenate(kept)).tolist() == [2, 1, 3]
    for images, labels, weights in parts:
        shown = labels_of(images)[weights == 1]
        np.testing.assert_array_equal(labels[weights == 1], shown)


def test_a_part_of_the_images(divided):
    few = data.read_folder(divided, train_examples=9, seed=1)
    more = data.read_folder(divided, train_examples=12, seed=1)
    assert (len(few.train), len(few.test)) == (9, 6)
    assert names_of(few.train) < names_of(more.train)
    with pytest.raises(DataError, match="between 1 and the 17 .* got 18"):
        data.read_folder(divided, train_examples=18)
    flags = ImageSettings(dataset="folder", data_dir=divided, max_test_examples=4)
    found = inputs.load(flags)
    assert (found.image_size, len(found.test)) == (224, 4)
    assert names_of(found.test) < names_of(more.test)


def test_a_source_survives_the_way_to_a_worker(divided):
    source = data.read_folder(divided).train
    again = pickle.loads(pickle.dumps(source))
    assert again.__getitems__([3, 11]) == source.__getitems__([3, 11])


def test_a_tenth_is_held_out_by_name(tmp_path):
    write(tmp_path, {"red": 100, "blue": 100})
    before = data.read_folder(tmp_path)
    held_out, trained = names_of(before.test), names_of(before.train)
    everything = {f"{name}/{n}.jpg" for name in ("red", "blue") for n in range(100)}
    assert held_out | trained == everything
    assert not held_out & trained
    assert 10 <= len(held_out) <= 30  # 20 expected, of deviation 4.2
    write(tmp_path, {"green": 30})
    after = data.read_folder(tmp_path, train_examples=5, seed=3)
    assert {n for n in names_of(after.test) if "green" not in n} == held_out


@pytest.fixture
def many(tmp_path):
    """200 images, of which one in a hundred may be broken."""
    write(tmp_path / "train", {"red": 60, "blue": 100})
    write(tmp_path / "val", {"red": 20, "blue": 20})
    return tmp_path


def cut(file):
    file.write_bytes(file.read_bytes()[:-80])


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (cut, "OSError"),
        (lambda file: file.write_bytes(b""), "empty"),
        (lambda file: file.write_text("<html>"), "UnidentifiedImageError"),
        (lambda file: (file.unlink(), file.symlink_to("gone")), "No such file"),
    ],
)
def test_files_that_cannot_be_read_are_skipped_and_counted(many, damage, reason):
    damage(many / "train" / "red" / "7.jpg")
    dataset = data.read_folder(many, image_size=8)
    assert (len(dataset.train), len(dataset.test)) == (159, 40)
    assert "train/red/7.jpg" not in names_of(dataset.train)
    said = rf"; skipped 1 file that cannot be read: train/red/7.jpg \({reason}"
    assert re.search(said, repr(dataset)), repr(dataset)
    images, labels = next(dataset.train_batches(159, seed=0))
    assert np.bincount(labels).tolist() == [100, 59]
    np.testing.assert_array_equal(labels, labels_of(images) // 2)


def test_more_than_one_in_a_hundred_is_an_error(many):
    (many / "val" / "red" / "3.jpg").write_bytes(b"")
    (many / "val" / "red" / "4.jpg").write_bytes(b"")
    found = repr(data.read_folder(many))  # 2 of 200 are not above 1 %
    assert "skipped 2 files that cannot be read, such as val/red/3.jpg (empty)" in found
    (many / "train" / "blue" / "5.jpg").write_bytes(b"")
    message = r"3 of the 200 images in .* cannot be read: train/blue/5.jpg \(empty\), "
    with pytest.raises(DataError, match=message):
        data.read_folder(many)


def empty(folder):
    (folder / "train" / "yellow").mkdir()
    (folder / "val" / "yellow").mkdir()


def differ(folder):
    write(folder / "train", {"green": 1})
    (folder / "val" / "pink").mkdir()


def without_val(folder):
    (folder / "val").rename(folder / "spare")


def one_class(folder):
    (folder / "val" / "red").rename(folder / "red")


def no_classes(folder):
    for file in (folder / "train").rglob("*.jpg"):
        file.rename(folder / "train" / f"{file.parent.name}{file.name}")
    for name in ("red", "blue"):
        (folder / "train" / name).rmdir()


def no_images(folder):
    for file in folder.rglob("*.jpg"):
        file.rename(file.with_suffix(".jpg_"))


def too_few(folder):
    (folder / "train").rename(folder / "red_and_blue")
    (folder / "val").rename(folder / "spare")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (empty, r"these classes have no images \(.jpg, .*: .*/train/yellow, .*/val/ye"),
        (differ, "same class folders in .*; val lacks green; train lacks pink"),
        (without_val, "a folder train, and none with held-out images. Name it val; or"),
        (one_class, "two classes or more in .*/val .*; there is blue alone"),
        (no_classes, "two classes or more in .*/train .*IMAGE.jpg.*; there is no fold"),
        (no_images, "no class has images .*/train/blue, .* and 1 more. Fill"),
        (too_few, "too few images to hold out a tenth by their names: none is"),
    ],
)
def test_a_folder_of_another_form(tmp_path, change, message):
    write(tmp_path / "train", {"red": 2, "blue": 1})
    write(tmp_path / "val", {"red": 1, "blue": 1})
    change(tmp_path)
    with pytest.raises(DataError, match=message):
        data.read_folder(tmp_path)


def test_what_is_no_folder(tmp_path):
    with pytest.raises(DataError, match="class folders as --data-dir, .* got none"):
        data.read_folder(None)
    with pytest.raises(DataError, match="nowhere is not there"):
        data.read_folder(tmp_path / "nowhere")
    (tmp_path / "x.zip").write_bytes(b"")
    with pytest.raises(DataError, match="x.zip is a file"):
        data.read_folder(tmp_path / "x.zip")


def test_a_class_of_which_no_image_can_be_read(many):
    write(many / "train", {"green": 1})
    write(many / "val", {"green": 1})
    cut(many / "val" / "green" / "0.jpg")
    with pytest.raises(DataError, match=r"no image can be read of .*/val/green\."):
        data.read_folder(many)
