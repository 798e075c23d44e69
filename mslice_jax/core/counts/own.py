"""The function's own program at narrow shapes, held against the narrow program.

A function that takes its sizes from its arrays can be traced with narrow arrays. Its
own program there has to be the narrow program, equation by equation; so it tells which
numbers follow the width, whatever they are made of, and proves the plan (the ninth
proof of CONTRIBUTING.md). Nothing is compiled.

A module that keeps sizes as attributes cannot be traced so, which is no error:
`Incomparable` says why. Where the two are different programs, `Different` names the
equation.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jax.extend import core

from ..axes import FULL, Unit, Whole, Widths, shape
from ..rules import Frame
from ..rules.folding import is_folded
from ..rules.live import live
from ..rules.order import Computed, Given
from ..source import user_line


class Incomparable(Exception):
    """The function has no program of its own at narrow shapes, for the reason given."""


class Different(Exception):
    """The function's own program at narrow shapes is another one."""


@dataclass(slots=True)
class Own:
    """What is different in the function's own program, by (frame id, equation).

    Attributes:
      operands: the numbers among the operands that are others, by position.
      results: the same of the results of a frame, by its id.
      consts: captured arrays that are others, by the id of the frame.
      equations: the own equations of those that call something.
      changed: variables (by frame id) that are made of such numbers alone.
      made: constants that the own program makes otherwise, a range as long as an axis
        is wide, by result of the equation.
    """

    operands: dict[tuple[int, int], dict[int, Any]] = field(default_factory=dict)
    results: dict[int, dict[int, Any]] = field(default_factory=dict)
    consts: dict[int, dict[int, Any]] = field(default_factory=dict)
    equations: dict[tuple[int, int], Any] = field(default_factory=dict)
    changed: set[tuple[int, Any]] = field(default_factory=set)
    made: dict[tuple[int, int], list[Computed]] = field(default_factory=dict)

    def follows(self, frame: Frame, index: int, operand: int) -> bool:
        """Whether an operand is another number here."""
        if operand in self.operands.get((id(frame), index), ()):
            return True
        var = frame.jaxpr.eqns[index].invars[operand]
        return not isinstance(var, core.Literal) and (id(frame), var) in self.changed


def pair(
    frame: Frame,
    closed: Any,
    axes: Callable[[Any], Any],
    cut: Callable[[Frame, Any, Any, Widths], Any],
    widths: Widths,
) -> Own:
    """Holds the own program against the narrow one.

    Args:
      frame: of the program at full width.
      closed: the own program at these widths.
      axes: dims -> axes.
      cut: (frame, variable, captured array, widths) -> the part that is kept.
      widths: how many indices each group keeps.

    Raises:
      Incomparable: where the function has no such program.
      Different: where it is another program.
    """
    pairing = _Pairing(axes, cut, widths)
    pairing.walk(frame, closed.jaxpr, closed.consts, [False] * len(frame.jaxpr.invars))
    return pairing.own


def inputs_changed(frame: Frame, closed: Any, axes: Callable[[Any], Any]) -> Own:
    """What is different in a program of other inputs: numbers that are their sizes.

    Args:
      frame: of the program.
      closed: the function traced with inputs of other sizes.
      axes: dims -> axes.

    Raises:
      Incomparable, Different: where that is another program.
    """
    pairing = _Pairing(axes, lambda frame, var, const, widths: const, None)
    pairing.walk(frame, closed.jaxpr, closed.consts, [False] * len(frame.jaxpr.invars))
    return pairing.own


_WRITTEN_OUT = ("dynamic_slice", "gather", "pad", "reshape", "slice", "split")
_DRAWS = ("random_bits", "rng_bit_generator", "rng_uniform", "threefry2x32")
# Parameters that say how an equation works; shapes compare sizes with the plan.
_SAME = (
    "axes", "axis", "broadcast_dimensions", "cumulative", "dimension",
    "dimension_numbers", "dimensions", "direction", "exponent", "is_stable",
    "new_dtype", "num_keys", "padding", "permutation", "reverse", "window_strides", "y",
)  # fmt: skip


