"""Constants that a program makes itself: of places, or of a key that is its own.

A table that is laid together of parts, reversed, sorted, or run through a loop is a
constant, whatever made it: it is made at full width and cut, like a captured array.
Where it stays whole the program stays as it was written. Tables that are computed entry
by entry are cut before that.
"""

from collections.abc import Sequence
from typing import Any

from ..axes import Whole, shape, slice_array, take
from . import order
from .base import Dim, Frame, Narrow, Rule, Tie, Value

_NOTE = "a constant"


def _as_written(n: Narrow, var: Any) -> bool:
    """Whether a variable is whole at this rate, in the order it was written."""
    return not n.moved([var]) and n.shape(var) == shape(n.axes(var))


def cut(n: Narrow, var: Any, full: Any, skip: int = 0) -> Any:
    """The part of a full array that the rate keeps, but for the first axes."""
    first = [Whole(size) for size in full.shape[:skip]]
    axes = [*first, *n.axes(var)[skip:]]
    return slice_array(take(full, axes, n.analysis.orders), axes, n.widths)


def _narrow(n: Narrow, *operands: Any) -> Any:
    variables = [*n.eqn.invars, *n.eqn.outvars]
    if all(_as_written(n, var) for var in variables):
        return n.bind(*operands)
    made = [order.make(source) for source in n.sources]
    return [cut(n, var, x) for var, x in zip(n.eqn.outvars, made, strict=True)]


def _tie(t: Tie) -> Sequence[Value]:
    """places -> (a, b): new axes."""
    t.note(_NOTE)
    return [Value(tuple(Dim(size) for size in aval.shape)) for aval in t.outs]


FOLDED = Rule(_tie, _narrow)


def is_folded(frame: Frame, index: int) -> bool:
    """Whether an equation makes such a constant; what it calls was not read then."""
    return frame.notes.get(index) is _NOTE
