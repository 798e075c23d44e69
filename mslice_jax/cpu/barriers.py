"""Where XLA may not fuse, in programs of our own on CPU."""

import math
from typing import Any

import jax
from jax import lax

_SMALL = 1024
"""Bytes. A loop that reads fewer becomes one kernel, for which XLA cannot compile a
barrier ("Unhandled opcode for elemental IR emission"); there is nothing to gain there.
"""


def barrier(x: Any) -> Any:
    """The same arrays, each computed before anything reads it, unless all are small.

    Args:
      x: an array, or a tree of them.
    """
    large = any(_bytes(leaf) >= _SMALL for leaf in jax.tree.leaves(x))
    return lax.optimization_barrier(x) if large else x


def _bytes(x: jax.Array) -> float:
    if not all(isinstance(size, int) for size in x.shape):
        return math.inf  # of any size, so not small
    return math.prod(x.shape) * x.dtype.itemsize
