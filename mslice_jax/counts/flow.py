"""What is known of every value of a program, found by running through it once.

An abstract interpretation of the equations, after it was decided what narrows: for each
primitive a small function says what is known of its results (`growth.Known`), given
what is known of its operands. Loops run until nothing changes. A number that meets
growth which it cancels follows the width (`Counts.follows`); what merely looks like a
size of an axis that narrows is in `Counts.seen`, for the report.

No function here looks at more than one equation.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.extend import core

from ..dims import Axis, Whole, Widths, width
from ..growth import (
    Follow,
    Growth,
    Known,
    Match,
    Pending,
    Use,
    equal,
    log_match,
    matches,
    narrows,
    sizes_in,
    times,
    to_power,
)
from ..rules import Frame
from . import numbers

_SMALL = 1e-3  # up to here a number added to a sum is there against a division by zero
_WAITING = 6  # numbers that wait for a sum at the same time
_ROUNDS = 4  # how often a loop is read until what it carries no longer changes

_DATA, _PLAIN = Known(data=True), Known()


@dataclass(frozen=True, slots=True)
class Seen:
    """A number that is a power of the size of an axis that narrows.

    Attributes:
      value: the number at full width.
      axis: the axis.
      meets: why the number matters where it stands; '' where nothing speaks for it.
    """

    value: float
    axis: Axis
    meets: str = ""


@dataclass(slots=True)
class Counts:
    """What the numbers of a program stand for.

    Attributes:
      follows: the numbers that follow the width.
      seen: the numbers that are a power of a size that narrows, the former among them.
      frames: the frames by their ids, of all uses.
      values: the numbers themselves, at full width.
      asked: what the user said of some, see `decisions`.
      operands: what is known of the operands of equations with their own derivative.
      results: what is known of the results of the program.
    """

    follows: dict[Use, Follow] = field(default_factory=dict)
    seen: dict[Use, Seen] = field(default_factory=dict)
    frames: dict[int, Frame] = field(default_factory=dict)
    operands: dict[tuple[int, int], list[Known]] = field(default_factory=dict)
    results: list[Known] = field(default_factory=list)
    values: dict[Use, float] = field(default_factory=dict)
    asked: dict[Use, bool] = field(default_factory=dict)
    _at: dict[tuple[int, int], dict[Use, Follow]] | None = None

    def stays(self, frame: Frame, index: int, operand: int) -> bool:
        """Whether the user said that a number stays."""
        return self.asked.get(Use(id(frame), index, operand)) is False

    def numbers(self, frame: Frame, index: int, widths: Widths) -> dict[int, float]:
        """The operands of an equation that are other numbers at these widths."""
        if self._at is None:
            self._at = {}
            for use, follow in self.follows.items():
                self._at.setdefault(use[:2], {})[use] = follow
        found = self._at.get((id(frame), index))
        if not found:
            return {}
        return {
            use.operand: number
            for use, follow in found.items()
            if (number := follow.at(self.values[use], widths)) != self.values[use]
        }


def count(analysis: Any, frame: Frame, known: Sequence[Known]) -> Counts:
    """Runs through a program.

    Args:
      analysis: that read it: `axes(dims)` freezes what narrows.
      frame: of the program.
      known: what is known of its inputs.
    """
    flow = _Flow(analysis)
    flow.counts.results = flow.run(frame, known)
    for use, axis in flow.ambiguous.items():
        if use not in flow.counts.follows:
            flow.see(use, flow.values[use], axis, "it could stand for several axes")
    return flow.counts


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

    def use(self, operand: int) -> Use:
        """The place of an operand."""
        return Use(id(self.frame), self.index, operand)

    def rounding(self) -> float:
        """The relative rounding of the result's dtype."""
        dtype = self.eqn.outvars[0].aval.dtype
        return float(jnp.finfo(dtype).eps) if jnp.issubdtype(dtype, jnp.inexact) else 0


