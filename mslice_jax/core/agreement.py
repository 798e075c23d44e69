"""The ninth proof, at `upgrade`: the function's own program at every declared rate.

Where the function itself runs on narrow arrays, what it traces to there is held
against the narrow program, and decides which numbers follow the width (`counts.own`).
Nothing is compiled. Numbers that remain open are reported: see `counts.decisions`.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax

from .analysis import Analysis
from .axes import width
from .call import Call, plain_type
from .counts import (
    Counts,
    Different,
    Incomparable,
    Number,
    NumberWarning,
    Own,
    Place,
    Use,
    describe,
    held,
    inputs_changed,
    lines,
    unmatched,
    warning,
)
from .errors import PlanError
from .function import Function
from .growth import narrows
from .patterns import no_match
from .plan import WidthPlan
from .settings import Settings
from .tracing import own_program, trace


@dataclass(frozen=True, slots=True)
class Agreement:
    """Whether the function's own program at narrow shapes is the narrow program.

    Attributes:
      comparable: it has one at every declared rate, and they are the same.
      reason: why it was not compared; '' where it was.
      numbers: those of the program that are a power of a size that narrows.
      of_inputs: numbers that are sizes of inputs, whatever else they look like.
    """

    comparable: bool = False
    reason: str = "not asked for (check=False)"
    numbers: tuple[Number, ...] = ()
    of_inputs: frozenset[Place] = frozenset()

    def __str__(self) -> str:
        return "the same" if self.comparable else f"not comparable: {self.reason}"


def agree(
    function: Function,
    plan: WidthPlan,
    settings: Settings,
    analysis: Analysis,
    call: Call,
    variables: Any,
    arrays: Sequence[Any],
) -> Agreement:
    """Compares the programs, and says which numbers are open.

    Args:
      function, plan, settings: of the network.
      analysis: its program, which made the plan.
      call, variables, arrays: the call that it was traced from.

    Raises:
      PlanError: if the function has another program at narrow shapes, a pattern of
        `follow` or `stay` names no line, or, under `strict`, a number is open.
    """
    analysis.asked = settings.asked
    known = lines(analysis.counts)
    # The lines of a backward pass are known once it is traced.
    later = analysis.counts.has_backward
    for argument in () if later else ("follow", "stay"):
        missing = unmatched(getattr(settings.asked, argument), known)
        if missing:
            raise PlanError(no_match(missing[0], known, argument))
    owns: list[Own] = []
    reason = "" if settings.check else Agreement().reason
    full = {name: group.size for name, group in plan.groups.items()}
    for rate in settings.rates if settings.check else ():
        widths = plan.widths(rate)
        if widths == full:
            continue
        try:
            # The norms that the program reads are those of the widest rate.
            own = own_program(
                function, plan, settings.rates[-1], call, variables, arrays, widths
            )
            owns.append(analysis.paired(own, widths))
        except Incomparable as error:
            reason, owns = str(error), []
            break
        except Different as error:
            raise PlanError(
                f"at rate {rate:g} the function's own program on narrow arrays is "
                f"another one than the narrow program: {error}. Expected the same "
                "equations at narrow shapes. If the function is meant to do something "
                "else at another width, pass check=False; otherwise please report it."
            ) from None
    of_inputs = _of_inputs(function, settings, analysis, call, variables, arrays, owns)
    numbers = describe(analysis.counts, owns, of_inputs)
    text = warning(numbers)
    if text and settings.strict:
        raise PlanError(f"strict=True asks that no number is left open, but {text}")
    if text:
        warnings.warn(text, NumberWarning, stacklevel=4)
    return Agreement(not reason, reason, numbers, frozenset(of_inputs))


def _of_inputs(
    function: Function,
    settings: Settings,
    analysis: Analysis,
    call: Call,
    variables: Any,
    arrays: Sequence[Any],
    owns: Sequence[Own],
) -> dict[Place, bool]:
    """Numbers that count, though the own program keeps them: sizes of inputs?

    A batch may be as large as a layer is wide. Traced with inputs of another size, the
    program has another number then.

    Returns:
      Those that are one (True), or may be (False).
    """
    counts = analysis.counts
    found: dict[Place, bool] = {}
    uses = [o for use in held(counts, owns) for o in counts.others.get(use, (use,))]
    for use in uses if owns else ():
        seen = counts.seen.get(use)
        size = seen.size if seen is not None else round(abs(counts.values[use]))
        if not any(size in x.shape for x in arrays):
            continue
        try:
            other = trace(
                function,
                settings.rates[-1],
                call,
                variables,
                [_resized(x, size) for x in arrays],
            )
            own = inputs_changed(analysis.frame, other.closed, analysis.axes)
        except Exception:  # other inputs do not fit: nothing can be told
            found[counts.place(use)] = False
            continue
        if not own.follows(counts.frames[use.frame], use.index, use.operand):
            continue
        after = own.operands.get((use.frame, use.index), {}).get(use.operand)
        if after is None or not _only_fixed(counts, use, after, size):
            found[counts.place(use)] = True
    return found


def _only_fixed(counts: Counts, use: Use, after: Any, size: Any) -> bool:
    """Whether a number changes with the inputs as its axes that never narrow do.

    The rest of it is then a size that the function holds: rows times units.
    """
    follow = counts.follows.get(use)
    if follow is None:
        return False
    fixed = [e for axis, e in follow.axes if not narrows(axis) and width(axis) == size]
    wanted = ((size + 1) / size) ** sum(fixed)
    return bool(fixed) and math.isclose(float(after) / counts.values[use], wanted)


def _resized(x: Any, size: int) -> jax.ShapeDtypeStruct:
    """The type of an input, one larger along all axes of a size."""
    plain = plain_type(x)
    shape = tuple(n + 1 if n == size else n for n in plain.shape)
    return jax.ShapeDtypeStruct(shape, plain.dtype, weak_type=plain.weak_type)
