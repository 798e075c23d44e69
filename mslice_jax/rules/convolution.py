"""Convolutions in training on CPU: products of matrices where XLA is slow.

XLA's CPU backend computes the filter gradient as a convolution whose window is as large
as the image, and a convolution whose window is larger than the image in plain loops.
Written as a product of matrices, the columns of an image's windows (im2col) times the
kernel or the cotangent, both run at the speed of a dense layer. The columns of a few
images at a time go into the cache; the sum over them is a scan.

What is written here is the tangent, which is linear: JAX transposes it into those
products, and forward mode, vmap and second derivatives work as for any function. A
convolution that is not differentiated, and other platforms, keep XLA's.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

COLUMNS = 4 * 2**20
"""How many bytes of columns are made at a time."""


def with_cpu_gradient(
    run: Callable[[jax.Array, jax.Array], jax.Array], params: dict[str, Any]
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """The convolution with other derivatives on CPU.

    Args:
      run: (lhs, rhs) -> the convolution.
      params: of `conv_general_dilated`, with one group and an undilated lhs.
    """

    def products(lhs: jax.Array, rhs: jax.Array) -> jax.Array:
        return lax.platform_dependent(
            lhs, rhs, cpu=lambda lhs, rhs: _as_products(lhs, rhs, params), default=run
        )

    @jax.custom_jvp
    def convolve(lhs: jax.Array, rhs: jax.Array) -> jax.Array:
        return run(lhs, rhs)

    def tangent(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
        (lhs, rhs), (lhs_moves, rhs_moves) = primals, tangents
        forward = products if _window_is_larger(lhs, rhs, params) else run
        terms = []
        if not isinstance(lhs_moves, SymbolicZero):
            terms.append(forward(lhs_moves, rhs))
        if not isinstance(rhs_moves, SymbolicZero):
            terms.append(products(lhs, rhs_moves))
        out = forward(lhs, rhs)
        return out, sum(terms[1:], terms[0]) if terms else jnp.zeros_like(out)

    convolve.defjvp(tangent, symbolic_zeros=True)
    return convolve


def applies(lhs: Any, params: dict[str, Any]) -> bool:
    """Whether the form below computes this convolution."""
    return (
        params["batch_group_count"] == 1
        and all(step == 1 for step in params["lhs_dilation"])
        and all(low >= 0 and high >= 0 for low, high in params["padding"])
        and all(isinstance(size, int) for size in lhs.shape)
        and lhs.dtype in (jnp.float32, jnp.bfloat16, jnp.float16)
    )


def _window_is_larger(lhs: Any, rhs: Any, params: dict[str, Any]) -> bool:
    numbers = params["dimension_numbers"]
    images = [lhs.shape[i] for i in numbers.lhs_spec[2:]]
    windows = [rhs.shape[i] for i in numbers.rhs_spec[2:]]
    return any(k > n for k, n in zip(windows, images, strict=True))


def _as_products(lhs: jax.Array, rhs: jax.Array, params: dict[str, Any]) -> jax.Array:
    """The convolution as products of matrices, a few images at a time."""
    numbers = params["dimension_numbers"]
    batch, channel, *space = numbers.lhs_spec
    x = lhs.transpose(batch, *space, channel)
    out, into, *window = numbers.rhs_spec
    kernel = rhs.transpose(*window, into, out)
    *size, _, filters = kernel.shape
    x = jnp.pad(x, [(0, 0), *params["padding"], (0, 0)])
    steps, dilation = params["window_strides"], params["rhs_dilation"]
    shape = [
        (n - (k - 1) * d - 1) // s + 1
        for n, k, d, s in zip(x.shape[1:-1], size, dilation, steps, strict=True)
    ]
    matrix = kernel.reshape(-1, filters)

    def product(images: jax.Array, matrix: jax.Array) -> jax.Array:
        columns = _columns(images, size, shape, steps, dilation)
        flat = columns.reshape(-1, columns.shape[-1])
        y = lax.dot(flat, matrix, precision=params["precision"])
        return y.reshape(*images.shape[:1], *shape, filters)

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
        y = y.reshape(-1, *shape, filters)
    at = numbers.out_spec
    order = [0] * len(at)
    for source, target in enumerate((at[0], *at[2:], at[1])):
        order[target] = source
    return y.transpose(order).astype(params["preferred_element_type"] or lhs.dtype)


def _columns(
    x: jax.Array,
    size: Sequence[int],
    shape: Sequence[int],
    steps: Sequence[int],
    dilation: Sequence[int],
) -> jax.Array:
    """(b, h, w, c) -> (b, h', w', kh x kw x c): every window as one row."""
    taps = []
    for offset in itertools.product(*(range(k) for k in size)):
        start = [o * d for o, d in zip(offset, dilation, strict=True)]
        limit = [
            a + (n - 1) * s + 1 for a, n, s in zip(start, shape, steps, strict=True)
        ]
        taps.append(
            lax.slice(x, (0, *start, 0), (len(x), *limit, x.shape[-1]), (1, *steps, 1))
        )
    return jnp.concatenate(taps, axis=-1)


def _at_a_time(images: int, shape: Sequence[int], row: int) -> int:
    """How many images' columns fit, of the numbers that divide the batch."""
    fit = max(1, COLUMNS // (math.prod(shape) * row))
    return next(n for n in range(min(fit, images), 0, -1) if images % n == 0)