class _Flow:
    """One run through a program and all that it calls."""

    def __init__(self, analysis: Any):
        self.analysis = analysis
        self.counts = Counts()
        self.values = self.counts.values
        self.ambiguous: dict[Use, Axis] = {}

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
            for var, out in zip(eqn.outvars, outs, strict=True):
                env[var] = out
        return [read(var) for var in frame.jaxpr.outvars]

    # -- numbers

    def follow(self, uses: Sequence[Use], value: float, follow: Follow) -> None:
        """A number follows the width, wherever it stands."""
        for use in uses:
            self.ambiguous.pop(use, None)
            self.values[use] = value
            if follow.narrows:
                self.counts.follows[use] = follow
            axis = next((a for a, _ in follow.axes if narrows(a)), None)
            if axis is not None:
                self.counts.seen[use] = Seen(value, axis)

    def see(self, use: Use, value: float, axis: Axis | None, meets: str = "") -> None:
        """A number looks like a size of the axis."""
        if axis is None or not narrows(axis):
            return
        known = self.counts.seen.get(use)
        if known is None or (meets and not known.meets):
            self.counts.seen[use] = Seen(value, axis, meets)

    def meet(self, e: Eqn, operand: int, value: float, other: Known, other_axes: Any):
        """Notes what a number that multiplies or divides a value looks like."""
        use, rounding = e.use(operand), e.rounding()
        self.values[use] = value
        grown = tuple(axis for axis in other.growth if narrows(axis))
        for axes, meets in (
            (grown, "what it scales is a sum over the axis"),
            (other.contracted, "what it scales was contracted over the axis"),
            (other_axes if other.parameter else (), "it scales a parameter"),
            (other_axes if other.counted else (), "it scales positions"),
        ):
            inner = tuple(axis for axis in axes if narrows(axis))
            found = sizes_in(value, inner, rounding)
            if found is None and other.counted and meets.endswith("positions"):
                found = sizes_in(value / 2, inner, rounding)
            if found is not None:
                self.see(use, value, found, meets)
                return
        self.see(use, value, sizes_in(value, tuple(other_axes), rounding))

    def settle(self, known: Known, rounding: float) -> Known:
        """Lets numbers that wait cancel what has grown."""
        growth, pending = known.growth, list(known.pending)
        again = bool(growth and pending)
        while again:
            again = False
            for waiting in reversed(pending):
                found = matches(waiting, growth, rounding)
                if found and _one_meaning(found):
                    self.follow(waiting.uses, waiting.value, found[0].follow)
                    growth = times(growth, found[0].cancels, -1)
                    pending.remove(waiting)
                    again = bool(growth and pending)
                    break
                for use in waiting.uses if found else ():
                    axis = next((a for a in growth if narrows(a)), None)
                    if axis is not None:
                        self.ambiguous[use] = axis
        if growth and 1 < len(pending) <= _WAITING:
            together = _together(pending, growth, rounding)
            if together is not None:
                for waiting, match in together:
                    self.follow(waiting.uses, waiting.value, match.follow)
                    growth = times(growth, match.cancels, -1)
                    pending.remove(waiting)
        if growth is known.growth:
            return known
        return dataclasses.replace(known, growth=growth, pending=tuple(pending))


def _one_meaning(found: Sequence[Match]) -> bool:
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
    for match in matches(first, growth, rounding):
        others = _together(rest, times(growth, match.cancels, -1), rounding)
        if others is not None:
            return [(first, match), *others]
    return _together(rest, growth, rounding)


# -- the table

_TABLE: dict[str, Callable[[Eqn], Known | Sequence[Known]]] = {}


def _knows(*names: str) -> Callable[[Any], Any]:
    def enter(f: Any) -> Any:
        for name in names:
            _TABLE[name] = f
        return f

    return enter


def _results(e: Eqn) -> Sequence[Known]:
    number = numbers.fold(e.eqn, [known.number for known in e.ins])
    if number is not None:
        return [Known(number=number)]
    f = _TABLE.get(e.name)
    if f is None:
        f = _call if e.index in e.frame.children else _unknown
    found = f(e)
    return [found] * len(e.eqn.outvars) if isinstance(found, Known) else found


def _unknown(e: Eqn) -> Known:
    return _DATA if e.data else _PLAIN


