"""Padding that XLA's CPU backend gets wrong, in programs of our own.

Where a convolution cuts pixels off before an axis and adds as many or fewer behind it,
XLA's CPU backend reads the wrong pixels, in jaxlib 0.10 under `jax.jit`, too, where
channels are few (`experiments/LOG.md`). The gradient of images is such a one wherever
an image is padded by more than its window reaches.

Here a convolution pads by nothing at least, and by the reach of its window at most. The
rest, which XLA may have got right, is padding or cutting by itself: of images before
it, or of what comes out, where images are spread by zeros.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from .windows import reach_of

Padding = tuple[tuple[int, int], ...]


def within_reach(rhs: Any, params: dict[str, Any]) -> Padding:
    """As much of the padding of a convolution with these filters as it may have."""
    return tuple(
        (min(max(low, 0), reach), min(max(high, 0), reach))
        for reach, (low, high) in zip(
            reach_of(rhs, params), params["padding"], strict=True
        )
    )


def before(lhs: jax.Array, params: dict[str, Any], done: Padding) -> jax.Array:
    """The images with what is left of the padding, where they are not spread."""
    if _is_spread(params):
        return lhs
    return _rest(lhs, params["dimension_numbers"].lhs_spec, params, done)


def after(y: jax.Array, params: dict[str, Any], done: Padding) -> jax.Array:
    """The convolution of images that are spread, with what is left of the padding.

    Its windows move on by one pixel; those beyond its reach see zeros.
    """
    if not _is_spread(params):
        return y
    return _rest(y, params["dimension_numbers"].out_spec, params, done)


def _is_spread(params: dict[str, Any]) -> bool:
    return any(step > 1 for step in params["lhs_dilation"])


def _rest(x: jax.Array, spec: Any, params: dict[str, Any], done: Padding) -> jax.Array:
    if done == tuple(params["padding"]):
        return x
    config = [(0, 0, 0)] * x.ndim
    for axis, asked, had in zip(spec[2:], params["padding"], done, strict=True):
        config[axis] = asked[0] - had[0], asked[1] - had[1], 0
    return lax.pad(x, jnp.zeros((), x.dtype), config)
