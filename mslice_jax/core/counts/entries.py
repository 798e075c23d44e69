"""What is known of results that are made entry by entry: products, powers, sums."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..axes import Axis, width
from ..growth import (
    Follow,
    Growth,
    Known,
    Pending,
    equal,
    log_match,
    matches,
    narrowing,
    narrows,
    sizes_in,
    times,
    to_power,
)
from .flow import DATA, PLAIN, WAITING, Eqn, knows, one_meaning, unknown

_SMALL = 1e-3  # up to here a number added to a sum is there against a division by zero


# The same entries in another shape, type or place, or with another sign.
_SAME = (
    "abs", "conj", "convert_element_type", "copy", "expand_dims", "imag", "neg", "real",
    "reduce_precision", "reshape", "squeeze", "stop_gradient", "transpose",
)  # fmt: skip
# Some of the entries, chosen or repeated.
_SOME = (
    "all_gather", "all_gather_invariant", "all_gather_reduced", "all_to_all",
    "approx_top_k", "ceil", "device_put", "dynamic_slice", "floor", "gather",
    "layout_constraint", "pmax", "pmin", "ppermute", "preduced", "pvary", "reduce_max",
    "reduce_min", "reduced_vary_cast", "reduced_vary_cast_p", "relayout", "reshard",
    "rev", "round", "sharding_constraint", "slice", "tile", "top_k",
    "with_memory_space_constraint",
)  # fmt: skip


_AS_MANY = ("broadcast_in_dim", "slice")


@knows(*_SAME, *_SOME)
def view(e: Eqn) -> Known:
    """Entries of an operand grow as they did there."""
    x = e.ins[0]
    same = e.name in _SAME
    return dataclasses.replace(
        x,
        number=None,
        logs=to_power(x.logs, -1) if e.name == "neg" else x.logs,
        origin=(x.origin or e.eqn.invars[0]) if same else None,
        data=e.data,
        weight=x.weight and e.name not in ("dynamic_slice", "gather"),
        contracted=x.contracted if same or e.name in _AS_MANY else (),
    )


@knows("mul", "div", "rem")
def _product(e: Eqn) -> Known:
    """Growth multiplies, and a number may take it away."""
    x, y = e.ins
    power = 1.0 if e.name == "mul" else -1.0
    if x.number is not None or y.number is not None:
        at = 0 if x.number is not None else 1
        other = repeated(e, e.ins[1 - at], 1 - at)
        own = power if at == 1 else 1.0
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
    x, y = (repeated(e, each, at) for at, each in enumerate((x, y)))
    product = Known(
        growth=times(x.growth, y.growth),
        logs=logs,
        pending=joined(x.pending, y.pending),
        data=e.data,
        counted=x.counted and y.counted,
        cotangent=x.cotangent or y.cotangent,
        spread=tuple(dict.fromkeys((*x.spread, *y.spread))),
    )
    for one, other in ((x, y), (y, x)):
        product = _scaled_by_numbers_of(e, product, one, other)
    return stale(product)


def _scaled_by_numbers_of(e: Eqn, product: Known, x: Known, y: Known) -> Known:
    """sum / (n * b) is sum / n / b: numbers of y may cancel what x has grown by."""
    spread_over = {axis: 1.0 for axis in x.spread if narrows(axis)}
    growth, pending = product.growth, list(product.pending)
    along = product.spread
    for waiting in y.pending if not narrowing(y.growth) else ():
        if waiting not in pending:
            continue
        found = []
        if narrowing(x.growth):
            found = matches(waiting, growth, e.rounding())
            found = [m for m in found if not narrowing(times(growth, m.cancels, -1))]
        if not found and spread_over:  # of a square the gradient is twice as much
            half = dataclasses.replace(waiting, value=waiting.value / 2)
            found = matches(waiting, spread_over, e.rounding())
            found = found or matches(half, spread_over, e.rounding())
            along = () if found and one_meaning(found) else along
        if found and one_meaning(found):
            e.flow.follow(waiting.uses, waiting.value, found[0].follow, direct=True)
            growth = times(growth, found[0].cancels, -1)
            pending.remove(waiting)
            break
    return dataclasses.replace(
        product, growth=growth, pending=tuple(pending), spread=along
    )


def _scaled(e: Eqn, at: int, number: Any, power: float, x: Known) -> Known:
    """A value times number ** power."""
    value = float(number) if np.isrealobj(number) else math.nan
    flow, use, rounding = e.flow, e.use(at), e.rounding()
    if not math.isfinite(value) or value == 0:
        return DATA if e.data else PLAIN
    if x.logs and x.plain is False and not x.growth:
        found = log_match(value, x.logs, rounding)
        divides = found is not None and found.axes[0][1] * power < 0
        if found is not None and divides:  # entropy over log(n)
            flow.follow([use], value, found, direct=True)
            return dataclasses.replace(x, logs={}, number=None)
        scaled = to_power(x.logs, 1.0)
        return dataclasses.replace(
            x, logs={a: e_ * value**power for a, e_ in scaled.items()}, number=None
        )
    if x.counted:
        x = dataclasses.replace(x, made=(*x.made, (use, value)))
    last = Pending((use,), value, power)
    flow.meet(e, last, x, e.axes(1 - at))
    over = {axis: 1.0 for axis in x.spread if narrows(axis)}
    found = matches(last, over, rounding, multiples=True) if over else []
    if found and one_meaning(found):
        flow.follow([use], value, found[0].follow, direct=True)
        left = tuple(a for a in x.spread if a not in found[0].cancels)
        growth = times(x.growth, found[0].cancels, -1)
        return dataclasses.replace(x, number=None, growth=growth, spread=left)
    waiting = x.pending
    if abs(value) != 1.0:
        waiting = (*x.pending, last)[-WAITING:]
    scaled = dataclasses.replace(x, number=None, pending=waiting, origin=None)
    if last in waiting:
        scaled = flow.settle(scaled, rounding, last)
    if e.name == "rem":  # as large as the number
        return dataclasses.replace(scaled, growth=x.growth)
    return scaled


def spread(e: Eqn, x: Known, new: Sequence[Axis]) -> Known:
    """A value repeated along new axes: a fresh 1/n among its numbers follows.

    In a backward pass it is the transpose of a mean. Going forward it is chance: an
    average of four branches that a layer of four units reads.
    """
    if not new:
        return x
    over = grown_by(new)
    growth, pending = x.growth, list(x.pending)
    is_transpose = narrowing(over) and (x.cotangent or e.backward)
    for waiting in [p for p in pending if p.fresh and is_transpose]:
        found = [m for m in matches(waiting, over, e.rounding()) if m.follow.narrows]
        if found and one_meaning(found):
            e.flow.follow(waiting.uses, waiting.value, found[0].follow, direct=True)
            pending.remove(waiting)
            growth = times(growth, found[0].cancels, -1)
    along = x.spread
    if x.cotangent and len(pending) == len(x.pending):
        along = tuple(dict.fromkeys((*along, *new)))
    return dataclasses.replace(
        x, growth=growth, pending=tuple(pending), spread=along, weight=False
    )


def repeated(e: Eqn, x: Known, operand: int) -> Known:
    """An operand along the axes of the result that it has one entry of.

    In a backward pass that is the transpose of a sum, elsewhere people write it so.
    """
    return spread(e, x, e.spread(operand)) if x.cotangent else x


def grown_by(axes: Sequence[Axis]) -> Growth:
    """The growth of a sum over the axes."""
    growth: Growth = {}
    for axis in axes:
        if isinstance(width(axis), int) and width(axis) > 1:
            growth = times(growth, {axis: 1.0})
    return growth


def joined(a: tuple[Pending, ...], b: tuple[Pending, ...]) -> tuple[Pending, ...]:
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
    return tuple(found[-WAITING:])


def stale(x: Known) -> Known:
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


@knows("cbrt", "integer_pow", "pow", "rsqrt", "sqrt", "square")
def _power(e: Eqn) -> Known:
    """Exponents multiply; the n-th root of a product over n entries is a mean."""
    x = e.ins[0]
    exponent: Any = _POWERS.get(e.name, e.params.get("y"))
    if e.name == "pow":
        exponent = e.ins[1].number
        if exponent is None:
            return unknown(e)
    exponent = float(exponent)
    if e.name == "pow":
        found = sizes_in(exponent, e.axes(0), e.rounding())
        e.flow.see(e.use(1), exponent, found)
    if x.powers:
        found = matches(Pending((), exponent, 1.0), x.powers, e.rounding())
        if found and one_meaning(found) and e.name == "pow":
            e.flow.follow([e.use(1)], exponent, found[0].follow, direct=True)
        return DATA if e.data else PLAIN
    return _raised(x, exponent)


@knows("log", "log2")
def _log(e: Eqn) -> Known:
    x = e.ins[0]
    base = 1.0 if e.name == "log" else 1 / math.log(2)
    if x.powers:
        return Known(growth=x.powers, data=x.data)
    return Known(logs=to_power(x.growth, base), data=x.data)


@knows("exp", "exp2")
def _exp(e: Eqn) -> Known:
    x = e.ins[0]
    if e.name == "exp" and x.logs:
        return Known(growth=x.logs, data=x.data)
    if e.name == "exp2" and x.logs:
        return Known(growth=to_power(x.logs, math.log(2)), data=x.data)
    return Known(powers=x.growth, data=x.data)


@knows("add", "sub", "add_any", "complex", "max", "min", "clamp", "select_n",
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
        return DATA if e.data else PLAIN
    entries = added or e.name in ("complex", "max", "min", "atan2")
    values = {i: e.ins[i] for i in terms}
    if entries:
        values = {i: repeated(e, each, i) for i, each in values.items()}
    total = dataclasses.replace(values[terms[0]], origin=None)
    for i in terms[1:]:
        sign = -1.0 if e.name == "sub" else 1.0
        total = _added(e, total, values[i], sign if added else 0.0)
    if e.name == "sub" and terms[0] == 1:  # a number less a value
        total = dataclasses.replace(total, logs=to_power(total.logs, -1))
    for i in constants if added else ():
        total = _with_number(e, total, i)
    for i in constants if e.name in ("clamp", "max", "min") else ():
        _against_number(e, total, i)
    guarded = len(terms) == 1
    return dataclasses.replace(
        total,
        number=None,
        data=e.data,
        parameter=False,
        # A bias is added to activations; a weight that moved has the shape of its step.
        weight=added
        and any(e.ins[i].weight and e.shape(i) == e.out_shape for i in terms),
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
        return Known(
            summed=x.summed if x.summed == y.summed else {},
            data=x.data or y.data,
            contracted=x.contracted or y.contracted,
            cotangent=x.cotangent or y.cotangent,
            spread=tuple(dict.fromkeys((*x.spread, *y.spread))),
        )
    if x.growth != y.growth:
        x, y = _reconciled(e, x, y)
    # A term that does not grow leaves the growth of the other: all but one of a sum.
    # Of all pairs less those of one with itself the pairs are more.
    growth = y.growth if not x.growth or _outgrows(y.growth, x.growth) else x.growth
    if x.growth and y.growth and growth is x.growth != y.growth:
        growth = growth if _outgrows(x.growth, y.growth) else {}
    pending = either(x.pending, y.pending) if x.growth == y.growth else ()
    powers = x.powers if x.powers == y.powers else {}
    if logs and growth:
        logs = {}
    return Known(
        growth=growth,
        logs=logs,
        powers=powers,
        pending=pending,
        summed=x.summed if x.summed == y.summed else {},
        contracted=x.contracted or y.contracted,
        cotangent=x.cotangent or y.cotangent,
        spread=tuple(dict.fromkeys((*x.spread, *y.spread))),
    )


def _outgrows(a: Growth, b: Growth) -> bool:
    """Whether a value grows at least as another along every axis, and more than not."""
    more = times(a, b, -1)
    return bool(more) and bool(b) and all(e > 0 for e in (*more.values(), *b.values()))


def _reconciled(e: Eqn, x: Known, y: Known) -> tuple[Known, Known]:
    """n * a + sum(b): the number follows, so that both terms grow alike."""
    for swap in (False, True):
        a, b = (y, x) if swap else (x, y)
        lacking = times(a.growth, b.growth, -1)  # what numbers of a would cancel
        for waiting in reversed(a.pending):
            found = matches(waiting, lacking, e.rounding())
            complete = [m for m in found if not times(lacking, m.cancels, -1)]
            if complete and one_meaning(complete):
                e.flow.follow(
                    waiting.uses, waiting.value, complete[0].follow, direct=True
                )
                rest = tuple(p for p in a.pending if p is not waiting)
                a = dataclasses.replace(a, growth=b.growth, pending=rest)
                return (b, a) if swap else (a, b)
    return x, y


def either(a: tuple[Pending, ...], b: tuple[Pending, ...]) -> tuple[Pending, ...]:
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
    if abs(value) > _SMALL:
        e.flow.see(use, value, sizes_in(value, e.out_axes(), rounding))
    if x.logs:
        # log(sum) - log(n): what the number adds is what the value has grown by.
        sign = -1.0 if e.name == "sub" and at == 1 else 1.0
        found = log_match(value, x.logs, rounding)
        if (
            found is not None
            and found.axes[0][1] > 0
            and sign * value * _total(x.logs) < 0
        ):
            e.flow.follow([use], value, found, direct=True)
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
        e.flow.follow([use], value, Follow(tuple(x.growth.items())), direct=True)
        return x
    return dataclasses.replace(x, pending=())


@knows("eq", "ge", "gt", "le", "lt", "ne")
def _compared(e: Eqn) -> Known:
    """norm > sqrt(n): a bound that grows as what it bounds."""
    for at, other in ((0, 1), (1, 0)):
        if e.ins[at].number is not None:
            _against_number(e, e.ins[other], at)
    return unknown(e)


def _against_number(e: Eqn, x: Known, at: int) -> None:
    """A bound of a value that is as large as the value grows follows the width."""
    number = e.ins[at].number
    value = float(number) if np.isrealobj(number) else math.nan
    if not narrowing(x.growth) or not math.isfinite(value) or abs(value) in (0, 0.5, 2):
        return
    size = math.prod(float(width(a)) ** k for a, k in x.growth.items())
    if size != 1 and equal(abs(value), size, e.rounding()):
        follow = Follow(tuple(x.growth.items()))
        e.flow.follow([e.use(at)], value, follow, direct=True)


def _total(logs: Growth) -> float:
    return sum(e * math.log(width(a)) for a, e in logs.items())