# Only the shape, the type, the place or the sign changes, or some entries are chosen.
# fmt: off
@_knows(
    "abs", "all_gather", "all_gather_invariant", "all_gather_reduced", "all_to_all",
    "approx_top_k", "ceil", "conj", "copy", "device_put", "dynamic_slice", "expand_dims",
    "floor", "gather", "imag", "layout_constraint", "neg", "pmax", "pmin", "ppermute",
    "preduced", "pvary", "real", "reduce_max", "reduce_min", "reduce_precision",
    "reduced_vary_cast", "reduced_vary_cast_p", "relayout", "reshape", "reshard", "rev",
    "round", "sharding_constraint", "slice", "squeeze", "stop_gradient", "tile", "top_k",
    "transpose", "with_memory_space_constraint", "convert_element_type",
)
# fmt: on
def _view(e: Eqn) -> Known:
    x = e.ins[0]
    if e.name == "neg" and x.logs:
        x = dataclasses.replace(x, logs=to_power(x.logs, -1))
    elif e.name not in ("neg", "copy", "reshape", "squeeze", "transpose", "slice"):
        x = x if not x.logs or e.name in _KEEPS_LOGS else dataclasses.replace(x, logs={})
    origin = x.origin if x.origin is not None else e.eqn.invars[0]
    same = origin if e.name in _SAME_ENTRIES else None
    return dataclasses.replace(
        x, number=None, origin=same, data=e.data, contracted=_kept(e, x)
    )


_SAME_ENTRIES = ("abs", "conj", "convert_element_type", "copy", "neg", "reshape",
                 "squeeze", "transpose", "stop_gradient", "real", "imag")  # fmt: skip
_KEEPS_LOGS = (*_SAME_ENTRIES, "gather", "reduce_max", "reduce_min", "rev", "slice",
               "expand_dims", "reduce_precision", "dynamic_slice")  # fmt: skip


def _kept(e: Eqn, x: Known) -> tuple[Axis, ...]:
    return x.contracted if e.name in _SAME_ENTRIES or e.name == "slice" else ()


@_knows("broadcast_in_dim")
def _broadcast(e: Eqn) -> Known:
    """Spread over n entries, 1/n of a value is the transpose of a mean."""
    x = e.ins[0]
    mapped = set(e.params["broadcast_dimensions"])
    ones = [i for i, n in enumerate(_shape(e, 0)) if n == 1]
    one_to_many = {e.params["broadcast_dimensions"][i] for i in ones}
    shape = e.eqn.outvars[0].aval.shape
    new = [
        axis
        for i, axis in enumerate(e.out_axes())
        if (i not in mapped or i in one_to_many) and shape[i] != 1
    ]
    if x.number is not None:
        _spread_number(e, 0, x.number, new)
        return Known(number=x.number)
    return _spread(e, _view(e), new)


def _spread(e: Eqn, x: Known, new: Sequence[Axis]) -> Known:
    """A value that was spread over new axes: a fresh 1/n among its numbers follows."""
    growth: Growth = {}
    for axis in new:
        growth = times(growth, {axis: 1.0})
    pending = list(x.pending)
    for waiting in [p for p in pending if p.fresh and narrowing(growth)]:
        found = [m for m in matches(waiting, growth, e.rounding()) if m.follow.narrows]
        if found and _one_meaning(found):
            e.flow.follow(waiting.uses, waiting.value, found[0].follow)
            pending.remove(waiting)
    if len(pending) == len(x.pending):
        return x
    return dataclasses.replace(x, pending=tuple(pending))


def _spread_number(e: Eqn, operand: int, number: Any, new: Sequence[Axis]) -> None:
    """A constant 1/n, spread over n entries, is the gradient of a mean."""
    growth: Growth = {}
    for axis in new:
        growth = times(growth, {axis: 1.0})
    if not narrowing(growth) or not 0 < abs(number) < 1:
        return
    found = matches(Pending((), float(number), 1.0), growth, e.rounding())
    found = [match for match in found if match.follow.narrows]
    if found and _one_meaning(found) and not e.ins[operand].data:
        entries = math.prod(width(a) for a in found[0].cancels)
        literal = isinstance(e.eqn.invars[operand], core.Literal)
        if not literal or entries > 4:  # 0.5 and 0.25 are numbers of many meanings
            e.flow.follow([e.use(operand)], float(number), found[0].follow)


