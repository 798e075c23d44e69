"""Streams of random numbers: which one is whose.

One seed, or one key, serves several purposes, and none may follow another: the rates of
a step must not depend on how its examples were shuffled. Every purpose has a word of
its own here. A word never changes, for a resumed run draws what the stopped one would
have drawn.

NumPy's numbers are raw words of the bit generator, which NumPy promises to keep; the
distributions of `numpy.random.Generator` may change from one NumPy to the next (NEP
19), and with them what a resumed run reads.
"""

import enum
import zlib
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np


class Stream(enum.IntEnum):
    """What numbers are drawn for on the host; the first word of the stream's key."""

    RATES = 1  # which rates a step trains
    ORDER = 2  # the order in which an epoch goes through the examples
    SUBSET = 3  # which examples a smaller data set has
    CROPS = 4  # which part of an image is seen


def words(seed: int, stream: Stream, *place: int, count: int) -> np.ndarray:
    """(count,) random words, uint64: a function of the arguments alone.

    Args:
      seed: not negative.
      stream: what they are for.
      place: where in the stream, such as a step, or an epoch and an example.
      count: how many words.

    Example:
      >>> a = words(7, Stream.RATES, 0, count=2)
      >>> b = words(7, Stream.ORDER, 0, count=2)
      >>> bool((a == words(7, Stream.RATES, 0, count=2)).all()), bool((a == b).any())
      (True, False)
    """
    key = np.random.SeedSequence(seed, spawn_key=(int(stream), *place))
    return np.random.Philox(key).random_raw(count)


def uniforms(seed: int, stream: Stream, *place: int, count: int) -> np.ndarray:
    """(count,) numbers in [0, 1), float64, of the words of the same arguments."""
    raw = words(seed, stream, *place, count=count)
    return (raw >> np.uint64(11)) * 2.0**-53


def step_keys(key: jax.Array, step: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Of augmentation and of the network, in a training step.

    They depend on the run's key and the step alone, so all rates of a step share them.
    """
    augmentation, network = jax.random.split(jax.random.fold_in(key, step))
    return augmentation, network


def stream_keys(key: jax.Array, names: Iterable[str]) -> dict[str, jax.Array]:
    """A key for each random stream of a network, by name; "dropout" is always one."""
    keys: dict[str, Any] = {"dropout": key}
    for name in sorted({*names} - {"dropout"}):
        # By a digest that is the same in every process, and in every run.
        keys[name] = jax.random.fold_in(key, zlib.crc32(name.encode()))
    return keys
