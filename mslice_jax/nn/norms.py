"""Norms at a rate (Model Slicing, section 3.2).

The mean and variance of a narrower layer are others. Group norms take them within a
group and drop groups whole, so what is left does not change; switchable batch norms
hold one set of everything for each rate; layer and RMS norms measure what comes.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Num

from ..core.errors import RateError
from ..core.rates import check_rate, rate_key
from .sizes import Part, Sizes, check_width, input_parts, input_sizes, lead, stored_size


class GroupNorm(nn.Module):
    """Group norm, as `flax.linen.GroupNorm`; of its groups the leading ones are left.

    Attributes:
      num_groups: how many groups the full width has.
      in_features: full number of channels, or of their concatenated parts; by default
        what `init` sees at rate 1.
      epsilon: added to the variance.
      use_scale: whether to multiply with a scale.
      use_bias: whether to add a bias.
      dtype: of the output; by default that of input and parameters.
      param_dtype: of the parameters.
    """

    num_groups: int = 8
    in_features: Sizes = None
    epsilon: float = 1e-6
    use_scale: bool = True
    use_bias: bool = True
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Num[Array, "*batch narrow"], rate: float = 1.0
    ) -> Num[Array, "*batch narrow"]:
        """(b, ..., rM) -> (b, ..., rM).

        Raises:
          RateError: if the rate is not a number in (0, 1].
          ValueError: if the input is not made of as many groups as the rate keeps.
        """
        stored = _stored(self)
        sizes = input_sizes(self, x.shape[-1], rate, stored)
        size, rest = divmod(sum(sizes), self.num_groups)
        if rest or any(part % size for part in sizes):
            raise ValueError(
                f"GroupNorm expects whole groups; num_groups={self.num_groups} does "
                f"not divide {' + '.join(map(str, sizes))} channels."
            )
        parts = [Part(part, size) for part in sizes]  # the units are the groups
        check_width(self, x.shape[-1], rate, parts)
        scale, bias = _scale_and_bias(self, x, rate, parts)
        grouped = x.reshape(*x.shape[:-1], x.shape[-1] // size, size)
        axes = (*range(1, x.ndim - 1), -1)
        mean, var = _statistics(grouped, axes)
        spread = (x.shape[0],) + (1,) * (x.ndim - 2) + (-1,)
        mean, var = (jnp.repeat(m, size, -1).reshape(spread) for m in (mean, var))
        return _normalise(self, x, mean, var, scale, bias)


class LayerNorm(nn.Module):
    """Layer norm over the channels that are left, as `flax.linen.LayerNorm`.

    Attributes:
      in_features: full number of channels, or of their concatenated parts; by default
        what `init` sees at rate 1.
      epsilon: added to the variance.
      use_scale: whether to multiply with a scale.
      use_bias: whether to add a bias.
      groups: channels are sliced in this many units, if they divide them.
      dtype: of the output; by default that of input and parameters.
      param_dtype: of the parameters.
    """

    in_features: Sizes = None
    epsilon: float = 1e-6
    use_scale: bool = True
    use_bias: bool = True
    groups: int = 8
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Num[Array, "*batch narrow"], rate: float = 1.0
    ) -> Num[Array, "*batch narrow"]:
        """(..., rM) -> (..., rM).

        Raises:
          RateError: if the rate is not a number in (0, 1].
          ValueError: if the input is not rM wide.
        """
        parts = input_parts(self, x.shape[-1], rate, _stored(self))
        scale, bias = _scale_and_bias(self, x, rate, parts)
        mean, var = _statistics(x, (-1,))
        return _normalise(self, x, mean[..., None], var[..., None], scale, bias)


class RMSNorm(nn.Module):
    """Root-mean-square norm over the channels that are left, as `flax.linen.RMSNorm`.

    Attributes:
      in_features: full number of channels, or of their concatenated parts; by default
        what `init` sees at rate 1.
      epsilon: added to the mean square.
      use_scale: whether to multiply with a scale.
      groups: channels are sliced in this many units, if they divide them.
      dtype: of the output; by default that of input and parameters.
      param_dtype: of the parameters.
    """

    in_features: Sizes = None
    epsilon: float = 1e-6
    use_scale: bool = True
    groups: int = 8
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    use_bias = False

    @nn.compact
    def __call__(
        self, x: Num[Array, "*batch narrow"], rate: float = 1.0
    ) -> Num[Array, "*batch narrow"]:
        """(..., rM) -> (..., rM).

        Raises:
          RateError: if the rate is not a number in (0, 1].
          ValueError: if the input is not rM wide.
        """
        parts = input_parts(self, x.shape[-1], rate, _stored(self))
        scale, _ = _scale_and_bias(self, x, rate, parts)
        square = jnp.mean(lax.square(_single(x)), -1, keepdims=True)
        return _normalise(self, x, jnp.zeros_like(square), square, scale, None)


class BatchNorm(nn.Module):
    """Switchable batch norm: one `flax.linen.BatchNorm` for each rate, as wide as it.

    The MultiBN of the authors' code, also Slimmable Networks (Yu et al., ICLR 2019).
    The arrays of a rate have its name: `params/.../0.5/scale`.

    Attributes:
      rates: the rates that it runs at, besides 1.
      use_running_average: whether to use the stored statistics, or the batch's.
      in_features: full number of channels, or of their concatenated parts; by default
        what `init` sees at rate 1.
      momentum: how much of the stored statistics a training step keeps.
      epsilon: added to the variance.
      groups: channels are sliced in this many units, if they divide them.
      dtype: of the output; by default that of input and parameters.
      param_dtype: of the parameters.
    """

    rates: Sequence[float]
    use_running_average: bool | None = None
    in_features: Sizes = None
    momentum: float = 0.99
    epsilon: float = 1e-5
    groups: int = 8
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Num[Array, "*batch narrow"],
        rate: float = 1.0,
        use_running_average: bool | None = None,
    ) -> Num[Array, "*batch narrow"]:
        """(b, ..., rM) -> (b, ..., rM); in training, statistics of its rate move.

        Raises:
          RateError: if the rate is neither 1 nor one of `rates`.
          ValueError: if the input is not rM wide.
        """
        known = {1.0, *map(check_rate, self.rates)}
        if check_rate(rate) not in known:
            raise RateError(
                f"this switchable batch norm has arrays for the rates {sorted(known)}; "
                f"got {rate!r}."
            )
        stored = stored_size(self, -1, rate_key(1.0), "scale")
        parts = input_parts(self, x.shape[-1], rate, stored)
        average = nn.merge_param(
            "use_running_average", self.use_running_average, use_running_average
        )
        norms = {
            other: nn.BatchNorm(
                use_running_average=average,
                momentum=self.momentum,
                epsilon=self.epsilon,
                dtype=self.dtype,
                param_dtype=self.param_dtype,
                name=rate_key(other),
            )
            for other in known
        }
        if self.is_initializing():  # the arrays of all rates are made at once
            for other, norm in norms.items():
                features = sum(part.kept(other) for part in parts)
                norm(jnp.zeros((1, features), x.dtype))
        return norms[check_rate(rate)](x)


def _stored(layer: GroupNorm | LayerNorm | RMSNorm) -> int | None:
    return stored_size(layer, -1, "scale" if layer.use_scale else "bias")


def _scale_and_bias(
    layer: GroupNorm | LayerNorm | RMSNorm,
    x: jax.Array,
    rate: float,
    parts: Sequence[Part],
) -> tuple[Any, Any]:
    """The narrow scale and bias, shaped to fit `x`; None for one that is not used."""
    shape = (sum(part.size for part in parts),)

    def array(name: str, init: Any, used: bool) -> Any:
        if not used:
            return None
        full: Any = layer.param(name, init, shape, layer.param_dtype)
        return lead(full, -1, parts, rate).reshape((1,) * (x.ndim - 1) + (-1,))

    scale = array("scale", nn.initializers.ones, layer.use_scale)
    return scale, array("bias", nn.initializers.zeros, layer.use_bias)


def _single(x: jax.Array) -> jax.Array:
    """At least single precision: means of half precision lose too much."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _statistics(x: jax.Array, axes: Sequence[int]) -> tuple[jax.Array, jax.Array]:
    """Mean and variance over the axes; E[x^2] - E[x]^2, as Flax takes it."""
    x = _single(x)
    mean, square = jnp.mean(x, axes), jnp.mean(lax.square(x), axes)
    return mean, jnp.maximum(0.0, square - lax.square(mean))


def _normalise(
    layer: Any, x: jax.Array, mean: jax.Array, var: jax.Array, scale: Any, bias: Any
) -> jax.Array:
    """(x - mean) / deviation * scale + bias, in the dtype of the layer."""
    factor = lax.rsqrt(var + layer.epsilon)
    y = (x - mean) * (factor if scale is None else factor * scale)
    y = y if bias is None else y + bias
    given = [array for array in (x, scale, bias) if array is not None]
    return y.astype(layer.dtype or jnp.result_type(*given))
