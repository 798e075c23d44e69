"""Winograd's convolution, in programs of our own on CPU: half the multiplications.

Four neighbours of a row, from six pixels and a window of three, are products of
polynomials, and these are known from their values at six points: six multiplications
in place of twelve (Lavin and Gray, CVPR 2016; F(4, 3) in their terms).

    y = A [(G w) * (B x)]      x: 6 pixels, w: 3 taps, y: 4 pixels

Only the last axis of the image is transformed. Along the others each of the six
products stays a convolution, for which XLA has fast code, and few arrays are made on
the way. The points 0, ±3/4, ±3/2 and infinity round to about twice as much as the
plain sum does; 0, ±1, ±2, which are easier to write down, to three times as much.

All is linear in the images and in the filters. The transpose that JAX makes has the
same six products: the gradient of images is Winograd's, too.
"""

import functools
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .barriers import barrier

TILE, TAPS = 4, 3
_POINTS = tuple(Fraction(n, 4) for n in (0, 3, -3, 6, -6))  # and infinity
# With fewer the sums cost more than the multiplications that they save.
_CHANNELS = 32
# So many pixels, for the filters are transformed for them: 16 of 256 channels took 2.4
# times as long as XLA's own, 64 of 512 1.3 times, 64 of 128 .9, 256 of 256 .67.
_PIXELS = 96
# So many products of a pixel, a channel and a filter, for there are six times as many
# operations: 225 pixels of 32 channels took 1.4 times as long, 961 .9, 256 of 64 .77.
_PRODUCTS = 2**19
# Transposed, the sums are of padded arrays, or join six arrays: they cost more.
_CHANNELS_OF_GRADIENT = 64


def applies(lhs: Any, rhs: Any, params: dict[str, Any]) -> bool:
    """Whether this convolution of one group can be computed so, and gains from it."""
    numbers = params["dimension_numbers"]
    filters, channels, *windows = (rhs.shape[i] for i in numbers.rhs_spec)
    *rows, width = [
        (lhs.shape[i] + low + high - (taps - 1) * dilation - 1) // step + 1
        for i, taps, dilation, step, (low, high) in zip(
            numbers.lhs_spec[2:],
            windows,
            params["rhs_dilation"],
            params["window_strides"],
            params["padding"],
            strict=True,
        )
    ]
    pixels = lhs.shape[numbers.lhs_spec[0]] * math.prod(rows) * width
    return (
        windows[-1] == TAPS
        and params["window_strides"][-1] == params["rhs_dilation"][-1] == 1
        and width >= TILE
        and min(channels, filters) >= _CHANNELS
        and pixels >= _PIXELS
        and pixels * channels * filters >= _PRODUCTS
        and lhs.dtype == rhs.dtype == jnp.float32
        # A precision that was asked for is kept.
        and params["precision"] is None
    )


def applies_to_images(lhs: Any, rhs: Any, params: dict[str, Any]) -> bool:
    """Whether that holds for the gradient of images, too."""
    filters = params["dimension_numbers"].rhs_spec[:2]
    return (
        applies(lhs, rhs, params)
        and min(rhs.shape[i] for i in filters) >= _CHANNELS_OF_GRADIENT
    )


def convolve(lhs: jax.Array, rhs: jax.Array, params: dict[str, Any]) -> jax.Array:
    """The convolution of images (lhs) with filters (rhs)."""
    return _convolve(lhs, rhs, params, to_transpose=False)


def for_images(lhs: jax.Array, rhs: jax.Array, params: dict[str, Any]) -> jax.Array:
    """The convolution, to be transposed with respect to the images.

    The transpose reads filters with inputs and outputs exchanged, and this is laid out
    for that.
    """
    return _convolve(lhs, rhs, params, to_transpose=True)


