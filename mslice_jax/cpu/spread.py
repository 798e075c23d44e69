"""Transposed convolutions on CPU: of images that are spread by zeros.

XLA's CPU backend makes the filter gradient of such a convolution thirty times as slow
as its forward pass, and over volumes the forward pass a hundred times as slow as it
could be (`experiments/LOG.md`). But a pixel of the result sees, of every
window, only the taps that do not fall on zeros: with pixels s apart there are s kinds
of them along an axis, each the result of an ordinary convolution with every s-th tap.
Where windows do not overlap, that is one tap, and all is one product of matrices.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from .windows import Form


def applies(params: dict[str, Any]) -> bool:
    """Whether this convolution spreads its images, and can be divided."""
    return (
        any(step > 1 for step in params["lhs_dilation"])
        and all(step == 1 for step in params["window_strides"])
        and all(step == 1 for step in params["rhs_dilation"])
    )


def is_product(rhs: Any, params: dict[str, Any]) -> bool:
    """Whether windows stand side by side, without zeros around the result."""
    _, _, *window = params["dimension_numbers"].rhs_spec
    return all(
        rhs.shape[axis] == step and padding == (step - 1, step - 1)
        for axis, step, padding in zip(
            window, params["lhs_dilation"], params["padding"], strict=True
        )
    )


def as_product(lhs: jax.Array, rhs: jax.Array, params: dict[str, Any]) -> jax.Array:
    """The convolution of images (lhs) with filters (rhs), where it is a product."""
    numbers, last = params["dimension_numbers"], lhs.ndim - 1
    channels_last = (0, last, *range(1, last))
    x = jnp.moveaxis(lhs, numbers.lhs_spec, channels_last)
    out, into, *window = numbers.rhs_spec
    kernel = lax.rev(rhs, window).transpose(into, *window, out)
    channels, *steps, filters = kernel.shape
    y = lax.dot(
        x.reshape(math.prod(x.shape[:-1]), channels),
        kernel.reshape(channels, math.prod(steps) * filters),
        precision=params["precision"],
        preferred_element_type=params["preferred_element_type"],
    )
    # (b, h, w, s, s, c) -> (b, h, s, w, s, c) -> (b, h s, w s, c)
    y = y.reshape(*x.shape[:-1], *steps, filters)
    pixels = [i for axis in range(1, last) for i in (axis, last - 1 + axis)]
    y = y.transpose(0, *pixels, y.ndim - 1)
    sizes = [n * s for n, s in zip(x.shape[1:-1], steps, strict=True)]
    y = y.reshape(len(x), *sizes, filters)
    return jnp.moveaxis(y, channels_last, numbers.out_spec)


def convolve(
    lhs: jax.Array,
    rhs: jax.Array,
    params: dict[str, Any],
    with_changed: Callable[..., Form],
) -> jax.Array:
    """The convolution of images (lhs) with filters (rhs).

    Args:
      lhs: images.
      rhs: filters.
      params: of `conv_general_dilated`.
      with_changed: (**parameters that are others) -> the convolution.
    """
    numbers, last = params["dimension_numbers"], lhs.ndim - 1
    channels_last = (0, last, *range(1, last))
    x = jnp.moveaxis(lhs, numbers.lhs_spec, channels_last)
    filters_last = (last, last - 1, *range(last - 1))
    kernel = jnp.moveaxis(rhs, numbers.rhs_spec, filters_last)
    steps, sizes = params["lhs_dilation"], kernel.shape[: last - 1]
    shape = [
        (n - 1) * s + 1 + low + high - k + 1
        for n, s, k, (low, high) in zip(
            x.shape[1:-1], steps, sizes, params["padding"], strict=True
        )
    ]
    counts = [-(-n // s) for n, s in zip(shape, steps, strict=True)]
    ordinary = with_changed(
        padding=((0, 0),) * (last - 1),
        lhs_dilation=(1,) * (last - 1),
        dimension_numbers=lax.ConvDimensionNumbers(
            channels_last, filters_last, channels_last
        ),
    )
    parts = []
    for kind in itertools.product(*map(range, steps)):
        config, taps = [(0, 0, 0)], []
        for at, n, s, k, count, (low, _) in zip(
            kind, x.shape[1:-1], steps, sizes, counts, params["padding"], strict=True
        ):
            first = (low - at) % s  # the first tap that is not on zeros
            taps.append(slice(first, None, s))
            start = (at + first - low) // s  # the pixel that it is on
            end = start + count + len(range(first, k, s)) - 1
            config.append((-start, end - n, 0))
        kernel_of_kind = kernel[tuple(taps)]
        if kernel_of_kind.size == 0:  # no tap is
            full = (x.shape[0], *counts, kernel.shape[-1])
            dtype = params["preferred_element_type"] or x.dtype
            parts.append(jnp.zeros(full, dtype))
            continue
        parts.append(
            ordinary(
                # By itself: XLA has no fast code where padding is negative.
                lax.pad(x, jnp.zeros((), x.dtype), [*config, (0, 0, 0)]),
                kernel_of_kind,
            )
        )
    # (s, s, b, h, w, c) -> (b, h, s, w, s, c) -> (b, h s, w s, c)
    y = jnp.stack(parts).reshape(*steps, *parts[0].shape)
    pixels = [i for axis in range(last - 1) for i in (last + axis, axis)]
    y = y.transpose(last - 1, *pixels, y.ndim - 1)
    y = y.reshape(
        x.shape[0],
        *(n * s for n, s in zip(counts, steps, strict=True)),
        kernel.shape[-1],
    )
    y = lax.slice(y, (0,) * y.ndim, (x.shape[0], *shape, kernel.shape[-1]))
    return jnp.moveaxis(y, channels_last, numbers.out_spec)
