"""The data of a recipe: in memory, or read from disk."""

import dataclasses
import itertools
import os
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

import mslice_jax as ms
from mslice_jax import data
from mslice_jax.data.dataset import choose
from mslice_jax.train import Batch

from .measure import Batches, Numbers, measure_on
from .settings import ImageSettings

Inputs = data.Dataset | data.ImageDataset


def load(settings: ImageSettings) -> Inputs:
    """The data set that the flags name.

    Raises:
      DataError: if it is missing or damaged.
    """
    chosen = {"train_examples": settings.train_examples, "seed": settings.seed}
    if settings.dataset not in ("imagenet", "folder"):
        found = data.load(settings.dataset, settings.data_dir, **chosen)
    else:
        is_folder = settings.dataset == "folder"
        read = data.read_folder if is_folder else data.read_imagenet
        found = read(
            settings.data_dir,
            image_size=size_on_disk(settings),
            workers=_cores() if settings.workers is None else settings.workers,
            **chosen,
        )
    return _fewer_tests(found, settings.max_test_examples)


def size_on_disk(settings: ImageSettings) -> int:
    """Height and width that images read from disk are resized to."""
    return 224 if settings.image_size is None else settings.image_size


def num_train(inputs: Inputs) -> int:
    """Number of training examples."""
    in_memory = isinstance(inputs, data.Dataset)
    return len(inputs.x_train if in_memory else inputs.train)


def train_batches(
    inputs: Inputs,
    batch_size: int,
    *,
    seed: int,
    start: int,
    host: tuple[int, int] = (0, 1),
) -> Iterator[Batch]:
    """This host's part of the batches of the steps start, start + 1, ..."""
    if isinstance(inputs, data.ImageDataset):
        return inputs.train_batches(batch_size, seed=seed, start=start, host=host)
    x, y = inputs.x_train, inputs.y_train
    return data.train_batches(x, y, batch_size, seed=seed, start=start, host=host)


def blank_batch(inputs: Inputs, batch_size: int) -> Batch:
    """Zeros in the shapes of a batch, to compile before any data is read."""
    dtype = inputs.x_train.dtype if isinstance(inputs, data.Dataset) else np.uint8
    images = np.zeros((batch_size, *inputs.image_shape), dtype)
    return images, np.zeros(batch_size, np.int32)


def calibration_batches(inputs: Inputs) -> list[jax.Array]:
    """About a thousand training images, normalized, for the statistics of norms."""
    size = min(128, num_train(inputs))
    count = min(8, num_train(inputs) // size)
    # Shuffled: the first ones of a data set may all be of one class.
    stream = train_batches(inputs, size, seed=0, start=0)
    normalize = data.eval_transform(inputs)
    return [normalize(jnp.asarray(x)) for x, _ in itertools.islice(stream, count)]


def evaluation(
    inputs: Inputs, *, batch_size: int = 256
) -> Callable[[ms.Sliceable], Numbers]:
    """Accuracy and loss of each rate on the held-out examples."""
    batches, count = held_out(inputs, batch_size=batch_size)
    return measure_on(batches, count, normalize=data.eval_transform(inputs))


def held_out(inputs: Inputs, *, batch_size: int = 256) -> tuple[Batches, int]:
    """Held-out examples in batches of one shape, and their number."""
    if isinstance(inputs, data.Dataset):
        x, y = inputs.x_test, inputs.y_test
        size = min(batch_size, len(x))
        return lambda: data.eval_batches(x, y, size), len(x)
    count = len(inputs.test)
    size = min(batch_size, count)
    return lambda: inputs.eval_batches(size), count


def _fewer_tests(inputs: Inputs, count: int | None) -> Inputs:
    """At most `count` held-out examples: the same ones for every seed."""
    in_memory = isinstance(inputs, data.Dataset)
    available = len(inputs.x_test) if in_memory else len(inputs.test)
    if count is None or count >= available:
        return inputs
    # Drawn, not the first ones: they may be sorted by class.
    chosen = choose(available, count, seed=0)
    if isinstance(inputs, data.Dataset):
        return dataclasses.replace(
            inputs, x_test=inputs.x_test[chosen], y_test=inputs.y_test[chosen]
        )
    return dataclasses.replace(inputs, test=inputs.test.part(chosen))


def enlarged(inputs: data.Dataset, factor: int) -> data.Dataset:
    """Every pixel as a square of so many by so many; so are the border's."""
    x_train, x_test = (
        x.repeat(factor, axis=1).repeat(factor, axis=2)
        for x in (inputs.x_train, inputs.x_test)
    )
    return dataclasses.replace(
        inputs, x_train=x_train, x_test=x_test, pad=inputs.pad * factor
    )


def _cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