class _Pairing:
    """A walk through two programs at once."""

    def __init__(self, axes: Any, cut: Any, widths: Widths | None):
        self.axes, self.cut, self.widths = axes, cut, widths
        self.own = Own()
        # Of own variables that reach no input: how they are made.
        self.sources: dict[Any, Given | Computed] = {}
        # Variables (by frame id) that have another shape there, and meet no input.
        self.foreign: set[tuple[int, Any]] = set()

    def narrow_shape(self, frame: Frame, var: Any) -> tuple[Any, ...]:
        return shape(self.axes(frame.value(var).dims), self.widths or FULL)

    def walk(
        self, frame: Frame, jaxpr: Any, consts: Sequence[Any], fixed: Sequence[bool]
    ) -> None:
        """Holds a frame against a jaxpr.

        `fixed` says which of the operands reach no input.
        """
        full, jaxpr = frame.jaxpr, live(jaxpr)
        if len(full.invars) != len(jaxpr.invars):
            raise Incomparable("it captures other arrays at narrow shapes")
        if _empty_parts(jaxpr) > _empty_parts(full):
            raise Incomparable("a part of an axis, written out, is empty there")
        twin = dict(zip(full.invars, jaxpr.invars, strict=True))
        constant = dict(zip(full.invars, fixed, strict=True))
        self._constants(frame, jaxpr, consts, twin)
        constant.update(dict.fromkeys(full.constvars, True))

        def reaches_none(var: Any) -> bool:
            return isinstance(var, core.Literal) or constant[var]

        for index, eqn in enumerate(full.eqns):
            if index >= len(jaxpr.eqns):
                self._structure(frame, eqn, "nothing")
            other = jaxpr.eqns[index]
            if other.primitive is not eqn.primitive:
                self._structure(frame, eqn, other.primitive.name)
            self._wired(frame, index, other, twin)
            alone = all(map(reaches_none, eqn.invars))
            self._shapes(frame, eqn, other, alone, index in frame.children)
            self._parameters(frame, eqn, other)
            self._made(frame, index, other, alone)
            if alone and any(
                self.own.follows(frame, index, at) for at in range(len(eqn.invars))
            ):
                self.own.changed |= {(id(frame), var) for var in eqn.outvars}
            children = frame.children.get(index, ())
            if children:
                self.own.equations[id(frame), index] = other
                operands = [reaches_none(var) for var in eqn.invars]
                for child in children:
                    if len(child.jaxpr.invars) == len(eqn.invars):
                        self.own.changed |= {
                            (id(child), var)
                            for at, var in enumerate(child.jaxpr.invars)
                            if self.own.follows(frame, index, at)
                        }
                self._called(frame, eqn, other, children, operands)
            for var, out in zip(eqn.outvars, other.outvars, strict=True):
                twin[var], constant[var] = out, alone
        if len(jaxpr.eqns) > len(full.eqns):
            self._structure(frame, None, jaxpr.eqns[len(full.eqns)].primitive.name)
        self._results(frame, jaxpr, twin)

    # -- parts of an equation

    def _wired(self, frame: Frame, index: int, other: Any, twin: Mapping) -> None:
        eqn = frame.jaxpr.eqns[index]
        if len(eqn.invars) != len(other.invars):
            self._structure(frame, eqn, "other operands")
        for at, (a, b) in enumerate(zip(eqn.invars, other.invars, strict=True)):
            if isinstance(a, core.Literal) and isinstance(b, core.Literal):
                if not _equal(a.val, b.val):
                    self.own.operands.setdefault((id(frame), index), {})[at] = b.val
            elif isinstance(a, core.Literal) or twin[a] is not b:
                self._structure(frame, eqn, "other operands")

    def _shapes(
        self, frame: Frame, eqn: Any, other: Any, alone: bool, called: bool
    ) -> None:
        name = eqn.primitive.name
        if self.widths is None or called:
            return  # what is called shows which equation it is
        for var, out in zip(eqn.outvars, other.outvars, strict=True):
            planned = self.narrow_shape(frame, var)
            if tuple(out.aval.shape) != planned:
                if alone and name not in _DRAWS:
                    self.foreign.add((id(frame), var))
                    continue
                if name in _WRITTEN_OUT or 1 in planned:
                    raise Incomparable(
                        f"a size is written out ({name}, {_line(frame, eqn)}): "
                        f"{tuple(out.aval.shape)} where {planned} was planned"
                    )
                raise Different(
                    f"{name} at {_line(frame, eqn)} gives {tuple(out.aval.shape)}, "
                    f"planned was {planned}"
                )
            if planned != tuple(getattr(var.aval, "shape", ())):
                if alone and name in _DRAWS:
                    raise Incomparable(
                        f"numbers are drawn from a fixed key ({_line(frame, eqn)})"
                    )
                if name == "iota":
                    along = self.axes(frame.value(var).dims)[eqn.params["dimension"]]
                    if not isinstance(along, (Unit, Whole)):
                        raise Incomparable(
                            "indices run along an axis that is made of parts "
                            f"({_line(frame, eqn)})"
                        )

    def _made(self, frame: Frame, index: int, other: Any, alone: bool) -> None:
        """Notes how the own program makes a constant of ranges of another length."""
        eqn = frame.jaxpr.eqns[index]
        strange = [
            not isinstance(var, core.Literal) and (id(frame), var) in self.foreign
            for var in eqn.invars
        ]
        if not alone:
            if any(strange):
                raise Incomparable(
                    f"an array at {_line(frame, eqn)} is as long as an axis that "
                    "narrows, but never meets it"
                )
            return
        operands = tuple(
            Given(var.val) if isinstance(var, core.Literal) else self.sources[var]
            for var in other.invars
        )
        made = [Computed(other, i, operands) for i in range(len(other.outvars))]
        self.sources.update(zip(other.outvars, made, strict=True))
        narrow = not any((id(frame), var) in self.foreign for var in eqn.outvars)
        cut = any(
            self.narrow_shape(frame, var) != tuple(getattr(var.aval, "shape", ()))
            for var in eqn.outvars
        )
        folded = cut and is_folded(frame, index)
        folded = folded and any(
            self.own.follows(frame, index, at) for at in range(len(eqn.invars))
        )
        if narrow and (any(strange) or folded):
            self.own.made[id(frame), index] = made

    def _parameters(self, frame: Frame, eqn: Any, other: Any) -> None:
        for key in _SAME:
            a, b = eqn.params.get(key), other.params.get(key)
            if a is not b and not _equal(a, b):
                raise Different(
                    f"{eqn.primitive.name} at {_line(frame, eqn)} has {key}={b}, at "
                    f"full width {a}"
                )

    def _called(
        self, frame: Frame, eqn: Any, other: Any, children: Sequence[Frame], fixed: Any
    ) -> None:
        """Holds what the equations call against each other."""
        for child, (jaxpr, consts) in zip(children, _jaxprs(eqn, other), strict=False):
            # Of loops and branches some operands are dropped, or change.
            direct = len(child.jaxpr.invars) == len(fixed)
            inner = fixed if direct else [False] * len(child.jaxpr.invars)
            taken = zip(jaxpr.invars, other.invars, fixed, strict=False)
            for own, outer, alone in taken if direct else ():
                if alone and isinstance(outer, core.Literal):
                    self.sources[own] = Given(outer.val)
                elif alone:
                    self.sources[own] = self.sources[outer]
            if eqn.primitive.name in ("scan", "while"):
                inner = [False] * len(child.jaxpr.invars)
            self.walk(child, jaxpr, consts, inner)

    def _constants(
        self, frame: Frame, jaxpr: Any, consts: Sequence[Any], twin: dict
    ) -> None:
        if len(frame.jaxpr.constvars) != len(jaxpr.constvars):
            raise Incomparable("it captures other arrays at narrow shapes")
        pairs = zip(
            frame.jaxpr.constvars, frame.consts, jaxpr.constvars, consts, strict=True
        )
        for at, (var, const, other_var, other) in enumerate(pairs):
            twin[var] = other_var
            self.sources[other_var] = Given(other)
            if const is other and self.narrow_shape(frame, var) == np.shape(const):
                continue
            if tuple(np.shape(other)) != self.narrow_shape(frame, var):
                raise Incomparable(
                    f"a captured array of shape {np.shape(const)} would have to narrow"
                )
            kept = self.cut(frame, var, const, self.widths or FULL)
            if not _equal(kept, other):
                self.own.consts.setdefault(id(frame), {})[at] = other
                self.own.changed.add((id(frame), var))

    def _results(self, frame: Frame, jaxpr: Any, twin: Mapping) -> None:
        pairs = zip(frame.jaxpr.outvars, jaxpr.outvars, strict=True)
        for at, (a, b) in enumerate(pairs):
            if isinstance(a, core.Literal) and isinstance(b, core.Literal):
                if not _equal(a.val, b.val):
                    self.own.results.setdefault(id(frame), {})[at] = b.val
            elif isinstance(a, core.Literal) or twin[a] is not b:
                self._structure(frame, None, "other results")

    def _structure(self, frame: Frame, eqn: Any, found: str) -> None:
        """Raises: at this equation the programs part."""
        shapes = [self.narrow_shape(frame, var) for var in frame.jaxpr.invars]
        if eqn is not None:
            vars_ = [v for v in eqn.invars if not isinstance(v, core.Literal)]
            shapes += [self.narrow_shape(frame, v) for v in (*vars_, *eqn.outvars)]
        if any(1 in each for each in shapes):
            raise Incomparable("an axis of one entry makes the program simpler")
        name = "its end" if eqn is None else eqn.primitive.name
        line = "" if eqn is None else f" at {_line(frame, eqn)}"
        raise Different(f"{name}{line} is not there; found was {found}")


