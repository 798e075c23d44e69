"""Npz: anybody's own arrays, in one file made by `numpy.savez`."""

import pathlib
import zipfile
import zlib

import numpy as np

from .dataset import DataError, Dataset, choose, pixel_statistics

KEYS = ("x_train", "y_train", "x_test", "y_test")

# How many channels images usually have.
_CHANNELS = (1, 3, 4)

_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error)


def read(
    path: str | pathlib.Path | None, *, train_examples: int | None = None, seed: int = 0
) -> Dataset:
    """The arrays x_train, y_train, x_test, y_test of a file.

    Images are (n, h, w, c), or (n, h, w) if they are grey; uint8, or floats of any
    scale. Labels are (n,), integers from 0. Pixel statistics are those of all training
    images. Crops reach an eighth of the height beyond the border, as is usual for
    CIFAR; colour images are also mirrored. Grey ones are not, as they often show
    characters; ``dataclasses.replace(dataset, flip=True)`` says otherwise.

    Args:
      path: the file, or a folder that holds one npz file.
      train_examples: how many of the training examples to use; None is all.
      seed: chooses them.

    Raises:
      DataError: if the file is missing or damaged, an array is missing, or arrays do
        not fit.
    """
    file = _find(path)
    arrays = _arrays(file)
    x_train, x_test = (_images(file, k, arrays[k]) for k in ("x_train", "x_test"))
    y_train, y_test = (_labels(file, k, arrays[k]) for k in ("y_train", "y_test"))
    if x_train.shape[1:] != x_test.shape[1:]:
        raise DataError(
            f"{file}: expected images of one shape; x_train has {x_train.shape[1:]} "
            f"and x_test {x_test.shape[1:]} (height, width, channels)."
        )
    if x_train.dtype != x_test.dtype:
        raise DataError(
            f"{file}: expected images of one kind; x_train has {x_train.dtype} and "
            f"x_test {x_test.dtype}."
        )
    for x, y, split in ((x_train, y_train, "train"), (x_test, y_test, "test")):
        if len(x) != len(y):
            raise DataError(
                f"{file}: expected one label for each image; x_{split} has {len(x)} "
                f"images and y_{split} {len(y)} labels."
            )
    num_classes = _num_classes(file, y_train, y_test)
    mean, std = pixel_statistics(x_train)
    chosen = choose(len(x_train), train_examples, seed=seed)
    return Dataset(
        name="npz",
        x_train=x_train[chosen],
        y_train=y_train[chosen].astype(np.int32),
        x_test=x_test,
        y_test=y_test.astype(np.int32),
        num_classes=num_classes,
        mean=mean,
        std=std,
        pad=x_train.shape[1] // 8,
        flip=x_train.shape[-1] > 1,
    )


def _find(path: str | pathlib.Path | None) -> pathlib.Path:
    if path is None:
        raise DataError(
            "the data set npz needs a file: give --data-dir FILE.npz (or data_dir=...) "
            f"with the arrays {', '.join(KEYS)}."
        )
    path = pathlib.Path(path).expanduser()
    if (path / "dataset_info.json").is_file():
        raise DataError(
            f"{path} is a data set of TFDS, not an npz file; read it as imagenet "
            "(--dataset imagenet), or CIFAR in the folder of TFDS by its name."
        )
    if path.is_dir():
        files = sorted(path.glob("*.npz"))
        if len(files) != 1:
            raise DataError(
                f"expected one npz file in the folder {path}; there are {len(files)}"
                f"{': ' if files else ''}{', '.join(f.name for f in files[:5])}. "
                "Give the file itself."
            )
        return files[0]
    if not path.is_file():
        raise DataError(
            f"there is no file {path}; make one with numpy.savez({str(path)!r}, "
            "x_train=..., y_train=..., x_test=..., y_test=...)."
        )
    return path


