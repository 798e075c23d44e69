"""Training images shifted and mirrored, on the host, before they are given to a step.

What becomes of an image is a function of seed, epoch and the image's number, so that a
resumed run goes on with what the stopped one would have seen.
"""

import itertools
from collections.abc import Iterator

import numpy as np

from mslice_jax import data
from mslice_jax.core.streams import Stream, words
from mslice_jax.data.batches import train_numbers
from mslice_jax.train import Batch


def batches(
    dataset: data.Dataset,
    batch_size: int,
    *,
    seed: int,
    start: int,
    host: tuple[int, int] = (0, 1),
    shift: int,
    flip: str,
) -> Iterator[Batch]:
    """This host's part of the batches of the steps start, start + 1, ... without end.

    Args:
      dataset: in memory.
      batch_size: images in a batch of all hosts.
      seed: of order, shifts and flips.
      start: the first step, over all epochs.
      host: (number, count) of this host.
      shift: as in `shifted`.
      flip: as in `mirrored`.
    """
    count = len(dataset.x_train)
    each = data.steps_per_epoch(count, batch_size)

    def numbers(step: int) -> np.ndarray:
        return train_numbers(count, batch_size, seed=seed, step=step, host=host)

    numbers(start)  # an error comes at once

    def made() -> Iterator[Batch]:
        for epoch in itertools.count(start // each):
            moves = shifts(count, shift, seed=seed, epoch=epoch)
            flips = mirrored(count, flip, seed=seed, epoch=epoch)
            for step in range(max(start, epoch * each), (epoch + 1) * each):
                chosen = numbers(step)
                images = shifted(dataset.x_train[chosen], moves[chosen], shift)
                flipped = flips[chosen]
                images[flipped] = images[flipped, :, ::-1]
                yield images, dataset.y_train[chosen]

    return made()


def shifts(count: int, most: int, *, seed: int, epoch: int) -> np.ndarray:
    """(count, 2): by how many pixels each image moves in an epoch, from 0 to 2 most."""
    drawn = words(seed, Stream.CROPS, epoch, count=2 * count) >> np.uint64(11)
    return (drawn % np.uint64(2 * most + 1)).astype(np.int64).reshape(count, 2)


def mirrored(count: int, flip: str, *, seed: int, epoch: int) -> np.ndarray:
    """(count,): whether each image is mirrored in an epoch.

    Args:
      count: of images.
      flip: "alternate": half of them, drawn once, in even epochs, and the other half
        in odd ones, so that every two epochs show both sides of each image (airbench);
        "random": drawn anew in every epoch; "none".
      seed, epoch: what it depends on.

    Example:
      >>> first, second = (mirrored(9, "alternate", seed=0, epoch=n) for n in (0, 1))
      >>> bool((first != second).all())
      True
    """
    if flip == "none":
        return np.zeros(count, bool)
    # The words of an epoch are the shifts'; this place is one that no epoch has.
    place = (0, 0) if flip == "alternate" else (epoch, 1)
    drawn = (words(seed, Stream.CROPS, *place, count=count) >> np.uint64(63)) > 0
    return drawn ^ bool(epoch % 2) if flip == "alternate" else drawn


def shifted(images: np.ndarray, moves: np.ndarray, most: int) -> np.ndarray:
    """The part of each image that starts at `moves`, of one with mirrored borders.

    Args:
      images: (b, h, w, c).
      moves: (b, 2), row and column, from 0 to 2 most; `most` leaves an image as it is.
      most: pixels of the border, which repeats the image as in a mirror.
    """
    _, height, width, _ = images.shape
    border = (most, most)
    padded = np.pad(images, [(0, 0), border, border, (0, 0)], mode="reflect")
    rows = moves[:, :1] + np.arange(height)
    columns = moves[:, 1:] + np.arange(width)
    at = np.arange(len(images))[:, None, None]
    return padded[at, rows[:, :, None], columns[:, None, :]]
