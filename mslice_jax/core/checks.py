"""Does it fit? The errors of plans and calls.

Each says what was expected, what came, and what to do.
"""

import contextlib
import difflib
import inspect
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import jax

from .call import Call, is_array
from .definition import Definition
from .errors import PlanError
from .plan import WidthPlan
from .rules import NO_RULE_TEXT


def nothing_narrows(plan: WidthPlan) -> str:
    """What upgrade says where no axis can narrow, with the reasons."""
    reasons = dict.fromkeys(
        f"  {f.path}:{f.axis} ({f.size}): {f.reason}" for f in plan.fixed
    )
    listed = list(reasons)[:8] or [
        "  there are no parameters with an axis longer than 1"
    ]
    return (
        "nothing in this network can narrow. Expected at least one axis of a parameter "
        "that is tied neither to an input nor to an output; every axis is fixed:\n"
        + "\n".join(listed)
        + "\nA single layer has no hidden units; or slice only a part of the network."
    )


def check_exact(plan: WidthPlan) -> None:
    """Raises PlanError if a group cannot keep exactly its share at a declared rate."""
    inexact = plan.inexact()
    if inexact:
        lines = []
        for name, rate, got in inexact[:8]:
            group = plan.groups[name]
            lines.append(
                f"  {name}: {group.size / group.unit:g} units of {group.unit}, so rate "
                f"{rate:g} keeps {got} of {group.size} indices, not "
                f"{rate * group.size:g}"
            )
        raise PlanError(
            "strict=True asks that every group of axes keeps exactly its rate, but\n"
            + "\n".join(lines)
            + "\nChoose rates or `groups` that the sizes can honour, or pass "
            "strict=False to accept the rounding."
        )


def check_shards(plan: WidthPlan, shards: int) -> None:
    """Raises PlanError if a group is not split over the shards."""
    left = plan.not_split_over(shards)
    if left:
        lines = [f"  {name}: {plan.groups[name].size} units" for name in left[:8]]
        raise PlanError(
            f"strict=True asks that shards={shards} splits every group of axes into "
            "parts of two units or more, but\n"
            + "\n".join(lines)
            + "\nChoose fewer shards, or pass strict=False: these narrow to a prefix, "
            "which moves data between devices."
        )


def check_rules(plan: WidthPlan) -> None:
    """Raises PlanError if a primitive without a rule fixed an axis of a parameter."""
    missing = [f for f in plan.fixed if NO_RULE_TEXT in f.reason.text]
    if missing:
        lines = [f"  {f.path}:{f.axis} ({f.size}): {f.reason}" for f in missing[:8]]
        raise PlanError(
            "strict=True asks for a rule for each primitive that parameters meet, but\n"
            + "\n".join(lines)
            + "\nPass strict=False to keep these axes whole."
        )


_UNEXPECTED = re.compile(r"unexpected keyword argument '(\w+)'")


def check_keywords(
    called: Callable[[Mapping[str, Any]], Any],
    call: Call,
    arrays: Sequence[Any],
    cause: Exception,
    options: Iterable[str] = (),
) -> None:
    """Raises TypeError if a call failed for a keyword that the model does not take.

    It tells the close matches among the keywords of what is `called` with them,
    and among `options`, the keywords that are not passed on to it.
    """
    found = _UNEXPECTED.search(str(cause)) if isinstance(cause, TypeError) else None
    _, kwargs = call.join(arrays)
    if found is None or found[1] not in kwargs:
        return
    name, known = found[1], [*options]
    with contextlib.suppress(TypeError, ValueError, AttributeError):
        known += inspect.signature(called(kwargs)).parameters
    close = difflib.get_close_matches(name, [k for k in known if k != "self"], n=4)
    matches = f" Close matches: {', '.join(map(repr, close))}." if close else ""
    also = f", nor has upgrade such an option ({', '.join(options)})" if options else ""
    raise TypeError(f"the model takes no keyword {name!r}{also}.{matches}") from cause


def check_ranks(definition: Definition, call: Call, arrays: Sequence[Any]) -> None:
    """Raises ValueError if an input has another rank than the one `upgrade` saw."""
    seen_args, seen_kwargs = definition.call.join(definition.arrays)
    args, kwargs = call.join(arrays)
    pairs: dict[int | str, Any] = dict(enumerate(zip(seen_args, args, strict=False)))
    pairs |= {k: (seen_kwargs[k], x) for k, x in kwargs.items() if k in seen_kwargs}
    for name, (seen, given) in pairs.items():
        if is_array(seen) and is_array(given) and len(seen.shape) != len(given.shape):
            raise ValueError(
                f"input {name} has rank {len(given.shape)} (shape "
                f"{tuple(given.shape)}); `upgrade` saw rank {len(seen.shape)} (shape "
                f"{tuple(seen.shape)}). Pass inputs of that rank, or upgrade with the "
                "new one."
            )


def check_shapes(
    definition: Definition, call: Call, arrays: Sequence[Any], cause: Exception
) -> None:
    """Raises ValueError if a call failed that had other shapes than `upgrade` saw."""
    first = definition.call
    given = _inputs(call, arrays, first.keywords)
    seen = _inputs(first, definition.arrays, call.keywords)
    if given != seen:
        raise ValueError(
            f"the call failed with inputs of shape {_listed(given)}, where `upgrade` "
            f"saw {_listed(seen)}. The reason: {cause}"
        ) from cause


def _inputs(
    call: Call, arrays: Sequence[Any], keywords: Collection[str]
) -> tuple[Any, ...]:
    """The inputs with shapes for arrays; of these keywords those that are arrays."""
    args, kwargs = call.join(arrays)
    named = [x for k, x in kwargs.items() if k in keywords and is_array(x)]
    return jax.tree.map(lambda x: x.shape if is_array(x) else x, (*args, *named))


def _listed(shapes: Sequence[Any]) -> str:
    return ", ".join(map(str, shapes))
