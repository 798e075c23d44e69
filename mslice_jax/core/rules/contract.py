"""Contractions: dense layers, attention, convolutions."""

from collections.abc import Sequence
from typing import Any

from .base import Dim, Dims, Narrow, Tie, rule


@rule("dot_general")
def tie_dot(t: Tie) -> Sequence[Dims]:
    """(batch, a, k), (batch, b, k) -> (batch, a, b): contracted axes are equal."""
    lhs, rhs = (value.dims for value in t.ins)
    (lhs_k, rhs_k), (lhs_batch, rhs_batch) = t.params["dimension_numbers"]
    t.equate([lhs[i] for i in lhs_k], [rhs[i] for i in rhs_k])
    t.equate([lhs[i] for i in lhs_batch], [rhs[i] for i in rhs_batch])
    lhs_free, rhs_free = _free(lhs, lhs_k, lhs_batch), _free(rhs, rhs_k, rhs_batch)
    # Axes of one operand that are contracted together, or none of them, are the factors
    # of one axis (heads x head size): one of them narrows. The order is the kernel's.
    pairs = sorted(zip(rhs_k, lhs_k, strict=True))
    t.equations.products.append([lhs[i] for _, i in pairs])
    # An array that is contracted with a constant stays what it was: a kernel, say.
    for free, other in ((lhs_free, t.ins[1]), (rhs_free, t.ins[0])):
        if other.order is None or other.order.source is None:
            t.equations.products.append(free)
            t.equations.joint.append(free)
    return [[*(lhs[i] for i in lhs_batch), *lhs_free, *rhs_free]]


def _free(dims: Sequence[Dim], *taken: Sequence[int]) -> list[Dim]:
    """The axes that are neither contracted nor of the batch."""
    gone = {i for axes in taken for i in axes}
    return [dim for i, dim in enumerate(dims) if i not in gone]


@rule("ragged_dot_general")
def tie_ragged_dot(t: Tie) -> Sequence[Dims]:
    """rows (m, k), (groups, k, n) -> (m, n): as dot_general; rows, groups are fixed.

    Of a mixture of experts the features narrow. Each row goes to one expert, so none of
    the experts can be left out. In a backward pass the rows are contracted in groups.
    """
    numbers = t.params["ragged_dot_dimension_numbers"]
    lhs, rhs, sizes = (value.dims for value in t.ins)
    (lhs_k, rhs_k), (lhs_batch, rhs_batch) = numbers.dot_dimension_numbers
    text = "rows are assigned to groups at run time"
    t.fix([lhs[i] for i in numbers.lhs_ragged_dimensions], text)
    t.fix([rhs[i] for i in numbers.rhs_group_dimensions], text)
    t.fix(sizes, text)
    t.equate([lhs[i] for i in lhs_k], [rhs[i] for i in rhs_k])
    t.equate([lhs[i] for i in lhs_batch], [rhs[i] for i in rhs_batch])
    lhs_free = _free(lhs, lhs_k, lhs_batch)
    rhs_free = _free(rhs, rhs_k, rhs_batch, numbers.rhs_group_dimensions)
    outs = [*(lhs[i] for i in lhs_batch), *lhs_free, *rhs_free]
    if len(outs) < len(t.outs[0].shape):  # one result for each group of rows
        outs.insert(0, t.fixed(t.outs[0].shape[0], text))
    return [outs]


@rule("scaled_dot")
def tie_scaled_dot(t: Tie) -> Sequence[Dims]:
    """As dot_general, with a scale for each block of k: whole blocks stay or go."""
    lhs, rhs, *scales = (value.dims for value in t.ins)
    (lhs_k, rhs_k), (lhs_batch, rhs_batch) = t.params["dimension_numbers"]
    t.equate([lhs[i] for i in lhs_batch], [rhs[i] for i in rhs_batch])
    for dims, contracted, scale_dims in zip(
        (lhs, rhs), (lhs_k, rhs_k), scales, strict=True
    ):
        for i, (dim, blocks) in enumerate(zip(dims, scale_dims, strict=True)):
            if i in contracted:
                block = t.fixed(dim.size // blocks.size, "one scale for each block")
                t.equations.equate(dim, t.equations.product([blocks, block]))
            else:
                t.equations.equate(dim, blocks)
    t.equate([lhs[i] for i in lhs_k], [rhs[i] for i in rhs_k])
    lhs_free, rhs_free = _free(lhs, lhs_k, lhs_batch), _free(rhs, rhs_k, rhs_batch)
    return [[*(lhs[i] for i in lhs_batch), *lhs_free, *rhs_free]]


def groups_of_conv(n: Narrow) -> dict[str, Any]:
    """The parameter that is another one at this rate: how many groups there are."""
    if n.note is None:
        return {}
    count, outer = n.note
    return {count: n.width(outer)}


def _narrow_conv(n: Narrow, lhs: Any, rhs: Any) -> Any:
    return n.bind(lhs, rhs, **groups_of_conv(n))


@rule("conv_general_dilated", narrow=_narrow_conv)
def tie_conv(t: Tie) -> Sequence[Dims]:
    """(b, h, w, c), (kh, kw, c, o) -> (b, h', w', o); grouped: c = g x c', o = g x o'.

    Grouped (and depthwise) convolutions narrow by whole groups.
    """
    numbers, groups = t.params["dimension_numbers"], t.params["feature_group_count"]
    lhs, rhs = (value.dims for value in t.ins)
    lhs_b, lhs_c, *lhs_space = (lhs[i] for i in numbers.lhs_spec)
    rhs_o, rhs_c, *rhs_space = (rhs[i] for i in numbers.rhs_spec)
    t.fix([*lhs_space, *rhs_space], "a window slides over the axis")
    shape = t.outs[0].shape
    outs: list[Dim] = [t.fixed(size, "a window slides over the axis") for size in shape]
    batch_groups = t.params["batch_group_count"]
    if batch_groups > 1:  # each group of examples has its own filters
        t.equations.equate(lhs_c, rhs_c)
        outer, lhs_b = t.equations.split(
            lhs_b, (batch_groups, lhs_b.size // batch_groups)
        )
        filters = Dim(rhs_o.size // batch_groups)
        t.equations.equate(rhs_o, t.equations.product((outer, filters)))
        t.note(("batch_group_count", outer))
    elif groups == 1:
        t.equations.equate(lhs_c, rhs_c)
    else:
        outer, inner = t.equations.split(lhs_c, (groups, lhs_c.size // groups))
        t.equations.equate(inner, rhs_c)
        filters = Dim(rhs_o.size // groups)
        t.equations.equate(rhs_o, t.equations.product((outer, filters)))
        t.note(("feature_group_count", outer))
    outs[numbers.out_spec[0]], outs[numbers.out_spec[1]] = lhs_b, rhs_o
    return [outs]
