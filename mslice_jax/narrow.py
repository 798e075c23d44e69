"""Running a program narrow: the same equations, with every shape taken from the plan.

This is an evaluator of jaxprs in the manner of `jax.core.eval_jaxpr`. Under jit it
traces to the program that a network written narrow by hand would give: no masks, no
gathers, no full-width arrays but the constants that the program captured.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.extend import core, source_info_util

from .analysis import Analysis
from .dims import Widths, groups_in, shape, slice_array, take
from .rules import NO_RULE, RULES, Frame, Narrow
from .rules.folding import FOLDED, is_folded


def evaluate(
    analysis: Analysis, frame: Frame, widths: Widths, operands: Sequence[Any]
) -> list[Any]:
    """Evaluates a frame of the analysis on operands that are already narrow.

    Args:
      analysis: from `discover` or `follow`.
      frame: `analysis.frame`, or that of a jaxpr that it calls.
      widths: how many indices each group keeps.
      operands: arrays with the narrow shapes of the frame's inputs.

    Returns:
      The results, narrow.
    """
    jaxpr = frame.jaxpr
    env: dict[Any, Any] = dict(zip(jaxpr.invars, operands, strict=True))
    for var, const in zip(jaxpr.constvars, frame.consts, strict=True):
        env[var] = _cut(analysis, frame, var, const, widths)

    def read(var: Any) -> Any:
        if isinstance(var, core.Literal):
            if np.ndim(var.val):
                return _cut(analysis, frame, var, var.val, widths)
            return var.val
        return env[var]

    stack = source_info_util.current_name_stack()
    for index, eqn in enumerate(jaxpr.eqns):
        narrow = Narrow(frame, index, analysis, widths, evaluate)
        rule = RULES.get(eqn.primitive.name, NO_RULE)
        if is_folded(frame, index):
            rule = FOLDED
        # Names of layers and the user's lines stay with the narrow program.
        info = eqn.source_info
        with (
            source_info_util.user_context(
                info.traceback, name_stack=stack + info.name_stack
            ),
            eqn.ctx.manager,
        ):
            outs = rule.narrow(narrow, *map(read, eqn.invars))
        if not eqn.primitive.multiple_results and not isinstance(outs, (list, tuple)):
            outs = [outs]
        for var, out in zip(eqn.outvars, outs, strict=True):
            expected = narrow.shape(var)
            if tuple(np.shape(out)) != expected:
                raise AssertionError(
                    f"mslice_jax: {eqn.primitive.name} gave {np.shape(out)} where the "
                    f"plan says {expected}; please report this with the equation {eqn}"
                )
            env[var] = out
    return [read(var) for var in jaxpr.outvars]


def _cut(analysis: Analysis, frame: Frame, var: Any, value: Any, widths: Widths) -> Any:
    axes = analysis.axes(frame.value(var).dims)
    moved = any(group in analysis.orders for axis in axes for group in groups_in(axis))
    if not moved and shape(axes, widths) == tuple(np.shape(value)):
        return value
    if isinstance(value, Tracer):
        return slice_array(take(value, axes, analysis.orders), axes, widths)
    with jax.ensure_compile_time_eval():  # cut once, not in every run
        value = take(jnp.asarray(value), axes, analysis.orders)
        return slice_array(value, axes, widths)
