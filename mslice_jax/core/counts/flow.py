"""What is known of every value of a program, found by running through it once.

An abstract interpretation of the equations, after it was decided what narrows: for each
primitive a small function says what is known of its results (`growth.Known`), given
what is known of its operands. Loops run until nothing changes. A number that meets
growth which it cancels follows the width (`Counts.follows`); what merely looks like a
size of an axis that narrows is in `Counts.seen`, for the report.

No function here looks at more than one equation.
"""

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.extend import core

from ..axes import Axis
from ..growth import (
    Follow,
    Growth,
    Known,
    Match,
    Pending,
    Sizes,
    Use,
    frequency_of,
    matches,
    narrowing,
    narrows,
    sizes_in,
    times,
)
from ..rules import Frame, order
from ..rules.folding import is_folded
from . import numbers
from .result import Counts, Seen

WAITING = 6  # numbers that wait for a sum at the same time

DATA, PLAIN = Known(data=True), Known()


def count(
    analysis: Any,
    frame: Frame,
    known: Sequence[Known],
    wanted: Sequence[Growth] = (),
) -> Counts:
    """Runs through a program.

    Args:
      analysis: that read it: `axes(dims)` freezes what narrows.
      frame: of the program.
      known: what is known of its inputs.
      wanted: how its results grow, where that is known from elsewhere.
    """
    flow = _Flow(analysis, backward=bool(wanted))
    flow.counts.results = flow.run(frame, known)
    for result, growth in zip(flow.counts.results, wanted, strict=False):
        flow.reach(result, growth)
    for result in flow.counts.results if not wanted else ():
        flow.finish(result)
    for use, axis in flow.ambiguous.items():
        if use not in flow.counts.follows:
            flow.see(use, flow.values[use], axis, "it could stand for several axes")
    flow.look_through(frame)
    return flow.counts


_TRANSPOSED = re.compile(r"(^|[/(])transpose\(")


class Eqn:
    """An equation, as the functions of the table see it."""

    __slots__ = ("eqn", "flow", "frame", "index", "ins", "params")

    def __init__(self, flow: "_Flow", frame: Frame, index: int, ins: list[Known]):
        self.flow, self.frame, self.index, self.ins = flow, frame, index, ins
        self.eqn = frame.jaxpr.eqns[index]
        self.params = self.eqn.params

    @property
    def name(self) -> str:
        return self.eqn.primitive.name

    @property
    def data(self) -> bool:
        """Whether any operand depends on an input."""
        return any(known.data for known in self.ins)

    def axes(self, operand: int) -> tuple[Axis, ...]:
        """The axes of an operand."""
        return self.flow.axes(self.frame, self.eqn.invars[operand])

    def out_axes(self, result: int = 0) -> tuple[Axis, ...]:
        """The axes of a result."""
        return self.flow.axes(self.frame, self.eqn.outvars[result])

    def spread(self, operand: int) -> list[Axis]:
        """The axes of the result along which an operand of one entry is repeated."""
        shape, out = self.shape(operand), self.out_shape
        missing = [True] * len(out) if not shape else [n == 1 for n in shape]
        axes = zip(self.out_axes(), out, missing, strict=True)
        return [axis for axis, n, gone in axes if gone and n != 1]

    def identity(self, var: Any) -> Axis | None:
        """The axis of an identity matrix: of its n entries one is not zero."""
        value = self.frame.value(var)
        if value.order is None or not value.order.diagonal:
            return None
        along = zip(self.flow.axes(self.frame, var), value.order.along, strict=True)
        return next(axis for axis, how in along if how is order.PLACE)

    def shape(self, operand: int) -> tuple[Any, ...]:
        """The shape of an operand."""
        aval: Any = self.eqn.invars[operand].aval
        return aval.shape

    @property
    def out_shape(self) -> tuple[Any, ...]:
        """The shape of the first result."""
        aval: Any = self.eqn.outvars[0].aval
        return aval.shape

    @property
    def backward(self) -> bool:
        """Whether it is part of a backward pass: as JAX names it, or what calls it."""
        names = str(self.eqn.source_info.name_stack)
        return self.flow.backward or bool(_TRANSPOSED.search(names))

    def use(self, operand: int) -> Use:
        """The place of an operand."""
        return Use(id(self.frame), self.index, operand)

    def rounding(self) -> float:
        """The relative rounding of the result's dtype."""
        aval: Any = self.eqn.outvars[0].aval
        dtype = aval.dtype
        return float(jnp.finfo(dtype).eps) if jnp.issubdtype(dtype, jnp.inexact) else 0


