"""What tells the entries of an array apart along an axis: their place, or data.

Numbers that count along an axis (`arange`, a captured table, what is computed from
them) go by position alone. So does what is drawn with a key that no argument reaches.
`places` says how that goes from operands to results.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
from jax.core import Tracer


class Along(Enum):
    """How entries differ along an axis."""

    SAME = "not at all"
    PLACE = "by their place alone"
    DATA = "by data"


SAME, PLACE, DATA = Along.SAME, Along.PLACE, Along.DATA


@dataclass(frozen=True, slots=True)
class Given:
    """A number or an array that stands in the program."""

    value: Any


@dataclass(frozen=True, slots=True)
class Computed:
    """A result of an equation that no argument reaches."""

    eqn: Any
    result: int
    operands: tuple["Given | Computed", ...]


@dataclass(frozen=True, slots=True)
class Order:
    """What tells the entries of an array apart.

    Attributes:
      along: for each axis.
      source: how the array is made, where it is the same in every run and every turn
        of a loop.
      reached: whether an argument reaches it; False for keys that loops hand on, too.
      counts: whether it is made of places by sums and factors alone.
      code: whether places along several axes were compared: an identity matrix.
      same: whether these axes were made one, so that the matrix does the same to all of
        their entries, whichever they are.
      diagonal: whether such a matrix is zero elsewhere.
    """

    along: tuple[Along, ...]
    source: Given | Computed | None = None
    reached: bool = True
    counts: bool = False
    code: bool = False
    same: bool = False
    diagonal: bool = False

    def at(self, axis: int) -> Along:
        """How entries differ along an axis; a scalar goes with any."""
        return self.along[axis] if self.along else SAME

    @property
    def varies(self) -> set[Any]:
        """The axes along which entries differ, and "run" where they do so by run."""
        axes: set[Any] = {i for i, a in enumerate(self.along) if a is not SAME}
        return axes if self.source is not None else axes | {"run"}

    @property
    def even(self) -> bool:
        """Whether all entries are one number that stands in the program."""
        return self.source is not None and all(a is SAME for a in self.along)


def data(rank: int, reached: bool = True) -> Order:
    """Of an array of which nothing is known."""
    return Order((DATA,) * rank, reached=reached)


LOOKED_AT = 2**24  # entries; of larger constants nothing is asked


def of_constant(value: Any) -> Order:
    """Of an array, or a number, that stands in the program."""
    shape = np.shape(value)
    if isinstance(value, Tracer):
        return data(len(shape))
    along = tuple(PLACE if size != 1 else SAME for size in shape)
    plain = Order(along, Given(value), reached=False)
    if not shape or not 0 < math.prod(shape) <= LOOKED_AT:
        return plain
    try:
        array = np.asarray(value)
    except (TypeError, RuntimeError):  # a key, or on other hosts
        return plain
    if array.dtype.kind not in "biufc":  # bfloat16
        array = array.astype(np.float32)
    along = tuple(
        SAME if (array == array.take([0], axis)).all() else PLACE
        for axis in range(array.ndim)
    )
    varying = [axis for axis, a in enumerate(along) if a is PLACE]
    return Order(
        along,
        Given(value),
        reached=False,
        counts=len(varying) == 1 and _is_progression(array, varying[0]),
        code=len(varying) > 1 and bool(((array == 0) | (array == 1)).all()),
    )


def _is_progression(array: np.ndarray, axis: int) -> bool:
    line = np.moveaxis(array, axis, -1).reshape(-1, array.shape[axis])[0]
    if len(line) < 3 or line.dtype.kind not in "iuf":
        return False
    line = line.astype(np.float64)
    if not np.isfinite(line).all():
        return False
    even = np.linspace(line[0], line[-1], len(line))
    return bool(np.abs(line - even).max() <= 1e-5 * np.abs(line - line.mean()).max())


_VIEWS = {"broadcast_in_dim", "copy", "reshape", "squeeze", "stop_gradient"}
_VIEWS |= {"transpose"}
_ARITHMETIC = {"add": np.add, "mul": np.multiply, "neg": np.negative}
_ARITHMETIC |= {"sub": np.subtract}


def line(source: Given | Computed) -> np.ndarray | None:
    """The entries along the only axis along which they differ, of simple arithmetic."""
    if isinstance(source, Given):
        return _line_of(source.value)
    name, params = source.eqn.primitive.name, source.eqn.params
    if name == "iota":
        size = params["shape"][params["dimension"]]
        known = isinstance(size, int) and size <= LOOKED_AT
        return np.arange(size).astype(params["dtype"]) if known else None
    lines = [line(operand) for operand in source.operands]
    known = [one for one in lines if one is not None]
    if len(known) < len(lines):
        return None
    if name in _VIEWS:
        return known[0]
    if name == "convert_element_type":
        return known[0].astype(params["new_dtype"])
    if name in _ARITHMETIC and sum(len(one) > 1 for one in known) <= 1:
        return _ARITHMETIC[name](*known)
    return None


def _line_of(value: Any) -> np.ndarray | None:
    if isinstance(value, Tracer) or not 0 < math.prod(np.shape(value)) <= LOOKED_AT:
        return None
    array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        return None
    for axis in reversed(range(array.ndim)):
        if (array == array.take([0], axis)).all():
            array = array.take(0, axis)
    return array.reshape(-1) if array.ndim <= 1 else None


def make(source: Given | Computed) -> Any:
    """The array, at full width: its equations, run again."""
    made: dict[int, Any] = {}  # by source, or by equation its results
    pending = [source]
    while pending:
        one = pending[-1]
        if id(one) in made:
            pending.pop()
        elif isinstance(one, Given):
            made[id(one)] = one.value
        elif missing := [x for x in one.operands if id(x) not in made]:
            pending += missing
        else:
            key = (id(one.eqn), tuple(id(x) for x in one.operands))
            results = made.get(key)  # type: ignore[call-overload]
            if results is None:
                results = _run(one.eqn, [made[id(x)] for x in one.operands])
                made[key] = results  # type: ignore[index]
            made[id(one)] = results[one.result]
    return made[id(source)]


def _run(eqn: Any, operands: Sequence[Any]) -> Sequence[Any]:
    params = eqn.primitive.get_bind_params(eqn.params)
    outs = eqn.primitive.bind(*operands, **params)
    return outs if eqn.primitive.multiple_results else [outs]
