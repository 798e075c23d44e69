"""Axes that move, merge, split, or are concatenated; arrays made from a shape."""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax

from ..axes import Unit, Whole, slice_array, take
from ..solver import find
from .base import Dim, Dims, Narrow, Repeat, Tie, Value, is_fixed, rule


def _narrow_broadcast(n: Narrow, x: Any) -> Any:
    return n.bind(x, shape=n.shape(n.eqn.outvars[0]))


@rule("broadcast_in_dim", narrow=_narrow_broadcast)
def tie_broadcast(t: Tie) -> Sequence[Value]:
    """(b) -> (new, b): mapped axes stay the same unless 1 becomes n; others are new."""
    x = t.ins[0]
    dims = [Dim(size) for size in t.params["shape"]]
    new = set(range(len(dims)))
    for source, target in enumerate(t.params["broadcast_dimensions"]):
        if x.dims[source].size == dims[target].size:
            dims[target] = x.dims[source]
            new.remove(target)
    t.equations.constant += [dims[i] for i in new]
    again = [Repeat(x.origin or x, dims[i]) for i in sorted(new)] if x.dims else []
    return [Value(tuple(dims), (*x.repeats, *again), x.summed)]


def _narrow_reshape(n: Narrow, x: Any) -> Any:
    return n.bind(x, new_sizes=n.shape(n.eqn.outvars[0]))


@rule("reshape", narrow=_narrow_reshape)
def tie_reshape(t: Tie) -> Sequence[Value]:
    """(a, b x c) -> (a x b, c): each run of axes of equal size becomes one product."""
    x = t.ins[0]
    sizes, order = t.params["new_sizes"], t.params["dimensions"]
    dims = x.dims if order is None else [x.dims[i] for i in order]  # transposes first
    outs: list[Dim | None] = [None if _is_one(size) else Dim(size) for size in sizes]
    left = [dim for dim in dims if not _is_one(dim.size)]
    right = [dim for dim in outs if dim is not None]
    if any(_is_zero(size) for size in sizes):
        t.fix([*left, *right], "an axis is empty")
        left, right = [], []
    while left or right:
        run = _last_run(left, right)
        if run is None:  # symbolic sizes, or ones that do not line up
            t.fix([*left, *right], "the sizes do not line up")
            break
        merged, split = run
        del left[len(left) - len(merged) :], right[len(right) - len(split) :]
        if len(merged) == len(split) == 1:
            t.equations.equate(merged[0], split[0])
        else:
            product = t.equations.product
            if len(merged) == 1 and find(merged[0]).factors is None:
                t.equations.splits.append(split)
            t.equations.equate(product(merged), product(split))
    merged_or_split = tuple(Dim(1) if dim is None else dim for dim in outs)
    return [Value(merged_or_split, (), x.summed, x.origin or x)]


def _last_run(
    left: Sequence[Dim], right: Sequence[Dim]
) -> tuple[list[Dim], list[Dim]] | None:
    """The shortest run of axes at the end of both that has one size."""
    i, j = len(left), len(right)
    if not i or not j:
        return None
    i, j = i - 1, j - 1
    if left[i].size == right[j].size:
        return [left[i]], [right[j]]
    sizes = left[i].size, right[j].size
    while sizes[0] != sizes[1]:
        if not all(isinstance(size, int) for size in sizes):
            return None
        if sizes[0] < sizes[1]:
            i -= 1
        else:
            j -= 1
        if i < 0 or j < 0:
            return None
        sizes = _size(left[i:]), _size(right[j:])
    return list(left[i:]), list(right[j:])


def _size(dims: Sequence[Dim]) -> Any:
    return math.prod(dim.size for dim in dims)


def _is_one(size: Any) -> bool:
    return isinstance(size, int) and size == 1


def _is_zero(size: Any) -> bool:
    return isinstance(size, int) and size == 0


@rule("transpose")
def tie_transpose(t: Tie) -> Sequence[Value]:
    """(a, b, c) -> (c, a, b): the same axes in another order."""
    x = t.ins[0]
    dims = tuple(x.dims[i] for i in t.params["permutation"])
    return [Value(dims, x.repeats, x.summed, x.origin or x)]


