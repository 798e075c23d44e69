"""Convolutions in training on CPU: products of matrices where XLA is slow.

XLA's CPU backend computes the filter gradient as a convolution whose window is as large
as the image, and a convolution whose window is larger than the image in plain loops.
Written as a product of matrices, the columns of an image's windows (im2col) times the
kernel or the cotangent, both run at the speed of a dense layer. The columns of a few
images at a time go into the cache; the sum over them is a scan.

Without YNNPACK (see `compilation`) only windows of one pixel, or larger than the image,
become products; for the filter gradients of others XLA's convolution is the faster, in
the one layout that it has code for. (oneDNN, where that computes the others, has no
filter gradients in XLA, and is slow at convolutions with such windows.) Two kinds of
convolutions have forms of their own, forward too: with windows of three on images of
many channels (`winograd`), and with few filters (`few_channels`).

The code here is the tangent, which is linear: JAX transposes it, and forward
mode, vmap and second derivatives work as for any function.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from . import depthwise, few_channels, spread, winograd
from .barriers import barrier

COLUMNS = 4 * 2**20
"""How many bytes of columns are made at a time."""
_ENTRIES = 12  # of a window; with 27 columns take as long as XLA's own


Form = Callable[[jax.Array, jax.Array], jax.Array]
"""(lhs, rhs) -> the convolution."""


def with_cpu_gradient(run: Form, params: dict[str, Any], library: str) -> Form:
    """The convolution with other forms and derivatives.

    Args:
      run: (lhs, rhs) -> the convolution.
      params: of `conv_general_dilated`, to which one of the forms applies.
      library: "eigen" or "onednn", which computes the convolutions of the program.
    """

    @jax.custom_jvp
    def convolve(lhs: jax.Array, rhs: jax.Array) -> jax.Array:
        return _forms(run, lhs, rhs, params, library).forward(lhs, rhs)

    def tangent(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
        (lhs, rhs), (lhs_moves, rhs_moves) = primals, tangents
        forms = _forms(run, lhs, rhs, params, library)
        if forms.reads_often:
            lhs = barrier(lhs)
        terms = []
        if not isinstance(lhs_moves, SymbolicZero):
            terms.append(forms.of_images(lhs_moves, rhs))
        if not isinstance(rhs_moves, SymbolicZero):
            terms.append(forms.of_filters(lhs, rhs_moves))
        out = forms.forward(lhs, rhs)
        return out, sum(terms[1:], terms[0]) if terms else jnp.zeros_like(out)

    convolve.defjvp(tangent, symbolic_zeros=True)
    return convolve


@dataclasses.dataclass(slots=True)
class _Forms:
    """What computes a convolution, and its tangents for moves of either operand."""

    forward: Form
    of_images: Form
    of_filters: Form
    reads_often: bool = False
    """Whether lhs is read several times. XLA would compute it anew for each."""


def _forms(
    run: Form, lhs: Any, rhs: Any, params: dict[str, Any], library: str
) -> _Forms:
    def of(form: Callable[..., jax.Array], *more: Any) -> Form:
        return lambda lhs, rhs: form(lhs, rhs, params, *more)

    if depthwise.applies(lhs, rhs, params):
        taps = of(depthwise.convolve)
        return _Forms(taps, of(depthwise.for_images), taps)
    if spread.applies(lhs, rhs, params):
        return _Forms(run, run, of(spread.convolve))
    products = of(_as_products)
    if _window_is_larger(lhs, rhs, params):
        return _Forms(products, products, products)
    if _one_pixel(rhs, params):
        # Spread out by its stride, the cotangent would be mostly zeros.
        skips = math.prod(params["window_strides"]) > 1
        return _Forms(run, products if skips else run, products)
    forms = _Forms(run, run, of(_as_its_gradient_likes, library))
    if winograd.applies(lhs, rhs, params):
        forms.forward, forms.reads_often = of(winograd.convolve), True
    if winograd.applies_to_images(lhs, rhs, params):
        forms.of_images = of(winograd.for_images)
    if library == "eigen":  # oneDNN is as fast with few channels
        if few_channels.applies(lhs, rhs, params):
            forms.forward = forms.of_filters = of(few_channels.convolve)
        elif _few_entries(lhs, rhs, params):
            forms.forward = products
        elif (pixels := few_channels.pixels_at_a_time(lhs, rhs, params)) > 1:
            forms.forward = of(few_channels.convolve, pixels)
        if few_channels.applies_to_images(lhs, rhs, params):
            forms.of_images = of(few_channels.for_images)
    return forms


def applies(lhs: Any, params: dict[str, Any]) -> bool:
    """Whether the form below computes this convolution."""
    return (
        all(step == 1 for step in params["lhs_dilation"])
        and all(low >= 0 and high >= 0 for low, high in params["padding"])
        and all(isinstance(size, int) for size in lhs.shape)
        and lhs.dtype in (jnp.float32, jnp.bfloat16, jnp.float16)
    )


def _window_is_larger(lhs: Any, rhs: Any, params: dict[str, Any]) -> bool:
    numbers = params["dimension_numbers"]
    images = [lhs.shape[i] for i in numbers.lhs_spec[2:]]
    windows = [rhs.shape[i] for i in numbers.rhs_spec[2:]]
    return any(k > n for k, n in zip(windows, images, strict=True))


def _one_pixel(rhs: Any, params: dict[str, Any]) -> bool:
    return all(rhs.shape[i] == 1 for i in params["dimension_numbers"].rhs_spec[2:])


def _few_entries(lhs: Any, rhs: Any, params: dict[str, Any]) -> bool:
    """Whether a window has so few that XLA takes longer to copy than to multiply them.

    Windows of 2 x 2 on 3 channels, as first layers that whiten have them, take a fourth
    of the time as columns (8 images of 32 x 32, 24 filters: 82 microseconds for 329).
    """
    _, *summed = params["dimension_numbers"].rhs_spec
    return (
        params["feature_group_count"] == params["batch_group_count"] == 1
        and math.prod(rhs.shape[i] for i in summed) <= _ENTRIES
        and lhs.dtype == rhs.dtype == jnp.float32
    )


def _as_its_gradient_likes(
    lhs: jax.Array, rhs: jax.Array, params: dict[str, Any], library: str
) -> jax.Array:
    """The convolution on images (c, h, w, b) and filters (c, h, w, o).

    Its filter gradient is then a convolution of the one layout for which XLA's CPU
    backend has fast code. (XLA transposes by itself, but not inside of loops.)
    """
    numbers = params["dimension_numbers"]
    batch, channel, *space = numbers.lhs_spec
    out, into, *window = numbers.rhs_spec
    last, *places = len(space) + 1, *range(len(space))
    inner = [1 + i for i in places]
    images, padding = lhs.transpose(channel, *space, batch), params["padding"]
    if library == "onednn":
        images, padding = _for_eigen(images, padding)
    y = lax.conv_general_dilated(
        images,
        rhs.transpose(into, *window, out),
        params["window_strides"],
        padding,
        rhs_dilation=params["rhs_dilation"],
        dimension_numbers=lax.ConvDimensionNumbers(
            lhs_spec=(last, 0, *inner),
            rhs_spec=(last, 0, *inner),
            out_spec=(last - 1, last, *places),
        ),
        precision=params["precision"],
        preferred_element_type=params["preferred_element_type"],
    )
    return jnp.moveaxis(y, (last - 1, last, *places), numbers.out_spec)


def _for_eigen(
    images: jax.Array, padding: Sequence[tuple[int, int]]
) -> tuple[jax.Array, list[tuple[int, int]]]:
    """Images (c, h, w, b) with one row too many, and the padding that takes it away.

    XLA leaves a convolution with negative padding to its own code, and so its gradient.
    The row is of ones, for padding with zeros would be joined to that of the window.
    """
    (low, high), *others = padding
    for value, rows in ((0, high), (1, 1)):
        config = [(0, 0, 0), (0, rows, 0)] + [(0, 0, 0)] * (images.ndim - 2)
        images = lax.pad(images, jnp.asarray(value, images.dtype), config)
    return images, [(low, -1), *others]


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
        y = lax.dot(
            flat,
            matrix,
            precision=params["precision"],
            preferred_element_type=params["preferred_element_type"],
        )
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
    channels_last = (0, y.ndim - 1, *range(1, y.ndim - 1))
    y = jnp.moveaxis(y, channels_last, numbers.out_spec)
    return y.astype(params["preferred_element_type"] or lhs.dtype)


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
    fit = max(1, COLUMNS // max(1, math.prod(shape) * row))
    return next((n for n in range(min(fit, images), 0, -1) if images % n == 0), images)
