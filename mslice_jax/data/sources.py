"""Data sets by name."""

import pathlib

from . import digits, npz, tfds
from .dataset import DataError, Dataset

NAMES = ("digits", *tfds.NAMES, "npz")
"""The names that `load` knows."""


def load(
    name: str,
    data_dir: str | pathlib.Path | None = None,
    *,
    train_examples: int | None = None,
    seed: int = 0,
) -> Dataset:
    """Read a data set into memory.

    Args:
      name: "digits" (part of scikit-learn), "cifar10" or "cifar100" (prepared with
        TFDS), or "npz" (your own arrays).
      data_dir: for CIFAR the folder of TFDS, None for its default; for npz the file,
        or the folder that holds it. Digits need none.
      train_examples: how many of the training examples to use; None is all. The test
        examples are always all.
      seed: chooses them: the same ones for the same seed, on every machine.

    Returns:
      Raw pixels and labels, see `Dataset`.

    Raises:
      DataError: if there is no such set, or it is missing or damaged. The message says
        what to do.

    Example:
      >>> load("digits")
      Dataset(digits: 1442 training and 355 test images of 8 x 8 x 1 uint8, 10 classes)
    """
    if name == "digits":
        return digits.read(train_examples=train_examples, seed=seed)
    if name == "npz":
        return npz.read(data_dir, train_examples=train_examples, seed=seed)
    if name in tfds.NAMES:
        return tfds.read(name, data_dir, train_examples=train_examples, seed=seed)
    raise DataError(f"there is no data set {name!r}; choose one of {', '.join(NAMES)}.")
