"""CIFAR through TFDS, on a tiny set written in the real one's form."""

import functools
import importlib.util
import io
import sys

import numpy as np
import pytest

from mslice_jax import data
from mslice_jax.data import DataError

DAMAGED = "cifar10 in .* cannot be read.*download_and_prepare"


def cifar(count, shape=(32, 32, 3)):
    """Noise in the shape of CIFAR."""
    rng = np.random.default_rng(count)
    return rng.integers(0, 256, (count, *shape)).astype(np.uint8), np.arange(count) % 10


def prepare(folder, images, labels):
    """Write a tiny 'cifar10' as TFDS prepares the real one; needs no tensorflow."""
    import tensorflow_datasets as tfds
    from PIL import Image

    class Cifar10(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("3.0.2")
        name = "cifar10"
        # As in a script; for a module TFDS wants importlib_resources.
        __module__ = "__main__"

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(
                    {
                        "id": tfds.features.Text(),
                        "image": tfds.features.Image(shape=images.shape[1:]),
                        "label": tfds.features.ClassLabel(num_classes=10),
                    }
                ),
            )

        def _split_generators(self, dl_manager):
            return {"train": self._examples(0, 30), "test": self._examples(30, 40)}

        def _examples(self, start, stop):
            for i in range(start, stop):
                # Encoded here: TFDS would use tensorflow for it.
                png = io.BytesIO()
                Image.fromarray(images[i]).save(png, "PNG")
                png.seek(0)
                yield i, {"id": str(i), "image": png, "label": int(labels[i])}

        def _generate_examples(self):
            raise NotImplementedError

    builder = Cifar10(data_dir=folder, file_format="array_record")
    builder.download_and_prepare()
    return builder


def test_cifar_is_read_without_tensorflow(tmp_path):
    images, labels = cifar(40)
    prepare(tmp_path, images, labels)
    dataset = data.load("cifar10", tmp_path)
    assert repr(dataset).startswith("Dataset(cifar10: 30 training and 10 test images")
    assert (dataset.num_classes, dataset.pad, dataset.flip) == (10, 4, True)
    for x, y, start, stop in (
        (dataset.x_train, dataset.y_train, 0, 30),
        (dataset.x_test, dataset.y_test, 30, 40),
    ):
        # TFDS shuffles the examples when it writes; each image keeps its label.
        found = {image.tobytes(): int(label) for image, label in zip(x, y, strict=True)}
        made = zip(images[start:stop], labels[start:stop], strict=True)
        assert found == {image.tobytes(): int(label) for image, label in made}
    part = data.load("cifar10", tmp_path, train_examples=7, seed=1)
    assert (len(part.x_train), len(part.x_test)) == (7, 10)
    if importlib.util.find_spec("tensorflow") is None:
        assert "tensorflow" not in sys.modules


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_that_was_not_prepared(tmp_path, name):
    how = rf"pip install .mslice_jax\[tf\]. && python -c .*{name}.*array_record"
    with pytest.raises(DataError, match=rf"{name} is not prepared in .*{how}"):
        data.load(name, tmp_path)
    assert not list(tmp_path.rglob("*.*record*"))  # nothing was downloaded


def test_unprepared_cifar_is_one_error_without_logs(tmp_path, caplog, capfd):
    with pytest.raises(DataError, match="not prepared"):
        data.load("cifar10", tmp_path)
    assert caplog.records == []
    assert "WARNING" not in capfd.readouterr().err


@pytest.mark.parametrize(
    "read", [functools.partial(data.load, "cifar10"), data.read_imagenet]
)
def test_a_file_where_a_folder_of_tfds_should_be(tmp_path, read):
    file = tmp_path / "mine.npz"
    file.write_bytes(b"")
    with pytest.raises(DataError, match=r"is a file.*--dataset npz .*mine\.npz"):
        read(file)
    other = tmp_path / "mine.txt"
    other.write_bytes(b"")
    with pytest.raises(DataError, match="is a file. Give that folder as --data-dir"):
        read(other)


def test_cifar_that_is_damaged(tmp_path):
    builder = prepare(tmp_path, *cifar(40))
    (record,) = builder.data_path.glob("*test.array_record*")
    record.write_bytes(record.read_bytes()[:200])
    with pytest.raises(DataError, match=DAMAGED):
        data.load("cifar10", tmp_path)
    record.unlink()
    with pytest.raises(DataError, match=DAMAGED):
        data.load("cifar10", tmp_path)


def test_cifar_without_pillow(tmp_path, monkeypatch):
    prepare(tmp_path, *cifar(40))
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(DataError, match=r"pip install .mslice_jax\[experiments\]"):
        data.load("cifar10", tmp_path)


def test_cifar_of_another_shape(tmp_path):
    prepare(tmp_path, *cifar(40, (16, 16, 3)))
    with pytest.raises(DataError, match=r"\(32, 32, 3\) in uint8; got \(16, 16, 3\)"):
        data.load("cifar10", tmp_path)


def test_cifar_whose_description_is_damaged(tmp_path):
    description = prepare(tmp_path, *cifar(40)).data_path / "dataset_info.json"
    description.write_text(description.read_text()[:50])
    with pytest.raises(DataError, match=DAMAGED):
        data.load("cifar10", tmp_path)


def test_cifar_in_the_format_that_needs_tensorflow(tmp_path):
    description = prepare(tmp_path, *cifar(40)).data_path / "dataset_info.json"
    text = description.read_text().replace("array_record", "tfrecord")
    description.write_text(text)
    with pytest.raises(DataError, match="as array_record, .*; it is tfrecord"):
        data.load("cifar10", tmp_path)
