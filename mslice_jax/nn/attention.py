"""Attention by heads: whole heads are left, and a head keeps its size."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from flax.typing import Initializer
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Num

from ..core.rates import check_rate, width
from .sizes import input_parts, stored_size


class MultiHeadAttention(nn.Module):
    """Scaled dot-product attention whose heads are the units (Model Slicing, 3.1).

    Parameters as of `flax.linen.MultiHeadDotProductAttention`: query, key and value
    (in, heads, head size), out (heads, head size, in).

    Attributes:
      num_heads: heads at full width.
      qkv_features: heads by head size at full width; by default the size of the input.
      in_features: full size of the input, and of the output.
      use_bias: whether projections add a bias.
      groups: the input is sliced in this many units, if they divide it.
      dtype: of the computation; by default that of input and parameters.
      param_dtype: of the parameters.
      kernel_init: initializer of the kernels.
    """

    num_heads: int
    qkv_features: int | None = None
    in_features: int | None = None
    use_bias: bool = True
    groups: int = 8
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    kernel_init: Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(
        self,
        x: Num[Array, "b t narrow"],
        context: Num[Array, "b s narrow"] | None = None,
        mask: ArrayLike | None = None,
        rate: float = 1.0,
    ) -> Num[Array, "b t narrow"]:
        """(b, t, rM) -> (b, t, rM), attending to itself or to a context (b, s, rM).

        The mask (b or 1, heads or 1, t, s) is True where there is attention.

        Raises:
          RateError: if the rate is not a number in (0, 1].
          ValueError: if an input is not rM wide, or heads do not divide `qkv_features`.
        """
        stored = stored_size(self, 0, "query", "kernel")
        context = x if context is None else context
        for got in (x, context):
            ((full, _),) = input_parts(self, got.shape[-1], rate, stored)
            stored = full
        size, rest = divmod(self.qkv_features or full, self.num_heads)
        if rest:
            raise ValueError(
                f"MultiHeadAttention expects heads of one size; num_heads="
                f"{self.num_heads} does not divide {self.qkv_features or full}."
            )
        heads, inputs = width(self.num_heads, check_rate(rate)), x.shape[-1]

        def to_heads(name: str, x: jax.Array) -> jax.Array:
            outs = self.num_heads, size
            arrays = self._projection(name, (full,), outs, (inputs, heads, size))
            x, kernel, *bias = promote_dtype(x, *arrays, dtype=self.dtype)
            return sum(bias, jnp.einsum("btf,fhd->bthd", x, kernel))

        query = to_heads("query", x) / size**0.5
        key, value = to_heads("key", context), to_heads("value", context)
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key)
        if mask is not None:
            mask = jnp.asarray(mask)
            mask = mask[:, :heads] if mask.ndim == 4 else mask
            scores = jnp.where(mask, scores, jnp.finfo(scores.dtype).min)
        y = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), value)
        arrays = self._projection(
            "out", (self.num_heads, size), (full,), (heads, size, inputs)
        )
        y, kernel, *bias = promote_dtype(y, *arrays, dtype=self.dtype)
        return sum(bias, jnp.einsum("bthd,hdf->btf", y, kernel))

    def _projection(
        self,
        name: str,
        ins: tuple[int, ...],
        outs: tuple[int, ...],
        narrow: tuple[int, ...],
    ) -> list[jax.Array]:
        """A kernel (*ins, *outs) and, if used, a bias (1, 1, *outs), made narrow."""

        def init(key: jax.Array) -> dict[str, jax.Array]:
            flat = math.prod(ins), math.prod(outs)  # the fan is that of a dense layer
            kernel = self.kernel_init(key, flat, self.param_dtype)
            arrays = {"kernel": jnp.reshape(kernel, (*ins, *outs))}
            if self.use_bias:
                arrays["bias"] = jnp.zeros(outs, self.param_dtype)
            return arrays

        arrays: Any = self.param(name, init)
        leading = tuple(slice(size) for size in narrow)
        kernel = arrays["kernel"][leading]
        if not self.use_bias:
            return [kernel]
        return [kernel, arrays["bias"][leading[len(ins) :]][None, None]]
