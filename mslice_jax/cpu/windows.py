"""The windows of a convolution: how many, how far they reach, and backwards."""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax

Form = Callable[[jax.Array, jax.Array], jax.Array]
"""(lhs, rhs) -> the convolution of images (lhs) with filters (rhs)."""


def cotangent_of(lhs: Any, rhs: Any, params: dict[str, Any]) -> jax.ShapeDtypeStruct:
    """Shape and dtype of the cotangent of a convolution."""
    numbers = params["dimension_numbers"]
    shape = [0] * lhs.ndim
    shape[numbers.out_spec[0]] = lhs.shape[numbers.lhs_spec[0]]
    shape[numbers.out_spec[1]] = rhs.shape[numbers.rhs_spec[0]]
    for o, windows in zip(
        numbers.out_spec[2:], windows_of(lhs, rhs, params), strict=True
    ):
        shape[o] = windows
    return jax.ShapeDtypeStruct(tuple(shape), lhs.dtype)


def of_cotangent(rhs: Any, params: dict[str, Any]) -> dict[str, Any]:
    """Of the convolution of a cotangent that gives the gradient of images."""
    numbers = params["dimension_numbers"]
    out, into, *window = numbers.rhs_spec
    padding = [
        (reach - low, reach - high)
        for reach, (low, high) in zip(
            reach_of(rhs, params), params["padding"], strict=True
        )
    ]
    return {
        **params,
        "padding": padding,
        "dimension_numbers": lax.ConvDimensionNumbers(
            numbers.out_spec, (into, out, *window), numbers.lhs_spec
        ),
    }


def windows_of(lhs: Any, rhs: Any, params: dict[str, Any]) -> list[int]:
    """How many windows there are along each axis of an image."""
    spec = params["dimension_numbers"].lhs_spec
    return [
        max(0, ((lhs.shape[i] - 1) * apart + low + high - reach) // step + 1)
        for i, apart, reach, step, (low, high) in zip(
            spec[2:],
            params["lhs_dilation"],
            reach_of(rhs, params),
            params["window_strides"],
            params["padding"],
            strict=True,
        )
    ]


def reach_of(rhs: Any, params: dict[str, Any]) -> list[int]:
    """How many pixels a window's last is from its first."""
    windows = (rhs.shape[i] for i in params["dimension_numbers"].rhs_spec[2:])
    return [(n - 1) * d for n, d in zip(windows, params["rhs_dilation"], strict=True)]
