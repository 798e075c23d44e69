"""What is known of sums over axes, of contractions, and of what is spread over axes."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from jax.extend import core

from ..axes import Axis, Whole, width
from ..growth import (
    Growth,
    Known,
    Pending,
    equal,
    matches,
    narrowing,
    narrows,
    sizes_in,
    times,
)
from .entries import grown_by, joined, spread, stale, view
from .flow import WAITING, Eqn, knows, made_of, one_meaning, unknown


@knows("broadcast_in_dim")
def _broadcast(e: Eqn) -> Known:
    """Spread over n entries, 1/n of a value is the transpose of a mean."""
    x = e.ins[0]
    mapped = set(e.params["broadcast_dimensions"])
    ones = [i for i, n in enumerate(e.shape(0)) if n == 1]
    one_to_many = {e.params["broadcast_dimensions"][i] for i in ones}
    shape = e.params["shape"]
    new = [
        axis
        for i, axis in enumerate(e.out_axes())
        if (i not in mapped or i in one_to_many) and shape[i] != 1
    ]
    if x.number is not None:
        return _spread_number(e, x, new)
    same = view(e)
    return spread(e, same, new)


def _spread_number(e: Eqn, x: Known, new: Sequence[Axis]) -> Known:
    """A constant 1/n, spread over n entries, is the gradient of a mean."""
    over = grown_by(new)
    value = float(abs(x.number))
    if not narrowing(over) or not 0 < value < 1:
        return Known(number=x.number, made=x.made or made_of(e))
    found = matches(Pending((), value, 1.0), over, e.rounding())
    found = [match for match in found if match.follow.narrows]
    if not found or not one_meaning(found):
        return Known(number=x.number, made=x.made or made_of(e))
    entries = math.prod(width(a) for a in found[0].cancels)
    if isinstance(e.eqn.invars[0], core.Literal) and entries <= 4:
        return Known(
            number=x.number, made=x.made or made_of(e)
        )  # 0.5 and 0.25 are numbers of many meanings
    e.flow.follow([e.use(0)], float(x.number), found[0].follow, direct=True)
    return Known(growth=times({}, found[0].cancels, -1))


@knows("reduce_sum", "cumsum", "psum", "psum_invariant", "unreduced_psum",
        "reduce_window_sum", "reduce_scatter")  # fmt: skip
def _total_over(e: Eqn) -> Known | Sequence[Known]:
    """A sum grows with the axes that it runs over."""
    over = _summed_axes(e)
    number = e.ins[0].number if e.name == "reduce_sum" else None
    if number is not None and not any(map(narrows, over)):
        # Ones along axes that are tied to nothing: a number, written as their sum.
        return Known(number=number * math.prod(width(axis) for axis in over))
    return [_grown(e, dataclasses.replace(x, data=x.data), over) for x in e.ins][
        : len(e.eqn.outvars)
    ]


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
    if isinstance(named, tuple) and named and all(isinstance(n, int) for n in named):
        return [axes[i] for i in named]  # as vmap leaves it
    aval: Any = e.eqn.invars[0].aval
    mesh = getattr(getattr(aval, "sharding", None), "mesh", None)
    sizes = dict(mesh.shape) if mesh is not None else {}
    names = named if isinstance(named, tuple) else (named,)
    if not all(name in sizes for name in names):
        return []
    return [Whole(math.prod(sizes[name] for name in names))]


def _grown(e: Eqn, x: Known, over: Sequence[Axis]) -> Known:
    growth = times(x.growth, grown_by(over))
    known = Known(
        growth=growth,
        summed=times(x.summed, grown_by(over)),
        logs=x.logs if not growth else {},
        pending=x.pending,
        data=x.data,
        cotangent=x.cotangent,
        spread=tuple(axis for axis in x.spread if axis not in over),
    )
    if growth is x.growth:  # over axes of one entry
        return known
    return stale(known)


@knows("reduce_prod")
def _product_over(e: Eqn) -> Known:
    x = e.ins[0]
    powers: Growth = {}
    for i in e.params["axes"]:
        powers = times(powers, {e.axes(0)[i]: 1.0})
    return Known(powers=powers if not x.growth else {}, data=e.data)


@knows("reduce")
def _general_reduce(e: Eqn) -> Known:
    jaxpr = e.params["jaxpr"]
    inner = getattr(jaxpr, "jaxpr", jaxpr)
    names = [eqn.primitive.name for eqn in inner.eqns]
    if names not in (["add"], ["mul"], ["max"], ["min"]) or len(e.ins) != 2:
        return unknown(e)
    axes = [e.axes(0)[i] for i in e.params["dimensions"]]
    if names == ["add"]:
        return _grown(e, e.ins[0], axes)
    if names == ["mul"]:
        return Known(powers=dict.fromkeys(axes, 1.0), data=e.data)
    return dataclasses.replace(e.ins[0], number=None, origin=None)


@knows("dot_general")
def _dot(e: Eqn) -> Known:
    """A contraction is a sum of products, but for that with a parameter."""
    (lhs_k, rhs_k), (lhs_batch, rhs_batch) = e.params["dimension_numbers"]
    free = [
        [i for i in range(len(e.shape(n))) if i not in (*contracted, *batch)]
        for n, (contracted, batch) in enumerate(
            ((lhs_k, lhs_batch), (rhs_k, rhs_batch))
        )
    ]
    axes = e.axes(0), e.axes(1)
    over = [axes[0][i] for i in lhs_k]
    repeated = [[axes[1 - n][i] for i in free[1 - n]] for n in (0, 1)]
    return _contraction(e, over, repeated)


def _contraction(
    e: Eqn, over: Sequence[Axis], repeated: Sequence[Sequence[Axis]]
) -> Known:
    """A sum of products over axes; each operand is spread over the axes given."""
    x, y = e.ins[:2]
    for at, known in enumerate((x, y)):
        if known.number is not None:
            growth = _grown(e, e.ins[1 - at], over)
            if float(abs(known.number)) != 1.0:
                waiting = Pending((e.use(at),), float(known.number), 1.0)
                e.flow.meet(e, waiting, growth, over)
                growth = dataclasses.replace(
                    growth, pending=(*growth.pending, waiting)[-WAITING:]
                )
                growth = e.flow.settle(growth, e.rounding(), waiting)
            return dataclasses.replace(growth, data=e.data)
    x, y = (spread(e, known, new) for known, new in zip((x, y), repeated, strict=True))
    itself = _same(e, x, y)
    if itself or any(e.identity(var) is not None for var in e.eqn.invars[:2]):
        product = Known(
            growth=times(x.growth, y.growth),
            pending=joined(x.pending, y.pending),
            data=e.data,
            cotangent=x.cotangent or y.cotangent,
            spread=tuple(dict.fromkeys((*x.spread, *y.spread))),
        )
        return _grown(e, product, over)
    inner = tuple(axis for axis in over if narrows(axis))
    # A constant before a dense layer is an everyday one, before q k one of muP.
    activations = all(known.data and not known.weight for known in (x, y))
    pending = (*x.pending, *y.pending) if inner and activations else ()
    parts = [waiting.value**waiting.power for waiting in pending]
    pending = [  # but for n * (1 / n)
        waiting
        for waiting, part in zip(pending, parts, strict=True)
        if not any(equal(part * other, 1.0) for other in parts)
    ]
    for waiting in pending:
        axis = sizes_in(waiting.value, inner, e.rounding())
        for use in waiting.uses if axis is not None else ():
            text = "what it scales is contracted over the axis"
            e.flow.see(use, waiting.value, axis, text)
    return Known(
        data=e.data,
        contracted=inner,
        # 1 / rows behind it is the mean over rows, and no root of the units.
        summed=grown_by([a for a in over if not narrows(a)]) if activations else {},
    )


def _same(e: Eqn, x: Known, y: Known) -> bool:
    """Whether a value is contracted with itself."""
    views = [
        known.origin if known.origin is not None else var
        for known, var in zip((x, y), e.eqn.invars, strict=False)
    ]
    return views[0] is views[1]


@knows("conv_general_dilated")
def _convolution(e: Eqn) -> Known:
    numbers_ = e.params["dimension_numbers"]
    kernel, shape = e.axes(1), e.shape(1)
    out, channels, *space = numbers_.rhs_spec
    window = math.prod(shape[i] for i in space)
    over = [kernel[channels], Whole(window)] if window != 1 else [kernel[channels]]
    return _contraction(e, over, ((), ()))


@knows("iota")
def _iota(e: Eqn) -> Known:
    return Known(counted=True)


# -- calls, branches and loops
