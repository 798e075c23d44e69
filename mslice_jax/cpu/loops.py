"""Loops on CPU: products with weights leave the loop where they can.

A turn of a loop multiplies few rows with a weight, and reads the whole weight for them.
Two kinds of products need not do so at every turn:

* What the loop runs along, times a weight: one product of the rows of all turns,
  before the loop. The same for rows that are looked up in a table.
* The gradient of a weight, which JAX adds up turn by turn, in an array as large as the
  weight. Here the rows of all turns are multiplied with the weight's tangent at once,
  which is one product after the loop when JAX transposes it.

Both keep the rows of all turns in memory, for which there is a limit. The products that
stay read the weight as it is summed over: with few rows the other order takes two to
three times as long, and so would the backward loop. It gets a transposed weight.

A row of what the loop runs along is copied before it is read. XLA computes where it
begins in every operation that reads it, for every entry, and such an operation does not
become vector instructions: of an LSTM's turn, 16 rows of 64 units, the gates took 8 of
13 microseconds, and take 1 (`experiments/LOG.md`).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from ..core.forms import active, without
from ..core.rules import RULES, Narrow
from ..core.rules.loops import counts_of_scan
from . import work
from .barriers import barrier
from .equations import evaluate, read
from .loop_parts import Parts, take_apart
from .products import Product

_OPTIONS = ("length", "reverse", "unroll", "_split_transpose")


def applies(n: Narrow, *operands: Any) -> bool:
    """Whether there is more than one turn, and a product that may leave."""
    del operands
    return n.params["length"] > 1 and work.of_equation(n.eqn).fast > 0


def scan(n: Narrow, *operands: Any) -> Sequence[Any]:
    """The loop, with fewer products in it."""
    consts, carried = counts_of_scan(n.params)
    first = [x[0] for x in operands[consts + carried :]]
    # Products are looked for: inside of a function with a derivative they hide.
    forms = active.value
    with active(forms and without(forms, "dot_general")):
        body = jax.make_jaxpr(lambda *xs: tuple(n.call(0, *xs)))(
            *operands[: consts + carried], *first
        )
    parts = take_apart(body.jaxpr, consts, carried, n.params["length"])
    if not parts.made and not parts.moved:
        return RULES["scan"].narrow(n, *operands)
    values = dict(zip(body.jaxpr.invars, operands, strict=True))
    values |= zip(body.jaxpr.constvars, body.consts, strict=True)
    for eqn in parts.before:
        evaluate(eqn, values)
    if parts.made:
        with jax.named_scope(work.SCOPE):
            made = jax.vmap(_along(parts, values))(read(parts.along_rows, values))
        values |= zip(parts.made, made, strict=True)
    options = {name: n.params[name] for name in _OPTIONS if name in n.params}
    carry = body.jaxpr.invars[consts : consts + carried]
    return _loop(parts, carry, body.jaxpr.outvars, options)(
        [values[eqn.invars[place]] for eqn, place in parts.moved],
        read(parts.fixed, values),
        read(carry, values),
        read(parts.rows, values),
    )


def _along(parts: Parts, values: Mapping[Any, Any]) -> Any:
    def turn(rows: Sequence[Any]) -> list[Any]:
        inner = {var: values[var] for var in parts.along_fixed}
        inner |= zip(parts.along_rows, rows, strict=True)
        for eqn in parts.along:
            evaluate(eqn, inner)
        return read(parts.made, inner)

    return turn


def _loop(parts: Parts, carry_vars: Any, out_vars: Any, options: Any) -> Any:
    """A function of weights, what is fixed, what is carried, and rows of all turns."""
    products = [Product(eqn, place) for eqn, place in parts.moved]
    at = {id(eqn): i for i, (eqn, _) in enumerate(parts.moved)}

    def turns(
        run: Callable[[int, Any], Any], fixed: Any, carry: Any, rows: Any, moves: Any
    ) -> tuple[list[Any], Any]:
        """The loop, its products by `run`; and what they multiply with the weights."""

        def turn(carry: Any, xs: Any) -> Any:
            rows, moves = xs
            values = dict(zip(carry_vars, carry, strict=True))
            values |= zip(parts.fixed, fixed, strict=True)
            values |= zip(parts.rows, rows, strict=True)
            values |= {  # a copy
                var: barrier(values[var])
                for var in parts.rows
                if jnp.issubdtype(var.aval.dtype, jnp.floating)
            }
            met = {}
            for eqn in parts.within:
                if (i := at.get(id(eqn))) is None:
                    evaluate(eqn, values)
                    continue
                (other,) = read([products[i].other], values)
                out = run(i, other)
                if i in moves:
                    met[i], out = other, _moved(out, moves[i])
                values[eqn.outvars[0]] = out
            outs = read(out_vars, values)
            return tuple(outs[: len(carry)]), (outs[len(carry) :], met)

        carry, (ys, met) = lax.scan(turn, tuple(carry), (rows, moves), **options)
        return [*carry, *ys], met

    @jax.custom_jvp
    def loop(weights: Any, fixed: Any, carry: Any, rows: Any) -> list[Any]:
        ready = [p.summed_first(w) for p, w in zip(products, weights, strict=True)]

        def run(i: int, other: Any) -> Any:
            return products[i](other, ready[i])

        return turns(run, fixed, carry, rows, {})[0]

    def tangent(primals: Any, tangents: Any) -> Any:
        weights, *others = primals
        of_weights, *of_others = tangents
        others, tree = jax.tree.flatten(others)
        of_others = jax.tree.leaves(of_others, is_leaf=_is_still)
        moving = [i for i, x in enumerate(of_others) if not _is_still(x)]
        ready = [
            (p.summed_first(w), p.summed_last(w))
            for p, w in zip(products, weights, strict=True)
        ]

        def run(moving_others: Any, moves: Any) -> Any:
            full = list(others)
            for i, x in zip(moving, moving_others, strict=True):
                full[i] = x

            def product(i: int, other: Any) -> Any:
                return products[i].with_transposed(other, *ready[i])

            fixed, carry, rows = jax.tree.unflatten(tree, full)
            return turns(product, fixed, carry, rows, moves)

        still = {
            i: jnp.zeros(
                (options["length"], *products[i].out.shape), products[i].out.dtype
            )
            for i, x in enumerate(of_weights)
            if not _is_still(x)
        }
        outs, linear, met = jax.linearize(
            run, [others[i] for i in moving], still, has_aux=True
        )
        moves = {i: products[i].of_turns(met[i], of_weights[i]) for i in still}
        return outs, linear([of_others[i] for i in moving], moves)

    loop.defjvp(tangent, symbolic_zeros=True)
    return loop


@jax.custom_jvp
def _moved(x: Any, by: Any) -> Any:
    """x + by, where `by` is 0 but for its tangent."""
    del by
    return x


_moved.defjvp(lambda primals, tangents: (primals[0], tangents[0] + tangents[1]))


def _is_still(tangent: Any) -> bool:
    return isinstance(tangent, SymbolicZero)
