"""Sums over axes on either side of one, in programs of our own on CPU.

A group norm sums over positions and over the channels of a group, which stand on either
side of the axis of groups. XLA makes loops along a group's few channels of that. Here a
sum is over positions first, along all channels, then over those of a group: a U-Net's
training step takes .9 of the time (`experiments/LOG.md`).
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from .barriers import barrier

_LARGE = 2**16
"""Entries of an array; with fewer of them one operation more costs what it saves."""
_INNER = 64
"""Along an axis of at least so many entries XLA's loops are fast."""


def is_inner_sum(x: Any, params: dict[str, Any]) -> bool:
    """Whether a sum is over axes on either side of one, of which the last is short."""
    axes = params["axes"]
    last, before = _divided(jnp.ndim(x), axes)
    return (
        params.get("out_sharding") is None
        and jnp.issubdtype(x.dtype, jnp.floating)
        and all(isinstance(size, int) for size in x.shape)
        and bool(last)
        and bool(before)
        and math.prod(x.shape[axis] for axis in last) < _INNER
        and x.size >= _LARGE
    )


def sum_in_two(x: jax.Array, params: dict[str, Any]) -> jax.Array:
    """The sum over the axes before, then over the last ones."""
    last, before = _divided(x.ndim, params["axes"])
    rows = barrier(lax.reduce_sum(x, before))
    return lax.reduce_sum(rows, range(rows.ndim - len(last), rows.ndim))


def _divided(ndim: int, axes: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Of summed axes those behind all that are kept, and the others."""
    behind = max((axis for axis in range(ndim) if axis not in axes), default=-1)
    last = tuple(axis for axis in axes if axis > behind)
    return last, tuple(axis for axis in axes if axis < behind)
