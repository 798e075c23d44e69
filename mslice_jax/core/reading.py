"""Reading a program: its equations one by one, each by the rule of its primitive."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.extend import core

from .rules import NO_RULE, RULES, Frame, Tie, Value, order
from .rules import places as places_lib
from .rules.folding import FOLDED
from .rules.live import live
from .solver import Dim, Equations, Reason


def walk(
    jaxpr: Any,
    values: Sequence[Value],
    equations: Equations,
    sources: Sequence[Any] = (),
) -> tuple[Frame, list[Value]]:
    """Reads a jaxpr equation by equation with the rules.

    `sources` tells where the calls are that the jaxpr is in, innermost first.
    """
    consts: Sequence[Any] = ()
    if isinstance(jaxpr, core.ClosedJaxpr):
        jaxpr, consts = jaxpr.jaxpr, jaxpr.consts
    jaxpr = live(jaxpr)
    known = dict(zip(jaxpr.invars, values, strict=True))
    frame = Frame(jaxpr, consts, known, {}, {}, sources)
    for var, const in zip(jaxpr.constvars, consts, strict=True):
        frame.values[var] = _constant(var.aval, const)
        equations.constant += frame.values[var].dims

    def call(inner: Any, operands: Sequence[Value]) -> tuple[Frame, list[Value]]:
        why = equations.why
        assert why is not None
        result = walk(inner, operands, equations, why.sources)
        equations.why = why
        return result

    for index, eqn in enumerate(jaxpr.eqns):
        for var in eqn.invars:
            if isinstance(var, core.Literal) and np.ndim(var.val):
                frame.values[id(var)] = _constant(var.aval, var.val)
                equations.constant += frame.values[id(var)].dims
        name = eqn.primitive.name
        equations.why = Reason(name, (eqn.source_info, *sources), name)
        tie = Tie(frame, index, equations, call)
        rule = FOLDED if places_lib.folds(tie) else RULES.get(name, NO_RULE)
        results = [
            result if isinstance(result, Value) else Value(tuple(result))
            for result in rule.tie(tie)
        ]
        if index not in frame.children:  # else known from what was called
            for result, found in zip(results, places_lib.read(tie), strict=True):
                result.order = result.order or found
        equations.constant += [d for r in results for d in places_lib.axes(r)]
        frame.values.update(zip(eqn.outvars, results, strict=True))
    outs = []
    for var in jaxpr.outvars:
        if isinstance(var, core.Literal) and np.ndim(var.val):
            frame.values[id(var)] = _constant(var.aval, var.val)
        outs.append(frame.value(var))
    return frame, outs


def _constant(aval: Any, value: Any) -> Value:
    """A captured array belongs to the plan like a parameter that is not trained."""
    shape = getattr(aval, "shape", ())
    dims = tuple(Dim(size) for size in shape)
    return Value(dims, order=order.of_constant(value))
