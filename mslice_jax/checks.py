"""Does it fit? The errors of upgrade and slice_apply, and what they compare.

Each says what was expected, what came, and what to do. Comparing costs a trace of
`module.init`, so it is done only when something already failed or looks wrong.
"""

import contextlib
import difflib
import inspect
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
from flax import nnx

from .adapters.linen_fit import misfits
from .core.analysis import Parameter, PlanError
from .core.patterns import matches, no_match
from .core.plan import WidthPlan
from .core.program import Call, Definition, Settings, is_array
from .core.rates import RateError
from .core.rules import NO_RULE_TEXT


def check_model(model: Any, inputs: Sequence[Any]) -> None:
    """Raises if the model is none, or is given what it already has."""
    if isinstance(model, type) and issubclass(model, (nn.Module, nnx.Module)):
        raise TypeError(
            f"upgrade expects a model; got the class {model.__name__}. Make one of it "
            f"first: {model.__name__}(...)."
        )
    if isinstance(model, nnx.Module):
        first = inputs[0] if inputs else None
        if isinstance(first, (nnx.State, nnx.GraphDef)) or (
            isinstance(first, Mapping) and "params" in first
        ):
            raise ValueError(
                "an NNX model holds its own variables; expected example inputs after "
                f"it, got {type(first).__name__}. Call upgrade(model, *inputs, "
                "rates=...), after nnx.update(model, state) if it is to have others."
            )
    elif not callable(model):
        raise TypeError(
            "upgrade expects a Flax model (Linen or NNX) or a function fn(variables, "
            f"*inputs); got {type(model).__name__}."
        )


@contextlib.contextmanager
def explained(
    model: Any,
    variables: Any,
    call: Call,
    arrays: Sequence[Any],
    options: Iterable[str],
) -> Iterator[None]:
    """Turns an error of the trace into one that lists what does not fit."""
    try:
        yield
    except (PlanError, RateError):
        raise
    except Exception as error:
        check_keywords(model, call, arrays, error, options)
        check_fit(model, variables, call, arrays, error)
        raise


def check_fit(
    model: Any,
    variables: Any,
    call: Call,
    arrays: Sequence[Any],
    cause: Exception | None = None,
) -> None:
    """Raises ValueError if the variables are not those that a module initialises."""
    wrong = misfits(model, variables, call, arrays)
    if wrong:
        raise ValueError(
            "the variables do not fit the model:\n"
            + "\n".join(wrong[:8])
            + "\nPass what `module.init` of this model returned."
        ) from cause


def choices(settings: Settings, ranks: Mapping[str, int]) -> dict[str, Parameter]:
    """For each parameter what the patterns of the settings say of its axes.

    Args:
      settings: what the user chose.
      ranks: how many axes each parameter has, by path.

    Raises:
      PlanError: if a pattern matches nothing.
    """
    axes = [(path, axis) for path, rank in ranks.items() for axis in range(rank)]

    def named(argument: str, patterns: Sequence[str]) -> dict[tuple[str, int], str]:
        """The axes that some pattern names, with the first that does."""
        found: dict[tuple[str, int], str] = {}
        for pattern in patterns:
            hits = [(p, axis) for p, axis in axes if matches(pattern, p, axis)]
            if not hits:
                raise PlanError(no_match(pattern, ranks, argument))
            for hit in hits:
                found.setdefault(hit, pattern)
        return found

    include = named("include", settings.include)
    exclude = named("exclude", settings.exclude)
    inner = named("inner", settings.inner)
    whole: dict[str, dict[int, str]] = {path: {} for path in ranks}
    for path, axis in axes:
        if settings.include and (path, axis) not in include:
            whole[path][axis] = f"not in include={', '.join(settings.include)}"
        elif (path, axis) in exclude:
            whole[path][axis] = f"excluded by {exclude[path, axis]!r}"
    return {
        path: Parameter(
            path,
            whole=whole[path],
            inner=frozenset(
                axis for axis in range(ranks[path]) if (path, axis) in inner
            ),
        )
        for path in ranks
    }


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
    model: Any,
    call: Call,
    arrays: Sequence[Any],
    cause: Exception,
    options: Iterable[str] = (),
) -> None:
    """Raises TypeError if a call failed for a keyword that the model does not take.

    It tells the close matches among the keywords of the model, or of its class, and
    among `options`, the keywords that are not passed on to it.
    """
    found = _UNEXPECTED.search(str(cause)) if isinstance(cause, TypeError) else None
    _, kwargs = call.join(arrays)
    if found is None or found[1] not in kwargs:
        return
    name, known = found[1], [*options]
    with contextlib.suppress(TypeError, ValueError, AttributeError):
        known += inspect.signature(_method(model, kwargs)).parameters
    close = difflib.get_close_matches(name, [k for k in known if k != "self"], n=4)
    matches = f" Close matches: {', '.join(map(repr, close))}." if close else ""
    also = f", nor has upgrade such an option ({', '.join(options)})" if options else ""
    raise TypeError(f"the model takes no keyword {name!r}{also}.{matches}") from cause


def _method(model: Any, kwargs: Mapping[str, Any]) -> Any:
    """What a call with these keywords runs."""
    kind = model if isinstance(model, type) else type(model)
    if not issubclass(kind, (nn.Module, nnx.Module)):
        return model
    method = kwargs.get("method")
    return getattr(kind, method) if isinstance(method, str) else method or kind.__call__


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
