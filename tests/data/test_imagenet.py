"""ImageNet through TFDS, on a small set written in the real one's form."""

import importlib.util
import io
import itertools
import json
import pickle
import sys

import numpy as np
import pytest

from experiments import inputs
from experiments.recipe import Recipe, main
from experiments.settings import Defaults
from mslice_jax import data
from mslice_jax.data import DataError

TRAIN, TEST = 48, 12


def write(folder, *, name="imagenet2012", held_out="validation", image="image"):
    """60 JPEGs of many sizes, written by TFDS; the colour of each encodes its label."""
    import tensorflow_datasets as tfds
    from PIL import Image

    sizes = np.random.default_rng(0).integers(24, 80, (TRAIN + TEST, 2))

    class Small(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("5.1.0")
        # As in a script; for a module TFDS wants importlib_resources.
        __module__ = "__main__"

        def _info(self):
            features = {
                "file_name": tfds.features.Text(),
                image: tfds.features.Image(encoding_format="jpeg"),
                "label": tfds.features.ClassLabel(num_classes=6),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {
                "train": self._examples(0, TRAIN),
                held_out: self._examples(TRAIN, TRAIN + TEST),
            }

        def _examples(self, start, stop):
            for i in range(start, stop):
                # Encoded here: TFDS would use tensorflow for it.
                jpeg, (height, width) = io.BytesIO(), sizes[i]
                colour = (200 * (i % 2), 4 * i, 100 * (i % 3))
                Image.new("RGB", (int(width), int(height)), colour).save(
                    jpeg, "JPEG", quality=95, subsampling=0
                )
                jpeg.seek(0)
                yield i, {"file_name": f"{i}.JPEG", image: jpeg, "label": i % 6}

        def _generate_examples(self):
            raise NotImplementedError

    Small.name = name
    builder = Small(data_dir=folder, file_format="array_record")
    builder.download_and_prepare()
    return builder.data_path


@pytest.fixture(scope="module")
def tfds_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    write(folder)
    return folder


def numbers_of(images):
    """The numbers of these pictures of `write`, from their green."""
    return np.round(images[..., 1].mean(axis=(1, 2)) / 4).astype(int)


def test_every_image_arrives_with_its_label(tfds_folder):
    dataset = data.read_imagenet(tfds_folder, image_size=16)
    assert repr(dataset) == (
        "ImageDataset(imagenet: 48 training and 12 test images, given as 16 x 16 x 3 "
        "uint8, 6 classes)"
    )
    epoch = list(itertools.islice(dataset.train_batches(8, seed=0), 6))
    seen = np.concatenate([numbers_of(images) for images, _ in epoch])
    assert sorted(seen) == list(range(48))
    for images, labels in epoch:
        np.testing.assert_array_equal(labels, numbers_of(images) % 6)
        red = images[..., 0].mean(axis=(1, 2))
        np.testing.assert_allclose(red, 200 * (labels % 2), atol=3)
    parts = list(dataset.eval_batches(5))
    seen = np.concatenate([numbers_of(x)[w == 1] for x, _, w in parts])
    assert sorted(seen) == list(range(48, 60))
    for images, labels, weights in parts:
        np.testing.assert_array_equal(labels, weights * (numbers_of(images) % 6))
    if importlib.util.find_spec("tensorflow") is None:
        assert "tensorflow" not in sys.modules


def test_pixels_are_normalized_and_nothing_else(tfds_folder):
    import jax

    dataset = data.read_imagenet(tfds_folder, image_size=16)
    images, _ = next(dataset.train_batches(8, seed=0))
    expected = (images - np.array([123.675, 116.28, 103.53])) / [58.395, 57.12, 57.375]
    transform = data.train_transform(dataset)
    found = jax.jit(transform)(jax.random.key(0), images)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(data.eval_transform(dataset)(images), found, rtol=1e-5)


def test_part_of_the_training_examples(tfds_folder):
    few, more = (
        data.read_imagenet(tfds_folder, train_examples=n, seed=4, image_size=8)
        for n in (10, 20)
    )
    assert (len(few.train), len(few.test)) == (10, 12)
    found = []
    for dataset, count in ((few, 10), (more, 20)):
        images, labels = next(dataset.train_batches(count, seed=1))
        np.testing.assert_array_equal(labels, numbers_of(images) % 6)
        found.append(set(numbers_of(images).tolist()))
    assert len(found[0]) == 10
    assert found[0] < found[1]
    with pytest.raises(DataError, match="between 1 and the 48 .* got 49"):
        data.read_imagenet(tfds_folder, train_examples=49)


def test_an_error_names_an_image_of_a_part(tfds_folder, monkeypatch):
    few = data.read_imagenet(tfds_folder, train_examples=10, image_size=8)
    read = data.imagenet.Split.__getitems__

    def broken(self, numbers):
        return [{**record, "image": b""} for record in read(self, numbers)]

    monkeypatch.setattr(data.imagenet.Split, "__getitems__", broken)
    message = r"image \d \(\d+\.JPEG\) of 10 examples chosen of the split 'train'"
    with pytest.raises(DataError, match=message):
        next(few.train_batches(4, seed=0))


def test_a_pickled_source_is_little_more_than_a_name(tfds_folder):
    split = data.read_imagenet(tfds_folder).train
    before = split.__getitems__([3])
    sent = pickle.dumps(split)
    assert len(sent) < 1000
    assert pickle.loads(sent).__getitems__([3]) == before


def test_any_set_of_images_and_labels_by_its_folder(tmp_path):
    folder = write(tmp_path, name="my_flowers", held_out="test")
    dataset = data.read_imagenet(str(folder), image_size=8)
    assert (len(dataset.train), len(dataset.test)) == (48, 12)


def test_a_set_that_was_not_prepared(tmp_path):
    how = r"pip install .mslice_jax\[tf\]. && python -c .*imagenet2012.*array_record"
    with pytest.raises(DataError, match=rf"imagenet2012 is not prepared in .*{how}"):
        data.read_imagenet(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": "picture"}, "image and label; .* with file_name, label, picture"),
        ({"held_out": "spare"}, "train and validation .* there are train, spare"),
    ],
)
def test_a_set_of_another_form(tmp_path, changes, message):
    with pytest.raises(DataError, match=message):
        data.read_imagenet(write(tmp_path, **changes))


def test_a_set_in_the_format_that_needs_tensorflow(tmp_path):
    folder = write(tmp_path, name="other")
    description = folder / "dataset_info.json"
    text = description.read_text().replace("array_record", "tfrecord")
    description.write_text(text)
    with pytest.raises(DataError, match="as array_record, .*; it is tfrecord"):
        data.read_imagenet(folder)


def test_a_set_that_is_damaged(tmp_path):
    folder = write(tmp_path)
    (record,) = folder.glob("*validation.array_record*")
    record.write_bytes(record.read_bytes()[:200])
    dataset = data.read_imagenet(tmp_path, image_size=8)
    with pytest.raises(DataError, match="the split 'validation' in .* cannot be read"):
        next(dataset.eval_batches(4))
    (folder / "dataset_info.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read; a file may be damaged"):
        data.read_imagenet(folder)


def test_evaluation_counts_hits_without_padding(tfds_folder):
    import jax.numpy as jnp

    import mslice_jax as ms

    dataset = data.read_imagenet(tfds_folder, image_size=16)

    def bright_red(weights, images):
        """Class 0 without red, class 1 with red: right for those two classes."""
        red = images[..., 0].mean(axis=(1, 2))[:, None]
        red = (red @ weights["in"] @ weights["out"])[:, 0]
        return jnp.stack([-red, red, *([jnp.full_like(red, -9)] * 4)], axis=1)

    weights = {"in": jnp.ones((1, 8)), "out": jnp.ones((8, 1))}
    net = ms.upgrade(bright_red, weights, jnp.zeros((1, 8, 8, 3)), rates=(0.5, 1.0))
    for batch_size in (5, 12, 100):
        found = inputs.evaluation(dataset, batch_size=batch_size)(net)
        # Of the numbers 48 to 59, each of six classes twice.
        expected = {0.5: pytest.approx(2 / 6), 1.0: pytest.approx(2 / 6)}
        assert found.accuracy == expected


def test_norms_are_measured_on_training_images(tfds_folder):
    dataset = data.read_imagenet(tfds_folder, image_size=8)
    (batch,) = inputs.calibration_batches(dataset)
    assert batch.shape == (48, 8, 8, 3)
    pixels = np.asarray(batch) * [58.395, 57.12, 57.375] + [123.675, 116.28, 103.53]
    assert sorted(numbers_of(pixels)) == list(range(48))


def tiny(depth, widen, num_classes):
    from flax import linen as nn

    class Tiny(nn.Module):
        @nn.compact
        def __call__(self, x, *, train: bool = False):
            x = nn.relu(nn.Conv(8, (3, 3), strides=4)(x))
            return nn.Dense(num_classes)(x.mean(axis=(1, 2)))

    return Tiny()


RECIPE = Recipe(
    name="tiny",
    description="",
    model=tiny,
    digits=Defaults(depth=1),
    cifar=Defaults(depth=1, epochs=6, batch_size=8, lr=0.03),
)


def test_a_recipe_learns_from_it(tfds_folder, tmp_path, capsys):
    workdir = tmp_path / "work"
    args = ["--dataset", "imagenet", "--data-dir", str(tfds_folder), "--workers", "0"]
    args += ["--image-size", "16", "--rates", "0.5", "1.0", "--schedule", "static"]
    args += ["--workdir", str(workdir)]
    assert main(RECIPE, args) == 0, capsys.readouterr().err
    summary = json.loads((workdir / "summary.json").read_text())
    assert summary["dataset"] == "imagenet"
    # Six colours for six classes: a sixth is chance.
    assert summary["rates"]["1.0"]["accuracy"] > 0.5


def test_a_broken_image_ends_a_recipe_with_one_line(tmp_path, capsys, monkeypatch):
    folder = write(tmp_path)
    read = data.imagenet.Split.__getitems__

    def broken(self, numbers):
        records = [dict(record) for record in read(self, numbers)]
        for record in records:
            if record["file_name"] == b"31.JPEG":
                record["image"] = record["image"][:300]
        return records

    monkeypatch.setattr(data.imagenet.Split, "__getitems__", broken)
    args = ["--dataset", "imagenet", "--data-dir", str(folder), "--workers", "0"]
    args += ["--image-size", "16", "--rates", "1.0", "--schedule", "static"]
    capsys.readouterr()  # discard the output of TFDS
    code = main(RECIPE, [*args, "--workdir", str(tmp_path / "work")])
    error = capsys.readouterr().err
    assert code == 1
    assert error.count("\n") == 1
    assert "(31.JPEG) of the split 'train' in" in error
