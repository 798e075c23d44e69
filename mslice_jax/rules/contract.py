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
    lhs_free = [d for i, d in enumerate(lhs) if i not in (*lhs_k, *lhs_batch)]
    rhs_free = [d for i, d in enumerate(rhs) if i not in (*rhs_k, *rhs_batch)]
    # Axes of one operand that are contracted together, or none of them, are the factors
    # of one axis (heads x head size): one of them narrows. The order is the kernel's.
    pairs = sorted(zip(rhs_k, lhs_k, strict=True))
    t.equations.products += [[lhs[i] for _, i in pairs], lhs_free, rhs_free]
    return [[*(lhs[i] for i in lhs_batch), *lhs_free, *rhs_free]]


def _narrow_conv(n: Narrow, lhs: Any, rhs: Any) -> Any:
    groups = n.params["feature_group_count"]
    if n.note is not None:
        groups = n.width(n.note)
    return n.bind(lhs, rhs, feature_group_count=groups)


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
    if t.params["batch_group_count"] > 1:
        t.fix([lhs_b, lhs_c, rhs_o, rhs_c], "the batch is in groups")
        return [outs]
    if groups == 1:
        t.equations.equate(lhs_c, rhs_c)
    else:
        outer, inner = t.equations.split(lhs_c, (groups, lhs_c.size // groups))
        t.equations.equate(inner, rhs_c)
        filters = Dim(rhs_o.size // groups)
        t.equations.equate(rhs_o, t.equations.product((outer, filters)))
        t.note(outer)
    outs[numbers.out_spec[0]], outs[numbers.out_spec[1]] = lhs_b, rhs_o
    return [outs]
