"""Counting all operations of an equation at a rate, by hand and without compiling.

What counts is what XLA counts in a program that it has not optimized: 2 for a product
of a contraction and its addition, 1 for each entry that an operation makes entry by
entry, 1 for each addition of a sum. Exponentials, roots and the like are not among its
FLOPs, nor is what only moves entries. The zeros of padding are not multiplied.
"""

import math
from typing import Any

from .analysis import Analysis
from .axes import Widths, shape
from .flops import contraction, product
from .rules import Frame

ENTRY = frozenset(
    [
        "abs",
        "add",
        "add_any",
        "and",
        "ceil",
        "clamp",
        "conj",
        "convert_element_type",
        "div",
        "eq",
        "floor",
        "ge",
        "gt",
        "imag",
        "is_finite",
        "le",
        "lt",
        "max",
        "min",
        "mul",
        "ne",
        "neg",
        "nextafter",
        "not",
        "or",
        "population_count",
        "real",
        "reduce_precision",
        "rem",
        "round",
        "select_n",
        "shift_left",
        "shift_right_arithmetic",
        "shift_right_logical",
        "sign",
        "square",
        "sub",
        "xor",
    ]
)
"""Primitives that are one operation for each entry of their result."""

NONE = frozenset(
    [
        "atan2",
        "bitcast_convert_type",
        "broadcast",
        "broadcast_in_dim",
        "cbrt",
        "concatenate",
        "copy",
        "copy_p",
        "cos",
        "dynamic_slice",
        "dynamic_update_slice",
        "empty",
        "exp",
        "exp2",
        "expand_dims",
        "expm1",
        "iota",
        "log",
        "log1p",
        "logistic",
        "optimization_barrier",
        "pad",
        "pow",
        "pvary",
        "rev",
        "reshape",
        "rsqrt",
        "sin",
        "slice",
        "split",
        "sqrt",
        "squeeze",
        "stop_gradient",
        "tan",
        "tanh",
        "transpose",
    ]
)
"""Primitives that XLA's count of FLOPs leaves out: moves, exponentials, roots."""

_REDUCE = frozenset(
    f"reduce_{name}" for name in ("sum", "max", "min", "prod", "and", "or", "xor")
)
_WINDOW = frozenset(f"reduce_window_{name}" for name in ("sum", "max", "min"))


def operations(
    analysis: Analysis, frame: Frame, index: int, widths: Widths
) -> tuple[float, bool]:
    """The operations of one equation, which calls nothing.

    Args:
      analysis: of the program.
      frame: the jaxpr that the equation is in.
      index: of the equation.
      widths: how many indices each group keeps.

    Returns:
      How many, and whether XLA is known to count the same. Of what XLA writes as other
      operations (a sort, a cumulative sum, random bits) only a sum into an array
      counts, one for each update.
    """
    eqn = frame.jaxpr.eqns[index]
    found = contraction(analysis, frame, index, padding=False)
    if found is not None:
        products, axes = found
        return 2.0 * products * product(axes, widths), True

    def size(var: Any) -> int:
        return entries(sizes(analysis, frame, var, widths))

    params, name = eqn.params, eqn.primitive.name
    if name in NONE:
        return 0.0, True
    if name in ENTRY:
        return float(size(eqn.outvars[0])), True
    if name in _REDUCE:
        return float(size(eqn.invars[0]) - size(eqn.outvars[0])), True
    if name in _WINDOW:
        window = math.prod(params["window_dimensions"])
        return float((window - 1) * size(eqn.outvars[0])), True
    if name == "integer_pow":
        return float(_multiplications(params["y"]) * size(eqn.outvars[0])), True
    if name == "gather":
        return _gathered(params, size(eqn.invars[1]), size(eqn.outvars[0])), True
    if name in ("scatter-add", "scatter_add", "scatter-mul", "scatter_mul"):
        return float(size(eqn.invars[2])), False
    return 0.0, False


def sizes(
    analysis: Analysis, frame: Frame, var: Any, widths: Widths
) -> tuple[Any, ...]:
    """The shape of a variable at these widths."""
    return shape(analysis.axes(frame.value(var).dims), widths)


def entries(shape: tuple[Any, ...]) -> int:
    """How many entries; an axis of free size (the batch) counts as 1."""
    return math.prod(n for n in shape if isinstance(n, int))


def _gathered(params: Any, indices: int, results: int) -> float:
    """Of a look-up only what is done about indices that are out of bounds."""
    match params["mode"].name:
        case "FILL_OR_DROP":  # two comparisons and an and; then a choice for each entry
            return float(3 * indices + results)
        case "CLIP":
            return float(indices)
    return 0.0


def _multiplications(power: int) -> int:
    """Those of a power by squaring; a negative one is a division more."""
    n = abs(power)
    return max(n.bit_length() + n.bit_count() - 2, 0) + (power < 0)
