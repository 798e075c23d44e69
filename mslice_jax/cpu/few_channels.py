"""Convolutions of few channels, in programs of our own on CPU: a few pixels at a time.

XLA's CPU backend multiplies a matrix of windows with one of filters, which is slow
where there are but four or eight of them, as in the narrow networks that this package
makes. A window that is three pixels longer sees all that four neighbours of a row are
made of, and computes the four: its filters are the original ones, once for each pixel,
shifted, with zeros beside them. There are a fourth as many windows; for three taps that
is twice the multiplications, in a half to a third of the time (`experiments/LOG.md`).

Of few channels XLA copies windows into the matrix number by number, which takes longer
than the product. Half or a quarter as many windows help there, too. (As long as
they fit into the cache, `columns` is faster still.)

The sums have the same terms, and zeros.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from .windows import cotangent_of, of_cotangent, windows_of

PIXELS = 4
_CHANNELS = 8  # with more of them XLA is fast enough
# (channels, filters, pixels at a time): up to so many of both. Of 3 x 3 windows on 8
# images of 32 x 32, time over XLA's: 3 to 16 channels .54, 6 to 32 .67, 8 to 32 .86, 12
# to 12 .66, 24 to 24 .81; no gain, or hardly one, had 3 to 64 (.86, and .97 of one
# image), 12 to 32 (.97), 16 to 16 (.94), 24 to 48 (1.03).
_GAINS = ((4, 32, 4), (8, 32, 2), (24, 24, 2))
_LANES = 16  # of a vector: so many channels XLA copies at once
_LEAST = 512  # pixels; with 256 the time was 1.1 times XLA's


def applies(lhs: Any, rhs: Any, params: dict[str, Any]) -> bool:
    """Whether this convolution of one group can be computed so, and gains from it."""
    filters = rhs.shape[params["dimension_numbers"].rhs_spec[0]]
    return _gains(rhs, filters, windows_of(lhs, rhs, params)[-1], params)


def pixels_at_a_time(lhs: Any, rhs: Any, params: dict[str, Any]) -> int:
    """So many the forward pass of this convolution gains from; 1 if from none.

    Rows need not have a multiple of them.
    """
    numbers = params["dimension_numbers"]
    filters, channels, *windows = (rhs.shape[i] for i in numbers.rhs_spec)
    if not (
        params["feature_group_count"] == params["batch_group_count"] == 1
        and all(step == 1 for step in params["lhs_dilation"])
        and windows[-1] > 1
        and channels % _LANES > 0
        and params["window_strides"][-1] == params["rhs_dilation"][-1] == 1
        and lhs.dtype == rhs.dtype == jnp.float32
    ):
        return 1
    *rows, width = windows_of(lhs, rhs, params)
    if lhs.shape[numbers.lhs_spec[0]] * math.prod(rows) * width < _LEAST:
        return 1
    for most_channels, most_filters, pixels in _GAINS:
        if channels <= most_channels and filters <= most_filters:
            # What is computed beyond the row is lost.
            return pixels if 8 * (-width % pixels) <= width else 1
    return 1


def applies_to_images(lhs: Any, rhs: Any, params: dict[str, Any]) -> bool:
    """Whether that holds for the gradient of images, which is a convolution, too."""
    numbers = params["dimension_numbers"]
    filters, width = rhs.shape[numbers.rhs_spec[1]], lhs.shape[numbers.lhs_spec[-1]]
    return _gains(rhs, filters, width, params) and all(
        step == 1 for step in params["window_strides"]
    )


def _gains(rhs: Any, filters: int, width: int, params: dict[str, Any]) -> bool:
    """Whether to compute so many filters, and pixels of a row."""
    return (
        filters <= _CHANNELS
        and width > 0
        and width % PIXELS == 0
        and rhs.shape[params["dimension_numbers"].rhs_spec[-1]] > 1
        and params["window_strides"][-1] == params["rhs_dilation"][-1] == 1
        and rhs.dtype == jnp.float32
    )


def convolve(
    lhs: jax.Array, rhs: jax.Array, params: dict[str, Any], pixels: int = PIXELS
) -> jax.Array:
    """The convolution of images (lhs) with filters (rhs), so many pixels at a time."""
    numbers = params["dimension_numbers"]
    last = lhs.ndim - 1
    (low, high), width = params["padding"][-1], windows_of(lhs, rhs, params)[-1]
    beyond = -width % pixels
    channels_last = (0, last, *range(1, last))
    out_in_last = (last, last - 1, *range(last - 1))
    kernel = jnp.moveaxis(rhs, numbers.rhs_spec, out_in_last)  # (kh, kw, in, out)
    y = lax.conv_general_dilated(
        lhs,
        shared(kernel, pixels),
        (*params["window_strides"][:-1], pixels),
        (*params["padding"][:-1], (low, high + beyond)),
        rhs_dilation=params["rhs_dilation"],
        dimension_numbers=lax.ConvDimensionNumbers(
            numbers.lhs_spec, out_in_last, channels_last
        ),
        precision=params["precision"],
        preferred_element_type=params["preferred_element_type"],
    )
    y = y.reshape(*y.shape[:-2], y.shape[-2] * pixels, kernel.shape[-1])
    if beyond:
        y = lax.slice_in_dim(y, 0, width, axis=last - 1)
    return jnp.moveaxis(y, channels_last, numbers.out_spec)


def shared(kernel: jax.Array, pixels: int, step: int = 1) -> jax.Array:
    """The filters of several pixels of a row in one window, with zeros beside them.

    Args:
      kernel: (..., k, in, out).
      pixels: how many.
      step: how far the window of the next one is.

    Returns:
      (..., k + (pixels - 1) step, in, pixels out).
    """
    shifted = []
    for pixel in range(pixels):
        beside = [(0, 0, 0)] * kernel.ndim
        beside[-3] = pixel * step, (pixels - 1 - pixel) * step, 0
        shifted.append(lax.pad(kernel, jnp.zeros((), kernel.dtype), beside))
    return jnp.concatenate(shifted, axis=-1)


def for_images(
    lhs: jax.Array,
    rhs: jax.Array,
    params: dict[str, Any],
    form: Callable[..., jax.Array] = convolve,
) -> jax.Array:
    """The convolution; its transpose with respect to the images is computed by `form`.

    Args:
      lhs, rhs: images, and filters.
      params: of `conv_general_dilated`; windows move on by one pixel.
      form: (cotangent, filters, params) -> its convolution.
    """
    _, _, *window = params["dimension_numbers"].rhs_spec
    flipped, back = lax.rev(rhs, window), of_cotangent(rhs, params)
    cotangent = cotangent_of(lhs, rhs, params)
    transpose = jax.linear_transpose(lambda y: form(y, flipped, back), cotangent)
    return transpose(lhs)[0]
