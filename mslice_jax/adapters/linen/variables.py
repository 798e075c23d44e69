"""Do variables fit a Linen module? What it would initialise, and what they are.

A call may read a part of what the module has: another method does, or the same with
other arguments. Flax takes that, so it is no fault here; the report names what the call
does not read.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax

from ...core.call import Call, type_of
from ...core.paths import path_name


def misfits(model: Any, variables: Any, call: Call, arrays: Sequence[Any]) -> list[str]:
    """Leaves that are missing, too many, or of another shape; a line for each."""
    if not isinstance(model, nn.Module) or not isinstance(variables, Mapping):
        return []
    args, kwargs = call.join([type_of(x) for x in arrays])
    given = kwargs.get("rngs")
    streams = given if isinstance(given, Mapping) else ()  # one key serves them all
    rngs = {name: jax.random.key(0) for name in ("params", *streams)}
    kwargs = {k: v for k, v in kwargs.items() if k not in ("mutable", "rngs")}
    have = _shapes(variables)
    want = _initialised(model, rngs, args, kwargs)
    if want is None:  # the call itself is at fault: its own error says more
        return []
    wrong = [name for name in want if want[name] != have.get(name)]
    return [
        f"  {name}: expected {want.get(name, 'nothing')}, got "
        f"{have.get(name, 'nothing')}"
        for name in sorted([*wrong, *_unknown(model, rngs, args, kwargs, want, have)])
    ]


def _unknown(
    model: nn.Module, rngs: Any, args: Any, kwargs: Any, want: Any, have: Any
) -> set[str]:
    """Variables that no call of the module reads, as far as can be told."""
    unknown = have.keys() - want.keys()
    if not unknown or kwargs.get("method") is not None:
        return set()
    try:
        bound = inspect.signature(model.__call__).bind(*args, **kwargs)
    except (TypeError, ValueError):
        return set()
    bound.apply_defaults()
    for name, parameter in bound.signature.parameters.items():
        value = bound.arguments[name]
        if isinstance(value, bool):
            other: Any = not value
        elif parameter.default is parameter.empty or value is parameter.default:
            if value is None:  # something could be passed that makes it read more
                return set()
            continue
        else:
            other = parameter.default
        changed = inspect.BoundArguments(
            bound.signature, bound.arguments | {name: other}
        )
        also = _initialised(model, rngs, changed.args, changed.kwargs)
        unknown -= (also or {}).keys()
    module = model.bind({})
    return {name for name in unknown if not _is_declared(module, name, want)}


def _is_declared(module: Any, name: str, want: Mapping[str, Any]) -> bool:
    """Whether a variable is within a module of `setup` of which nothing is read."""
    collection, *parts = name.split("/")
    path = collection
    for part in parts[:-1]:
        path += f"/{part}"
        module = getattr(module, part, None) or _of_list(module, part)
        if not isinstance(module, nn.Module):
            return False
        if not any(known.startswith(f"{path}/") for known in want):
            return True
    return False


def _of_list(module: Any, name: str) -> Any:
    """The module of a list that Flax calls by the list and its index, or None."""
    owner, _, index = name.rpartition("_")
    modules = getattr(module, owner, None)
    if not isinstance(modules, Sequence) or not index.isdigit():
        return None
    return modules[int(index)] if int(index) < len(modules) else None


def _initialised(
    model: nn.Module, rngs: Any, args: Any, kwargs: Any
) -> dict[str, tuple[int, ...]] | None:
    """The shapes of what `module.init` makes with a call; None if it fails."""
    statics, types = Call.split(args, kwargs)

    def init(given: Any) -> Any:
        args, kwargs = statics.join(given)
        return model.init(rngs, *args, **kwargs)

    try:
        return _shapes(jax.eval_shape(init, types))
    except Exception:
        return None


def _shapes(variables: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Shapes by path, of the collections that a network cannot do without.

    Others may be left out, or hold what a call once sowed.
    """
    kept = {k: variables[k] for k in ("params", "batch_stats") if k in variables}
    leaves = jax.tree_util.tree_leaves_with_path(nn.unbox(kept))
    return {path_name(path): tuple(leaf.shape) for path, leaf in leaves}
