"""What a rule is: how a primitive ties axes, and how it runs narrow.

A rule has two halves. `tie` looks at an equation at full width and says which axes are
one; it returns the axes of the results. `narrow` runs the same equation on narrow
operands; most primitives are simply bound again, those that carry sizes in their
parameters take them from the plan.

A primitive that is not in the table is never guessed: its axes are fixed.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax.numpy as jnp
import numpy as np
from jax.extend import core

from ..dims import Axis, Widths, shape
from ..unify import Dim, Equations, atoms
from .order import Order, of_constant


@dataclass(frozen=True, slots=True)
class Summed:
    """That an array grows with a sum over these axes, to some power; see `means`.

    A norm is a sum of squares to the power 1/2, what is divided by it has -1/2.
    """

    dims: tuple[Dim, ...]
    power: float = 1.0
    repeated: tuple[Dim, ...] = ()  # of the dims those along which all terms are equal
    last: tuple[Dim, ...] = ()  # of the dims those of the last sum


@dataclass(slots=True)
class Value:
    """What is known of one array of the program."""

    dims: tuple[Dim, ...]
    known: Any = None  # the number, where every entry is one known number
    summed: Summed | None = None
    counted: tuple[Dim, ...] = ()  # the axes whose indices its integers are made of
    repeated: tuple[Dim, ...] = ()  # the axes along which all entries are equal
    order: Order | None = None  # what tells its entries apart; None: data


@dataclass(slots=True)
class Frame:
    """One jaxpr, read in one place; a jaxpr that is called twice has two frames."""

    jaxpr: core.Jaxpr
    consts: Sequence[Any]
    values: dict[Any, Value]  # by variable; array literals by id
    children: dict[int, list["Frame"]]  # by equation: the jaxprs that it calls
    notes: dict[int, Any]  # by equation: what `tie` left for `narrow`

    def value(self, var: Any) -> Value:
        """The value of a variable or literal of this frame's jaxpr."""
        if isinstance(var, core.Literal):
            known = self.values.get(id(var))
            if known is not None:
                return known
            return Value((), known=scalar(var.val), order=of_constant(var.val))
        return self.values[var]


class Tie:
    """An equation at full width, as `tie` sees it."""

    __slots__ = (
        "_frame", "_index", "_walk", "entries", "eqn", "equations", "ins", "params",
    )  # fmt: skip

    def __init__(self, frame: Frame, index: int, equations: Equations, walk: Any):
        self.eqn = frame.jaxpr.eqns[index]
        self.params = self.eqn.params
        self.ins = [frame.value(var) for var in self.eqn.invars]
        self.equations = equations
        # The axes of a result, where it is made entry by entry.
        self.entries: tuple[Dim, ...] | None = None
        self._frame, self._index, self._walk = frame, index, walk

    @property
    def outs(self) -> list[Any]:
        """The abstract values (shape, dtype) of the results."""
        return [var.aval for var in self.eqn.outvars]

    def equate(self, a: Sequence[Dim], b: Sequence[Dim]) -> None:
        """Makes two lists of dims equal, one by one."""
        for x, y in zip(a, b, strict=True):
            self.equations.equate(x, y)

    def broadcast(self, values: Sequence[Value]) -> tuple[Dim, ...]:
        """The axes of an entry-by-entry result; axes of size 1 go with any size."""
        arrays = [value.dims for value in values if value.dims]
        outs = []
        for position, size in enumerate(self.outs[0].shape):
            dims = [dims[position] for dims in arrays]
            same = [dim for dim in dims if dim.size == size]
            for other in same[1:]:
                self.equations.equate(same[0], other)
            outs.append(same[0])
        self.entries = tuple(outs)
        return self.entries

    def counted(self) -> tuple[Dim, ...]:
        """The axes whose indices the operands are made of, if the result is integer."""
        if not jnp.issubdtype(self.outs[0].dtype, jnp.integer):
            return ()  # a table of sines of positions is cut like any other constant
        return tuple(dim for value in self.ins for dim in value.counted)

    def fix(self, dims: Sequence[Dim], text: str) -> None:
        """Keeps these dims at their sizes; `text` says why."""
        for dim in dims:
            self.equations.fix(dim, f"{self.eqn.primitive.name}: {text}")

    def fixed(self, size: Any, text: str) -> Dim:
        """A new dim that keeps its size."""
        reason = self.equations.reason(f"{self.eqn.primitive.name}: {text}")
        return Dim(size, reason)

    def note(self, note: Any) -> None:
        """Leaves something for `narrow`."""
        self._frame.notes[self._index] = note

    def call(self, jaxpr: Any, values: Sequence[Value]) -> list[Value]:
        """Reads a jaxpr that this equation calls, and returns its results."""
        child, outs = self._walk(jaxpr, values)
        self._frame.children.setdefault(self._index, []).append(child)
        return outs