def _of_identities(e: Eqn, outs: Sequence[Known]) -> Sequence[Known]:
    """An identity has 1/n of the entries of its axis, so that a sum of it is one."""
    if e.name == "eq":
        axis = e.identity(e.eqn.outvars[0])
    elif e.name == "select_n" and e.ins[1].zero:
        axis = e.identity(e.eqn.invars[0])
    else:
        made = e.frame.value(e.eqn.outvars[0]).order if len(outs) == 1 else None
        if made is None or not made.same or made.diagonal:
            return outs
        return [dataclasses.replace(outs[0], growth={})]  # a mask of the others
    if axis is None:
        return outs
    (out,) = outs
    growth = times(out.growth, {axis: 1.0}, -1)
    return [dataclasses.replace(out, number=None, growth=growth)]


class _Flow:
    """One run through a program and all that it calls."""

    def __init__(self, analysis: Any, *, backward: bool):
        self.analysis = analysis
        self.backward = backward
        """Whether what runs is a backward pass, or is called by one."""
        self.counts = Counts()
        self.values = self.counts.values
        self.ambiguous: dict[Use, Axis] = {}
        # Every number that meets a value, and what it was made of.
        self.passed: dict[Use, tuple[float, tuple[tuple[Use, float], ...]]] = {}

    def axes(self, frame: Frame, var: Any) -> tuple[Axis, ...]:
        return self.analysis.axes(frame.value(var).dims)

    def run(self, frame: Frame, ins: Sequence[Known]) -> list[Known]:
        """What is known of the results of a frame."""
        self.counts.frames[id(frame)] = frame
        env: dict[Any, Known] = dict(zip(frame.jaxpr.invars, ins, strict=True))
        for var, const in zip(frame.jaxpr.constvars, frame.consts, strict=True):
            env[var] = Known(number=numbers.scalar(const))

        def read(var: Any) -> Known:
            if isinstance(var, core.Literal):
                return Known(number=numbers.scalar(var.val))
            return env[var]

        for index, eqn in enumerate(frame.jaxpr.eqns):
            e = Eqn(self, frame, index, [read(var) for var in eqn.invars])
            outs = _results(e)
            outs = _of_identities(e, outs)
            self.pass_by(e, outs)
            for var, out in zip(eqn.outvars, outs, strict=True):
                env[var] = out
        return [read(var) for var in frame.jaxpr.outvars]

    # -- numbers

    def follow(
        self, uses: Sequence[Use], value: float, follow: Follow, *, direct: bool = False
    ) -> None:
        """A number follows the width, wherever it stands; `direct`: after its sum."""
        for use in uses:
            if direct:
                self.counts.direct.add(use)
            self.ambiguous.pop(use, None)
            self.values[use] = value
            if follow.narrows:
                self.counts.follows[use] = follow
            axis = next((a for a, _ in follow.axes if narrows(a)), None)
            if axis is not None:
                self.counts.seen[use] = Seen(value, axis)

    def see(
        self,
        use: Use,
        value: float,
        axis: Axis | None,
        meets: str = "",
        follow: Follow | None = None,
    ) -> None:
        """A number looks like a size of the axis."""
        if axis is None or not narrows(axis):
            return
        known = self.counts.seen.get(use)
        if known is None or (meets and not known.meets):
            self.counts.seen[use] = Seen(value, axis, meets, follow)

    def pass_by(self, e: Eqn, outs: Sequence[Known]) -> None:
        """Remembers the numbers among the operands of an equation."""
        if any(known.number is not None for known in outs) or not _counts_in(e):
            return
        for at, known in enumerate(e.ins):
            if known.number is not None and np.isrealobj(known.number):
                self.passed[e.use(at)] = float(known.number), known.made

    def tabulated(self, e: Eqn) -> None:
        """A table of positions that is made at full width: numbers that scale them."""
        axes = tuple(axis for axis in e.out_axes() if narrows(axis))
        for use, value in {each for known in e.ins for each in known.made}:
            found = sizes_in(value, axes, 0.0)
            found = found or sizes_in(value * 2, axes, 0.0)
            found = found or frequency_of(value, axes, 0.0)
            if found is not None and use not in self.counts.seen:
                self.values[use] = value
                self.counts.tables.add(use)
                self.see(use, value, found, "it scales positions of a table")

    def look_through(self, frame: Frame) -> None:
        """Sees every number that is a power of a size, wherever it stands."""
        axes = [axis for var in frame.jaxpr.invars for axis in self.axes(frame, var)]
        sizes = Sizes(list(dict.fromkeys(axes)))
        for use, (value, made) in self.passed.items():
            if use in self.counts.seen or use in self.counts.follows:
                continue
            ways = [(use, value)] if sizes.find(value) else made
            for each, number in ways:
                found = sizes.find(number)
                if found is not None and each not in self.counts.seen:
                    axis, follow = found
                    self.counts.seen[each] = Seen(number, axis, follow=follow)

    def meet(
        self, e: Eqn, number: Pending, other: Known, other_axes: Sequence[Axis]
    ) -> None:
        """Notes what a number that multiplies or divides a value looks like."""
        (use,), value, rounding = number.uses, number.value, e.rounding()
        self.values[use] = value
        found = matches(number, other.growth, rounding)
        found = found or matches(number, other.growth, rounding, partly=True)
        for match in found:
            grown = next((axis for axis in match.cancels if narrows(axis)), None)
            if grown is not None:
                self.see(use, value, grown, "what it scales is a sum over the axis")
                return
        for axes, meets in (
            (other.contracted, "what it scales was contracted over the axis"),
            (other_axes if other.parameter else (), "it scales a parameter"),
            (other_axes if other.counted else (), "it scales positions"),
            (other_axes if other.cotangent else (), "it scales a gradient along it"),
        ):
            inner = tuple(axis for axis in axes if narrows(axis))
            positions = other.counted and meets.endswith("positions")
            per_step = frequency_of(value, inner, rounding) if positions else None
            if per_step is not None:
                follow = Follow(((per_step, -1.0),))
                self.see(use, value, per_step, meets, follow)
                return
            found = sizes_in(value, inner, rounding)
            if found is None and positions:
                found = sizes_in(value / 2, inner, rounding)
            if found is not None:
                self.see(use, value, found, meets)
                return
        self.see(use, value, sizes_in(value, tuple(other_axes), rounding))

    def reach(self, known: Known, growth: Growth) -> None:
        """Has a number that waits follow, so that a value grows as it has to."""
        lacking = times(known.growth, growth, -1)
        for waiting in reversed(known.pending) if narrowing(lacking) else ():
            found = matches(waiting, lacking, 0.0)
            complete = [m for m in found if not times(lacking, m.cancels, -1)]
            if complete and one_meaning(complete):
                self.follow(
                    waiting.uses, waiting.value, complete[0].follow, direct=True
                )
                return

    def settle(self, known: Known, rounding: float, last: Pending) -> Known:
        """Lets the number that was just multiplied in cancel what has grown.

        Standing right there, it may be a multiple of the size. Where it alone could
        mean several axes, the numbers before it may settle that with it.
        """
        growth, pending, summed = known.growth, known.pending, known.summed
        # Axes over which terms were summed that shrink as they become more.
        unseen = {a: e for a, e in summed.items() if growth.get(a, 0.0) < e - 1e-9}
        found = matches(last, unseen, rounding) if unseen else []
        if not found or not one_meaning(found):
            found = matches(last, growth, rounding) or found
        found = found or matches(last, growth, rounding, multiples=True)
        if found and one_meaning(found):
            self.follow(last.uses, last.value, found[0].follow, direct=True)
            gone = {
                axis: e
                for axis, e in found[0].cancels.items()
                if narrows(axis) or axis in growth
            }
            growth = times(growth, gone, -1)
            summed = times(summed, found[0].cancels, -1)
            pending = tuple(p for p in pending if p is not last)
        elif growth and 1 < len(pending) <= WAITING:
            together = _together(pending, growth, rounding)
            for waiting, match in together or ():
                self.follow(waiting.uses, waiting.value, match.follow, direct=True)
                growth = times(growth, match.cancels, -1)
                summed = times(summed, match.cancels, -1)
                pending = tuple(p for p in pending if p is not waiting)
            self._are_alternatives([p for p, _ in together or ()])
        if found and growth is known.growth:
            axis = next((a for a in growth if narrows(a)), None)
            if axis is not None:
                self.ambiguous.update(dict.fromkeys(last.uses, axis))
        return dataclasses.replace(known, growth=growth, pending=pending, summed=summed)

    def _are_alternatives(self, pending: Sequence[Pending]) -> None:
        """Notes numbers that cancel a growth together: any of them might follow."""
        every = {use for waiting in pending for use in waiting.uses}
        self.counts.others.update(dict.fromkeys(every, tuple(every)))
        for use in every & self.counts.seen.keys():
            seen = self.counts.seen[use]
            self.counts.seen[use] = dataclasses.replace(seen, meets="")

    def finish(self, known: Known) -> None:
        """Nothing more is known of a value: numbers from before its sum count, if ever.

        An everyday constant before a sum may be a power of its size by chance; so a
        number right after the sum comes first.
        """
        growth, pending = known.growth, list(known.pending)
        for waiting in reversed(known.pending) if narrowing(growth) else ():
            if abs(waiting.value) in (0.5, 2.0):
                continue
            found = matches(waiting, growth, 0.0)
            complete = [m for m in found if not times(growth, m.cancels, -1)]
            if complete and one_meaning(complete):
                self.follow(waiting.uses, waiting.value, complete[0].follow)
                return
        together = _together(pending, growth, 0.0) if len(pending) > 1 else None
        if together and narrowing(growth):
            for waiting, match in together:
                self.follow(waiting.uses, waiting.value, match.follow)
            self._are_alternatives([p for p, _ in together])


