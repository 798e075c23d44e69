"""Tracing the function: at full width, and with narrow variables where it can be."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from .axes import Widths, shape
from .call import Call, type_of
from .counts import Incomparable
from .function import Function
from .paths import Path, path_name, path_parts
from .plan import WidthPlan


@dataclass(frozen=True, eq=False)
class Trace:
    """A jaxpr of the function at full width."""

    closed: Any
    tree: Any
    out_paths: tuple[Path | str, ...]  # of updated collections; names of outputs

    def returns(self, paths: Sequence[Path]) -> list[int | str | None]:
        """For each result: the variable it updates, why it is fixed, or None."""
        index = {path: i for i, path in enumerate(paths)}
        return [
            (f"output of the function ({path})" if path else "output of the function")
            if isinstance(path, str)
            else index.get(path)
            for path in self.out_paths
        ]


def trace(
    function: Function,
    rate: float | None,
    call: Call,
    variables: Any,
    arrays: Sequence[Any],
) -> Trace:
    """Traces a call of the function.

    Args:
      function: the function.
      rate: which of the norms the function uses; None where there is one set.
      call: the static arguments.
      variables: the variables or their types, at full width for the program.
      arrays: the arrays among the arguments, or their types.
    """
    _, kwargs = call.join(arrays)

    def run(variables: Any, arrays: Sequence[Any]) -> Any:
        args, kwargs = call.join(arrays)
        return function(variables, rate, *args, **kwargs)

    closed, out = jax.make_jaxpr(run, return_shape=True)(
        jax.tree.map(type_of, variables), [type_of(x) for x in arrays]
    )
    updates = with_updates(function, kwargs, out)
    paths: list[Path | str] = []
    for path, _ in jax.tree_util.tree_leaves_with_path(out):
        if updates and getattr(path[0], "idx", 0) == 1:
            paths.append(path_parts(path[1:]))
        else:
            paths.append(path_name(path[1:] if updates else path))
    return Trace(closed, jax.tree.structure(out), tuple(paths))


def with_updates(function: Function, kwargs: Mapping[str, Any], result: Any) -> bool:
    """Whether a result is a pair of the output and updated collections.

    A function may have a keyword `mutable` of its own, and then returns anything.
    """
    pair = isinstance(result, tuple) and len(result) == 2
    return pair and isinstance(result[1], Mapping) and function.updates(kwargs)


def own_program(
    function: Function,
    plan: WidthPlan,
    rate: float | None,
    call: Call,
    variables: Any,
    arrays: Sequence[Any],
    widths: Widths,
) -> Any:
    """The function traced with variables at the widths, as `trace` does at full width.

    Raises:
      Incomparable: if it fails there, as modules do that hold their sizes.
    """

    def narrow(path: Any, x: Any) -> Any:
        leaf = plan.leaf(path)
        assert leaf is not None
        kept = shape(leaf.axes, widths)
        known = type_of(x)
        if isinstance(known, jax.ShapeDtypeStruct):
            weak = bool(known.weak_type)
            return jax.ShapeDtypeStruct(kept, known.dtype, weak_type=weak)
        return known.update(shape=kept)

    try:
        types = jax.tree_util.tree_map_with_path(narrow, variables)
        return trace(function, rate, call, types, arrays).closed
    except Exception as error:
        text = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise Incomparable(f"{type(error).__name__}: {text[:160]}") from error
