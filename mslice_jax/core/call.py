"""A call of a network: arrays, which are traced, and all the rest, which is static."""

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np


@dataclass(frozen=True)
class Call:
    """The arguments of a call but for the arrays: hashable, so static under jit."""

    treedef: Any
    # By leaf its type and value, or `_ARRAY`. The type, because True == 1 == 1.0.
    statics: tuple[Any, ...]

    @staticmethod
    def split(
        args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple["Call", list[Any]]:
        """Arrays are traced; numbers, strings, booleans, functions are static."""
        leaves, treedef = jax.tree.flatten((tuple(args), dict(kwargs)))
        arrays = [leaf for leaf in leaves if is_array(leaf)]
        statics = tuple(_ARRAY if is_array(x) else _static(x) for x in leaves)
        try:
            hash(statics)
        except TypeError:
            bad = next(x for x in leaves if not is_array(x) and not _hashable(x))
            raise TypeError(
                "the arguments of slice_apply are arrays (traced) or hashable values "
                f"(static); got {bad!r} of type {type(bad).__name__}."
            ) from None
        return Call(treedef, statics), arrays

    def join(self, arrays: Iterable[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments and keyword arguments with these arrays."""
        each = iter(arrays)
        leaves = [next(each) if s is _ARRAY else _value(s) for s in self.statics]
        return jax.tree.unflatten(self.treedef, leaves)

    @property
    def keywords(self) -> frozenset[str]:
        """The names of the arguments that are given by keyword."""
        _, kwargs = jax.tree.unflatten(self.treedef, self.statics)
        return frozenset(kwargs)


class _Array:
    """Stands for an array among static arguments; there is one, also in a copy."""

    def __repr__(self) -> str:
        return "<array>"

    def __reduce__(self) -> str:
        return "_ARRAY"


_ARRAY = _Array()


# By their bits -0.0 is not 0.0, and nan is nan.
_BITS = {float: struct.Struct("d"), complex: struct.Struct("dd")}


def _static(x: Any) -> tuple[type, Any]:
    """A static argument as its type and what to compare it by."""
    if type(x) is float:
        return float, _BITS[float].pack(x)
    if type(x) is complex:
        return complex, _BITS[complex].pack(x.real, x.imag)
    return type(x), x


def _value(static: tuple[type, Any]) -> Any:
    kind, key = static
    return kind(*_BITS[kind].unpack(key)) if kind in _BITS else key


def is_array(x: Any) -> bool:
    """Whether a leaf among the arguments is traced."""
    return hasattr(x, "shape") and hasattr(x, "dtype")


def type_of(x: Any) -> Any:
    """The type of an array for a trace: all that JAX knows of it but its numbers."""
    if isinstance(x, (jax.Array, np.ndarray, np.generic)):
        return jax.typeof(x)  # weak or not, how it is sharded, where it varies
    return x if isinstance(x, jax.ShapeDtypeStruct) else plain_type(x)


def plain_type(x: Any) -> jax.ShapeDtypeStruct:
    """Shape and dtype of an array, weak types kept, wherever it lies."""
    weak = bool(getattr(x, "weak_type", False))
    # int64 of NumPy becomes what JAX makes of it.
    dtype = jax.dtypes.canonicalize_dtype(x.dtype, allow_extended_dtype=True)
    return jax.ShapeDtypeStruct(x.shape, dtype, weak_type=weak)


def keywords(call: Any, call_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """What a call is given by keyword, in a mapping and written out."""
    given = {} if call is None else call
    if not isinstance(given, Mapping) or not all(isinstance(k, str) for k in given):
        raise TypeError(
            'call is a mapping from keywords of the model, such as {"train": False}; '
            f"got {call!r}."
        )
    if twice := sorted(given.keys() & call_kwargs.keys()):
        raise TypeError(f"{twice[0]!r} is given twice: in call= and by keyword.")
    return {**given, **call_kwargs}


def _hashable(x: Any) -> bool:
    try:
        hash(x)
    except TypeError:
        return False
    return True
