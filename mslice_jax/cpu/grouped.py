"""Grouped convolutions, in programs of our own on CPU: each group by itself.

XLA's CPU backend makes the filter gradient of a grouped convolution several hundred
times as slow as that of its groups one after the other, and the rest two to ten times
(`experiments/LOG.md`). Here a group is a convolution as any other, in the form that is
fast for so many channels. Groups of few channels are joined, their filters beside
zeros: a convolution of eight channels takes no longer than two of four.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from .windows import Form

_CHANNELS = 8  # that a convolution has at least
_PARTS = 32  # at most: each takes a tenth of a second to compile


def convolve(
    lhs: jax.Array, rhs: jax.Array, params: dict[str, Any], one: Form
) -> jax.Array:
    """The convolution of images (lhs) with filters (rhs).

    Args:
      lhs: images.
      rhs: filters.
      params: of `conv_general_dilated`, with several groups.
      one: the convolution with one group.
    """
    numbers, groups = params["dimension_numbers"], params["feature_group_count"]
    channels, filters = numbers.lhs_spec[1], numbers.rhs_spec[0]
    joined = _joined(groups, rhs.shape[numbers.rhs_spec[1]])
    parts = []
    kernels = _split(rhs, groups, filters)
    images = _split(lhs, groups, channels)
    for first in range(0, groups, joined):
        some = slice(first, first + joined)
        x = lax.concatenate(images[some], channels)
        w = _beside_zeros(kernels[some], *numbers.rhs_spec[:2])
        parts.append(one(x, w))
    return lax.concatenate(parts, numbers.out_spec[1])


def _joined(groups: int, channels: int) -> int:
    """How many groups of so many channels are one convolution."""
    return min(groups, max(-(-_CHANNELS // channels), -(-groups // _PARTS)))


def _split(x: jax.Array, parts: int, axis: int) -> list[jax.Array]:
    return lax.split(x, [x.shape[axis] // parts] * parts, axis=axis)


def _beside_zeros(kernels: list[jax.Array], out: int, into: int) -> jax.Array:
    """The filters of several groups as those of one, which see its channels alone.

    Args:
      kernels: of each group.
      out, into: their axes of filters, and of channels.
    """
    padded = []
    for at, kernel in enumerate(kernels):
        size, config = kernel.shape[into], [(0, 0, 0)] * kernel.ndim
        config[into] = at * size, (len(kernels) - 1 - at) * size, 0
        padded.append(lax.pad(kernel, jnp.zeros((), kernel.dtype), config))
    return lax.concatenate(padded, out)
