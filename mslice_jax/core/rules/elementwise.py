"""Entry by entry: all operands and the result have the same axes."""

from collections.abc import Sequence

from .base import Dims, Tie, Value, rule


# fmt: off
@rule(
    "abs", "acos", "acosh", "add", "add_any", "and", "asin", "asinh", "atan", "atan2",
    "atanh", "bessel_i0e", "bessel_i1e", "cbrt", "ceil", "clamp", "clz", "complex",
    "conj", "cos", "cosh", "digamma", "erf", "erf_inv", "erfc", "exp", "exp2", "expm1",
    "floor", "igamma", "igamma_grad_a", "igammac", "imag", "integer_pow", "is_finite",
    "lgamma", "log", "log1p", "log2", "logistic", "max", "min", "mul", "mulhi",
    "nextafter", "not", "one_minus_square", "or", "polygamma", "polynomial",
    "population_count", "pow", "real", "regularized_incomplete_beta",
    "rem", "round", "rsqrt", "select_n", "shift_left", "shift_right_arithmetic",
    "shift_right_logical", "sign", "sin", "sinh", "sqrt", "square", "sub", "tan",
    "tanh", "threefry2x32", "xor", "zeros_like", "zeta",
)
# fmt: on
def tie_elementwise(t: Tie) -> Sequence[Value]:
    """(a, b), (a, b) -> (a, b); scalars and axes of size 1 go with anything."""
    return [t.entry_by_entry() for _ in t.outs]


@rule("div")
def tie_quotient(t: Tie) -> Sequence[Value]:
    """(a, b), (a, 1) -> (a, b); the terms of a masked mean are as many as its sum's.

    A mask that was repeated along an axis of what it masks, and once more to be
    counted, is one mask: both axes are one.
    """
    total, terms = t.ins
    for one in total.summed:
        for other in terms.summed:
            if one.origin is other.origin and one.dim.size == other.dim.size:
                t.equations.equate(one.dim, other.dim)
    return [t.entry_by_entry()]


@rule("eq", "eq_to", "ge", "gt", "le", "le_to", "lt", "lt_to", "ne")
def tie_compare(t: Tie) -> Sequence[Value]:
    """(a, b), (a, b) -> (a, b); an axis whose indices are compared is fixed.

    So a one-hot code, and what it picks from, stays whole.
    """
    return [Value(t.broadcast(t.ins))]


@rule("convert_element_type", "copy", "neg", "reduce_precision", "stop_gradient")
def tie_view(t: Tie) -> Sequence[Value]:
    """(a, b) -> (a, b): the same entries, or their negatives."""
    x = t.ins[0]
    return [Value(x.dims, x.repeats, x.summed, x.origin or x)]


@rule(
    "name",
    "optimization_barrier",
    "pin",
    "stage",
    "unpin",
    "xla_metadata_value",
)
def tie_identity(t: Tie) -> Sequence[Value]:
    """(a, b), (c) -> (a, b), (c): each operand is returned."""
    return list(t.ins)


@rule("tie")
def tie_second(t: Tie) -> Sequence[Value]:
    """(a), (b) -> (b): the second operand, once the first is there."""
    return [t.ins[1]]


@rule(
    "dce_sink",
    "debug_callback",
    "debug_print",
    "inspect_sharding",
    "shape_assertion",
)
def tie_watch(t: Tie) -> Sequence[Value]:
    """(a, b) -> nothing: what is printed or watched is narrow."""
    return [Value(()) for _ in t.outs]


@rule("bitcast_convert_type")
def tie_bitcast(t: Tie) -> Sequence[Dims]:
    """(a, b) -> (a, b) between types of one width; otherwise the last axis is fixed."""
    (x,), (out,) = t.ins, t.outs
    if len(out.shape) == len(x.dims):
        return [x.dims]
    text = "the last axis holds the bytes of one number"
    if len(out.shape) > len(x.dims):
        return [[*x.dims, t.fixed(out.shape[-1], text)]]
    t.fix(x.dims[-1:], text)
    return [x.dims[:-1]]
