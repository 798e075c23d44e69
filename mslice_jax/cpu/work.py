"""How much of a program's work is in convolutions, and in loops with weights.

Work is what contractions multiply. A loop counts by its length, or once where nobody
knows that; of the branches of a `cond` the one with the most work counts.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from jax.extend import core

from ..core.rules.loops import counts_of_scan

SCOPE = "mslice_jax.fast"
"""The named scope of what is computed in another form: its products count as that."""


@dataclass(frozen=True, slots=True)
class Work:
    """Multiplications of a program: in what has a fast form, and in all contractions.

    Convolutions have one, and products of a loop with a weight, which is the same at
    every turn.
    """

    fast: float = 0.0
    total: float = 0.0

    def __add__(self, other: "Work") -> "Work":
        return Work(self.fast + other.fast, self.total + other.total)

    def __rmul__(self, times: int) -> "Work":
        return Work(times * self.fast, times * self.total)


def share(program: Any) -> float:
    """The part of a jaxpr's work that has a fast form; 0 where there is none."""
    work = _Reading().of(program, None)
    return work.fast / work.total if work.fast else 0.0


def of_equation(eqn: Any) -> Work:
    """The work of one equation, which stands outside of loops."""
    return _Reading().of_eqn(eqn, None)


def has(program: Any, name: str) -> bool:
    """Whether a jaxpr has an equation of this primitive, in what it calls, too."""
    return _has(program, name, set())


def _has(program: Any, name: str, seen: set[int]) -> bool:
    jaxpr = getattr(program, "jaxpr", program)
    if id(jaxpr) in seen:
        return False
    seen.add(id(jaxpr))
    return any(
        eqn.primitive.name == name
        or any(_has(called, name, seen) for called in _called(eqn.params))
        for eqn in jaxpr.eqns
    )


class _Reading:
    """Reads a jaxpr once for each set of inputs that are the same at every turn."""

    def __init__(self) -> None:
        self._known: dict[Any, Work] = {}

    def of(self, program: Any, fixed: tuple[bool, ...] | None) -> Work:
        """The work of a jaxpr.

        Args:
          program: open or closed.
          fixed: which inputs are the same at every turn of the loop that it is in; None
            outside of loops.
        """
        jaxpr = getattr(program, "jaxpr", program)
        key = id(jaxpr), fixed
        if key not in self._known:
            same = None
            if fixed is not None:
                same = {
                    v
                    for v, is_fixed in zip(jaxpr.invars, fixed, strict=True)
                    if is_fixed
                }
                same.update(jaxpr.constvars)
            self._known[key] = sum((self.of_eqn(e, same) for e in jaxpr.eqns), Work())
        return self._known[key]

    def of_eqn(self, eqn: Any, same: set[Any] | None) -> Work:
        """Of an equation; `same` gets its results, if it reads nothing else."""
        fixed = None
        if same is not None:
            fixed = tuple(isinstance(v, core.Literal) or v in same for v in eqn.invars)
            if all(fixed):
                same.update(eqn.outvars)
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
                size = _size(out) * _size(lhs[i] for i in summed)
                work = Work(size if fixed and any(fixed) else 0.0, size)
            case "cond":
                branch = None if fixed is None else fixed[1:]
                parts = [self.of(each, branch) for each in _called(params)]
                work = max(parts, key=lambda part: part.total)
            case "scan":
                consts, _ = counts_of_scan(params)
                (body,) = _called(params)
                turn = tuple(at < consts for at in range(len(eqn.invars)))
                work = params["length"] * self.of(body, turn)
            case "while":
                work = sum((self.of(each, None) for each in _called(params)), Work())
            case _:
                parts = (
                    self.of(each, self._as(each, fixed)) for each in _called(params)
                )
                work = sum(parts, Work())
        if work.total and SCOPE in str(eqn.source_info.name_stack):
            return Work(work.total, work.total)
        return work

    @staticmethod
    def _as(called: Any, fixed: tuple[bool, ...] | None) -> tuple[bool, ...] | None:
        """Of the operands of a call; where they are not those of the equation, None."""
        count = len(getattr(called, "jaxpr", called).invars)
        return fixed if fixed is not None and len(fixed) == count else None


def _called(params: dict[str, Any]) -> Iterator[Any]:
    for value in params.values():
        parts = value if isinstance(value, (tuple, list)) else [value]
        yield from (x for x in parts if isinstance(x, (core.Jaxpr, core.ClosedJaxpr)))


def _size(shape: Iterable[Any]) -> int:
    """How many entries; an axis of free size (the batch) counts as 1."""
    return math.prod(n for n in shape if isinstance(n, int))
