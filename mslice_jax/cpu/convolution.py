"""Convolutions in training on CPU: products of matrices where XLA is slow.

XLA's CPU backend computes the filter gradient as a convolution whose window is as large
as the image, and a convolution whose window is larger than the image in plain loops.
Written as products of matrices (`columns`), both run at the speed of a dense layer.

Without YNNPACK (see `compilation`) only windows of one pixel, or larger than the image,
become products; for the filter gradients of others XLA's convolution is the faster, in
the one layout that it has code for. (oneDNN, where that computes the others, has no
filter gradients in XLA, and is slow at convolutions with such windows.) Some
convolutions have forms of their own, forward too: with windows of three on images of
many channels (`winograd`), with few channels (`columns`, `few_channels`), with a group
for each channel (`depthwise`), of images that are spread by zeros (`spread`). Others
become convolutions that have such a form: with groups (`grouped`), over volumes
(`volumes`), and with padding that XLA gets wrong (`padding`).

The code here is the tangent, which is linear: JAX transposes it, and forward
mode, vmap and second derivatives work as for any function.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from . import (
    columns,
    depthwise,
    few_channels,
    grouped,
    padding,
    spread,
    volumes,
    winograd,
)
from .barriers import barrier
from .windows import Form, windows_of

_MOST = 128
"""Convolutions, or copies of images, in a form. More of them take long to compile."""


def with_cpu_gradient(run: Any, params: dict[str, Any], library: str) -> Form:
    """The convolution with other forms and derivatives.

    Args:
      run: (lhs, rhs, **parameters that are others) -> the convolution.
      params: of `conv_general_dilated`, to which one of the forms applies.
      library: "eigen" or "onednn", which computes the convolutions of the program.
    """

    def with_changed(**changed: Any) -> Form:
        run_changed = functools.partial(run, **changed)
        return with_cpu_gradient(run_changed, {**params, **changed}, library)

    def convolve(lhs: jax.Array, rhs: jax.Array) -> jax.Array:
        if depthwise.applies(lhs, rhs, params):
            return _with_tangent(run, params, library)(lhs, rhs)
        # What follows makes other convolutions of it, which are looked at again.
        within = padding.within_reach(rhs, params)
        if within != tuple(params["padding"]):
            lhs = padding.before(lhs, params, within)
            return padding.after(with_changed(padding=within)(lhs, rhs), params, within)
        groups = params["feature_group_count"]
        over_volumes = volumes.applies(rhs, params)
        if spread.applies(params):
            if groups > 1 or (over_volumes and not spread.is_product(rhs, params)):
                return spread.convolve(lhs, rhs, params, with_changed)
        elif groups > 1:
            one = with_changed(feature_group_count=1)
            return grouped.convolve(lhs, rhs, params, one)
        elif over_volumes:
            return volumes.convolve(lhs, rhs, params, with_changed)
        return _with_tangent(run, params, library)(lhs, rhs)

    return convolve


def _with_tangent(run: Form, params: dict[str, Any], library: str) -> Form:
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
    if spread.applies(params):
        once = spread.is_product(rhs, params)
        divided = of(
            spread.convolve, lambda **changed: functools.partial(run, **changed)
        )
        return _Forms(of(spread.as_product) if once else run, run, divided)
    products = of(columns.convolve)
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
        pixels = few_channels.pixels_at_a_time(lhs, rhs, params)
        if few_channels.applies(lhs, rhs, params):
            forms.forward = forms.of_filters = of(few_channels.convolve)
        elif pixels > 1:
            forms.forward = of(few_channels.convolve, pixels)
        if few_channels.applies_to_images(lhs, rhs, params):
            forms.of_images = of(few_channels.for_images)
        if columns.applies(lhs, rhs, params):
            forms.forward = of(columns.with_shared_windows)
        if columns.applies_to_images(lhs, rhs, params):
            forms.of_images = of(few_channels.for_images, columns.with_shared_windows)
    return forms


def applies(lhs: Any, rhs: Any, params: dict[str, Any]) -> bool:
    """Whether one of the forms computes this convolution."""
    spread_out = any(step > 1 for step in params["lhs_dilation"])
    return (
        params["batch_group_count"] == 1
        and rhs.ndim > 2
        and all(isinstance(size, int) and size for size in (*lhs.shape, *rhs.shape))
        and lhs.dtype in (jnp.float32, jnp.bfloat16, jnp.float16)
        and params["preferred_element_type"] in (None, lhs.dtype)
        and (spread.applies(params) or not spread_out)
        and all(windows_of(lhs, rhs, params))
        and _size(lhs, rhs, params) <= _MOST
    )


def _size(lhs: Any, rhs: Any, params: dict[str, Any]) -> int:
    """About how many convolutions, or copies of images, a form would make."""
    if depthwise.applies(lhs, rhs, params):
        return 1  # it has a limit of its own
    numbers = params["dimension_numbers"]
    filters, channels, *window = (rhs.shape[axis] for axis in numbers.rhs_spec)
    groups, kinds = params["feature_group_count"], math.prod(params["lhs_dilation"])
    if kinds > 1 and channels == 1 and filters == groups:
        return math.prod(window)  # a depthwise one for each kind
    if kinds == 1 and _window_is_larger(lhs, rhs, params):
        kinds = math.prod(window)
    elif groups == 1 and spread.is_product(rhs, params):
        kinds = 1
    return kinds * grouped.parts(groups, channels)


def _window_is_larger(lhs: Any, rhs: Any, params: dict[str, Any]) -> bool:
    numbers = params["dimension_numbers"]
    images = [lhs.shape[i] for i in numbers.lhs_spec[2:]]
    windows = [rhs.shape[i] for i in numbers.rhs_spec[2:]]
    return any(k > n for k, n in zip(windows, images, strict=True))


def _one_pixel(rhs: Any, params: dict[str, Any]) -> bool:
    return all(rhs.shape[i] == 1 for i in params["dimension_numbers"].rhs_spec[2:])


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
    images, pads = lhs.transpose(channel, *space, batch), params["padding"]
    if library == "onednn":
        images, pads = _for_eigen(images, pads)
    y = lax.conv_general_dilated(
        images,
        rhs.transpose(into, *window, out),
        params["window_strides"],
        pads,
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
    images: jax.Array, pads: Sequence[tuple[int, int]]
) -> tuple[jax.Array, list[tuple[int, int]]]:
    """Images (c, h, w, b) with one row too many, and the padding that takes it away.

    XLA leaves a convolution with negative padding to its own code, and so its gradient.
    The row is of ones, for padding with zeros would be joined to that of the window.
    """
    (low, high), *others = pads
    for value, rows in ((0, high), (1, 1)):
        config = [(0, 0, 0), (0, rows, 0)] + [(0, 0, 0)] * (images.ndim - 2)
        images = lax.pad(images, jnp.asarray(value, images.dtype), config)
    return images, [(low, -1), *others]
