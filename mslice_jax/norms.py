"""Batch norm and slicing: three strategies.

The statistics of a batch norm belong to one width: a narrower input has another mean
and variance. Model Slicing (section 3.2) therefore swaps batch norms:

* ``group``: each becomes a group norm with the same scale and bias. Its groups are the
  units that narrow, and no statistics are kept (the paper's choice).
* ``switchable``: one batch norm per rate, with its own scale, bias and statistics (the
  MultiBN of the authors' code; Slimmable Networks, Yu et al., ICLR 2019).
* ``shared``: batch norms stay as they are; `calibrate` measures statistics for each
  rate after training (US-Nets, Yu and Huang, ICCV 2019).

How a model of Flax takes them stands in `mslice_jax.functions`.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

STRATEGIES = ("group", "switchable", "shared")


def group_count(features: int, groups: int) -> int:
    """The largest divisor of the features up to `groups`: how many a group norm has.

    >>> group_count(64, 8), group_count(12, 8), group_count(4, 8)
    (8, 6, 4)
    """
    return next(g for g in range(min(groups, features), 0, -1) if features % g == 0)


def group_norm(
    x: jax.Array,
    scale: jax.Array | None,
    bias: jax.Array | None,
    *,
    groups: int,
    epsilon: float,
    fast_variance: bool = True,
    dtype: DTypeLike | None = None,
) -> jax.Array:
    """Group norm (Wu and He, ECCV 2018), as one product and one sum for each entry.

    What `flax.linen.GroupNorm` computes as (x - mean) / deviation * scale + bias is
    x * gain + shift here, with a gain and a shift for every example and channel. Then
    the backward pass has two sums over all positions and not three, and they are most
    of what a norm costs. Statistics are in float32 or better.

    Args:
      x: (b, ..., c), normalised over all axes but the first and groups of the last.
      scale, bias: (c,), or None.
      groups: how many; they divide the channels.
      epsilon: added to the variance.
      fast_variance: E[x^2] - E[x]^2, in one pass, in place of E[(x - E[x])^2].
      dtype: of the result; that of x, scale and bias together unless given.
    """
    if dtype is None:
        dtype = jnp.result_type(*(a for a in (x, scale, bias) if a is not None))
    batch, *positions, channels = x.shape
    split = (batch, groups, channels // groups)
    y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    # The sums see positions as one axis, so that XLA's CPU backend adds their gradients
    # up once, and not in every shape in which they are used.
    flat = y.reshape(batch, math.prod(positions), channels)

    def mean(flat: jax.Array) -> jax.Array:
        """(b, n, c) -> (b, groups, 1)."""
        return flat.mean(1).reshape(split).mean(-1, keepdims=True)

    def wide(each: jax.Array) -> jax.Array:
        """(b, groups, c / groups) -> (b, 1, ..., c)."""
        return each.reshape(batch, *[1 for _ in positions], channels)

    center = mean(flat)
    if fast_variance:
        variance = jnp.maximum(mean(flat * flat) - center * center, 0)
    else:
        deviation = y - wide(jnp.broadcast_to(center, split))
        variance = mean((deviation * deviation).reshape(flat.shape))
    gain = jnp.broadcast_to(lax.rsqrt(variance + epsilon), split)
    if scale is not None:
        gain = gain * scale.astype(y.dtype).reshape(1, *split[1:])
    shift = -center * gain
    if bias is not None:
        shift = shift + bias.astype(y.dtype).reshape(1, *split[1:])
    return (y * wide(gain) + wide(shift)).astype(dtype)
