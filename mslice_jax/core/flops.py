"""Counting the work of a program at a rate without compiling it.

Only contractions count (dense layers, convolutions, attention; not ragged or scaled
dots), a multiplication with an addition as 2: they are what widths are chosen for. The
zeros that a transposed convolution puts between the entries of its input do not count;
those of padding do, as in most counts that are published. `mslice_jax.profile` counts
everything else as well.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.extend import core

from .analysis import Analysis
from .axes import FULL, Axis, Widths, groups_in, width
from .rules import Frame
from .rules.folding import is_folded


def flops(analysis: Analysis, widths: Widths = FULL) -> float:
    """Floating-point operations of all contractions at these widths."""
    return sum(
        times * 2 * _product(axes, widths)
        for times, axes in contractions(analysis, analysis.frame)
    )


def elastic_share(analysis: Analysis) -> float:
    """The share of full-width operations that run over some axis which narrows."""
    total = elastic = 0.0
    for times, axes in contractions(analysis, analysis.frame):
        work = times * _product(axes, FULL)
        total += work
        if any(groups_in(axis) for axis in axes):
            elastic += work
    return elastic / total if total else 0.0


def contractions(
    analysis: Analysis, frame: Frame, times: int = 1
) -> Iterator[tuple[int, list[Axis]]]:
    """How often each contraction runs, and the axes that it loops over.

    A loop whose length is only known at run time counts once; of the branches of a
    `cond` the one with the most work counts.
    """
    for index, eqn in enumerate(frame.jaxpr.eqns):
        if is_folded(frame, index):
            continue  # a constant, made once
        params = eqn.params
        match eqn.primitive.name:
            case "dot_general":
                (lhs_k, _), _ = params["dimension_numbers"]
                out = frame.value(eqn.outvars[0]).dims
                lhs = frame.value(eqn.invars[0]).dims
                dims = [*out, *(lhs[i] for i in lhs_k)]
                yield times, list(analysis.axes(dims))
            case "conv_general_dilated":
                numbers = params["dimension_numbers"]
                out = frame.value(eqn.outvars[0]).dims
                kernel = frame.value(eqn.invars[1]).dims
                fixed, products = _with_holes(eqn)
                dims = [
                    *(d for i, d in enumerate(out) if i not in fixed),
                    kernel[numbers.rhs_spec[1]],
                    *(kernel[k] for o, k in _spatial(eqn) if o not in fixed),
                ]
                yield times * products, list(analysis.axes(dims))
            case "cond":
                branches = [
                    list(contractions(analysis, child, times))
                    for child in frame.children[index]
                ]
                yield from max(branches, key=_work)
            case name:
                inner = times * params["length"] if name == "scan" else times
                for child in frame.children.get(index, ()):
                    yield from contractions(analysis, child, inner)


def further_turns(program: Any, count: Callable[[Any, Any], float]) -> float:
    """What loops add to a count that has the body of each once.

    A loop whose length is only known at run time stays at one turn; of the branches of
    a `cond` the one that adds the most counts.

    Args:
      program: a jaxpr, closed or not.
      count: (function, types of its arguments) -> what one turn of it counts.
    """
    total = 0.0
    for eqn in getattr(program, "jaxpr", program).eqns:
        params = jax.tree.leaves(list(eqn.params.values()), is_leaf=_is_jaxpr)
        inner = [x for x in params if _is_jaxpr(x)]
        added = [further_turns(each, count) for each in inner]
        match eqn.primitive.name:
            case "cond":
                total += max(added)
            case "scan":
                (body,), (more,), length = inner, added, eqn.params["length"]
                types = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in body.in_avals]
                once = count(core.jaxpr_as_fun(body), types)
                total += (length - 1) * once + length * more
            case _:
                total += sum(added)
    return total


def _is_jaxpr(x: Any) -> bool:
    return isinstance(x, (core.Jaxpr, core.ClosedJaxpr))


def _spatial(eqn: Any) -> list[tuple[int, int]]:
    """The spatial axes of a convolution: of its output, and of its kernel."""
    numbers = eqn.params["dimension_numbers"]
    return list(zip(numbers.out_spec[2:], numbers.rhs_spec[2:], strict=True))


def _with_holes(eqn: Any) -> tuple[set[int], int]:
    """What is counted entry by entry: a transposed convolution, whose input has holes.

    Returns:
      The spatial axes of its output, and how often along these an entry of the kernel
      meets one of the input; of other convolutions none, and 1.
    """
    params, fixed, products = eqn.params, set(), 1
    ins, out, kernel = (
        var.aval.shape for var in (*eqn.invars[:1], *eqn.outvars, eqn.invars[1])
    )
    for i, (o, k) in enumerate(_spatial(eqn)):
        holes = params["lhs_dilation"][i]
        size = ins[params["dimension_numbers"].lhs_spec[2:][i]]
        if max(params["lhs_dilation"]) == 1 or not isinstance(size, int):
            continue
        places = (
            np.arange(out[o])[:, None] * params["window_strides"][i]
            + np.arange(kernel[k]) * params["rhs_dilation"][i]
            - params["padding"][i][0]
        )
        meets = (places % holes == 0) & (places >= 0) & (places <= holes * (size - 1))
        fixed.add(o)
        products *= int(meets.sum())
    return fixed, products


def _work(found: list[tuple[int, list[Axis]]]) -> float:
    return sum(times * _product(axes, FULL) for times, axes in found)


def _product(axes: list[Axis], widths: Widths) -> Any:
    """The number of multiplications; an axis of free size (the batch) counts as 1."""
    sizes = [width(axis, widths) for axis in axes]
    return math.prod(size for size in sizes if isinstance(size, int))