def one_meaning(found: Sequence[Match]) -> bool:
    """Whether all ways have one effect on the axes that narrow."""
    effects = [
        {axis: e for axis, e in match.cancels.items() if narrows(axis)}
        for match in found
    ]
    return all(effect == effects[0] for effect in effects[1:])


def _together(
    pending: Sequence[Pending], growth: Growth, rounding: float
) -> list[tuple[Pending, Match]] | None:
    """How several numbers cancel all of a growth; each alone had several meanings."""
    if not growth:
        return []
    if not pending:
        return None
    first, *rest = pending
    for match in matches(first, growth, rounding, partly=True):
        others = _together(rest, times(growth, match.cancels, -1), rounding)
        if others is not None:
            return [(first, match), *others]
    return _together(rest, growth, rounding)


# -- the table


CALL = "any call"  # in place of a primitive: of those that call what was read
_TABLE: dict[str, Callable[[Eqn], Known | Sequence[Known]]] = {}


def knows(*names: str) -> Callable[[Any], Any]:
    """Enters the decorated function into the table under these primitives' names."""

    def enter(f: Any) -> Any:
        for name in names:
            _TABLE[name] = f
        return f

    return enter


def _counts_in(e: Eqn) -> bool:
    """Whether numbers of an equation may be more than indices."""
    aval: Any = e.eqn.outvars[0].aval if e.eqn.outvars else None
    dtype = getattr(aval, "dtype", None)
    if dtype is None or e.index in e.frame.children:
        return False
    types = [dtype, *(getattr(var.aval, "dtype", dtype) for var in e.eqn.invars[:1])]
    inexact = any(jnp.issubdtype(each, jnp.inexact) for each in types)
    return inexact or e.name in ("div", "rem")


