"""Products, quotients and powers, and the means hidden in them.

A mean is written as a sum divided by a number. Where the summed axis narrows, that
number is the axis' full size and has to become its width: layer and RMS norms need it.
The number is recognised where it equals the count of the summed terms, its inverse as
a factor, or where it divides by that count less one (unbiased variance).

The same goes for powers of a sum. What is divided by its norm, the root of a sum, and
then multiplied by the root of the count is an RMS norm: ``x / norm(x) * sqrt(d)``.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax

from .base import Dim, Narrow, Summed, Tie, Value, rule
from .elementwise import known_number
from .rows import spread

_SMALL = 1e-3  # up to here a number added to a sum is there against a division by zero


@dataclasses.dataclass(slots=True, frozen=True)
class Count:
    """The operand that holds how many terms a sum has, to some power."""

    operand: int
    dims: tuple[Dim, ...]  # what was summed over
    exponent: float  # the operand is (count - less) ** exponent
    less: int  # 1: an unbiased variance


def recount(n: Narrow, count: Count | None, operands: Sequence[Any]) -> list[Any]:
    """The operands, with a number of terms replaced by that of the narrow sum."""
    operands = list(operands)
    if count is not None:
        full = math.prod(dim.size for dim in count.dims)
        narrow = math.prod(n.width(dim) for dim in count.dims)
        if narrow != full:
            number = (narrow - count.less) ** count.exponent
            operands[count.operand] = jnp.full_like(operands[count.operand], number)
    return operands


def _narrow_scale(n: Narrow, *operands: Any) -> Any:
    return n.bind(*spread(recount(n, n.note, operands)))


@rule("div", "mul", narrow=_narrow_scale)
def tie_scale(t: Tie) -> Sequence[Value]:
    """(a, b), (a, b) -> (a, b); a sum over its number of terms is a mean."""
    dims, known, summed = t.broadcast(t.ins), known_number(t), None
    divides = t.eqn.primitive.name == "div"
    powers = [value.summed for value in t.ins]
    if divides and powers[1] is not None:
        powers[1] = dataclasses.replace(powers[1], power=-powers[1].power)
    x, y = powers
    if x is not None and y is not None:
        _tie_terms(t, x, y)
        norm = min(x, y, key=lambda one: one.power)
        if norm.power < 0 and norm.power != -1:  # normalised, though a sum itself
            summed = norm
    elif known is None and (x is not None or y is not None):
        at = 0 if x is not None else 1
        total, number = x or y, t.ins[1 - at].known
        assert total is not None
        if number is not None:
            summed = scale(t, total, 1 - at, number, divides and at == 0)
        elif total.power < 0:  # normalised, whatever it is multiplied with
            summed = total
    return [Value(dims, known, summed, t.counted())]


def _tie_terms(t: Tie, x: Summed, y: Summed) -> None:
    """A sum over a number of terms that is itself a sum: that of a mask.

    Where the mask was repeated along an axis, it is as long as what it masks.
    """
    total, terms = (x, y) if x.power == 1 else (y, x)
    if (total.power, terms.power) == (1, -1) and len(total.dims) == len(terms.dims):
        for dim, other in zip(total.dims, terms.dims, strict=True):
            if other in terms.repeated and dim.size == other.size:
                t.equations.equate(dim, other)


def scale(
    t: Tie, total: Summed, operand: int, number: Any, divides: bool = False
) -> Summed | None:
    """Notes whether a number turns (a part of) the sum into a mean.

    Args:
      t: the equation.
      total: what the number multiplies.
      operand: which operand the number is.
      number: the number.
      divides: whether it divides instead.

    Returns:
      What is still a sum.
    """
    exponent = total.power if divides else -total.power
    dims = [dim for dim in total.dims if isinstance(dim.size, int)]
    aval: Any = t.eqn.invars[operand].aval
    dtype = aval.dtype
    rounding = jnp.finfo(dtype).eps if jnp.issubdtype(dtype, jnp.floating) else 0.0
    tolerance = max(1e-6, float(rounding))
    # All of the summed axes; or some, as where a sum over features is divided by the
    # batch. There only a quotient tells: 0.5 and the like are factors of many kinds.
    smallest = 1 if divides and len(dims) <= 8 else len(dims)
    for size in range(len(dims), smallest - 1, -1):
        for less in (0, 1) if divides and exponent == 1 else (0,):
            matches = []
            for chosen in itertools.combinations(range(len(dims)), size):
                terms = math.prod(dims[i].size for i in chosen) - less
                if terms > 1 and math.isclose(
                    float(number), float(terms) ** exponent, rel_tol=tolerance
                ):
                    matches.append(chosen)
            if len(matches) > 1:
                # A number of two meanings is that of the last sum, or left as it is.
                matches = [
                    m for m in matches if tuple(dims[i] for i in m) == total.last
                ]
                if not matches:
                    return total
            if matches:
                counted = tuple(dims[i] for i in matches[0])
                t.note(Count(operand, counted, exponent, less))
                rest = tuple(d for i, d in enumerate(dims) if i not in matches[0])
                return dataclasses.replace(total, dims=rest) if rest else None
    return total


_POWERS = {"cbrt": 1 / 3, "rsqrt": -0.5, "sqrt": 0.5, "square": 2.0}


@rule("cbrt", "integer_pow", "pow", "rsqrt", "sqrt", "square")
def tie_power(t: Tie) -> Sequence[Value]:
    """(a, b) -> (a, b); the root of a sum of squares is a norm."""
    name, total = t.eqn.primitive.name, t.ins[0].summed
    exponent = _POWERS.get(name, t.params.get("y"))
    if name == "pow":
        exponent = t.ins[1].known
    summed = None
    if total is not None and exponent:
        power = total.power * float(exponent)
        summed = dataclasses.replace(total, power=power)
    return [Value(t.broadcast(t.ins), known_number(t), summed, t.counted())]


def _narrow_sum(n: Narrow, *operands: Any) -> Any:
    return n.bind(*spread(operands))


def _narrow_difference(n: Narrow, x: Any, y: Any) -> Any:
    spread_x, spread_y = spread((x, y))
    if spread_y is y:
        return n.bind(spread_x, y)
    # The gradient of y is then minus a sum, not the sum of an array of negatives.
    return lax.add(x, spread((x, -y))[1])


@rule("add", narrow=_narrow_sum)
@rule("sub", narrow=_narrow_difference)
@rule("max", "select_n")
def tie_guard(t: Tie) -> Sequence[Value]:
    """(a, b), (a, b) -> (a, b); a sum with a small number beside it stays a sum."""
    choose = t.eqn.primitive.name == "select_n"
    operands = t.ins[1:] if choose else t.ins
    sums = [value.summed for value in operands if value.summed is not None]
    others = [value.known for value in operands if value.summed is None]
    # To a number of terms even 1 may be added or taken away.
    small = 1 if sums and sums[0].repeated else _SMALL
    guarded = all(o is not None and (choose or abs(o) <= small) for o in others)
    summed = sums[0] if len(sums) == 1 and guarded else None
    dims, known = t.broadcast(t.ins), known_number(t)
    return [Value(dims, known, summed, t.counted())]
