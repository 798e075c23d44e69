"""Batches: which examples at which step.

The training batch of a step is a function of (seed, step) alone, so that a resumed run
goes on with the examples that the stopped one would have seen next.
"""

import functools
import operator
from collections.abc import Iterator

import numpy as np

from ..core.streams import Stream
from .dataset import DataError, shuffled


def steps_per_epoch(num_examples: int, batch_size: int) -> int:
    """How many full batches the examples make; what is left over waits an epoch.

    Raises:
      DataError: if they do not fill a single batch.

    >>> steps_per_epoch(1442, 64)
    22
    """
    if not 1 <= batch_size <= num_examples:
        raise DataError(
            f"expected a batch size (--batch-size) between 1 and the {num_examples} "
            f"training examples; got {batch_size}."
        )
    return num_examples // batch_size


@functools.lru_cache(maxsize=2)  # a pure function, asked once for every batch
def epoch_order(num_examples: int, *, seed: int, epoch: int) -> np.ndarray:
    """The numbers of all examples, in the order in which an epoch goes through them.

    >>> epoch_order(5, seed=0, epoch=0).tolist()
    [2, 3, 1, 0, 4]
    """
    order = shuffled(num_examples, seed=seed, stream=Stream.ORDER, epoch=epoch)
    order.flags.writeable = False  # it is shared by all callers
    return order


def train_numbers(
    num_examples: int,
    batch_size: int,
    *,
    seed: int,
    step: int,
    host: tuple[int, int] = (0, 1),
) -> np.ndarray:
    """Which examples this host has in a step, by number; as `train_batch`."""
    number, hosts = host
    if batch_size % hosts:
        raise DataError(
            f"expected a batch size (--batch-size) that {hosts} hosts divide; got "
            f"{batch_size}."
        )
    steps = steps_per_epoch(num_examples, batch_size)
    epoch, batch = divmod(operator.index(step), steps)
    order = epoch_order(num_examples, seed=seed, epoch=epoch)
    part = batch_size // hosts
    first = batch * batch_size + number * part
    return order[first : first + part]


def train_batch(
    x: np.ndarray,
    y: np.ndarray,
    batch_size: int,
    *,
    seed: int,
    step: int,
    host: tuple[int, int] = (0, 1),
) -> tuple[np.ndarray, np.ndarray]:
    """The training batch of a step (0 is the first): images and labels.

    Every epoch shuffles anew and drops the last examples that fill no batch; so all
    batches have one shape, and one compilation serves them.

    Args:
      x, y: all training images (n, ...) and labels (n,).
      batch_size: examples in a batch, at most n.
      seed: of the shuffling, not negative.
      step: counted over all epochs, not negative.
      host: (number, count) of this host: it gets its part of the batch, the parts of
        all hosts in their order are the batch.

    Raises:
      DataError: if the examples do not fill a batch, or the hosts do not divide it.
    """
    chosen = train_numbers(len(x), batch_size, seed=seed, step=step, host=host)
    return x[chosen], y[chosen]


def train_batches(
    x: np.ndarray,
    y: np.ndarray,
    batch_size: int,
    *,
    seed: int,
    start: int = 0,
    host: tuple[int, int] = (0, 1),
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """`train_batch` of the steps start, start + 1, ... without end."""
    # An error comes at once, not when the first batch is asked for.
    train_numbers(len(x), batch_size, seed=seed, step=start, host=host)

    def batches():
        step = start
        while True:
            yield train_batch(x, y, batch_size, seed=seed, step=step, host=host)
            step += 1

    return batches()


def eval_batches(
    x: np.ndarray, y: np.ndarray, batch_size: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """All examples in order, as batches (images, labels, weights) of one shape.

    The last batch is filled up with zeros. The weights (batch_size,), float32, are 1
    for examples and 0 for what fills up: multiply with them before summing.
    """
    if batch_size < 1:
        raise DataError(f"expected a batch size of 1 or more; got {batch_size}.")
    for start in range(0, len(x), batch_size):
        images, labels = x[start : start + batch_size], y[start : start + batch_size]
        weights = np.ones(len(images), np.float32)
        if len(images) < batch_size:
            images, labels, weights = (
                _fill_up(array, batch_size) for array in (images, labels, weights)
            )
        yield images, labels, weights


def _fill_up(array: np.ndarray, count: int) -> np.ndarray:
    rest = count - len(array)
    return np.pad(array, [(0, rest)] + [(0, 0)] * (array.ndim - 1))