def narrowing(growth: Growth) -> bool:
    """Whether an axis that narrows is among those of the growth."""
    return any(narrows(axis) for axis in growth)


def _shape(e: Eqn, operand: int) -> tuple[Any, ...]:
    return e.eqn.invars[operand].aval.shape


@_knows("mul", "div", "rem")
def _product(e: Eqn) -> Known:
    """Growth multiplies, and a number may take it away."""
    x, y = e.ins
    power = 1.0 if e.name == "mul" else -1.0
    if x.number is not None or y.number is not None:
        at = 0 if x.number is not None else 1
        other, own = e.ins[1 - at], power if at == 1 else 1.0
        if at == 0 and power < 0:  # a number over a value
            other = _raised(other, -1.0)
        return _scaled(e, at, e.ins[at].number, own, other)
    if power < 0:
        y = _raised(y, -1.0)
    logs = {}
    if x.logs and not y.logs:  # E[log p]: weights of sum 1 keep what was added
        logs = x.logs
    elif y.logs and not x.logs and power > 0:
        logs = y.logs
    product = Known(
        growth=times(x.growth, y.growth),
        logs=logs,
        pending=_joined(x.pending, y.pending),
        data=e.data,
        counted=x.counted and y.counted,
    )
    product = e.flow.settle(product, e.rounding())
    return _stale(product)


def _scaled(e: Eqn, at: int, number: Any, power: float, x: Known) -> Known:
    """A value times number ** power."""
    value = float(number) if np.isrealobj(number) else math.nan
    flow, use, rounding = e.flow, e.use(at), e.rounding()
    if not math.isfinite(value) or value == 0:
        return _DATA if e.data else _PLAIN
    if x.logs and x.plain is False and not x.growth:
        found = log_match(value, x.logs, rounding)
        if found is not None and power < 0:  # entropy over log(n)
            flow.follow([use], value, found)
            return dataclasses.replace(x, logs={}, number=None)
        scaled = to_power(x.logs, 1.0)
        return dataclasses.replace(
            x, logs={a: e_ * value**power for a, e_ in scaled.items()}, number=None
        )
    flow.meet(e, at, value, x, e.axes(1 - at))
    waiting = x.pending
    if abs(value) != 1.0:
        waiting = (*x.pending, Pending((use,), value, power))[-_WAITING:]
    scaled = dataclasses.replace(
        x, number=None, pending=waiting, origin=None, contracted=x.contracted
    )
    scaled = flow.settle(scaled, rounding)
    if e.name == "rem":
        return _DATA if e.data else _PLAIN
    return scaled


def _joined(a: tuple[Pending, ...], b: tuple[Pending, ...]) -> tuple[Pending, ...]:
    """The numbers of a product; one that waits in both waits once, squared."""
    found = list(a)
    for waiting in b:
        same = next((p for p in found if p.uses == waiting.uses), None)
        if same is None:
            found.append(waiting)
            continue
        found.remove(same)
        power = same.power + waiting.power
        if power:
            found.append(dataclasses.replace(same, power=power))
    return tuple(found[-_WAITING:])


def _stale(x: Known) -> Known:
    """The numbers that wait were not written beside what comes next."""
    if not any(waiting.fresh for waiting in x.pending):
        return x
    pending = tuple(dataclasses.replace(p, fresh=False) for p in x.pending)
    return dataclasses.replace(x, pending=pending)


def _raised(x: Known, power: float) -> Known:
    """x ** power."""
    return Known(
        growth=to_power(x.growth, power),
        pending=tuple(
            dataclasses.replace(p, power=p.power * power, fresh=False)
            for p in x.pending
        ),
        data=x.data,
        counted=x.counted,
    )


_POWERS = {"cbrt": 1 / 3, "rsqrt": -0.5, "sqrt": 0.5, "square": 2.0}


@_knows("cbrt", "integer_pow", "pow", "rsqrt", "sqrt", "square")
def _power(e: Eqn) -> Known:
    """Exponents multiply; the n-th root of a product over n entries is a mean."""
    x = e.ins[0]
    exponent = _POWERS.get(e.name, e.params.get("y"))
    if e.name == "pow":
        exponent = e.ins[1].number
        if exponent is None:
            return _unknown(e)
    exponent = float(exponent)
    if x.powers:
        found = matches(
            Pending((), exponent, 1.0), x.powers, e.rounding()
        )
        if found and _one_meaning(found) and e.name == "pow":
            e.flow.follow([e.use(1)], exponent, found[0].follow)
        return _DATA if e.data else _PLAIN
    return e.flow.settle(_raised(x, exponent), e.rounding())