@rule("squeeze")
def tie_squeeze(t: Tie) -> Sequence[Value]:
    """(a, 1, b) -> (a, b)."""
    x = t.ins[0]
    gone = {i % len(x.dims) for i in t.params["dimensions"]}
    dims = tuple(dim for i, dim in enumerate(x.dims) if i not in gone)
    return [Value(dims, x.repeats, x.summed, x.origin or x)]


@rule("concatenate")
def tie_concatenate(t: Tie) -> Sequence[Dims]:
    """(a, b), (a, c) -> (a, b + c)."""
    along = t.params["dimension"]
    first, *others = [list(value.dims) for value in t.ins]
    for other in others:
        rest = [i for i in range(len(first)) if i != along]
        t.equate([first[i] for i in rest], [other[i] for i in rest])
    joined = t.equations.concat([dims[along] for dims in (first, *others)])
    return [[*first[:along], joined, *first[along + 1 :]]]


@rule("stack")
def tie_stack(t: Tie) -> Sequence[Dims]:
    """(a, b), (a, b) -> (a, 2, b): the new axis is fixed."""
    first, *others = [value.dims for value in t.ins]
    for other in others:
        t.equate(first, other)
    axis = t.params["axis"]
    new = t.fixed(len(t.ins), "one entry for each stacked array")
    return [[*first[:axis], new, *first[axis:]]]


@rule("unstack")
def tie_unstack(t: Tie) -> Sequence[Dims]:
    """(a, 2, b) -> (a, b), (a, b): the axis that is taken apart is fixed."""
    axis, dims = t.params["axis"], t.ins[0].dims
    t.fix([dims[axis]], "taken apart")
    return [[*dims[:axis], *dims[axis + 1 :]] for _ in t.outs]


def _narrow_split(n: Narrow, x: Any) -> Any:
    along = n.params["axis"]
    sizes = tuple(n.shape(var)[along] for var in n.eqn.outvars)
    return n.bind(x, sizes=sizes)


@rule("split", narrow=_narrow_split)
def tie_split(t: Tie) -> Sequence[Dims]:
    """(a, b + c) -> (a, b), (a, c)."""
    along, dims = t.params["axis"], t.ins[0].dims
    parts = t.equations.cut(dims[along], [int(size) for size in t.params["sizes"]])
    return [[*dims[:along], part, *dims[along + 1 :]] for part in parts]


def _narrow_slice(n: Narrow, x: Any) -> Any:
    starts = list(n.params["start_indices"])
    limits = list(n.params["limit_indices"])
    for i, (before, part) in n.note.items():
        if before is not None:
            starts[i] = n.width(before)
        stride = n.params["strides"][i] if n.params["strides"] else 1
        kept = n.width(part)
        if not kept:
            starts[i] = limits[i] = 0
        else:
            limits[i] = starts[i] + (kept - 1) * stride + 1
    return n.bind(x, start_indices=tuple(starts), limit_indices=tuple(limits))


@rule("slice", narrow=_narrow_slice)
def tie_slice(t: Tie) -> Sequence[Dims]:
    """(before + part + after) -> (part); one of every n entries: (part x n) -> (part).

    A stride that does not divide the axis fixes it.
    """
    dims = list(t.ins[0].dims)
    starts, limits = t.params["start_indices"], t.params["limit_indices"]
    strides = t.params["strides"] or (1,) * len(dims)
    parts = {}  # by axis: what comes before the part (None: as it was), and the part
    for i, (start, limit, stride) in enumerate(
        zip(starts, limits, strides, strict=True)
    ):
        dim, size = dims[i], t.outs[0].shape[i]
        if size == dim.size:
            parts[i] = (None, dim)
        elif size == 0:
            dims[i] = t.fixed(0, "takes nothing")
            parts[i] = (None, dims[i])
        elif is_fixed(dim) or not isinstance(dim.size, int):
            t.fix([dim], "takes a part")
            dims[i] = t.fixed(size, "takes a part of a fixed axis")
        elif stride != 1 and stride * size == dim.size:
            dims[i], which = t.equations.split(dim, (size, stride))
            t.fix([which], "takes one of every few entries")
            parts[i] = (None, dims[i])
        elif stride != 1:
            t.fix([dim], "takes every n-th entry")
            dims[i] = t.fixed(size, "takes a part of a fixed axis")
        else:
            parts[i] = _take_part(t, dim, start, limit)
            dims[i] = parts[i][1]
    t.note(parts)
    return [dims]