def _empty_parts(jaxpr: Any) -> int:
    """How many results have no entries."""
    shapes = [
        getattr(var.aval, "shape", ()) for eqn in jaxpr.eqns for var in eqn.outvars
    ]
    return sum(any(type(n) is int and n == 0 for n in sizes) for sizes in shapes)


def _jaxprs(eqn: Any, other: Any) -> list[tuple[Any, Sequence[Any]]]:
    """The jaxprs that an equation calls, in the order in which the rules read them."""
    params = other.params
    if "branches" in params:
        called = list(params["branches"])
    elif "cond_jaxpr" in params:
        called = [params["cond_jaxpr"], params["body_jaxpr"]]
    else:
        names = ("jaxpr", "call_jaxpr", "fwd_jaxpr", "call", "callee")
        called = [params[name] for name in names if name in params][:1]
    if not called:
        raise Incomparable(f"what {eqn.primitive.name} calls cannot be compared")
    return [
        (each.jaxpr, each.consts) if hasattr(each, "consts") else (each, ())
        for each in called
    ]


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, (np.ndarray, np.generic, int, float, complex)) or hasattr(
        a, "shape"
    ):
        try:
            x, y = np.asarray(a), np.asarray(b)
        except Exception:  # tracers, keys
            return a is b
        return x.shape == y.shape and bool(np.array_equal(x, y, equal_nan=_is_float(x)))
    return bool(a == b)


def _is_float(x: np.ndarray) -> bool:
    return x.dtype.kind in "fc"


def _line(frame: Frame, eqn: Any) -> str:
    return user_line((eqn.source_info, *frame.sources)) or "an unknown line"
