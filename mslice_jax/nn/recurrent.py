"""Recurrent cells: each gate is a layer of its own and keeps its own leading units.

A prefix of fused gates would be other gates; cut one by one, a narrow cell is the cell
of that size (Model Slicing, section 3.1).
"""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Initializer
from jax.typing import DTypeLike
from jaxtyping import Array, Num

from .linear import Dense
from .sizes import Part, Sizes

_orthogonal = nn.initializers.orthogonal()


class LSTMCell(nn.Module):
    """One step of an LSTM, with the parameters of `flax.linen.LSTMCell`.

    Attributes:
      features: full size of the state.
      in_features: full size of the input, or of its concatenated parts; by default
        what `init` sees at rate 1.
      slice_inputs: False where the input is whole at every rate.
      groups: axes are sliced in this many units, if they divide them.
      dtype: of the computation; by default that of input and parameters.
      param_dtype: of the parameters.
      recurrent_kernel_init: initializer of the kernels (state, state).

    The rate is static, so a scan closes over it:

    >>> import flax.linen as nn, jax, jax.numpy as jnp
    >>> class Reader(nn.Module):
    ...     @nn.compact
    ...     def __call__(self, x, rate=1.0):
    ...         cell = LSTMCell(8, slice_inputs=False)
    ...         step = nn.scan(
    ...             lambda cell, carry, x: cell(carry, x, rate),
    ...             variable_broadcast="params",
    ...             split_rngs={"params": False},
    ...             in_axes=1,
    ...             out_axes=1,
    ...         )
    ...         return step(cell, cell.initial_carry(x.shape[:1], rate), x)[1]
    >>> x = jnp.ones((2, 5, 3))
    >>> variables = Reader().init(jax.random.key(0), x)
    >>> Reader().apply(variables, x, 0.5).shape
    (2, 5, 4)
    """

    features: int
    in_features: Sizes = None
    slice_inputs: bool = True
    groups: int = 8
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    recurrent_kernel_init: Initializer = _orthogonal

    @nn.compact
    def __call__(
        self,
        carry: tuple[Num[Array, "*b narrow"], Num[Array, "*b narrow"]],
        x: Num[Array, "*b narrow_in"],
        rate: float = 1.0,
    ) -> tuple[
        tuple[Num[Array, "*b narrow"], Num[Array, "*b narrow"]],
        Num[Array, "*b narrow"],
    ]:
        """((b, rN), (b, rN)), (b, rM) -> the new carry, and its second part.

        Raises:
          RateError: if the rate is not a number in (0, 1].
          ValueError: if the carry is not rN wide or the input not rM.
        """
        c, h = carry
        _check_state(self, (c, h), rate)
        gates = {
            name: _from_input(self, f"i{name}", use_bias=False)(x, rate)
            + _from_state(self, f"h{name}", use_bias=True)(h, rate)
            for name in "ifgo"
        }
        i, f, o = (jax.nn.sigmoid(gates[name]) for name in "ifo")
        c = f * c + i * jnp.tanh(gates["g"])
        h = o * jnp.tanh(c)
        return (c, h), h

    @nn.nowrap
    def initial_carry(
        self, batch: Sequence[int], rate: float = 1.0
    ) -> tuple[jax.Array, jax.Array]:
        """Two arrays of zeros (*batch, rN)."""
        return _zeros(self, batch, rate), _zeros(self, batch, rate)


class GRUCell(nn.Module):
    """One step of a GRU, with the parameters of `flax.linen.GRUCell`.

    Attributes:
      features: full size of the state.
      in_features: full size of the input, or of its concatenated parts; by default
        what `init` sees at rate 1.
      slice_inputs: False where the input is whole at every rate.
      groups: axes are sliced in this many units, if they divide them.
      dtype: of the computation; by default that of input and parameters.
      param_dtype: of the parameters.
      recurrent_kernel_init: initializer of the kernels (state, state).
    """

    features: int
    in_features: Sizes = None
    slice_inputs: bool = True
    groups: int = 8
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    recurrent_kernel_init: Initializer = _orthogonal

    @nn.compact
    def __call__(
        self,
        carry: Num[Array, "*b narrow"],
        x: Num[Array, "*b narrow_in"],
        rate: float = 1.0,
    ) -> tuple[Num[Array, "*b narrow"], Num[Array, "*b narrow"]]:
        """(b, rN), (b, rM) -> the new carry, twice.

        Raises:
          RateError: if the rate is not a number in (0, 1].
          ValueError: if the carry is not rN wide or the input not rM.
        """
        _check_state(self, (carry,), rate)

        def of_input(name: str) -> jax.Array:
            return _from_input(self, f"i{name}", use_bias=True)(x, rate)

        def of_state(name: str, use_bias: bool = False) -> jax.Array:
            return _from_state(self, f"h{name}", use_bias=use_bias)(carry, rate)

        r = jax.nn.sigmoid(of_input("r") + of_state("r"))
        z = jax.nn.sigmoid(of_input("z") + of_state("z"))
        n = jnp.tanh(of_input("n") + r * of_state("n", use_bias=True))
        carry = (1.0 - z) * n + z * carry
        return carry, carry

    @nn.nowrap
    def initial_carry(self, batch: Sequence[int], rate: float = 1.0) -> jax.Array:
        """Zeros (*batch, rN)."""
        return _zeros(self, batch, rate)


def _gate(cell: LSTMCell | GRUCell, name: str, use_bias: bool) -> Any:
    return functools.partial(
        Dense,
        cell.features,
        use_bias=use_bias,
        groups=cell.groups,
        dtype=cell.dtype,
        param_dtype=cell.param_dtype,
        name=name,
    )


def _from_input(cell: LSTMCell | GRUCell, name: str, *, use_bias: bool) -> Dense:
    return _gate(cell, name, use_bias)(
        in_features=cell.in_features, slice_inputs=cell.slice_inputs
    )


def _from_state(cell: LSTMCell | GRUCell, name: str, *, use_bias: bool) -> Dense:
    return _gate(cell, name, use_bias)(
        in_features=cell.features, kernel_init=cell.recurrent_kernel_init
    )


def _check_state(
    cell: LSTMCell | GRUCell, state: Sequence[jax.Array], rate: float
) -> None:
    expected = Part.of(cell.features, cell.groups).kept(rate)
    got = [array.shape[-1] for array in state]
    if any(size != expected for size in got):
        raise ValueError(
            f"{type(cell).__name__} expected a carry of {expected} of {cell.features} "
            f"units at rate {rate:g}; got {' and '.join(map(str, got))}. Start with "
            "initial_carry(batch, rate)."
        )


def _zeros(cell: LSTMCell | GRUCell, batch: Sequence[int], rate: float) -> jax.Array:
    width = Part.of(cell.features, cell.groups).kept(rate)
    return jnp.zeros((*batch, width), cell.dtype or cell.param_dtype)
