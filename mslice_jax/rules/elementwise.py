"""Entry by entry: all operands and the result have the same axes."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from .base import Dims, Tie, Value, rule

# Of these the number can be followed when the operands are known numbers: sizes that
# become divisors (means, unbiased variances) are computed this way.
NUMBERS: dict[str, Any] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "max": np.maximum,
    "min": np.minimum,
    "neg": np.negative,
    "pow": np.power,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "sqrt": np.sqrt,
    "square": np.square,
    "copy": lambda x: x,
    "stop_gradient": lambda x: x,
}


# fmt: off
@rule(
    "abs", "acos", "acosh", "add_any", "and", "asin", "asinh", "atan", "atan2",
    "atanh", "bessel_i0e", "bessel_i1e", "ceil", "clamp", "clz", "complex",
    "conj", "cos", "cosh", "digamma", "erf", "erf_inv", "erfc", "exp", "exp2",
    "expm1", "floor", "igamma", "igamma_grad_a", "igammac", "imag", "is_finite",
    "lgamma", "log", "log1p", "log2", "logistic", "min", "mulhi", "nextafter",
    "not", "one_minus_square", "or", "polygamma", "polynomial",
    "population_count",
    "random_gamma", "real", "regularized_incomplete_beta", "rem", "round",
    "shift_left", "shift_right_arithmetic", "shift_right_logical", "sign",
    "sin", "sinh", "tan", "tanh", "threefry2x32", "xor", "zeros_like", "zeta",
)
# fmt: on
def tie_elementwise(t: Tie) -> Sequence[Value]:
    """(a, b), (a, b) -> (a, b); scalars and axes of size 1 go with anything."""
    dims = t.broadcast(t.ins)
    return [Value(dims, known_number(t), counted=t.counted()) for _ in t.outs]


@rule("eq", "eq_to", "ge", "gt", "le", "le_to", "lt", "lt_to", "ne")
def tie_compare(t: Tie) -> Sequence[Value]:
    """(a, b), (a, b) -> (a, b); an axis whose indices are compared is fixed.

    So a one-hot code, and what it picks from, stays whole.
    """
    for value in t.ins:
        t.fix(value.counted, "tells entries apart by their index")
    return [Value(t.broadcast(t.ins))]


@rule("convert_element_type", "copy", "neg", "reduce_precision", "stop_gradient")
def tie_same_sum(t: Tie) -> Sequence[Value]:
    """(a, b) -> (a, b); a sum stays a sum."""
    x = t.ins[0]
    return [Value(x.dims, known_number(t), x.summed, t.counted(), x.repeated)]


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


def known_number(t: Tie) -> Any:
    """The number that every entry of the result is, where it can be told."""
    name = t.eqn.primitive.name
    numbers = [value.known for value in t.ins]
    if any(number is None for number in numbers):
        return None
    with np.errstate(all="ignore"):
        if name == "convert_element_type":
            number = numbers[0]
        elif name == "integer_pow":
            number = np.power(np.asarray(numbers[0], float), t.params["y"])
        elif name in NUMBERS:
            number = NUMBERS[name](*numbers)
        else:
            return None
        return _cast(number, t.outs[0].dtype)


def _cast(number: Any, dtype: Any) -> Any:
    """The number as an array of that type would hold it; None if it is not real."""
    real = (jnp.bool_, jnp.integer, jnp.floating)
    if not any(jnp.issubdtype(dtype, kind) for kind in real):
        return None  # complex, or an extended type such as a key
    return np.asarray(number).astype(dtype)[()]


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
