"""Products and quotients, and the means hidden in them.

A mean is written as a sum divided by a number. Where the summed axis narrows, that
number is the axis' full size and has to become its width: layer and RMS norms need it.
The number is recognised where it equals the count of the summed terms, or that count
less one (unbiased variance), or the inverse of either.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from .base import Dim, Narrow, Tie, Value, rule
from .elementwise import known_number


@dataclass(slots=True, frozen=True)
class Count:
    """The operand that holds how many terms a sum has."""

    operand: int
    dims: tuple[Dim, ...]  # what was summed over
    inverse: bool  # the operand is 1 / count
    less: int  # 1: an unbiased variance


def _narrow_scale(n: Narrow, *operands: Any) -> Any:
    count: Count | None = n.note
    if count is None:
        return n.bind(*operands)
    full = math.prod(dim.size for dim in count.dims)
    narrow = math.prod(n.width(dim) for dim in count.dims)
    if narrow == full:
        return n.bind(*operands)
    number = narrow - count.less
    replaced = list(operands)
    old = operands[count.operand]
    replaced[count.operand] = jnp.full_like(
        old, 1 / number if count.inverse else number
    )
    return n.bind(*replaced)


@rule("div", "mul", narrow=_narrow_scale)
def tie_scale(t: Tie) -> Sequence[Value]:
    """(a, b), (a, b) -> (a, b); a sum over its number of terms is a mean."""
    x, y = t.ins
    dims = t.broadcast(t.ins)
    known, summed = known_number(t), ()
    if known is None:
        for operand, (total, number) in enumerate(((y, x), (x, y))):
            if operand == 0 and t.eqn.primitive.name == "div":
                continue  # number / sum is no mean
            if total.summed and number.known is not None:
                count = _count(t, operand, total, float(number.known))
                if count is None:
                    summed = total.summed  # scaled, and still a sum
                else:
                    t.note(count)
    return [Value(dims, known, summed, t.counted())]


def _count(t: Tie, operand: int, total: Value, number: float) -> Count | None:
    sizes = [dim.size for dim in total.summed]
    if not all(isinstance(size, int) for size in sizes):
        return None
    terms = math.prod(sizes)
    for less in (0, 1):
        for inverse in (False, True):
            if inverse and t.eqn.primitive.name == "div":
                continue
            if not inverse and t.eqn.primitive.name == "mul":
                continue
            wanted = terms - less
            if wanted <= 1:
                continue
            if math.isclose(number, 1 / wanted if inverse else wanted, rel_tol=1e-6):
                return Count(operand, total.summed, inverse, less)
    return None
