"""What a data set is: arrays of raw pixels, labels, and how its images are prepared."""

import dataclasses
import operator

import numpy as np

from ..core.streams import Stream, words


class DataError(ValueError):
    """A data set that is missing, damaged, or not of the expected form."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """Images and labels in memory, split into training and test examples.

    Attributes:
      name: what it was loaded as.
      x_train: training images (n, h, w, c), uint8 or float32, as stored.
      y_train: their labels (n,), int32 in [0, num_classes).
      x_test, y_test: the same of the held-out examples.
      num_classes: how many classes the labels name.
      mean, std: for each channel, in the units of the stored pixels; a normalized
        image is (image - mean) / std.
      pad: pixels of black border that a training crop may reach into.
      flip: whether a mirrored image still shows the same thing.
    """

    name: str
    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    pad: int
    flip: bool

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels)."""
        _, height, width, channels = self.x_train.shape
        return height, width, channels

    def __repr__(self) -> str:
        """One line: the arrays themselves would fill the screen."""
        height, width, channels = self.image_shape
        return (
            f"Dataset({self.name}: {len(self.x_train)} training and {len(self.x_test)} "
            f"test images of {height} x {width} x {channels} {self.x_train.dtype}, "
            f"{self.num_classes} classes)"
        )


def choose(available: int, count: int | None, *, seed: int) -> np.ndarray:
    """Which of the available training examples to use: `count` of them, in order.

    Drawn without replacement by the seed; None is all. A larger count of the same seed
    holds the smaller.

    Raises:
      DataError: if `count` is not between 1 and `available`.
    """
    if count is None:
        return np.arange(available)
    count = operator.index(count)
    if not 1 <= count <= available:
        raise DataError(
            f"expected a number of training examples (--train-examples) between 1 and "
            f"the {available} there are; got {count}."
        )
    return np.sort(shuffled(available, seed=seed, stream=Stream.SUBSET)[:count])


def shuffled(count: int, *, seed: int, stream: Stream, epoch: int = 0) -> np.ndarray:
    """The numbers below `count` in an order that depends on the keywords alone.

    It is the rank of raw random words, see `core.streams`.
    """
    return np.argsort(words(seed, stream, epoch, count=count), kind="stable")


def pixel_statistics(
    images: np.ndarray,
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, in the units of the pixels.

    A channel that is the same everywhere gets the standard deviation 1, so that it
    normalizes to zeros.
    """
    mean = images.mean(axis=(0, 1, 2), dtype=np.float64)
    total = np.zeros_like(mean)
    for start in range(0, len(images), 1024):  # in parts: float64 is eight times uint8
        total += ((images[start : start + 1024] - mean) ** 2).sum(axis=(0, 1, 2))
    std = np.sqrt(total / (images.size / images.shape[-1]))
    std[std == 0.0] = 1.0
    return tuple(mean.tolist()), tuple(std.tolist())
