"""Evaluating equations one by one, with the user's lines and the names of layers."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jax.extend import core, source_info_util


def evaluate(eqn: Any, values: dict[Any, Any]) -> None:
    """Evaluates an equation on `values`, which get its results."""
    outs = bind(eqn, read(eqn.invars, values))
    values |= zip(eqn.outvars, outs, strict=True)


def read(variables: Iterable[Any], values: Mapping[Any, Any]) -> list[Any]:
    """The values of variables and literals."""
    return [v.val if isinstance(v, core.Literal) else values[v] for v in variables]


def bind(eqn: Any, operands: Sequence[Any], **changed: Any) -> Sequence[Any]:
    """The equation's primitive on other operands, with some parameters changed."""
    info = eqn.source_info
    stack = source_info_util.current_name_stack() + info.name_stack
    with (
        source_info_util.user_context(info.traceback, name_stack=stack),
        eqn.ctx.manager,
    ):
        params = eqn.primitive.get_bind_params({**eqn.params, **changed})
        outs = eqn.primitive.bind(*operands, **params)
    return outs if eqn.primitive.multiple_results else [outs]
