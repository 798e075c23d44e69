"""Looking up, cutting out and writing in at positions known only at run time.

A window as long as the axis has one place to be, its start: there it reads, and writes,
all that is kept. A start that lies elsewhere is clamped to it, or the window is left
out, at any width alike.
"""

from collections.abc import Sequence
from typing import Any

from .base import Dims, Narrow, Tie, rule


def _narrow_sizes(n: Narrow, operand: Any, *where: Any) -> Any:
    sizes = list(n.params["slice_sizes"])
    for i, dim in n.note.items():
        sizes[i] = n.width(dim)
    return n.bind(operand, *where, slice_sizes=tuple(sizes))


@rule("gather", narrow=_narrow_sizes)
def tie_gather(t: Tie) -> Sequence[Dims]:
    """table (v, d) at indices (b, t, 1) -> (b, t, d): looked-up axes are fixed.

    Axes that are taken whole pass through, also where an index says from where.
    """
    numbers = t.params["dimension_numbers"]
    operand, indices = (value.dims for value in t.ins)
    t.fix(indices[-1:], "holds the coordinates of a look-up")
    positions = list(indices[:-1])
    outs: list[Any] = [None] * len(t.outs[0].shape)
    rest = [i for i in range(len(outs)) if i not in numbers.offset_dims]
    for target, dim in zip(rest, positions, strict=True):
        outs[target] = dim
    offsets = iter(numbers.offset_dims)
    whole = {}
    for i, (dim, taken) in enumerate(
        zip(operand, t.params["slice_sizes"], strict=True)
    ):
        if i in numbers.operand_batching_dims:
            at = numbers.operand_batching_dims.index(i)
            batch = numbers.start_indices_batching_dims[at]
            t.equations.equate(dim, indices[batch])
        elif i in numbers.collapsed_slice_dims:
            t.fix([dim], "looked up by an index")
        elif taken == dim.size:
            outs[next(offsets)] = whole[i] = dim
        else:
            t.fix([dim], "looked up by an index")
            outs[next(offsets)] = t.fixed(taken, "looked up by an index")
    t.note(whole)
    return [outs]


@rule(
    "scatter", "scatter-add", "scatter-max", "scatter-min", "scatter-mul", "scatter-sub"
)
def tie_scatter(t: Tie) -> Sequence[Dims]:
    """table (v, d), indices (b, 1), updates (b, d) -> (v, d): fixed where indexed.

    Axes that are written whole pass through.
    """
    numbers = t.params["dimension_numbers"]
    operand, indices, updates = (value.dims for value in t.ins)
    t.fix(indices[-1:], "holds the coordinates of a write")
    rest = [i for i in range(len(updates)) if i not in numbers.update_window_dims]
    t.equate([updates[i] for i in rest], indices[:-1])
    windows = iter(numbers.update_window_dims)
    for i, dim in enumerate(operand):
        if i in numbers.operand_batching_dims:
            at = numbers.operand_batching_dims.index(i)
            batch = numbers.scatter_indices_batching_dims[at]
            t.equations.equate(dim, indices[batch])
            continue
        if i in numbers.inserted_window_dims:
            t.fix([dim], "written at an index")
            continue
        update = updates[next(windows)]
        if update.size == dim.size:
            t.equations.equate(dim, update)
        else:
            t.fix([dim, update], "written at an index")
    return [operand]


@rule("dynamic_slice", narrow=_narrow_sizes)
def tie_dynamic_slice(t: Tie) -> Sequence[Dims]:
    """(a, b) -> (part of a, b): axes that are not taken whole are fixed."""
    dims, whole = list(t.ins[0].dims), {}
    for i, size in enumerate(t.params["slice_sizes"]):
        if size == dims[i].size:
            whole[i] = dims[i]
        else:
            t.fix([dims[i]], "a part starts at an index")
            dims[i] = t.fixed(size, "a part starts at an index")
    t.note(whole)
    return [dims]


@rule("dynamic_update_slice")
def tie_dynamic_update_slice(t: Tie) -> Sequence[Dims]:
    """(a, b), update (part of a, b) -> (a, b): partly written axes are fixed."""
    operand, update = t.ins[0].dims, t.ins[1].dims
    for dim, part in zip(operand, update, strict=True):
        if dim.size == part.size:
            t.equations.equate(dim, part)
        else:
            t.fix([dim, part], "a part is written at an index")
    return [operand]
