"""Numbers that the program itself computes from numbers: sizes before they are used."""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

_OPERATIONS: dict[str, Any] = {
    "abs": np.abs,
    "add": np.add,
    "copy": lambda x: x,
    "and": np.bitwise_and,
    "div": np.divide,
    "eq": np.equal,
    "exp": np.exp,
    "integer_pow": None,
    "ge": np.greater_equal,
    "gt": np.greater,
    "le": np.less_equal,
    "log": np.log,
    "log2": np.log2,
    "lt": np.less,
    "max": np.maximum,
    "min": np.minimum,
    "mul": np.multiply,
    "ne": np.not_equal,
    "neg": np.negative,
    "or": np.bitwise_or,
    "pow": np.power,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "sign": np.sign,
    "sqrt": np.sqrt,
    "square": np.square,
    "stop_gradient": lambda x: x,
    "sub": np.subtract,
}
_VIEWS = (
    "convert_element_type",
    "expand_dims",
    "pvary",
    "reduce_precision",
    "reshape",
    "slice",
    "squeeze",
    "transpose",
)


def fold(eqn: Any, numbers: Sequence[Any]) -> Any:
    """The number that every entry of the result is, where it can be told.

    Args:
      eqn: an equation.
      numbers: of its operands; None for those that are no number.
    """
    name = eqn.primitive.name
    if not numbers or any(number is None for number in numbers):
        return None
    with np.errstate(all="ignore"):
        if name in _VIEWS:
            number = numbers[0]
        elif name == "integer_pow":
            number = np.power(np.asarray(numbers[0], float), eqn.params["y"])
        elif name in _OPERATIONS:
            number = _OPERATIONS[name](*numbers)
        elif name == "select_n":
            number = numbers[1 + int(numbers[0])]
        else:
            return None
        return _cast(number, eqn.outvars[0].aval.dtype)


def _cast(number: Any, dtype: Any) -> Any:
    """The number as an array of that type would hold it; None if it is not real."""
    real = (jnp.bool_, jnp.integer, jnp.floating)
    if not any(jnp.issubdtype(dtype, kind) for kind in real):
        # A number of a mean of complex numbers is real.
        if jnp.issubdtype(dtype, jnp.complexfloating) and np.imag(number) == 0:
            return np.real(number)[()]
        return None
    return np.asarray(number).astype(dtype)[()]


_LOOKED_AT = 65536  # entries; larger constants are no ones to take a mean with


def scalar(value: Any) -> Any:
    """The number that every entry of an array is; None if there is no such number."""
    if not 0 < math.prod(np.shape(value)) <= _LOOKED_AT:
        return None
    try:
        array: Any = np.asarray(value)
    except TypeError:  # a key, or an array that is itself being traced
        return None
    if jnp.issubdtype(array.dtype, jnp.floating) and array.dtype.kind != "f":
        array = array.astype(np.float32)  # bfloat16
    if array.dtype.kind == "c" and not array.imag.any():
        array = array.real
    if array.dtype.kind not in "biuf" or (array != array.flat[0]).any():
        return None
    return array.flat[0]
