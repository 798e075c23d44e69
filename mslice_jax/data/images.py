"""Batches of encoded images, for sets that do not fit into memory, such as ImageNet.

The batch of a step is a function of (seed, step) alone, like that of `batches`: which
examples it holds comes from the order of the epoch, and how one of them is cropped from
(seed, epoch, number of the example). A resumed run begins at its step without reading
what came before.
"""

import contextlib
import functools
import math
import operator
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from .batches import steps_per_epoch, train_numbers
from .crops import eval_pixels, train_pixels, uniform
from .dataset import DataError
from .workers import each_step


class Source(Protocol):
    """Encoded images and their labels, by number.

    What ``str(source)`` gives names it in messages. Workers get it pickled.
    """

    def __len__(self) -> int:
        """How many there are."""
        ...

    def __getitems__(self, numbers: Sequence[int], /) -> Sequence[Mapping[str, Any]]:
        """Records with "image" (an encoded image: bytes) and "label" (an integer)."""
        ...


def train_images(
    source: Source,
    *,
    batch_size: int,
    image_size: int = 224,
    seed: int,
    start: int = 0,
    workers: int = 0,
    host: tuple[int, int] = (0, 1),
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The batches of the steps start, start + 1, ... without end.

    Each image is a random part of the original, a share of 0.08 to 1 of its area with
    sides in a ratio of 3:4 to 4:3, resized (Szegedy et al., 2015; torchvision's
    ``RandomResizedCrop``), and mirrored half of the time.

    Args:
      source: of the training examples.
      batch_size: examples in a batch of all hosts together.
      image_size: height and width of what is given, in pixels.
      seed: of order and crops, not negative.
      start: first step, counted over all epochs.
      workers: processes that prepare batches; with 0 this one does, when asked.
      host: (number, count) of this host: it gets its part of each batch, the parts of
        all hosts in their order are the batch.

    Yields:
      Images (b, image_size, image_size, 3), uint8, and labels (b,), int32. The
      workers end when the iterator is closed or forgotten.

    Raises:
      DataError: at once if the examples do not fill a batch, the hosts do not divide
        it, or something is not installed; on the way if an image cannot be read.
    """
    make = functools.partial(
        _train_batch,
        source=source,
        batch_size=batch_size,
        image_size=image_size,
        seed=seed,
        host=host,
    )
    _check(image_size, workers)
    train_numbers(len(source), batch_size, seed=seed, step=start, host=host)
    return each_step(make, range(operator.index(start), sys.maxsize), workers)


def eval_images(
    source: Source, *, batch_size: int, image_size: int = 224, workers: int = 0
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """All examples in order, as batches (images, labels, weights) of one shape.

    Each image is the square in the middle of the original, 7/8 of its shorter side:
    what remains if that side is made 256 pixels long for images of 224.

    The last batch is filled up with zeros. The weights (batch_size,), float32, are 1
    for examples and 0 for what fills up: multiply with them before summing. Other
    arguments, results and errors are those of `train_images`.
    """
    if batch_size < 1:
        raise DataError(f"expected a batch size of 1 or more; got {batch_size}.")
    _check(image_size, workers)
    make = functools.partial(
        _eval_batch, source=source, batch_size=batch_size, image_size=image_size
    )
    return each_step(make, range(math.ceil(len(source) / batch_size)), workers)


def _check(image_size: int, workers: int) -> None:
    if image_size < 1 or workers < 0:
        raise DataError(
            "expected an image size (--image-size) of 1 or more and workers "
            f"(--workers) of 0 or more; got {image_size} and {workers}."
        )
    check_installed(workers)


def check_installed(workers: int) -> None:
    """Raise DataError unless there is what reads images, with that many workers."""
    try:
        import PIL  # noqa: F401

        if workers:
            import grain  # noqa: F401
    except ImportError as error:
        raise DataError(
            f"reading images needs {error.name}, which is not installed; run: "
            'pip install "mslice_jax[imagenet]"'
        ) from error


def _train_batch(
    step: int,
    *,
    source: Source,
    batch_size: int,
    image_size: int,
    seed: int,
    host: tuple[int, int],
) -> tuple[np.ndarray, np.ndarray]:
    epoch = step // steps_per_epoch(len(source), batch_size)
    numbers = train_numbers(len(source), batch_size, seed=seed, step=step, host=host)
    images = np.empty((len(numbers), image_size, image_size, 3), np.uint8)
    labels = np.empty(len(numbers), np.int32)
    for place, (number, record) in enumerate(_records(source, numbers)):
        draws = uniform(seed, epoch, number)
        with _naming(source, number, record):
            images[place] = train_pixels(record["image"], image_size, draws)
        labels[place] = record["label"]
    return images, labels


def _eval_batch(
    step: int, *, source: Source, batch_size: int, image_size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    numbers = range(len(source))[step * batch_size : (step + 1) * batch_size]
    images = np.zeros((batch_size, image_size, image_size, 3), np.uint8)
    labels = np.zeros(batch_size, np.int32)
    for place, (number, record) in enumerate(_records(source, numbers)):
        with _naming(source, number, record):
            images[place] = eval_pixels(record["image"], image_size)
        labels[place] = record["label"]
    weights = (np.arange(batch_size) < len(numbers)).astype(np.float32)
    return images, labels, weights


def _records(
    source: Source, numbers: Sequence[int] | np.ndarray
) -> Iterator[tuple[int, Mapping[str, Any]]]:
    numbers = [int(number) for number in numbers]
    try:
        records = source.__getitems__(numbers)
    except DataError:
        raise
    except Exception as error:  # each library raises its own
        raise DataError(
            f"{source} cannot be read; a file may be damaged or missing "
            f"({type(error).__name__}: {error})."
        ) from error
    return zip(numbers, records, strict=True)


@contextlib.contextmanager
def _naming(source: Source, number: int, record: Mapping[str, Any]):
    """Whatever goes wrong within is a DataError that says with which image."""
    try:
        yield
    except Exception as error:  # what decoders raise for bytes of all kinds
        name = record.get("file_name", b"")
        name = name.decode(errors="replace") if isinstance(name, bytes) else str(name)
        raise DataError(
            f"image {number}{name and f' ({name})'} of {source} cannot be decoded "
            f"({type(error).__name__}: {error}). Replace it, or prepare the set again."
        ) from error
