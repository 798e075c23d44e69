"""Counting the work of a program at a rate without compiling it.

Only contractions count (dense layers, convolutions, attention; not ragged or scaled
dots), a multiplication with an addition as 2: they are what widths are chosen for.
`mslice_jax.profile` gives XLA's own count of everything.
"""

import math
from collections.abc import Iterator
from typing import Any

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
                dims = [*out, *(kernel[i] for i in numbers.rhs_spec[1:])]
                yield times, list(analysis.axes(dims))
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


def _work(found: list[tuple[int, list[Axis]]]) -> float:
    return sum(times * _product(axes, FULL) for times, axes in found)


def _product(axes: list[Axis], widths: Widths) -> Any:
    """The number of multiplications; an axis of free size (the batch) counts as 1."""
    sizes = [width(axis, widths) for axis in axes]
    return math.prod(size for size in sizes if isinstance(size, int))