def _arrays(file: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        # NumPy itself gives the bare array for a file that numpy.save made.
        if not zipfile.is_zipfile(file):
            raise zipfile.BadZipFile("it is no zip archive, as npz files are")
        with np.load(file, allow_pickle=False) as stored:
            names = stored.files
            arrays = {key: stored[key] for key in KEYS if key in names}
    # Errors of zip and NumPy for a file that was cut short or changed; RuntimeError
    # where a changed bit says that it is encrypted or compressed in another way.
    except (OSError, EOFError, ValueError, RuntimeError, *_ZIP_ERRORS) as error:
        raise DataError(
            f"{file} cannot be read as an npz file of plain arrays: {error}. It may be "
            "damaged or incomplete; make it again with numpy.savez."
        ) from error
    missing = [key for key in KEYS if key not in arrays]
    if missing:
        raise DataError(
            f"{file}: expected the arrays {', '.join(KEYS)}; {', '.join(missing)} "
            f"missing, there are {', '.join(names) or 'none'}."
        )
    return arrays


def _images(file: pathlib.Path, key: str, images: np.ndarray) -> np.ndarray:
    """Checked, as (n, h, w, c) of uint8 or float32."""
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or 0 in images.shape:
        raise DataError(
            f"{file}: expected {key} of shape (images, height, width, channels) or "
            f"(images, height, width), none of them 0; got {images.shape}."
        )
    if images.shape[1] in _CHANNELS and images.shape[3] > max(_CHANNELS):
        raise DataError(
            f"{file}: expected {key} with the channels last, (images, height, width, "
            f"channels); {images.shape} has them first. Move them: "
            f"numpy.moveaxis({key}, 1, -1)."
        )
    if images.dtype == np.uint8:
        return images
    if not np.issubdtype(images.dtype, np.floating):
        raise DataError(
            f"{file}: expected {key} as uint8 or floats; got {images.dtype}. "
            "Convert it: astype(numpy.uint8) for pixels from 0 to 255."
        )
    with np.errstate(over="ignore"):  # becomes an infinity, which is refused below
        images = images.astype(np.float32)
    if not np.isfinite(images).all():
        bad = int(np.flatnonzero(~np.isfinite(images).all(axis=(1, 2, 3)))[0])
        raise DataError(
            f"{file}: expected {key} without nan and infinity; image {bad} has one."
        )
    return images


def _labels(file: pathlib.Path, key: str, labels: np.ndarray) -> np.ndarray:
    """Checked: (n,), integers that are not negative."""
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(
            f"{file}: expected {key} as integers of shape (images,), the class of each "
            f"image; got {labels.dtype} of shape {labels.shape}."
            f"{_how_to_convert(key, labels)}"
        )
    if labels.size and labels.min() < 0:
        raise DataError(
            f"{file}: expected the labels {key} to count from 0; the least is "
            f"{labels.min()}."
        )
    return labels


def _how_to_convert(key: str, labels: np.ndarray) -> str:
    """What makes labels of them, where that can be told; else nothing."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        return f" Drop the axis of 1: {key}[:, 0]."
    if not np.issubdtype(labels.dtype, np.number):
        if labels.ndim == 1 and labels.dtype.kind in "SU":
            return (
                f" Number the names: numpy.unique({key}, return_inverse=True)[1], the "
                "same numbers in both splits."
            )
        return ""
    if labels.ndim == 2 and ((labels == 0).sum(axis=1) == labels.shape[1] - 1).all():
        return f" One-hot labels become numbers by numpy.argmax({key}, axis=1)."
    if labels.ndim == 1 and (labels == np.rint(labels)).all():
        return f" Convert them: {key}.astype(numpy.int32)."
    return ""


def _num_classes(file: pathlib.Path, y_train: np.ndarray, y_test: np.ndarray) -> int:
    """One more than the greatest training label."""
    num_classes = int(y_train.max()) + 1
    if num_classes < 2:
        raise DataError(f"{file}: expected two classes or more; y_train has only 0.")
    if num_classes > len(y_train):
        raise DataError(
            f"{file}: expected labels that number the classes 0, 1, ...; y_train has "
            f"{num_classes - 1} among {len(y_train)} examples. Renumber them: "
            "numpy.unique(labels, return_inverse=True)[1]."
        )
    if y_test.max() >= num_classes:
        raise DataError(
            f"{file}: expected test labels below {num_classes}, the number of classes "
            f"in y_train; y_test has {y_test.max()}."
        )
    return num_classes