@_knows("log", "log2")
def _log(e: Eqn) -> Known:
    x = e.ins[0]
    base = 1.0 if e.name == "log" else 1 / math.log(2)
    if x.powers:
        return Known(growth=x.powers, data=x.data)
    return Known(logs=to_power(x.growth, base), data=x.data)


@_knows("exp", "exp2")
def _exp(e: Eqn) -> Known:
    x = e.ins[0]
    if e.name == "exp" and x.logs:
        return Known(growth=x.logs, data=x.data)
    if e.name == "exp2" and x.logs:
        return Known(growth=to_power(x.logs, math.log(2)), data=x.data)
    return Known(powers=x.growth, data=x.data)


@_knows("add", "sub", "add_any", "complex", "max", "min", "clamp", "select_n",
        "concatenate", "stack", "pad", "atan2", "scatter-add", "scatter",
        "dynamic_update_slice", "select_and_scatter_add")  # fmt: skip
def _sum(e: Eqn) -> Known:
    """A sum of values of equal growth grows like each of them."""
    if e.name in ("clamp",):
        places = [1, 0, 2]
    elif e.name == "select_n":
        places = list(range(1, len(e.ins)))
    elif e.name == "scatter-add" or e.name == "scatter":
        places = [0, 2]
    elif e.name in ("dynamic_update_slice", "pad", "select_and_scatter_add"):
        places = [0, 1]
    else:
        places = list(range(len(e.ins)))
    return _alike(e, places)


def _alike(e: Eqn, places: Sequence[int]) -> Known:
    """What is known of a sum, or of a choice, of several operands."""
    added = e.name in ("add", "sub", "add_any")
    terms = [i for i in places if e.ins[i].number is None]
    constants = [i for i in places if e.ins[i].number is not None]
    if not terms:
        return _DATA if e.data else _PLAIN
    total = dataclasses.replace(e.ins[terms[0]], origin=None)
    for i in terms[1:]:
        sign = -1.0 if e.name == "sub" else 1.0
        total = _added(e, total, e.ins[i], sign if added else 0.0)
    if e.name == "sub" and terms[0] == 1:  # a number less a value
        total = dataclasses.replace(total, logs=to_power(total.logs, -1))
    for i in constants if added else ():
        total = _with_number(e, total, i)
    guarded = len(terms) == 1
    return dataclasses.replace(
        total,
        number=None,
        data=e.data,
        parameter=False,
        counted=total.counted and guarded,
        contracted=total.contracted if added else (),
    )


def _added(e: Eqn, x: Known, y: Known, sign: float) -> Known:
    """x + sign * y, or one of the two where the sign is 0."""
    logs: Growth = {}
    if sign:
        logs = times(x.logs, y.logs, sign)
    elif x.logs == y.logs:
        logs = x.logs
    if x.plain and y.plain:
        contracted = x.contracted or y.contracted
        return Known(data=x.data or y.data, contracted=contracted)
    if x.growth != y.growth:
        x, y = _reconciled(e, x, y)
    growth = x.growth if x.growth == y.growth else {}
    pending = _either(x.pending, y.pending) if growth == x.growth else ()
    powers = x.powers if x.powers == y.powers else {}
    if logs and growth:
        logs = {}
    return Known(growth=growth, logs=logs, powers=powers, pending=pending,
                 contracted=x.contracted or y.contracted)  # fmt: skip


def _reconciled(e: Eqn, x: Known, y: Known) -> tuple[Known, Known]:
    """n * a + sum(b): the number follows, so that both terms grow alike."""
    for swap in (False, True):
        a, b = (y, x) if swap else (x, y)
        lacking = times(a.growth, b.growth, -1)  # what a's numbers would cancel in a - b
        for waiting in reversed(a.pending):
            found = matches(waiting, lacking, e.rounding())
            complete = [m for m in found if not times(lacking, m.cancels, -1)]
            if complete and _one_meaning(complete):
                e.flow.follow(waiting.uses, waiting.value, complete[0].follow)
                rest = tuple(p for p in a.pending if p is not waiting)
                a = dataclasses.replace(a, growth=b.growth, pending=rest)
                return (b, a) if swap else (a, b)
    return x, y


