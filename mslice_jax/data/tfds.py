"""CIFAR-10 and CIFAR-100 through `tfds.data_source`: reading needs no tensorflow."""

import contextlib
import io
import logging
import pathlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from .dataset import DataError, Dataset, choose

# Mean and standard deviation of the training pixels, 0..255, and the classes.
_KNOWN = {
    "cifar10": ((125.3, 123.0, 113.9), (63.0, 62.1, 66.7), 10),
    "cifar100": ((129.3, 124.1, 112.4), (68.2, 65.4, 70.4), 100),
}
NAMES = tuple(_KNOWN)

_SHAPE = (32, 32, 3)


def read(
    name: str,
    data_dir: str | pathlib.Path | None = None,
    *,
    train_examples: int | None = None,
    seed: int = 0,
) -> Dataset:
    """CIFAR: 50,000 training and 10,000 test images, 32 x 32 x 3, uint8.

    All images are decoded once, into memory (about 10 s on two cores for the whole).
    Augmented as usual: crops with four pixels of border, mirrored.

    Args:
      name: "cifar10" or "cifar100".
      data_dir: the folder of TFDS; None is TFDS' own default, ~/tensorflow_datasets.
      train_examples: how many of the training examples to read; None is all.
      seed: chooses them.

    Raises:
      DataError: if the set was not prepared in this folder, or is damaged. The message
        says how to prepare it.
    """
    mean, std, num_classes = _KNOWN[name]
    builder = prepared(name, data_dir)
    try:
        available = builder.info.splits["train"].num_examples
        chosen = choose(available, train_examples, seed=seed)
        x_train, y_train = _examples(builder, "train", chosen)
        x_test, y_test = _examples(builder, "test", None)
    except DataError:
        raise
    except ImportError as error:
        raise DataError(
            f"reading {name} needs {error.name}, which is not installed; run: "
            'pip install "mslice_jax[experiments]"'
        ) from error
    except Exception as error:
        raise _damaged(name, data_dir, error) from error
    return Dataset(
        name=name,
        x_train=x_train,
        y_train=y_train,
        x_test=x_test,
        y_test=y_test,
        num_classes=num_classes,
        mean=mean,
        std=std,
        pad=4,
        flip=True,
    )


def prepared(name: str, data_dir: str | pathlib.Path | None) -> Any:
    """The builder of a set that is on disk in a form that `data_source` reads.

    Raises:
      DataError: if there is none. The message says how to prepare it.
    """
    if data_dir is not None:
        data_dir = pathlib.Path(data_dir).expanduser()
        refuse_a_file(name, data_dir)
    import tensorflow_datasets as tfds

    try:
        with _silence():
            builder: Any = tfds.builder(name, data_dir=data_dir)
            # Asked first: data_source would begin to download, which needs tensorflow.
            ready = builder.is_prepared()
    except Exception as error:
        raise _damaged(name, data_dir, error) from error
    if not ready:
        raise DataError(
            f"{name} is not prepared in {builder.data_path}. Prepare it once (this "
            f"downloads it): {_how_to_prepare(name, data_dir)}"
        )
    check_format(
        builder.info.file_format.value,
        f"{name} in {builder.data_path}",
        _how_to_prepare(name, data_dir),
    )
    return builder


def refuse_a_file(name: str, data_dir: pathlib.Path) -> None:
    """Raise DataError for a file where a folder of TFDS should be."""
    if not data_dir.is_file():
        return
    npz = data_dir.suffix == ".npz"
    raise DataError(
        f"{name} is read from a folder that TFDS prepared, and {data_dir} is a file. "
        + (
            f"Read your own arrays with --dataset npz --data-dir {data_dir}."
            if npz
            else "Give that folder as --data-dir."
        )
    )


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Without the warnings of TFDS on the way to an error that says the same."""
    log = logging.getLogger("absl")
    log.addFilter(_is_an_error)
    try:
        yield
    finally:
        log.removeFilter(_is_an_error)


def _is_an_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


def check_format(found: str, where: str, how_to_prepare: str) -> None:
    """Raise DataError for files in a format that `data_source` does not read."""
    if found != "array_record":
        raise DataError(
            f"expected {where} as array_record, which is read without tensorflow; it "
            f"is {found}. Remove that folder and prepare it again: {how_to_prepare}"
        )


def _damaged(
    name: str, data_dir: str | pathlib.Path | None, error: Exception
) -> DataError:
    """What TFDS, array_record, PIL or NumPy raised, each in its own way, as one."""
    return DataError(
        f"{name} in {data_dir or 'the folder of TFDS'} cannot be read; a file may be "
        f"damaged or missing ({type(error).__name__}: {error}). Remove its folder and "
        f"prepare it again: {_how_to_prepare(name, data_dir)}"
    )


def _how_to_prepare(name: str, data_dir: str | pathlib.Path | None) -> str:
    # Not "tfds build": that command also wants apache_beam.
    folder = "" if data_dir is None else f"data_dir={str(data_dir)!r}, "
    return (
        'pip install "mslice_jax[tf]" && '
        'python -c "import tensorflow_datasets as tfds; '
        f"tfds.builder('{name}', {folder}file_format='array_record')"
        '.download_and_prepare()"'
    )


def _examples(
    builder: Any, split: str, chosen: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of a split, those `chosen` or all."""
    import tensorflow_datasets as tfds

    # TFDS' own decoding takes twice as long, and warns where OpenCV is not installed.
    decoders = {"image": tfds.decode.SkipDecoding()}
    source = builder.as_data_source(split=split, decoders=decoders)
    if chosen is None:
        chosen = np.arange(len(source))
    images = np.empty((len(chosen), *_SHAPE), np.uint8)
    labels = np.empty(len(chosen), np.int32)

    def fill(start: int) -> None:
        part = slice(start, start + 1000)
        records = source.__getitems__(chosen[part].tolist())
        images[part] = [_pixels(record["image"]) for record in records]
        labels[part] = [record["label"] for record in records]

    with ThreadPoolExecutor() as pool:  # decoding runs outside the interpreter's lock
        list(pool.map(fill, range(0, len(chosen), 1000)))
    return images, labels


def _pixels(encoded: bytes) -> np.ndarray:
    from PIL import Image

    with Image.open(io.BytesIO(encoded)) as image:
        pixels = np.asarray(image)
    if pixels.shape != _SHAPE or pixels.dtype != np.uint8:
        raise ValueError(
            f"expected images of shape {_SHAPE} in uint8; got {pixels.shape} in "
            f"{pixels.dtype}"
        )
    return pixels
