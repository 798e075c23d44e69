"""Names of the inputs and outputs of a program, for those who see no signature."""

import inspect
from typing import Any

import jax

from ..core.definition import Definition
from ..core.paths import path_names, path_parts


class _Place:
    """Stands for an array of a call."""


def input_names(definition: Definition) -> list[str]:
    """A name for each array of the call that `upgrade` saw, no two alike.

    An argument has the name of its parameter ('x'), an array inside of it its path
    ('batch/image'); where the signature has none it is 'input_0', 'input_1' ...
    """
    args, kwargs = definition.call.join([_Place()] * len(definition.arrays))
    names = _positional(definition.function.called(kwargs))
    found = []
    for path, leaf in jax.tree_util.tree_leaves_with_path((args, kwargs)):
        if not isinstance(leaf, _Place):
            continue
        where, key, *inner = path_parts(path)
        if where == "0":
            key = names[int(key)] if int(key) < len(names) else f"input_{key}"
        found.append((key, *inner))
    return path_names(found)


def _positional(called: Any) -> list[str]:
    """The parameters that inputs go to: all but the first, the variables or self."""
    try:
        parameters = inspect.signature(called).parameters.values()
    except (TypeError, ValueError):  # a callable that does not tell
        return []
    by_position = (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
    )
    return [each.name for each in parameters if each.kind in by_position][1:]


def output_names(out: Any) -> list[str]:
    """A name for each array of an output, no two alike.

    >>> output_names({"logits": 1, "aux": (2, 3)})
    ['aux/0', 'aux/1', 'logits']
    >>> output_names(1), output_names([1, 2])
    (['output'], ['output_0', 'output_1'])
    """
    found = []
    for path, _ in jax.tree_util.tree_leaves_with_path(out):
        first, *inner = path_parts(path) or ("output",)
        found.append((f"output_{first}" if first.isdecimal() else first, *inner))
    return path_names(found)