def _either(
    a: tuple[Pending, ...], b: tuple[Pending, ...]
) -> tuple[Pending, ...]:
    """Numbers that wait in both terms of a sum."""
    found = []
    for waiting in a:
        for other in b:
            if (other.value, other.power) == (waiting.value, waiting.power):
                uses = tuple(dict.fromkeys((*waiting.uses, *other.uses)))
                fresh = waiting.fresh and other.fresh
                found.append(dataclasses.replace(waiting, uses=uses, fresh=fresh))
                break
    return tuple(found)


def _with_number(e: Eqn, x: Known, at: int) -> Known:
    """A value with a number added or taken away."""
    number = e.ins[at].number
    value = float(number) if np.isrealobj(number) else math.nan
    if value == 0 or not math.isfinite(value):
        return x
    use, rounding = e.use(at), e.rounding()
    if x.logs:
        # log(sum) - log(n): what the number adds is what the value has grown by.
        sign = -1.0 if e.name == "sub" else 1.0
        found = log_match(value, x.logs, rounding)
        if found is not None and sign * value * _total(x.logs) < 0:
            e.flow.follow([use], value, found)
            return dataclasses.replace(x, logs={})
        return x
    if not x.growth:
        kept = x.pending if abs(value) <= _SMALL else ()
        return dataclasses.replace(x, pending=kept)
    if abs(value) <= _SMALL:
        return x
    e.flow.values[use] = value
    size = math.prod(float(width(a)) ** k for a, k in x.growth.items())
    if equal(abs(value), size, rounding):
        e.flow.follow([use], value, Follow(tuple(x.growth.items())))
        return x
    return dataclasses.replace(x, growth={}, pending=())


def _total(logs: Growth) -> float:
    return sum(e * math.log(width(a)) for a, e in logs.items())


@_knows("reduce_sum", "cumsum", "psum", "psum_invariant", "unreduced_psum",
        "reduce_window_sum", "reduce_scatter")  # fmt: skip
def _total_over(e: Eqn) -> Known | Sequence[Known]:
    """A sum grows with the axes that it runs over."""
    over = _summed_axes(e)
    return [
        _grown(e, dataclasses.replace(x, data=x.data), over) for x in e.ins
    ][: len(e.eqn.outvars)]


def _summed_axes(e: Eqn) -> list[Axis]:
    axes = e.axes(0)
    if e.name == "reduce_sum":
        return [axes[i] for i in e.params["axes"]]
    if e.name == "cumsum":
        return [axes[e.params["axis"]]]
    if e.name == "reduce_window_sum":
        return [Whole(math.prod(e.params["window_dimensions"]))]
    if e.params.get("axis_index_groups") is not None:
        return []
    named = e.params.get("axes", e.params.get("axis_name", ()))
    aval: Any = e.eqn.invars[0].aval
    mesh = getattr(getattr(aval, "sharding", None), "mesh", None)
    sizes = dict(mesh.shape) if mesh is not None else {}
    names = named if isinstance(named, tuple) else (named,)
    if not all(name in sizes for name in names):
        return []
    return [Whole(math.prod(sizes[name] for name in names))]


def _grown(e: Eqn, x: Known, over: Sequence[Axis]) -> Known:
    growth = x.growth
    for axis in over:
        if isinstance(width(axis), int) and width(axis) > 1:
            growth = times(growth, {axis: 1.0})
    known = Known(
        growth=growth,
        logs=x.logs if not growth else {},
        pending=x.pending,
        data=x.data,
    )
    return _stale(e.flow.settle(known, e.rounding()))


@_knows("reduce_prod")
def _product_over(e: Eqn) -> Known:
    x = e.ins[0]
    powers: Growth = {}
    for i in e.params["axes"]:
        powers = times(powers, {e.axes(0)[i]: 1.0})
    return Known(powers=powers if not x.growth else {}, data=e.data)


