"""Reductions, windows, and what depends on the order of an axis."""

from collections.abc import Sequence
from typing import Any

from .base import Dim, Dims, Tie, Value, rule


def _remaining(dims: Sequence[Dim], axes: Sequence[int]) -> tuple[Dim, ...]:
    return tuple(dim for i, dim in enumerate(dims) if i not in axes)


@rule("reduce_sum")
def tie_sum(t: Tie) -> Sequence[Value]:
    """(a, b) -> (a)."""
    x, axes = t.ins[0], t.params["axes"]
    over = [x.dims[i] for i in axes]
    summed = tuple(repeat for repeat in x.repeats if repeat.dim in over)
    kept = tuple(repeat for repeat in x.repeats if repeat.dim not in over)
    return [Value(_remaining(x.dims, axes), kept, (*x.summed, *summed))]


@rule(
    "reduce_and",
    "reduce_max",
    "reduce_min",
    "reduce_or",
    "reduce_prod",
    "reduce_xor",
)
def tie_reduce(t: Tie) -> Sequence[Dims]:
    """(a, b) -> (a)."""
    return [_remaining(t.ins[0].dims, t.params["axes"])]


@rule("reduce")
def tie_general_reduce(t: Tie) -> Sequence[Dims]:
    """(a, b), ... , initial values -> (a), ..."""
    arrays = [value.dims for value in t.ins[: len(t.ins) // 2]]
    for other in arrays[1:]:
        t.equate(arrays[0], other)
    return [_remaining(dims, t.params["dimensions"]) for dims in arrays]


@rule("argmax", "argmin")
def tie_argmax(t: Tie) -> Sequence[Dims]:
    """(a, b) -> (a): the axis whose index is returned is fixed."""
    x, axes = t.ins[0], t.params["axes"]
    t.fix([x.dims[i] for i in axes], "returns an index along the axis")
    return [_remaining(x.dims, axes)]


_WINDOW = "a window slides over the axis"


def _slides(params: dict[str, Any]) -> list[bool]:
    """Over which axes a window of more than one entry slides, or slides in steps."""
    windows, strides = params["window_dimensions"], params["window_strides"]
    dilations = params.get("base_dilation", [1] * len(windows))
    return [
        bool(window != 1 or stride != 1 or low or high or dilation != 1)
        for window, stride, (low, high), dilation in zip(
            windows, strides, params["padding"], dilations, strict=True
        )
    ]


@rule(
    "reduce_window",
    "reduce_window_max",
    "reduce_window_min",
    "reduce_window_sum",
    "select_and_gather_add",
)
def tie_window(t: Tie) -> Sequence[Dims]:
    """(b, h, w, c) -> (b, h', w', c): axes with a window of more than 1 are fixed."""
    arrays = [value.dims for value in t.ins if value.dims]  # without initial values
    for other in arrays[1:]:
        t.equate(arrays[0], other)
    dims = list(arrays[0])
    for i, slides in enumerate(_slides(t.params)):
        if slides:
            t.fix([dims[i]], _WINDOW)
            dims[i] = t.fixed(t.outs[0].shape[i], _WINDOW)
    return [dims for _ in t.outs]


@rule("select_and_scatter", "select_and_scatter_add")
def tie_window_scatter(t: Tie) -> Sequence[Dims]:
    """(b, h', w', c), (b, h, w, c) -> (b, h, w, c): back through a window."""
    source, operand = (value.dims for value in t.ins[:2])
    if t.eqn.primitive.name == "select_and_scatter":
        source, operand = operand, source
    for i, slides in enumerate(_slides(t.params)):
        if slides:
            t.fix([source[i], operand[i]], _WINDOW)
        else:
            t.equations.equate(source[i], operand[i])
    return [operand]


@rule("cumlogsumexp", "cummax", "cummin", "cumprod", "cumsum")
def tie_cumulative(t: Tie) -> Sequence[Dims]:
    """(a, b) -> (a, b): the axis that is run along is fixed."""
    dims = t.ins[0].dims
    t.fix([dims[t.params["axis"]]], "depends on the order of the axis")
    return [dims]


@rule("sort")
def tie_sort(t: Tie) -> Sequence[Dims]:
    """(a, b), ... -> (a, b), ...: the sorted axis is fixed."""
    first, *others = [value.dims for value in t.ins]
    for other in others:
        t.equate(first, other)
    t.fix([first[t.params["dimension"]]], "sorts the axis")
    return [first for _ in t.outs]


@rule("top_k", "approx_top_k")
def tie_top_k(t: Tie) -> Sequence[Dims]:
    """(a, b) -> (a, k), (a, k): the searched axis is fixed."""
    dims = list(t.ins[0].dims)
    axis = t.params.get("axis", t.params.get("reduction_dimension", -1)) % len(dims)
    t.fix([dims[axis]], "takes the largest of the axis")
    dims[axis] = t.fixed(t.outs[0].shape[axis], "the largest of an axis")
    return [dims for _ in t.outs]


@rule("fft")
def tie_fft(t: Tie) -> Sequence[Dims]:
    """(a, n) -> (a, m): the transformed axes are fixed."""
    dims, count = list(t.ins[0].dims), len(t.params["fft_lengths"])
    text = "every entry depends on the whole axis"
    t.fix(dims[-count:], text)
    last = [t.fixed(size, text) for size in t.outs[0].shape[-count:]]
    return [[*dims[:-count], *last]]
