"""Depthwise convolutions, in programs of our own on CPU: a sum of products, tap by tap.

XLA's CPU backend runs a convolution of one channel a group as many small products of
matrices, and its gradients as convolutions whose zeros are multiplied, too: ten to a
hundred times as long as it takes to read the images (`experiments/LOG.md`). Here it is
what it says: the image, shifted by each tap of the window, times the tap's weight of
each channel, added up. XLA makes one loop over the image of that, along channels.

The gradient of images is the same sum, of the cotangent; that of filters is one sum
over images and positions for each tap.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from .barriers import barrier
from .windows import reach_of, windows_of

_TAPS = 128
"""Of a window; with more of them the program takes long to compile."""


def applies(lhs: Any, rhs: Any, params: dict[str, Any]) -> bool:
    """Whether each filter sees one channel, and each channel has one filter."""
    numbers = params["dimension_numbers"]
    channels = lhs.shape[numbers.lhs_spec[1]]
    filters, inputs, *window = (rhs.shape[i] for i in numbers.rhs_spec)
    return (
        params["feature_group_count"] > 1
        and inputs == 1
        and filters == channels
        and all(step == 1 for step in params["lhs_dilation"])
        and math.prod(window) <= _TAPS
        and lhs.dtype == rhs.dtype
    )


def _in_single(form: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """The same of numbers of half precision: only the sum is rounded to it."""

    @functools.wraps(form)
    def run(lhs: jax.Array, rhs: jax.Array, params: dict[str, Any]) -> jax.Array:
        single = jnp.promote_types(lhs.dtype, jnp.float32)
        y = form(lhs.astype(single), rhs.astype(single), params)
        return y.astype(lhs.dtype)

    return run


@_in_single
def convolve(lhs: jax.Array, rhs: jax.Array, params: dict[str, Any]) -> jax.Array:
    """The convolution of images (lhs) with filters (rhs)."""
    numbers, last = params["dimension_numbers"], lhs.ndim - 1
    x = jnp.moveaxis(lhs, numbers.lhs_spec, _channels_last(last))
    config = [(0, 0, 0), *((*pads, 0) for pads in params["padding"]), (0, 0, 0)]
    x = lax.pad(x, jnp.zeros((), x.dtype), config)
    y = _sum(x, _kernel(rhs, params), params["window_strides"], params["rhs_dilation"])
    return jnp.moveaxis(y, _channels_last(last), numbers.out_spec)


@_in_single
def for_images(lhs: jax.Array, rhs: jax.Array, params: dict[str, Any]) -> jax.Array:
    """The convolution; its transpose with respect to the images is such a sum, too."""
    numbers, last = params["dimension_numbers"], lhs.ndim - 1
    kernel = lax.rev(_kernel(rhs, params), range(last - 1))
    batch, channel, *space = (lhs.shape[axis] for axis in numbers.lhs_spec)
    counts, config = windows_of(lhs, rhs, params), [(0, 0, 0)]
    for size, count, reach, s, (low, _) in zip(
        space,
        counts,
        reach_of(rhs, params),
        params["window_strides"],
        params["padding"],
        strict=True,
    ):
        # Where the strides leave pixels at the end, no window has seen them.
        config.append((reach - low, size + low - ((count - 1) * s + 1), s - 1))

    def back(cotangent: jax.Array) -> jax.Array:
        zero = jnp.zeros((), lhs.dtype)
        padded = lax.pad(cotangent, zero, [*config, (0, 0, 0)])
        x = _sum(padded, kernel, (1,) * (last - 1), params["rhs_dilation"])
        return jnp.moveaxis(x, _channels_last(last), numbers.lhs_spec)

    cotangent = jax.ShapeDtypeStruct((batch, *counts, channel), lhs.dtype)
    (y,) = jax.linear_transpose(back, cotangent)(lhs)
    return jnp.moveaxis(y, _channels_last(last), numbers.out_spec)


def _channels_last(last: int) -> tuple[int, ...]:
    return (0, last, *range(1, last))


def _kernel(rhs: jax.Array, params: dict[str, Any]) -> jax.Array:
    """(kh, kw, channels)."""
    numbers, last = params["dimension_numbers"], rhs.ndim - 1
    kernel = jnp.moveaxis(rhs, numbers.rhs_spec, (last, last - 1, *range(last - 1)))
    return kernel.squeeze(-2)


def _sum(
    x: jax.Array, kernel: jax.Array, steps: Sequence[int], dilation: Sequence[int]
) -> jax.Array:
    """(b, h, w, c), (kh, kw, c) -> (b, h', w', c): all windows that are inside."""
    size = kernel.shape[:-1]
    shape = [
        (n - (k - 1) * d - 1) // s + 1
        for n, k, d, s in zip(x.shape[1:-1], size, dilation, steps, strict=True)
    ]
    # Read once for each tap: XLA would compute anew what stands before it.
    x = barrier(x)
    taps = lax.split(kernel.reshape(-1, x.shape[-1]), [1] * math.prod(size), axis=0)
    total = None
    for offset, tap in zip(itertools.product(*map(range, size)), taps, strict=True):
        start = [o * d for o, d in zip(offset, dilation, strict=True)]
        limit = [
            at + (n - 1) * s + 1 for at, n, s in zip(start, shape, steps, strict=True)
        ]
        pixels = lax.slice(
            x, (0, *start, 0), (x.shape[0], *limit, x.shape[-1]), (1, *steps, 1)
        )
        # In two steps: the transpose sums along rows at last, which is faster.
        row = jnp.broadcast_to(tap, (shape[-1], x.shape[-1]))
        term = pixels * row.reshape((1,) * (x.ndim - 2) + row.shape)
        total = term if total is None else total + term
    assert total is not None
    return barrier(total)