@_knows("reduce")
def _general_reduce(e: Eqn) -> Known:
    jaxpr = e.params["jaxpr"]
    inner = getattr(jaxpr, "jaxpr", jaxpr)
    names = [eqn.primitive.name for eqn in inner.eqns]
    if names not in (["add"], ["mul"], ["max"], ["min"]) or len(e.ins) != 2:
        return _unknown(e)
    axes = [e.axes(0)[i] for i in e.params["dimensions"]]
    if names == ["add"]:
        return _grown(e, e.ins[0], axes)
    if names == ["mul"]:
        return Known(powers=dict.fromkeys(axes, 1.0), data=e.data)
    return dataclasses.replace(e.ins[0], number=None, origin=None)


@_knows("dot_general")
def _dot(e: Eqn) -> Known:
    """A contraction is a sum of products, but for that with a parameter."""
    (lhs_k, rhs_k), (lhs_batch, rhs_batch) = e.params["dimension_numbers"]
    free = [
        [i for i in range(len(_shape(e, n))) if i not in (*contracted, *batch)]
        for n, (contracted, batch) in enumerate(
            ((lhs_k, lhs_batch), (rhs_k, rhs_batch))
        )
    ]
    axes = e.axes(0), e.axes(1)
    over = [axes[0][i] for i in lhs_k]
    spread = [[axes[1 - n][i] for i in free[1 - n]] for n in (0, 1)]
    return _contraction(e, over, spread)


def _contraction(
    e: Eqn, over: Sequence[Axis], spread: Sequence[Sequence[Axis]]
) -> Known:
    """A sum of products over axes; each operand is spread over the axes given."""
    x, y = e.ins[:2]
    for at, known in enumerate((x, y)):
        if known.number is not None:
            growth = _grown(e, e.ins[1 - at], over)
            if float(abs(known.number)) != 1.0:
                e.flow.meet(e, at, float(known.number), growth, tuple(over))
                waiting = Pending((e.use(at),), float(known.number), 1.0)
                growth = dataclasses.replace(
                    growth, pending=(*growth.pending, waiting)[-_WAITING:]
                )
                growth = e.flow.settle(growth, e.rounding())
            return dataclasses.replace(growth, data=e.data)
    x, y = (_spread(e, known, new) for known, new in zip((x, y), spread, strict=True))
    itself = _same(e, x, y)
    if itself or (x.data and y.data):
        product = Known(
            growth=times(x.growth, y.growth),
            pending=_joined(x.pending, y.pending),
            data=e.data,
        )
        return _grown(e, product, over)
    inner = tuple(axis for axis in over if narrows(axis))
    return Known(
        growth={
            a: k
            for a, k in times(x.growth, y.growth).items()
            if a not in over
        },
        data=e.data,
        contracted=inner,
    )


def _same(e: Eqn, x: Known, y: Known) -> bool:
    """Whether a value is contracted with itself."""
    views = [
        known.origin if known.origin is not None else var
        for known, var in zip((x, y), e.eqn.invars, strict=False)
    ]
    return views[0] is views[1]


@_knows("conv_general_dilated")
def _convolution(e: Eqn) -> Known:
    numbers_ = e.params["dimension_numbers"]
    kernel, shape = e.axes(1), _shape(e, 1)
    out, channels, *space = numbers_.rhs_spec
    window = math.prod(shape[i] for i in space)
    over = [kernel[channels], Whole(window)] if window != 1 else [kernel[channels]]
    return _contraction(e, over, ((), ()))


@_knows("iota")
def _iota(e: Eqn) -> Known:
    return Known(counted=True)


# -- calls, branches and loops


# Other programs are made of these when they are differentiated, or under vmap.
_DERIVED = ("custom_jvp_call", "custom_vjp_call", "custom_vmap_call", "linear_call",
            "remat_opt")  # fmt: skip


def _call(e: Eqn) -> Sequence[Known]:
    """The results of what is called, if it takes the operands as they are."""
    (child, *more) = e.frame.children[e.index]
    if more or len(child.jaxpr.invars) != len(e.ins):
        return [_unknown(e)] * len(e.eqn.outvars)
    outs = e.flow.run(child, _outside(e))
    if e.name in _DERIVED:
        e.flow.counts.operands[id(e.frame), e.index] = list(e.ins)
    return outs


