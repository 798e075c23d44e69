"""How much of a program's work is in convolutions.

Work is what contractions multiply. A loop counts by its length, or once where nobody
knows that; of the branches of a `cond` the one with the most work counts.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from jax.extend import core

SCOPE = "mslice_jax.convolution"
"""The named scope of what is computed for a convolution, products of matrices too."""


@dataclass(frozen=True, slots=True)
class Work:
    """Multiplications of a program: in convolutions, and in all contractions."""

    convolutions: float = 0.0
    total: float = 0.0

    def __add__(self, other: "Work") -> "Work":
        return Work(self.convolutions + other.convolutions, self.total + other.total)

    def __rmul__(self, times: int) -> "Work":
        return Work(times * self.convolutions, times * self.total)


def share(program: Any) -> float:
    """The part of a jaxpr's work that is in convolutions; 0 where there is none."""
    work = _of(program, {})
    return work.convolutions / work.total if work.convolutions else 0.0


def _of(program: Any, known: dict[int, Work]) -> Work:
    jaxpr = getattr(program, "jaxpr", program)
    if id(jaxpr) not in known:
        known[id(jaxpr)] = sum((_of_eqn(eqn, known) for eqn in jaxpr.eqns), Work())
    return known[id(jaxpr)]


def _of_eqn(eqn: Any, known: dict[int, Work]) -> Work:
    params = eqn.params
    match eqn.primitive.name:
        case "conv_general_dilated":
            kernel, out = eqn.invars[1].aval.shape, eqn.outvars[0].aval.shape
            _, *summed = params["dimension_numbers"].rhs_spec
            size = _size(out) * _size(kernel[i] for i in summed)
            return Work(size, size)
        case "dot_general":
            (summed, _), _ = params["dimension_numbers"]
            lhs, out = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
            work = Work(0.0, _size(out) * _size(lhs[i] for i in summed))
        case "cond":
            parts = [_of(each, known) for each in _called(params)]
            work = max(parts, key=lambda part: part.total)
        case name:
            parts = (_of(each, known) for each in _called(params))
            work = (params["length"] if name == "scan" else 1) * sum(parts, Work())
    if work.total and SCOPE in str(eqn.source_info.name_stack):
        return Work(work.total, work.total)
    return work


def _called(params: dict[str, Any]) -> Iterator[Any]:
    for value in params.values():
        parts = value if isinstance(value, (tuple, list)) else [value]
        yield from (x for x in parts if isinstance(x, (core.Jaxpr, core.ClosedJaxpr)))


def _size(shape: Iterable[Any]) -> int:
    """How many entries; an axis of free size (the batch) counts as 1."""
    return math.prod(n for n in shape if isinstance(n, int))
