"""Winograd's convolution, in programs of our own on CPU: half the multiplications.

Four neighbours of a row and a window of three are, as polynomials, products of values
at six points: six multiplications in place of twelve (Lavin and Gray, CVPR 2016, F(4,
3), nested with nothing: only the last axis of the image is transformed, along the
others it stays an ordinary convolution, so that few arrays are made on the way).

    y = A [(G w) * (B x)]      x: 6 pixels, w: 3 taps, y: 4 pixels

The points 0, ±3/4, ±3/2 and infinity keep rounding at two to three times that of the
plain sum; with ±1 and ±2 it is three to six times. It is linear in x and in w, and its
transpose is as fast: the gradient of images is Winograd's, too.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

TILE, TAPS = 4, 3
_POINTS = tuple(Fraction(n, 4) for n in (0, 3, -3, 6, -6))  # and infinity

Convolve = Callable[[jax.Array, jax.Array], jax.Array]


@functools.cache
def matrices() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A (4, 6), G (6, 3) and B (6, 6) of the points; B of whole numbers."""
    a = [[p**i for p in _POINTS] + [Fraction(i == TILE - 1)] for i in range(TILE)]
    g = [[p**i for i in range(TAPS)] for p in _POINTS] + [[0, 0, 1]]
    b = []
    for point in _POINTS:  # Lagrange's polynomials: 1 at the point, 0 at the others
        others = [p for p in _POINTS if p != point]
        scale = math.prod(point - p for p in others)
        b.append([c / scale for c in (*_with_roots(others), 0)])
    b.append(_with_roots(_POINTS))
    for row, (factors, taps) in enumerate(zip(b, g, strict=True)):
        whole = math.lcm(*(Fraction(c).denominator for c in factors))
        b[row], g[row] = [c * whole for c in factors], [t / whole for t in taps]
    a, g, b = (np.array(m, np.float64).astype(np.float32) for m in (a, g, b))
    return a, g, b


def _with_roots(roots: Sequence[Fraction]) -> list[Fraction]:
    """The coefficients of the product of (x - root), the lowest power first."""
    coefficients = [Fraction(1)]
    for root in roots:
        shifted = [Fraction(0), *coefficients]
        scaled = [*(root * c for c in coefficients), Fraction(0)]
        coefficients = [s - c for s, c in zip(shifted, scaled, strict=True)]
    return coefficients


def applies(lhs: Any, rhs: Any, params: dict[str, Any]) -> bool:
    """Whether this convolution can be computed so, and should be."""
    numbers = params["dimension_numbers"]
    row, tap = numbers.lhs_spec[-1], numbers.rhs_spec[-1]
    low, high = params["padding"][-1]
    return (
        rhs.shape[tap] == TAPS
        and params["window_strides"][-1] == params["rhs_dilation"][-1] == 1
        and lhs.dtype == jnp.float32
        # Who asks for more precision does not get less.
        and params["precision"] is None
        and lhs.shape[row] + low + high - TAPS + 1 >= TILE
        and _pays(lhs, rhs, numbers)
    )


def _pays(lhs: Any, rhs: Any, numbers: Any) -> bool:
    return min(lhs.shape[numbers.lhs_spec[1]], rhs.shape[numbers.rhs_spec[0]]) >= 32


def convolve(
    lhs: jax.Array,
    rhs: jax.Array,
    params: dict[str, Any],
    products: Callable[[jax.Array, jax.Array, dict[str, Any]], jax.Array],
    swap: bool = False,
) -> jax.Array:
    """The convolution; `products` computes those along the other axes."""
    numbers = params["dimension_numbers"]
    batch, channel, *space = numbers.lhs_spec
    out, into, *window = numbers.rhs_spec
    a, g, b = matrices()
    x = lhs.transpose(batch, *space, channel)
    kernel = lax.optimization_barrier(rhs.transpose(*window, out, into)) if swap else rhs.transpose(*window, into, out)
    low, high = params["padding"][-1]
    width = x.shape[-2] + low + high - TAPS + 1
    tiles = -(-width // TILE)
    # One tile more, for the two pixels that the last window reaches into it.
    total = (tiles + 1) * TILE
    spare = total - x.shape[-2] - low
    x = lax.pad(x, np.float32(0), [(0, 0, 0)] * (x.ndim - 2) + [(low, spare, 0), (0, 0, 0)])
    x = x.reshape(*x.shape[:-2], tiles + 1, TILE, x.shape[-1])
    pixels = [x[..., i // TILE : i // TILE + tiles, i % TILE, :] for i in range(b.shape[1])]
    taps = [kernel[..., i, :, :] for i in range(TAPS)]
    inner = _without_last(params, x.ndim - 1, swap)
    terms = [
        products(_sum(row, pixels), _sum(points, taps)[..., None, :, :], inner)
        for row, points in zip(b, g, strict=True)
    ]
    y = jnp.stack([_sum(row, terms) for row in a], axis=-2)
    y = y.reshape(*y.shape[:-3], tiles * TILE, y.shape[-1])[..., :width, :]
    channels_last = (0, y.ndim - 1, *range(1, y.ndim - 1))
    order = [0] * y.ndim
    for to, at in zip(numbers.out_spec, channels_last, strict=True):
        order[to] = at
    return y.transpose(order)


def _without_last(params: dict[str, Any], ndim: int, swap) -> dict[str, Any]:
    """The parameters for channels last, and a window of one along the last axis."""
    space = tuple(range(1, ndim - 1))
    window = tuple(range(ndim - 2))
    return {
        **params,
        "padding": (*params["padding"][:-1], (0, 0)),
        "dimension_numbers": lax.ConvDimensionNumbers(
            lhs_spec=(0, ndim - 1, *space),
            rhs_spec=(ndim - 2, ndim - 1, *window) if swap else (ndim - 1, ndim - 2, *window),
            out_spec=(0, ndim - 1, *space),
        ),
    }


def _sum(factors: np.ndarray, arrays: Sequence[jax.Array]) -> jax.Array:
    """The arrays, each times its factor, added up."""
    terms = [
        array if factor == 1 else array * factor
        for factor, array in zip(factors, arrays, strict=True)
        if factor
    ]
    return functools.reduce(jnp.add, terms)
