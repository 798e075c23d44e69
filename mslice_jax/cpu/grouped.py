"""Grouped convolutions, in programs of our own on CPU: each group by itself.

XLA's CPU backend makes the filter gradient of a grouped convolution several hundred
times as slow as that of its groups one after the other, and the rest two to ten times
(`experiments/LOG.md`). Here a group is a convolution as any other, in the form that is
fast for so many channels. Groups of few channels are joined, their filters beside
zeros: a convolution of eight channels takes no longer than two of four.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .windows import Form

_CHANNELS = 8  # that a convolution has at least
_PARTS = 32  # at most: each takes up to a second to compile


def parts(groups: int, channels: int) -> int:
    """How many convolutions there are for so many groups of so many channels."""
    return -(-groups // _joined(groups, channels))


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
    out, into, *_ = numbers.rhs_spec
    joined = _joined(groups, rhs.shape[into])
    sizes = [min(joined, groups - first) for first in range(0, groups, joined)]
    images = _split(lhs, sizes, numbers.lhs_spec[1], groups)
    kernels = _split(rhs, sizes, out, groups)
    results = [
        one(x, _beside_zeros(kernel, size, out, into))
        for x, kernel, size in zip(images, kernels, sizes, strict=True)
    ]
    return lax.concatenate(results, numbers.out_spec[1])


def _joined(groups: int, channels: int) -> int:
    """How many groups of so many channels are one convolution."""
    return min(groups, max(-(-_CHANNELS // channels), -(-groups // _PARTS)))


def _split(
    x: jax.Array, sizes: Sequence[int], axis: int, groups: int
) -> Sequence[jax.Array]:
    """Divides an axis of all groups into parts of so many groups."""
    each = x.shape[axis] // groups
    return lax.split(x, [size * each for size in sizes], axis=axis)


def _beside_zeros(kernel: jax.Array, groups: int, out: int, into: int) -> jax.Array:
    """The filters of several groups as those of one, which see its channels alone.

    Args:
      kernel: of the groups, one after the other along their filters.
      groups: how many.
      out, into: the axes of filters, and of channels.
    """
    if groups == 1:
        return kernel
    channels, filters = kernel.shape[into], kernel.shape[out] // groups
    repeats = [1] * kernel.ndim
    repeats[into] = groups
    tiled = jnp.tile(kernel, repeats)
    of_channel = lax.broadcasted_iota(np.int32, tiled.shape, into) // channels
    of_filter = lax.broadcasted_iota(np.int32, tiled.shape, out) // filters
    return jnp.where(of_channel == of_filter, tiled, 0)
