"""Running a program narrow: the same equations, with every shape taken from the plan.

This is an evaluator of jaxprs in the manner of `jax.core.eval_jaxpr`. Under jit it
traces to the program that a network written narrow by hand would give: no masks, no
gathers, no full-width arrays but the constants that the program captured.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.extend import core, source_info_util

from .analysis import Analysis
from .axes import Widths
from .forms import Forms, active
from .rules import NO_RULE, RULES, Frame, Narrow, order
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
    own = analysis.own_program(widths)
    consts = own.consts.get(id(frame), {}) if own else {}
    for at, (var, const) in enumerate(zip(jaxpr.constvars, frame.consts, strict=True)):
        env[var] = consts.get(at, const)
        if at not in consts or analysis.is_moved(frame, var):
            env[var] = analysis.cut(frame, var, const, widths)

    forms: Forms | None = active.value

    def read(var: Any) -> Any:
        if isinstance(var, core.Literal):
            if np.ndim(var.val):
                return analysis.cut(frame, var, var.val, widths)
            return var.val
        return env[var]

    stack = source_info_util.current_name_stack()
    for index, eqn in enumerate(jaxpr.eqns):
        narrow = Narrow(frame, index, analysis, widths, evaluate)
        folded = is_folded(frame, index)
        rule = FOLDED if folded else RULES.get(eqn.primitive.name, NO_RULE)
        # Names of layers and the user's lines stay with the narrow program.
        info = eqn.source_info
        with (
            source_info_util.user_context(
                info.traceback, name_stack=stack + info.name_stack
            ),
            eqn.ctx.manager,
        ):
            operands = [read(var) for var in eqn.invars]
            for at, number in analysis.numbers(frame, index, widths).items():
                operands[at] = jnp.full_like(operands[at], number)
            made = own.made.get((id(frame), index)) if own else None
            if made is not None and not narrow.moved(eqn.outvars):
                outs = [order.make(source) for source in made]
            else:
                form = forms.of(narrow, operands) if forms and not folded else None
                run = form.run if form else rule.narrow
                outs = run(narrow, *operands)
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
    results = own.results.get(id(frame), {}) if own else {}
    return [results.get(at, read(var)) for at, var in enumerate(jaxpr.outvars)]
