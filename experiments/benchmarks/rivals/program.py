"""The full width as the rivals run it: our program at rate 1, for each batch bucket."""

import os
import pathlib
from collections.abc import Sequence

import jax
import numpy as np

import mslice_jax as ms

from . import network
from .network import SHAPE


def buckets(most: int) -> tuple[int, ...]:
    """The batch sizes that are compiled: powers of 2 up to the largest batch.

    >>> buckets(8), buckets(6)
    ((1, 2, 4, 8), (1, 2, 4, 6))
    """
    found = [1]
    while found[-1] < most:
        found.append(min(2 * found[-1], most))
    return tuple(found)


class FullWidth:
    """The network at rate 1; each bucket is compiled, and has run, before it is made.

    Args:
      folder: of `network.prepare`.
      name: of the network.
      most: the largest batch.
    """

    def __init__(self, folder: pathlib.Path, name: str, most: int) -> None:
        net = ms.load(folder / "network.mslice", getattr(network, name))
        # The device has the weights; the programs take them as arguments.
        self._net = jax.device_put(net, jax.devices()[0])
        forward = ms.jit(lambda net, x: ms.slice_apply(net, x, 1.0))
        self._programs = {}
        for size in buckets(most):
            x = np.zeros((size, *SHAPE), np.float32)
            self._programs[size] = forward.lower(self._net, x).compile()
            for _ in range(3):
                self(x)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Images (b, 32, 32, 3) -> logits (b, 10), in the smallest bucket with room."""
        count = len(x)
        size = next(n for n in self._programs if n >= count)
        if size > count:
            x = np.concatenate([x, np.zeros((size - count, *SHAPE), np.float32)])
        return np.asarray(self._programs[size](self._net, x))[:count]


def from_environment() -> FullWidth:
    """As RIVAL_FOLDER, RIVAL_NETWORK and RIVAL_ROWS (the largest batch) say."""
    told = os.environ
    folder, rows = pathlib.Path(told["RIVAL_FOLDER"]), int(told["RIVAL_ROWS"])
    return FullWidth(folder, told["RIVAL_NETWORK"], rows)


def batch(images: Sequence[bytes]) -> np.ndarray:
    """The bodies of requests as one array."""
    x = np.frombuffer(b"".join(images), np.float32)
    return x.reshape(len(images), *SHAPE)
