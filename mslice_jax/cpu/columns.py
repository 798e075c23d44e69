"""Convolutions as products of matrices (im2col), in programs of our own on CPU.

A row of the one matrix is what a window sees, in the other stand the kernels. XLA does
so by itself, but copies windows number by number where channels are few, and takes
plain loops where the window is larger than the image.

Several pixels of an image's row may share a window, which is as much longer. Its
filters are the kernels, once for each pixel, shifted, with zeros beside them. Fewer and
longer rows are copied then, and the product has more columns: with three taps, two
pixels and few channels a convolution takes half of the time (`experiments/LOG.md`).

The columns of a few images at a time go into the cache.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from .barriers import barrier
from .few_channels import shared
from .windows import cotangent_of, of_cotangent, windows_of

COLUMNS = 16 * 2**20
"""How many bytes of columns are made at a time: so many stay in the cache. A form for
few channels that has more of them gains nothing, for the loop over parts copies."""
# Of a shared window, and of an image. Of 16 images of 32 x 32, windows of 3 x 3, time
# over XLA's: 3 to 16 channels .26, 3 to 64 .47, 8 to 8 .38, 8 to 32 .81; 8 to 128 1.03.
_ENTRIES, _CHANNELS, _FILTERS = 192, 8, 64
_PIXELS = 4, 2, 1


def applies(lhs: Any, rhs: Any, params: dict[str, Any]) -> bool:
    """Whether a convolution has so few channels that it gains from columns."""
    _, _, *window = params["dimension_numbers"].rhs_spec
    return (
        params["feature_group_count"] == params["batch_group_count"] == 1
        and all(step == 1 for step in params["lhs_dilation"])
        and params["rhs_dilation"][-1] == 1
        and any(rhs.shape[axis] > 1 for axis in window)
        and lhs.dtype == rhs.dtype == jnp.float32
        and _are_few(lhs, rhs, params)
    )


def applies_to_images(lhs: Any, rhs: Any, params: dict[str, Any]) -> bool:
    """Whether that holds for the gradient of images, which is a convolution, too."""
    if any(step > 1 for step in params["window_strides"]):
        return False
    cotangent = cotangent_of(lhs, rhs, params)
    return applies(cotangent, rhs, of_cotangent(rhs, params))


def _are_few(lhs: Any, rhs: Any, params: dict[str, Any]) -> bool:
    """Whether channels, filters, and all columns are no more than gain."""
    numbers = params["dimension_numbers"]
    filters, channels, *window = (rhs.shape[i] for i in numbers.rhs_spec)
    pixels, step = pixels_at_a_time(rhs, params), params["window_strides"][-1]
    rows = windows_of(lhs, rhs, params)
    rows[-1] = -(-rows[-1] // pixels)
    window[-1] += (pixels - 1) * step
    entries = channels * math.prod(window)
    return (
        channels <= _CHANNELS
        and filters <= _FILTERS
        and entries <= _ENTRIES
        and 4 * entries * lhs.shape[numbers.lhs_spec[0]] * math.prod(rows) <= COLUMNS
    )


def pixels_at_a_time(rhs: Any, params: dict[str, Any]) -> int:
    """How many pixels share a window: no more than it overlaps with the next ones."""
    overlap = rhs.shape[params["dimension_numbers"].rhs_spec[-1]] - 1
    step = params["window_strides"][-1]
    return next((n for n in _PIXELS if overlap >= n * step), 1)


def convolve(
    lhs: jax.Array, rhs: jax.Array, params: dict[str, Any], pixels: int = 1
) -> jax.Array:
    """The convolution of images (lhs) with filters (rhs), of one group.

    Args:
      lhs: images, without zeros between pixels (`lhs_dilation`).
      rhs: filters.
      params: of `conv_general_dilated`.
      pixels: how many of a row share a window; more than one without `rhs_dilation`.
    """
    numbers = params["dimension_numbers"]
    batch, channel, *space = numbers.lhs_spec
    x = lhs.transpose(batch, *space, channel)
    out, into, *window = numbers.rhs_spec
    kernel = rhs.transpose(*window, into, out)
    *size, _, filters = kernel.shape
    steps, dilation = list(params["window_strides"]), params["rhs_dilation"]
    shape = windows_of(lhs, rhs, params)
    width = shape[-1]
    if pixels > 1:
        kernel = shared(kernel, pixels, steps[-1])
        size[-1], shape[-1] = kernel.shape[-3], -(-width // pixels)
        steps[-1] *= pixels
    runs = _runs(size[-1], dilation[-1], steps[-1])
    padding = list(params["padding"])
    # Rows are read as blocks of as many pixels as a window moves on.
    low = padding[-1][0]
    blocks = shape[-1] + runs[-1][0] // steps[-1]
    padding[-1] = low, blocks * steps[-1] - x.shape[-2] - low
    config = [(0, 0, 0), *((low, high, 0) for low, high in padding), (0, 0, 0)]
    # Computed as it is padded, and not in vectors, it would take several times as long.
    x = lax.pad(barrier(x), jnp.zeros((), x.dtype), config)
    x = x.reshape(*x.shape[:-2], blocks, steps[-1] * x.shape[-1])
    matrix = kernel.reshape(-1, kernel.shape[-1])

    def product(images: jax.Array, matrix: jax.Array) -> jax.Array:
        rows = itertools.product(*(range(k) for k in size[:-1]))
        columns = jnp.concatenate(
            [
                part
                for row in rows
                for part in _along(images, row, runs, shape, steps, dilation)
            ],
            axis=-1,
        )
        y = lax.dot(
            columns.reshape(len(images) * math.prod(shape), columns.shape[-1]),
            matrix,
            precision=params["precision"],
            preferred_element_type=params["preferred_element_type"],
        )
        return y.reshape(len(images), *shape, matrix.shape[-1])

    # A window of one pixel makes no columns: the image is the matrix.
    whole = math.prod(size) == 1
    images = len(x) if whole else _at_a_time(len(x), shape, matrix.shape[0] * 4)
    if images == len(x):
        y = product(x, matrix)
    else:
        # Without the checkpoint the columns of all images would be kept for the
        # backward pass, which is where they are needed.
        again = jax.checkpoint(product, prevent_cse=False)
        parts = x.reshape(-1, images, *x.shape[1:])
        y = lax.map(lambda part: again(part, matrix), parts)
        y = y.reshape(-1, *shape, y.shape[-1])
    if pixels > 1:
        y = y.reshape(*y.shape[:-2], shape[-1] * pixels, filters)
        y = lax.slice_in_dim(y, 0, width, axis=y.ndim - 2)
    channels_last = (0, y.ndim - 1, *range(1, y.ndim - 1))
    y = jnp.moveaxis(y, channels_last, numbers.out_spec)
    return y.astype(params["preferred_element_type"] or lhs.dtype)


def with_shared_windows(
    lhs: jax.Array, rhs: jax.Array, params: dict[str, Any]
) -> jax.Array:
    """The convolution, with as many pixels at a time as suit its window."""
    return convolve(lhs, rhs, params, pixels_at_a_time(rhs, params))


def _runs(taps: int, dilation: int, step: int) -> list[tuple[int, int]]:
    """The taps of a row as (start, end) of pixels side by side within a block."""
    runs: list[tuple[int, int]] = []
    for at in range(0, taps * dilation, dilation):
        if runs and at == runs[-1][1] and at % step:
            runs[-1] = runs[-1][0], at + 1
        else:
            runs.append((at, at + 1))
    return runs


def _along(
    x: jax.Array,
    row: Sequence[int],
    runs: Sequence[tuple[int, int]],
    shape: Sequence[int],
    steps: Sequence[int],
    dilation: Sequence[int],
) -> Iterator[jax.Array]:
    """Of a row of all windows, (b, ..., blocks, step c), its runs: (b, h', w', n c)."""
    step = steps[-1]
    channels = x.shape[-1] // step
    start = [at * d for at, d in zip(row, dilation[:-1], strict=True)]
    limit = [
        at + (n - 1) * s + 1
        for at, n, s in zip(start, shape[:-1], steps[:-1], strict=True)
    ]
    for first, end in runs:
        block, pixel = divmod(first, step)
        yield lax.slice(
            x,
            (0, *start, block, pixel * channels),
            (len(x), *limit, block + shape[-1], (pixel + end - first) * channels),
            (1, *steps[:-1], 1, 1),
        )


def _at_a_time(images: int, shape: Sequence[int], row: int) -> int:
    """How many images' columns fit, of the numbers that divide the batch."""
    fit = max(1, COLUMNS // max(1, math.prod(shape) * row))
    return next((n for n in range(min(fit, images), 0, -1) if images % n == 0), images)
