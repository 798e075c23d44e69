"""Products in training on CPU: gradients that XLA has fast code for.

Two products read the cotangent of a product. One gives the gradient of the inputs, the
other that of the weight, and sums over all rows. Where these are several axes (images,
or texts, and positions), XLA exchanges the axes of the cotangent for it, in the same
loop that makes the cotangent, a softmax or a gate, which is so computed twice and along
the wrong axis; and it multiplies two exchanged matrices then, at a twelfth to a fourth
of the speed (`experiments/LOG.md`). So the derivatives here are products of matrices,
whose rows are one axis, and a cotangent is made once, behind a barrier.

The forward pass is what it was.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from .barriers import barrier

Product = Callable[[Any, Any], jax.Array]
"""(lhs, rhs) -> the product."""


def applies(eqn: Any) -> bool:
    """Whether a `dot_general` has a cotangent, and its user says no sharding."""
    avals = [var.aval for var in (*eqn.invars, *eqn.outvars)]
    return eqn.params.get("out_sharding") is None and all(
        jnp.issubdtype(aval.dtype, jnp.floating) for aval in avals
    )


def with_cpu_gradient(run: Product, params: dict[str, Any]) -> Product:
    """The product with other derivatives.

    Args:
      run: (lhs, rhs) -> the product.
      params: of `dot_general`.
    """

    @jax.custom_jvp
    def product(lhs: jax.Array, rhs: jax.Array) -> jax.Array:
        return run(lhs, rhs)

    def tangent(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
        (lhs, rhs), (lhs_moves, rhs_moves) = primals, tangents
        terms = []
        if not isinstance(lhs_moves, SymbolicZero):
            terms.append(flat(lhs_moves, rhs, params))
        if not isinstance(rhs_moves, SymbolicZero):
            terms.append(flat(lhs, rhs_moves, params))
        out = run(lhs, rhs)
        if not terms:
            return out, jnp.zeros_like(out)
        return out, barrier(sum(terms[1:], terms[0]))

    product.defjvp(tangent, symbolic_zeros=True)
    return product


def flat(lhs: Any, rhs: Any, params: dict[str, Any]) -> jax.Array:
    """The product, as one of matrices where the order of axes allows that.

    Args:
      lhs, rhs: the operands. Of lhs the last axes are summed over, of rhs the first or
        the last, and there is no axis of a batch; else it is the product as it is.
      params: of `dot_general`.
    """
    (of_lhs, of_rhs), batch = params["dimension_numbers"]
    count = len(of_lhs)
    options = {name: params[name] for name in ("precision", "preferred_element_type")}
    last, first = tuple(range(rhs.ndim - count, rhs.ndim)), tuple(range(count))
    if (
        batch != ((), ())
        or count == 0
        or tuple(of_lhs) != tuple(range(lhs.ndim - count, lhs.ndim))
        or tuple(of_rhs) not in (first, last)
    ):
        return lax.dot_general(lhs, rhs, params["dimension_numbers"], **options)
    summed = math.prod(lhs.shape[lhs.ndim - count :])
    rows = lhs.shape[: lhs.ndim - count]
    if tuple(of_rhs) == first:
        columns, axis = rhs.shape[count:], 0
        matrix = summed, math.prod(columns)
    else:
        columns, axis = rhs.shape[: rhs.ndim - count], 1
        matrix = math.prod(columns), summed
    out = lax.dot_general(
        lhs.reshape(math.prod(rows), summed),
        rhs.reshape(matrix),
        (((1,), (axis,)), ((), ())),
        **options,
    )
    return out.reshape(*rows, *columns)
