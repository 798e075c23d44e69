"""Counting the work of a program at a rate without compiling it.

Only contractions count (dense layers, convolutions, attention; not ragged or scaled
dots), a multiplication with an addition as 2: they are what widths are chosen for. The
zeros that a transposed convolution puts between the entries of its input do not count;
those of padding do, as in most counts that are published. `operations` counts
everything else as well, for `mslice_jax.profile`.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from .analysis import Analysis
from .axes import FULL, Axis, Widths, groups_in, width
from .rules import Frame
from .rules.folding import is_folded


def flops(analysis: Analysis, widths: Widths = FULL) -> float:
    """Floating-point operations of all contractions at these widths."""
    return sum(
        times * 2 * product(axes, widths)
        for times, axes in contractions(analysis, analysis.frame)
    )


def elastic_share(analysis: Analysis) -> float:
    """The share of full-width operations that run over some axis which narrows."""
    total = elastic = 0.0
    for times, axes in contractions(analysis, analysis.frame):
        work = times * product(axes, FULL)
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
        name = eqn.primitive.name
        if (found := contraction(analysis, frame, index)) is not None:
            products, axes = found
            yield times * products, axes
        elif name == "cond":
            branches = [
                list(contractions(analysis, child, times))
                for child in frame.children[index]
            ]
            yield from max(branches, key=_work)
        else:
            inner = times * eqn.params["length"] if name == "scan" else times
            for child in frame.children.get(index, ()):
                yield from contractions(analysis, child, inner)


def contraction(
    analysis: Analysis, frame: Frame, index: int, *, padding: bool = True
) -> tuple[int, list[Axis]] | None:
    """What a contraction multiplies; None for any other equation.

    Args:
      analysis: of the program.
      frame: the jaxpr that the equation is in.
      index: of the equation.
      padding: whether products with the zeros of a convolution's padding count.

    Returns:
      A factor and axes: the factor times the sizes of the axes is the number of
      multiplications.
    """
    eqn = frame.jaxpr.eqns[index]
    match eqn.primitive.name:
        case "dot_general":
            (lhs_k, _), _ = eqn.params["dimension_numbers"]
            out = frame.value(eqn.outvars[0]).dims
            lhs = frame.value(eqn.invars[0]).dims
            return 1, list(analysis.axes([*out, *(lhs[i] for i in lhs_k)]))
        case "conv_general_dilated":
            numbers = eqn.params["dimension_numbers"]
            out = frame.value(eqn.outvars[0]).dims
            kernel = frame.value(eqn.invars[1]).dims
            counted, products = _met(eqn, padding)
            dims = [
                *(d for i, d in enumerate(out) if i not in counted),
                kernel[numbers.rhs_spec[1]],
                *(kernel[k] for o, k in _spatial(eqn) if o not in counted),
            ]
            return products, list(analysis.axes(dims))
    return None


def _spatial(eqn: Any) -> list[tuple[int, int]]:
    """The spatial axes of a convolution: of its output, and of its kernel."""
    numbers = eqn.params["dimension_numbers"]
    return list(zip(numbers.out_spec[2:], numbers.rhs_spec[2:], strict=True))


def _met(eqn: Any, padding: bool) -> tuple[set[int], int]:
    """What is counted entry by entry: a transposed convolution, whose input has holes.

    Without the zeros of padding every convolution is.

    Returns:
      The spatial axes of its output, and how often along these an entry of the kernel
      meets one of the input; of other convolutions none, and 1.
    """
    params, counted, products = eqn.params, set(), 1
    ins, out, kernel = (
        var.aval.shape for var in (*eqn.invars[:1], *eqn.outvars, eqn.invars[1])
    )
    for i, (o, k) in enumerate(_spatial(eqn)):
        holes = params["lhs_dilation"][i]
        size = ins[params["dimension_numbers"].lhs_spec[2:][i]]
        whole = padding and max(params["lhs_dilation"]) == 1
        if whole or not isinstance(size, int):
            continue
        places = (
            np.arange(out[o])[:, None] * params["window_strides"][i]
            + np.arange(kernel[k]) * params["rhs_dilation"][i]
            - params["padding"][i][0]
        )
        meets = (places % holes == 0) & (places >= 0) & (places <= holes * (size - 1))
        counted.add(o)
        products *= int(meets.sum())
    return counted, products


def _work(found: list[tuple[int, list[Axis]]]) -> float:
    return sum(times * product(axes, FULL) for times, axes in found)


def product(axes: list[Axis], widths: Widths) -> Any:
    """The number of multiplications; an axis of free size (the batch) counts as 1."""
    sizes = [width(axis, widths) for axis in axes]
    return math.prod(size for size in sizes if isinstance(size, int))
