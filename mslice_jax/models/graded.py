"""Gains and biases that every width has of its own, as sums of rows.

Slices share their weights, and one set of gains and biases does not suit all widths: a
narrow one adds up fewer products. Switchable norms (Yu et al., ICLR 2019) keep a set
for each width. Here a set is the sum of a table's leading rows, of as many as the width
has parts; the axis of rows narrows as every other. So a slice is the same function of
cut arrays, between the trained rates too.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import promote_dtype
from jax.typing import DTypeLike


def gain_init(
    key: jax.Array, shape: Any, dtype: Any = jnp.float32, out_sharding: Any = None
) -> jax.Array:
    """(rows, n), of which the first k add up to rows / k: products of k/rows of all.

    The original scales products of narrowed inputs so (its `rescale`).

    >>> table = gain_init(jax.random.key(0), (4, 1))
    >>> [round(float(table[:k].sum()), 3) for k in (1, 2, 3, 4)]
    [4.0, 2.0, 1.333, 1.0]
    """
    del key, out_sharding
    sums = shape[0] / jnp.arange(1, shape[0] + 1)
    rows = jnp.diff(sums, prepend=0.0).astype(dtype)
    return jnp.broadcast_to(rows[:, None], shape)


def bias_init(start: nn.initializers.Initializer) -> nn.initializers.Initializer:
    """`start`, for every width: it is in the first row; the others are zeros."""

    def init(
        key: jax.Array, shape: Any, dtype: Any = jnp.float32, out_sharding: Any = None
    ) -> jax.Array:
        del out_sharding
        return jnp.zeros(shape, dtype).at[0].set(start(key, shape[1:], dtype))

    return init


class GradedDense(nn.Module):
    """A dense layer whose outputs have a gain, and a bias, for each width.

    Parameters: "kernel" (in, features); "gain" and "bias", (rows, features).

    Attributes:
      features: how many outputs.
      rows: into how many parts the width is divided.
      use_bias: whether there is a bias.
      dtype: what it computes in; None is the type of the parameters.
      kernel_init, bias_init: how kernel and bias, of `features`, begin.

    Example:
      >>> layer = GradedDense(3, rows=4)
      >>> variables = layer.init(jax.random.key(0), jnp.ones((1, 8)))
      >>> {name: leaf.shape for name, leaf in variables["params"].items()}
      {'kernel': (8, 3), 'gain': (4, 3), 'bias': (4, 3)}
    """

    features: int
    rows: int
    use_bias: bool = True
    dtype: DTypeLike | None = None
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    bias_init: nn.initializers.Initializer = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(..., in) -> (..., features)."""
        table = (self.rows, self.features)
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        gain = self.param("gain", gain_init, table).sum(axis=0)
        bias = None
        if self.use_bias:
            bias = self.param("bias", bias_init(self.bias_init), table).sum(axis=0)
        x, kernel, gain, bias = promote_dtype(x, kernel, gain, bias, dtype=self.dtype)
        axes = tuple(range(x.ndim - 1))
        y = x @ kernel * jnp.expand_dims(gain, axes)
        return y if bias is None else y + jnp.expand_dims(bias, axes)
