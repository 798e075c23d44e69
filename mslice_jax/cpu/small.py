"""What a norm makes of its sums, in programs of our own on CPU: made once, in rows.

A group norm sums over positions and the channels of a group, which stand on either side
of the axis of groups, and multiplies every pixel with what it made of that. XLA makes
loops along a group's few channels of both, and computes the factors anew at each pixel,
once more for each array that a pixel goes into. Here a sum is over positions first,
along all channels, then over those of a group; and a factor is an array with an entry
for each channel, behind a barrier. So are the sums and factors of the gradient, which
JAX transposes. A group norm takes half the time so (`experiments/LOG.md`).
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

_LARGE = 2**16
"""Entries of an array; with fewer of them one operation more costs what it saves."""
_TIMES = 8
"""How many times as large an array is as one that is small beside it."""
_INNER = 64
"""Along an axis of at least so many entries XLA's loops are fast."""
_UNROLLED = 8
"""Loops of so many are unrolled. In between LLVM takes 16 and 32 entries at a time if a
factor lies in rows, and leaves the rest to a slow loop: a SiLU took 2.5 times as long
with 16 channels, and as long with 32."""


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
    rows = lax.optimization_barrier(lax.reduce_sum(x, before))
    return lax.reduce_sum(rows, range(rows.ndim - len(last), rows.ndim))


def _divided(ndim: int, axes: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Of summed axes those behind all that are kept, and the others."""
    behind = max((axis for axis in range(ndim) if axis not in axes), default=-1)
    last = tuple(axis for axis in axes if axis > behind)
    return last, tuple(axis for axis in axes if axis < behind)


def is_beside(operands: Any) -> bool:
    """Whether one of two operands is small beside the other."""
    if not all(
        isinstance(x, jax.Array) and all(isinstance(size, int) for size in x.shape)
        for x in operands
    ):
        return False
    small, large = sorted(operands, key=jnp.size)
    return (
        jnp.issubdtype(large.dtype, jnp.floating)
        and large.size >= max(_LARGE, _TIMES * small.size)
        and small.ndim == large.ndim
        and not _UNROLLED < large.shape[-1] < _INNER
    )


def in_rows(operands: Any) -> list[jax.Array]:
    """The operands, the small one with an entry for each of the last, short axis."""
    large = max(operands, key=jnp.size)
    return [x if x is large else _rows(x, large.shape) for x in operands]


def _rows(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    width = shape[-1]
    if x.shape[-1] < width < _INNER and math.prod(shape) >= _TIMES * x.size * width:
        x = jnp.broadcast_to(x, (*x.shape[:-1], width))
    return lax.optimization_barrier(x)