def made_of(e: Eqn) -> tuple[tuple[Use, float], ...]:
    """The numbers that a number is made of, where they stand in the program."""
    found = [
        *(
            (e.use(at), float(known.number))
            for at, known in enumerate(e.ins)
            if isinstance(e.eqn.invars[at], core.Literal)
            and known.number is not None
            and np.isrealobj(known.number)
        ),
        *(each for known in e.ins for each in known.made),
    ]
    return tuple(found[:8])


def _results(e: Eqn) -> Sequence[Known]:
    number = numbers.fold(e.eqn, [known.number for known in e.ins])
    if number is not None:
        return [Known(number=number, made=made_of(e))]
    # A constant that is made at full width and cut has no frame of its own.
    folded = is_folded(e.frame, e.index)
    if folded:
        e.flow.tabulated(e)
    calls = e.index in e.frame.children
    f = unknown if folded else _TABLE.get(e.name)
    if f is None:
        f = _TABLE[CALL] if calls else unknown
    around = e.flow.backward
    e.flow.backward = around or (calls and e.backward)
    found = f(e)
    e.flow.backward = around
    outs = [found] * len(e.eqn.outvars) if isinstance(found, Known) else found
    made = tuple(dict.fromkeys(each for known in e.ins for each in known.made))
    if made and not any(k.data or k.parameter or k.weight for k in e.ins):
        outs = [
            dataclasses.replace(out, made=tuple(dict.fromkeys((*made, *out.made)))[:8])
            for out in outs
        ]
    for known in e.ins:
        if known.growth and known.pending and not _goes_on(known, outs):
            e.flow.finish(known)
    return outs


def _goes_on(known: Known, outs: Sequence[Known]) -> bool:
    """Whether the numbers that wait in an operand still wait in a result."""
    uses = {use for waiting in known.pending for use in waiting.uses}
    left = {use for out in outs for p in out.pending for use in p.uses}
    return bool(uses & left)


def unknown(e: Eqn) -> Known:
    """What is known of a result about which nothing is known."""
    return DATA if e.data else PLAIN
