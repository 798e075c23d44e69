"""Convolutions over three axes and more, in programs of our own on CPU: slice by slice.

XLA's CPU backend has fast code for convolutions over images; those over volumes take
three to six times as long as they could, and their gradients up to a hundred times
(`experiments/LOG.md`). But the slices of a volume along its first axis are images, and
so are the few slices that a window sees, with as many times the channels. So a
convolution over a volume is one over its slices, each with what its window sees.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from .barriers import barrier
from .windows import Form, windows_of

_SLICES = 8  # that a window sees at most: each is a copy of all images


def applies(rhs: Any, params: dict[str, Any]) -> bool:
    """Whether this convolution of one group is over volumes, and no plain product."""
    _, _, *window = params["dimension_numbers"].rhs_spec
    size = [rhs.shape[axis] for axis in window]
    return len(size) > 2 and max(size) > 1 and size[0] <= _SLICES


def convolve(
    lhs: jax.Array,
    rhs: jax.Array,
    params: dict[str, Any],
    with_changed: Callable[..., Form],
) -> jax.Array:
    """The convolution of volumes (lhs) with filters (rhs).

    Args:
      lhs: volumes.
      rhs: filters.
      params: of `conv_general_dilated`, of one group.
      with_changed: (**parameters that are others) -> the convolution.
    """
    numbers = params["dimension_numbers"]
    batch, channel, *space = numbers.lhs_spec
    out, into, *window = numbers.rhs_spec
    x = lhs.transpose(batch, *space, channel)  # (b, d, h, w, c)
    kernel = rhs.transpose(*window[1:], window[0], into, out)  # (kh, kw, kd, c, o)
    *size, taps, channels, filters = kernel.shape
    kernel = kernel.reshape(*size, taps * channels, filters)
    step, dilation = params["window_strides"][0], params["rhs_dilation"][0]
    count = windows_of(lhs, rhs, params)[0]
    config = [(0, 0, 0), (*params["padding"][0], 0)] + [(0, 0, 0)] * len(space)
    x = lax.pad(x, jnp.zeros((), x.dtype), config)
    if taps > 1:
        x = barrier(x)  # read once for each tap
    seen = [
        lax.slice_in_dim(x, at, at + (count - 1) * step + 1, step, axis=1)
        for at in range(0, taps * dilation, dilation)
    ]
    x = lax.concatenate(seen, x.ndim - 1)
    last = x.ndim - 2
    flat = with_changed(
        window_strides=params["window_strides"][1:],
        padding=params["padding"][1:],
        lhs_dilation=params["lhs_dilation"][1:],
        rhs_dilation=params["rhs_dilation"][1:],
        dimension_numbers=lax.ConvDimensionNumbers(
            (0, last, *range(1, last)),
            (last, last - 1, *range(last - 1)),
            (0, last, *range(1, last)),
        ),
    )
    y = flat(x.reshape(-1, *x.shape[2:]), kernel)
    y = y.reshape(*x.shape[:2], *y.shape[1:])
    return jnp.moveaxis(y, (0, y.ndim - 1, *range(1, y.ndim - 1)), numbers.out_spec)
