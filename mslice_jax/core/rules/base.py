"""What a rule is: how a primitive ties axes, and how it runs narrow.

A rule has two halves. `tie` looks at an equation at full width and says which axes are
one; it returns the axes of the results. `narrow` runs the same equation on narrow
operands; most primitives are simply bound again, those that carry sizes in their
parameters take them from the plan.

A primitive that is not in the table is never guessed: its axes are fixed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from jax.extend import core

from ..axes import Axis, Widths, shape
from ..solver import Dim, Equations, atoms
from .order import Order, of_constant


@dataclass(slots=True)
class Value:
    """What is known of one array of the program."""

    dims: tuple[Dim, ...]
    repeats: tuple["Repeat", ...] = ()  # what was repeated along some of the axes
    summed: tuple["Repeat", ...] = ()  # what was, along axes that were summed over
    origin: Any = None  # the value of which this one is another view
    order: Order | None = None  # what tells its entries apart; None: data


@dataclass(frozen=True, slots=True, eq=False)
class Repeat:
    """A value that was repeated along an axis: a mask of tokens, for each unit."""

    origin: Any
    dim: Dim


@dataclass(slots=True)
class Frame:
    """One jaxpr, read in one place; a jaxpr that is called twice has two frames."""

    jaxpr: core.Jaxpr
    consts: Sequence[Any]
    values: dict[Any, Value]  # by variable; array literals by id
    children: dict[int, list["Frame"]]  # by equation: the jaxprs that it calls
    notes: dict[int, Any]  # by equation: what `tie` left for `narrow`
    sources: Sequence[Any] = ()  # of the calls that it is in, innermost first

    def value(self, var: Any) -> Value:
        """The value of a variable or literal of this frame's jaxpr."""
        if isinstance(var, core.Literal):
            known = self.values.get(id(var))
            return known or Value((), order=of_constant(var.val))
        return self.values[var]


_REMEMBERED = 16  # repeated values; of more the last ones


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

    def repeats(self) -> tuple["Repeat", ...]:
        """What of the operands was repeated along some of the axes."""
        found = [repeat for value in self.ins for repeat in value.repeats]
        return tuple(dict.fromkeys(found))[-_REMEMBERED:]

    def summed(self) -> tuple["Repeat", ...]:
        """What of the operands was repeated along axes that were summed over."""
        found = [repeat for value in self.ins for repeat in value.summed]
        return tuple(dict.fromkeys(found))[-_REMEMBERED:]

    def entry_by_entry(self) -> Value:
        """What is known of a result that is made entry by entry."""
        dims = self.broadcast(self.ins)
        return Value(dims, self.repeats(), self.summed())

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
    def known(self) -> list[Any]:
        """What is known of the operands, see `counts`."""
        return self.analysis.counts.operands[id(self._frame), self._index]

    @property
    def own(self) -> Any:
        """The same equation in the function's own program at these widths, or None."""
        own = self.analysis.own_program(self.widths)
        return own and own.equations.get((id(self._frame), self._index))

    @property
    def sources(self) -> list[Any]:
        """How the results are made, where they are constants; see `order`."""
        orders = [self._frame.value(var).order for var in self.eqn.outvars]
        return [order and order.source for order in orders]

    def moved(self, variables: Sequence[Any]) -> bool:
        """Whether units along some axis stand in another order than when traced."""
        return any(self.analysis.is_moved(self._frame, var) for var in variables)

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


def is_fixed(dim: Dim) -> bool:
    """Whether nothing in the dim can narrow any more."""
    return all(atom.fixed is not None for atom in atoms(dim))