class Narrow:
    """An equation at a rate, as `narrow` sees it."""

    __slots__ = ("_frame", "_index", "analysis", "eqn", "evaluate", "params", "widths")

    def __init__(
        self, frame: Frame, index: int, analysis: Any, widths: Widths, evaluate: Any
    ):
        self.eqn = frame.jaxpr.eqns[index]
        self.params = self.eqn.params
        self.analysis, self.widths, self.evaluate = analysis, widths, evaluate
        self._frame, self._index = frame, index

    def axes(self, var: Any) -> tuple[Axis, ...]:
        """The axes of a variable of the equation."""
        return self.analysis.axes(self._frame.value(var).dims)

    def shape(self, var: Any) -> tuple[Any, ...]:
        """The narrow shape of a variable of the equation."""
        return shape(self.axes(var), self.widths)

    def width(self, dim: Dim) -> Any:
        """The narrow size of a dim."""
        return shape(self.analysis.axes((dim,)), self.widths)[0]

    @property
    def sources(self) -> list[Any]:
        """How the results are made, where they are constants; see `order`."""
        orders = [self._frame.value(var).order for var in self.eqn.outvars]
        return [order and order.source for order in orders]

    @property
    def note(self) -> Any:
        """What `tie` left; None if nothing."""
        return self._frame.notes.get(self._index)

    def bind(self, *operands: Any, **changed: Any) -> Any:
        """The primitive itself, with some parameters changed."""
        primitive = self.eqn.primitive
        params = primitive.get_bind_params({**self.params, **changed})
        return primitive.bind(*operands, **params)

    def call(self, which: int, *operands: Any) -> list[Any]:
        """Runs the `which`-th jaxpr that the equation calls."""
        child = self._frame.children[self._index][which]
        return self.evaluate(self.analysis, child, self.widths, operands)


Dims: TypeAlias = Sequence[Dim]
TieFn: TypeAlias = Callable[[Tie], Sequence[Value | Dims]]
NarrowFn: TypeAlias = Callable[..., Any]


def bind_again(n: Narrow, *operands: Any) -> Any:
    """The same equation: shapes follow from the operands."""
    return n.bind(*operands)


@dataclass(frozen=True, slots=True)
class Rule:
    """How one primitive ties axes, and how it runs narrow."""

    tie: TieFn
    narrow: NarrowFn = bind_again

    @property
    def picture(self) -> str:
        """The first line of the docstring: how the axes map, in words."""
        return (self.tie.__doc__ or "").strip().splitlines()[0]


RULES: dict[str, Rule] = {}


def rule(*names: str, narrow: NarrowFn = bind_again) -> Callable[[TieFn], TieFn]:
    """Enters the decorated `tie` into the table under these primitives' names."""

    def enter(tie: TieFn) -> TieFn:
        for name in names:
            if name in RULES:
                raise ValueError(f"primitive {name!r} has two rules")
            RULES[name] = Rule(tie, narrow)
        return tie

    return enter


NO_RULE_TEXT = "there is no rule for this primitive"


def fix_everything(t: Tie, text: str = NO_RULE_TEXT) -> Sequence[Dims]:
    """Every axis of every operand and result keeps its size."""
    for value in t.ins:
        t.fix(value.dims, text)
    # Tokens and the like have no shape.
    shapes = [getattr(aval, "shape", ()) for aval in t.outs]
    return [[t.fixed(size, text) for size in shape] for shape in shapes]


NO_RULE = Rule(fix_everything)


def sum_over(x: Value, dims: Sequence[Dim]) -> Summed:
    """What a sum of the array over these axes is a sum of."""
    inner = x.summed if x.summed is not None and x.summed.power == 1 else Summed(())
    repeated = (dim for dim in dims if dim in x.repeated)
    return Summed(
        (*inner.dims, *dims), repeated=(*inner.repeated, *repeated), last=tuple(dims)
    )


def is_fixed(dim: Dim) -> bool:
    """Whether nothing in the dim can narrow any more."""
    return all(atom.fixed is not None for atom in atoms(dim))


_LOOKED_AT = 65536  # entries; larger constants are no ones to take a mean with


def scalar(value: Any) -> Any:
    """The number that every entry of an array is; None if there is no such number."""
    if not 0 < math.prod(np.shape(value)) <= _LOOKED_AT:
        return None
    try:
        array = np.asarray(value)
    except TypeError:  # a key, or an array that is itself being traced
        return None
    if jnp.issubdtype(array.dtype, jnp.floating) and array.dtype.kind != "f":
        array = array.astype(np.float32)  # bfloat16
    if array.dtype.kind not in "biuf" or (array != array.flat[0]).any():
        return None
    return array.flat[0]
