"""Dense, convolution, embedding: a prefix of the inputs by a prefix of the outputs.

Model Slicing, section 3.1: at rate r a layer with M inputs and N outputs uses the
leading rM x rN block of its weights, so its cost falls with r squared.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from flax.typing import Initializer
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Num, Shaped

from .sizes import Part, Sizes, input_parts, lead, stored_size

_kernel_init = nn.initializers.lecun_normal()


class Dense(nn.Module):
    """Linear layer (section 3.1), with the parameters of `flax.linen.Dense`.

    Attributes:
      features: full size of the output.
      in_features: full size of the input, or of its concatenated parts; by default
        what `init` sees at rate 1.
      use_bias: whether to add a bias.
      slice_inputs: False where the input is whole at every rate: the first layer.
      slice_outputs: False where the output has to be: the last layer.
      groups: an axis is sliced in this many units, if they divide it.
      dtype: of the computation; by default that of input and parameters.
      param_dtype: of the parameters.
      kernel_init: initializer of the kernel (in, out).
      bias_init: initializer of the bias (out,).
    """

    features: int
    in_features: Sizes = None
    use_bias: bool = True
    slice_inputs: bool = True
    slice_outputs: bool = True
    groups: int = 8
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    kernel_init: Initializer = _kernel_init
    bias_init: Initializer = nn.initializers.zeros_init()

    @nn.compact
    def __call__(
        self, x: Num[Array, "*batch narrow_in"], rate: float = 1.0
    ) -> Num[Array, "*batch narrow_out"]:
        """(..., rM) -> (..., rN).

        Raises:
          RateError: if the rate is not a number in (0, 1].
          ValueError: if the input is not rM wide.
        """
        inputs = rate if self.slice_inputs else 1.0
        outputs = rate if self.slice_outputs else 1.0
        stored = stored_size(self, -2, "kernel")
        parts = input_parts(self, x.shape[-1], inputs, stored)
        shape = sum(part.size for part in parts), self.features
        kernel: Any = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        kernel = lead(kernel, -2, parts, inputs)
        kernel = kernel[:, : Part.of(self.features, self.groups).kept(outputs)]
        bias = _bias(self, outputs)
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        return _add(x @ kernel, bias)


class Conv(nn.Module):
    """Convolution (section 3.1), with the parameters of `flax.linen.Conv`.

    With `feature_group_count` whole groups are sliced; a depthwise convolution has as
    many groups as its input has channels.

    Attributes:
      features: full number of output channels.
      kernel_size: one size for each spatial axis.
      strides: one for each spatial axis; by default 1.
      padding: "SAME", "VALID", or (low, high) for each spatial axis.
      kernel_dilation: one for each spatial axis; by default 1.
      feature_group_count: groups of channels at full width.
      in_features: full number of input channels, or of its concatenated parts; by
        default what `init` sees at rate 1.
      use_bias: whether to add a bias.
      slice_inputs: False where the input is whole at every rate: the first layer.
      slice_outputs: False where the output has to be: the last layer.
      groups: channels are sliced in this many units, if they divide them.
      dtype: of the computation; by default that of input and parameters.
      param_dtype: of the parameters.
      kernel_init: initializer of the kernel (h, w, in, out).
      bias_init: initializer of the bias (out,).
    """

    features: int
    kernel_size: Sequence[int]
    strides: Sequence[int] | None = None
    padding: str | Sequence[tuple[int, int]] = "SAME"
    kernel_dilation: Sequence[int] | None = None
    feature_group_count: int = 1
    in_features: Sizes = None
    use_bias: bool = True
    slice_inputs: bool = True
    slice_outputs: bool = True
    groups: int = 8
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    kernel_init: Initializer = _kernel_init
    bias_init: Initializer = nn.initializers.zeros_init()

    @nn.compact
    def __call__(
        self, x: Num[Array, "b *space narrow_in"], rate: float = 1.0
    ) -> Num[Array, "b *new_space narrow_out"]:
        """(b, h, w, rM) -> (b, h', w', rN), with any number of spatial axes.

        Raises:
          RateError: if the rate is not a number in (0, 1].
          ValueError: if the input has other axes, is not rM wide, or a rate does not
            keep whole groups of a grouped convolution.
        """
        if x.ndim != len(self.kernel_size) + 2:
            raise ValueError(
                f"Conv with kernel_size={tuple(self.kernel_size)} expects an input of "
                f"{len(self.kernel_size) + 2} axes (batch, space, channels); got "
                f"shape {x.shape}."
            )
        inputs = rate if self.slice_inputs else 1.0
        outputs = rate if self.slice_outputs else 1.0
        count = self.feature_group_count
        stored = stored_size(self, -2, "kernel")
        stored = None if stored is None else stored * count
        parts = input_parts(self, x.shape[-1], inputs, stored)
        full = sum(part.size for part in parts)
        shape = *self.kernel_size, full // count, self.features
        kernel: Any = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        if count == 1:
            kernel = lead(kernel, -2, parts, inputs)
        else:
            count = self._narrow_groups(parts, x.shape[-1], outputs)
        kernel = kernel[..., : Part.of(self.features, self.groups).kept(outputs)]
        bias = _bias(self, outputs)
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        channels_last = (0, x.ndim - 1, *range(1, x.ndim - 1))
        out_in_space = (x.ndim - 1, x.ndim - 2, *range(x.ndim - 2))
        y = lax.conv_general_dilated(
            x,
            kernel,
            self.strides or (1,) * len(self.kernel_size),
            self.padding,
            rhs_dilation=self.kernel_dilation,
            dimension_numbers=lax.ConvDimensionNumbers(
                channels_last, out_in_space, channels_last
            ),
            feature_group_count=count,
        )
        return _add(y, bias)

    def _narrow_groups(self, parts: Sequence[Part], got: int, rate: float) -> int:
        """How many of the groups of channels are left."""
        count, full = self.feature_group_count, parts[0].size
        narrow, rest = divmod(got * count, full)
        outputs = Part.of(self.features, self.groups).kept(rate)
        if len(parts) > 1 or rest or outputs * count != narrow * self.features:
            raise ValueError(
                f"a convolution with feature_group_count={count} slices whole groups "
                f"of its {full} inputs and {self.features} outputs alike, not of "
                f"concatenated parts; got {got} inputs at rate {rate:g}. Choose "
                f"`groups` (now {self.groups}) that divides {count}, in this layer and "
                "in those before it."
            )
        return narrow


class Embed(nn.Module):
    """Embedding table (section 3.1), with the parameters of `flax.linen.Embed`.

    Attributes:
      num_embeddings: how many entries; all are kept.
      features: full size of an entry.
      slice_outputs: False where entries have to stay whole.
      groups: entries are sliced in this many units, if they divide them.
      dtype: of the output; by default that of the table.
      param_dtype: of the table.
      embedding_init: initializer of the table (num_embeddings, features).
    """

    num_embeddings: int
    features: int
    slice_outputs: bool = True
    groups: int = 8
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    embedding_init: Initializer = nn.initializers.variance_scaling(
        1.0, "fan_in", "normal", out_axis=0
    )

    def setup(self) -> None:
        """Makes the table, which the input and `attend` share."""
        shape = self.num_embeddings, self.features
        self.embedding = self.param(
            "embedding", self.embedding_init, shape, self.param_dtype
        )

    def __call__(
        self, tokens: Shaped[Array, "*batch"], rate: float = 1.0
    ) -> Num[Array, "*batch narrow_out"]:
        """Integers (...) -> (..., rN).

        Raises:
          RateError: if the rate is not a number in (0, 1].
          ValueError: if the tokens are not integers.
        """
        if not jnp.issubdtype(tokens.dtype, jnp.integer):
            raise ValueError(f"Embed looks up integers; got {tokens.dtype}.")
        return jnp.take(self._table(rate), tokens, axis=0)

    def attend(
        self, x: Num[Array, "*batch narrow_out"], rate: float = 1.0
    ) -> Num[Array, "*batch num_embeddings"]:
        """Products with all entries, for tied output weights: (..., rN) -> (..., v).

        Raises:
          RateError: if the rate is not a number in (0, 1].
          ValueError: if the input is not rN wide.
        """
        table = self._table(rate)
        if x.shape[-1] != table.shape[-1]:
            raise ValueError(
                f"Embed.attend expected {table.shape[-1]} of {self.features} features "
                f"at rate {rate:g}; got {x.shape[-1]}."
            )
        x, table = promote_dtype(x, table, dtype=self.dtype)
        return x @ table.T

    def _table(self, rate: float) -> jax.Array:
        outputs = rate if self.slice_outputs else 1.0
        narrow = Part.of(self.features, self.groups).kept(outputs)
        (table,) = promote_dtype(self.embedding[:, :narrow], dtype=self.dtype)
        return table


def _bias(layer: Dense | Conv, rate: float) -> Any:
    """The narrow bias; None where the layer has none."""
    if not layer.use_bias:
        return None
    shape = (layer.features,)
    bias: Any = layer.param("bias", layer.bias_init, shape, layer.param_dtype)
    return bias[: Part.of(layer.features, layer.groups).kept(rate)]


def _add(y: jax.Array, bias: Any) -> jax.Array:
    return y if bias is None else y + bias.reshape((1,) * (y.ndim - 1) + (-1,))