def _take_part(t: Tie, dim: Dim, start: int, limit: int) -> tuple[Dim | None, Dim]:
    """Cuts the dim in up to three; returns what is before `start`, and the part."""
    bounds = [0, start, limit, dim.size]
    sizes = [b - a for a, b in zip(bounds[:-1], bounds[1:], strict=True)]
    pieces = iter(t.equations.cut(dim, [size for size in sizes if size]))
    before, part, after = (next(pieces) if size else None for size in sizes)
    assert part is not None
    reason = t.equations.reason("slice: left out")
    t.equations.left_out += [(d, reason) for d in (before, after) if d is not None]
    t.equations.taken.append(part)
    return before, part


def _narrow_pad(n: Narrow, x: Any, value: Any) -> Any:
    config = list(n.params["padding_config"])
    for i, (low, high) in n.note.items():
        config[i] = (n.width(low), n.width(high), 0)
    return n.bind(x, value, padding_config=tuple(config))


@rule("pad", narrow=_narrow_pad)
def tie_pad(t: Tie) -> Sequence[Dims]:
    """(a) -> (low + a + high); interior or negative padding fixes the axis."""
    dims = list(t.ins[0].dims)
    added = {}
    for i, (low, high, interior) in enumerate(t.params["padding_config"]):
        if low == high == interior == 0:
            continue
        dim, size = dims[i], t.outs[0].shape[i]
        if interior or low < 0 or high < 0 or is_fixed(dim):
            t.fix([dim], "padded")
            dims[i] = t.fixed(size, "padded")
        else:
            added[i] = Dim(int(low)), Dim(int(high))
            dims[i] = t.equations.concat([added[i][0], dim, added[i][1]])
    t.note(added)
    return [dims]


@rule("rev")
def tie_rev(t: Tie) -> Sequence[Dims]:
    """(a, b) -> (a, b): the axes that are reversed are fixed."""
    dims = t.ins[0].dims
    t.fix([dims[i] for i in t.params["dimensions"]], "reverses the order")
    return [dims]


def _narrow_iota(n: Narrow) -> Any:
    var, along = n.eqn.outvars[0], n.params["dimension"]
    axis = n.axes(var)[along]
    first = isinstance(axis, Unit) and not n.moved([var])
    if isinstance(axis, Whole) or first:
        return n.bind(shape=n.shape(var))
    # The numbers of the kept indices, not the first numbers.
    numbers = lax.iota(n.params["dtype"], n.params["shape"][along])
    numbers = slice_array(take(numbers, [axis], n.analysis.orders), [axis], n.widths)
    return lax.broadcast_in_dim(numbers, n.shape(var), (along,))


@rule("iota", narrow=_narrow_iota)
def tie_iota(t: Tie) -> Sequence[Value]:
    """-> (a, b): new axes; along a narrowing one, the numbers of the kept indices."""
    dims = tuple(Dim(size) for size in t.params["shape"])
    return [Value(dims)]


def _narrow_empty(n: Narrow) -> Any:
    return n.bind(shape=n.shape(n.eqn.outvars[0]))


@rule("empty", narrow=_narrow_empty)
def tie_empty(t: Tie) -> Sequence[Dims]:
    """-> (a, b): new axes."""
    return [[Dim(size) for size in t.params["shape"]]]


@rule("dim_as_value", "empty2")
def tie_number(t: Tie) -> Sequence[Dims]:
    """-> (): a number, such as a size that is free."""
    return [()]


def _narrow_tile(n: Narrow, x: Any) -> Any:
    return jnp.tile(x, n.params["reps"])


@rule("tile", narrow=_narrow_tile)
def tie_tile(t: Tie) -> Sequence[Dims]:
    """(a) -> (reps x a): every copy narrows, none is dropped."""
    dims = []
    for count, dim in zip(t.params["reps"], t.ins[0].dims, strict=True):
        copies = t.fixed(int(count), "the number of copies")
        dims.append(t.equations.product([copies, dim]))
    return [dims]
