"""A product with a weight, in the order in which CPUs read the weight fastest."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from .barriers import barrier
from .dense import flat
from .equations import bind


class Product:
    """A `dot_general` of which one operand is a weight.

    Args:
      eqn: the equation.
      place: which operand the weight is.
    """

    def __init__(self, eqn: Any, place: int):
        self.eqn, self._place = eqn, place
        self.other, self.out = eqn.invars[1 - place], eqn.outvars[0].aval
        contracted, batch = eqn.params["dimension_numbers"]
        self._summed, self._batch = contracted[place], batch[place]
        self._other_axes = contracted[1 - place], batch[1 - place]
        ndim = len(eqn.invars[place].aval.shape)
        used = {*self._summed, *self._batch}
        self._free = [axis for axis in range(ndim) if axis not in used]

    def summed_first(self, weight: Any) -> Any:
        """The weight with the axes that are summed over before those that are not."""
        return _transposed(weight, [*self._batch, *self._summed, *self._free])

    def summed_last(self, weight: Any) -> Any:
        """The weight with the axes that are summed over after those that are not."""
        return _transposed(weight, [*self._batch, *self._free, *self._summed])

    def of_turns(self, others: Any, weight: Any) -> Any:
        """The products of all turns of a loop, (turns, ...), as one product."""
        params, (summed, batch) = self.eqn.params, self._other_axes
        if self._place and not batch:
            summed = tuple(axis + 1 for axis in summed)
            numbers = (summed, tuple(self._summed)), ((), ())
            return flat(others, weight, {**params, "dimension_numbers": numbers})

        def product(other: Any) -> Any:
            operands = [other, weight] if self._place else [weight, other]
            return bind(self.eqn, operands)[0]

        return jax.vmap(product)(others)

    def __call__(self, other: Any, summed_first: Any) -> Any:
        """The product with the weight of `summed_first`."""
        return self._of(other, summed_first, len(self._batch))

    def with_transposed(self, other: Any, summed_first: Any, summed_last: Any) -> Any:
        """The product, as a function of `other` alone for whoever differentiates it."""
        return _with_transposed(self, other, summed_first, summed_last)

    def tangent(self, other: Any, summed_last: Any) -> Any:
        """The product whose transpose sums over the weight's first axes."""
        return self._of(other, summed_last, len(self._batch) + len(self._free))

    def _of(self, other: Any, weight: Any, start: int) -> Any:
        summed, batch = self._other_axes
        of_weight = tuple(range(start, start + len(summed)))
        numbers = (tuple(summed), of_weight), (tuple(batch), tuple(range(len(batch))))
        (out,) = bind(self.eqn, [other, weight], dimension_numbers=numbers)
        if self._place:
            return out
        # The weight came first: its axes are before those of the other operand.
        free = out.ndim - len(self._free)
        batch = range(len(batch))
        return lax.transpose(
            out, (*batch, *range(free, out.ndim), *range(len(batch), free))
        )


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _with_transposed(product: Product, other: Any, first: Any, last: Any) -> Any:
    del last
    return product(other, first)


def _tangent(product: Product, primals: Any, tangents: Any) -> Any:
    other, first, last = primals
    of_other, of_first, _ = tangents
    out = product(other, first)
    terms = []
    if not isinstance(of_other, SymbolicZero):
        terms.append(product.tangent(of_other, last))
    if not isinstance(of_first, SymbolicZero):  # in a derivative of the derivative
        terms.append(product(other, of_first))
    return out, sum(terms[1:], terms[0]) if terms else jnp.zeros_like(out)


_with_transposed.defjvp(_tangent, symbolic_zeros=True)


def _transposed(x: Any, axes: Sequence[int]) -> Any:
    if list(axes) == list(range(x.ndim)):
        return x
    # XLA would put the transposition back into every product.
    return barrier(lax.transpose(x, axes))