def _outside(e: Eqn) -> list[Known]:
    """What is known of operands, within what is called: variables have other names."""
    return [
        dataclasses.replace(known, origin=known.origin or var)
        if not isinstance(var, core.Literal)
        else known
        for known, var in zip(e.ins, e.eqn.invars, strict=True)
    ]


@_knows("optimization_barrier", "name", "pin", "stage", "unpin", "xla_metadata_value",
        "shard_alike", "sort")  # fmt: skip
def _each(e: Eqn) -> Sequence[Known]:
    if len(e.ins) != len(e.eqn.outvars):
        return [_unknown(e)] * len(e.eqn.outvars)
    return [dataclasses.replace(known, number=None) for known in e.ins]


@_knows("cond")
def _cond(e: Eqn) -> Sequence[Known]:
    branches = [
        e.flow.run(child, _outside(e)[1:]) for child in e.frame.children[e.index]
    ]
    return [_either_one(outs) for outs in zip(*branches, strict=True)]


def _either_one(outs: Sequence[Known]) -> Known:
    """What is known of one of several values, whichever it is."""
    first, *others = [known for known in outs if not known.zero] or outs[:1]
    for other in others:
        first = _common(first, other)
    data = any(known.data for known in outs)
    if len(outs) > 1 and any(known.zero for known in outs) and first.number != 0:
        first = dataclasses.replace(first, number=None)
    return dataclasses.replace(first, data=data, origin=None)


def _common(x: Known, y: Known) -> Known:
    if x == y:
        return x
    same = x.number is not None and y.number is not None and x.number == y.number
    return Known(
        number=x.number if same else None,
        growth=x.growth if x.growth == y.growth else {},
        logs=x.logs if x.logs == y.logs else {},
        powers=x.powers if x.powers == y.powers else {},
        pending=_either(x.pending, y.pending),
        data=x.data or y.data,
        counted=x.counted and y.counted,
    )


def _loop(e: Eqn, carry: list[Known], step: Callable[[list[Known]], list[Known]]):
    """What is carried, once another step would not change it."""
    counts = e.flow.counts
    for _ in range(_ROUNDS):
        before = dict(counts.follows), dict(counts.seen), dict(e.flow.ambiguous)
        outs = step(carry)
        after = [
            _either_one([old, new])
            for old, new in zip(carry, outs[: len(carry)], strict=True)
        ]
        if after == carry:
            return after, outs
        carry = after
        counts.follows, counts.seen, e.flow.ambiguous = before
    return [_PLAIN] * len(carry), step([Known(data=k.data) for k in carry])


@_knows("scan")
def _scan(e: Eqn) -> Sequence[Known]:
    """What a loop adds up from nothing grows with its steps, too."""
    from ..rules.loops import _counts

    consts, carried = _counts(e.params)
    ins = _outside(e)
    (child,) = e.frame.children[e.index]
    start = ins[consts : consts + carried]

    def step(carry: list[Known]) -> list[Known]:
        return e.flow.run(child, [*ins[:consts], *carry, *ins[consts + carried :]])

    carry, outs = _loop(e, start, step)
    length = e.params["length"]
    summed = []
    for before, after in zip(start, carry, strict=True):
        if before.zero and narrowing(after.growth) and isinstance(length, int):
            growth = times(after.growth, {Whole(length): 1.0}) if length > 1 else after.growth
            after = dataclasses.replace(after, growth=growth)
        summed.append(after)
    return [*summed, *outs[carried:]]


@_knows("while")
def _while(e: Eqn) -> Sequence[Known]:
    conds, bodies = e.params["cond_nconsts"], e.params["body_nconsts"]
    cond, body = e.frame.children[e.index]
    ins = _outside(e)
    for_cond, for_body = ins[:conds], ins[conds : conds + bodies]

    def step(carry: list[Known]) -> list[Known]:
        e.flow.run(cond, [*for_cond, *carry])
        return e.flow.run(body, [*for_body, *carry])

    return _loop(e, ins[conds + bodies :], step)[0]