def _convolve(
    lhs: jax.Array, rhs: jax.Array, params: dict[str, Any], *, to_transpose: bool
) -> jax.Array:
    numbers = params["dimension_numbers"]
    last, space = lhs.ndim - 1, range(1, lhs.ndim - 1)
    channels_last = (0, last, *space)
    x = jnp.moveaxis(lhs, numbers.lhs_spec, channels_last)
    # (kh, kw, in, out), or (kh, kw, out, in)
    filters = (last - 1, last) if to_transpose else (last, last - 1)
    rhs_spec = (*filters, *range(last - 1))
    kernel = jnp.moveaxis(rhs, numbers.rhs_spec, rhs_spec)
    if to_transpose:
        # Exchanged once, and not in each of the six: flat, it has but one layout.
        kernel = barrier(kernel.reshape(-1)).reshape(kernel.shape)

    low, high = params["padding"][-1]
    width = x.shape[-2] + low + high - TAPS + 1
    pixels = _pixels(x, low, tiles=-(-width // TILE))
    taps = lax.split(kernel, [1] * TAPS, axis=last - 2)
    a, g, b = matrices()
    products = [
        lax.conv_general_dilated(
            _sum(of_pixels, pixels),
            _sum(of_taps, taps),
            params["window_strides"],
            (*params["padding"][:-1], (0, 0)),
            rhs_dilation=params["rhs_dilation"],
            dimension_numbers=lax.ConvDimensionNumbers(
                channels_last, rhs_spec, channels_last
            ),
            preferred_element_type=params["preferred_element_type"],
        )
        for of_pixels, of_taps in zip(b, g, strict=True)
    ]
    y = jnp.stack([_sum(row, products) for row in a], axis=-2)
    y = y.reshape(*y.shape[:-3], -1, y.shape[-1])[..., :width, :]
    # Six arrays are made of what stands before this in the transpose, and several
    # sums of later operations here. XLA would compute it anew for each of them.
    return jnp.moveaxis(barrier(y), channels_last, numbers.out_spec)


@functools.cache
def matrices() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A (4, 6), G (6, 3) and B (6, 6), float32; B is of whole numbers."""
    powers = range(max(TILE, TAPS))
    values = [[point**i for i in powers] for point in _POINTS]
    values.append([Fraction(0)] * len(powers))
    a, g = [row[:TILE] for row in values], [row[:TAPS] for row in values]
    a[-1][-1] = g[-1][-1] = Fraction(1)  # at infinity the highest power is all
    b = []
    for point in _POINTS:  # Lagrange's polynomial: 1 at the point, 0 at the others
        others = [other for other in _POINTS if other != point]
        scale = math.prod(point - other for other in others)
        b.append([c / scale for c in _with_roots(others)] + [Fraction(0)])
    b.append(_with_roots(_POINTS))
    for row, factors in enumerate(b):
        whole = math.lcm(*(c.denominator for c in factors))
        b[row] = [c * whole for c in factors]
        g[row] = [c / whole for c in g[row]]
    a, g, b = (np.array(m, np.float64).astype(np.float32) for m in (a, g, b))
    return a.T, g, b


def _with_roots(roots: Sequence[Fraction]) -> list[Fraction]:
    """The coefficients of the product of (x - root), the lowest power first."""
    coefficients = [Fraction(1)]
    for root in roots:
        higher = [Fraction(0), *coefficients]
        scaled = [root * c for c in coefficients] + [Fraction(0)]
        coefficients = [c - s for c, s in zip(higher, scaled, strict=True)]
    return coefficients


def _pixels(x: jax.Array, low: int, *, tiles: int) -> list[jax.Array]:
    """(b, h, w, c) -> six arrays (b, h, tiles, c): what each tile's windows see."""
    # One tile more than is computed, for the pixels that the last window sees of it.
    total = (tiles + 1) * TILE
    config = [(0, 0, 0) for _ in x.shape]
    config[-2] = (low, total - low - x.shape[-2], 0)
    x = lax.pad(x, jnp.zeros((), x.dtype), config)
    x = x.reshape(*x.shape[:-2], tiles + 1, TILE, x.shape[-1])
    own, next_tile = x[..., :tiles, :, :], x[..., 1:, : TAPS - 1, :]
    # Transposed, a split is a concatenation; slices would be as many padded arrays.
    parts = [
        part
        for array in (own, next_tile)
        for part in lax.split(array, [1] * array.shape[-2], axis=array.ndim - 2)
    ]
    return [part.squeeze(-2) for part in parts]


def _sum(factors: np.ndarray, arrays: Sequence[jax.Array]) -> jax.Array:
    """The arrays, each times its factor, added up."""
    terms = [
        array if factor == 1 else array * factor
        for factor, array in zip(factors, arrays, strict=True)
        if factor != 0
    ]
    return functools.reduce(jnp.add, terms)
