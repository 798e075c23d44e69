"""Equations that call a jaxpr: jit, remat, and functions with their own derivative.

A call is read where it stands, so one function that is called at two widths has two
readings. jit is inlined. remat stays remat. custom_jvp and custom_vjp keep the author's
rule: its jaxpr is taken at full width, read and narrowed like any program.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import dtypes

from .base import Narrow, Tie, Value, rule


def _jaxpr(params: dict[str, Any]) -> Any:
    for name in ("jaxpr", "call_jaxpr"):
        if name in params:
            return params[name]
    raise KeyError(f"no jaxpr among {sorted(params)}")


def _tie_call(t: Tie) -> Sequence[Value]:
    return t.call(_jaxpr(t.params), t.ins)


def _narrow_inline(n: Narrow, *operands: Any) -> Any:
    return n.call(0, *operands)


@rule("jit", "closed_call", "composite", narrow=_narrow_inline)
def tie_jit(t: Tie) -> Sequence[Value]:
    """Axes of the operands go into the called jaxpr, those of its results come out."""
    return _tie_call(t)


def _narrow_remat(n: Narrow, *operands: Any) -> Any:
    again = jax.checkpoint(
        lambda *xs: n.call(0, *xs),
        prevent_cse=n.params["prevent_cse"],
        policy=n.params["policy"],
    )
    return again(*operands)


@rule("remat2", narrow=_narrow_remat)
def tie_remat(t: Tie) -> Sequence[Value]:
    """As jit; what is computed again in the backward pass stays so."""
    return _tie_call(t)


def _full_width(n: Narrow) -> tuple[Any, list[jax.ShapeDtypeStruct]]:
    """The equation as a function at full width, and the types of its operands."""

    def call(*operands: Any) -> Any:
        return n.bind(*operands)

    avals: list[Any] = [var.aval for var in n.eqn.invars]
    return call, [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in avals]


def _inexact(avals: Sequence[Any]) -> list[int]:
    """Which operands have a tangent."""
    return [i for i, a in enumerate(avals) if jnp.issubdtype(a.dtype, np.inexact)]


def _narrow_custom_jvp(n: Narrow, *operands: Any) -> Any:
    @jax.custom_jvp
    def call(*operands: Any) -> Any:
        return n.call(0, *operands)

    @call.defjvp
    def derivative(primals: Any, tangents: Any) -> Any:
        full, avals = _full_width(n)
        moving = _inexact(avals)

        def jvp(primals: Any, moved: Any) -> Any:
            def of_moving(*xs: Any) -> Any:
                arguments = list(primals)
                for i, x in zip(moving, xs, strict=True):
                    arguments[i] = x
                return full(*arguments)

            return jax.jvp(of_moving, tuple(primals[i] for i in moving), tuple(moved))

        axes = [n.axes(var) for var in n.eqn.invars]
        outs = [n.axes(var) for var in n.eqn.outvars]
        run = n.analysis.follow(
            jax.make_jaxpr(jvp)(avals, [avals[i] for i in moving]),
            [*axes, *(axes[i] for i in moving)],
            [*outs, *outs],
        )
        flat = n.evaluate(
            run, run.frame, n.widths, [*primals, *(tangents[i] for i in moving)]
        )
        return flat[: len(outs)], flat[len(outs) :]

    return call(*operands)


@rule("custom_jvp_call", narrow=_narrow_custom_jvp)
def tie_custom_jvp(t: Tie) -> Sequence[Value]:
    """As jit; the derivative stays the author's."""
    return _tie_call(t)


def _narrow_custom_vjp(n: Narrow, *operands: Any) -> Any:
    full, avals = _full_width(n)
    moving = _inexact(avals)
    outs = [n.axes(var) for var in n.eqn.outvars]
    axes = [n.axes(var) for var in n.eqn.invars]
    backward: list[Any] = []  # the pullback's tree, known once forward was traced

    def vjp(*primals: Any) -> Any:
        def of_moving(*xs: Any) -> Any:
            arguments = list(primals)
            for i, x in zip(moving, xs, strict=True):
                arguments[i] = x
            return full(*arguments)

        out, pullback = jax.vjp(of_moving, *(primals[i] for i in moving))
        residuals, tree = jax.tree.flatten(pullback)
        backward[:] = [tree]
        return out, residuals

    def forward(*primals: Any) -> Any:
        traced = jax.make_jaxpr(vjp)(*avals)
        run = n.analysis.follow(
            traced, axes, [*outs, *[None] * (len(traced.out_avals) - len(outs))]
        )
        flat = n.evaluate(run, run.frame, n.widths, primals)
        kept = [run.axes(run.frame.value(v).dims) for v in run.frame.jaxpr.outvars]
        return flat[: len(outs)], (
            flat[len(outs) :],
            _Static(traced, kept[len(outs) :]),
        )

    def pull(saved: Any, cotangents: Any) -> Any:
        residuals, static = saved
        shapes = [
            jax.ShapeDtypeStruct(a.shape, a.dtype) for a in static.traced.out_avals
        ]
        traced = jax.make_jaxpr(
            lambda res, cts: jax.tree.unflatten(backward[0], res)(list(cts))
        )(shapes[len(outs) :], shapes[: len(outs)])
        run = n.analysis.follow(
            traced, [*static.kept, *outs], [axes[i] for i in moving]
        )
        flat = n.evaluate(run, run.frame, n.widths, [*residuals, *cotangents])
        grads = dict(zip(moving, flat, strict=True))
        return tuple(
            grads[i] if i in grads else _no_tangent(x) for i, x in enumerate(operands)
        )

    call = jax.custom_vjp(lambda *xs: n.call(0, *xs))
    call.defvjp(forward, pull)
    return call(*operands)


@jax.tree_util.register_static
class _Static:
    """What forward tells backward besides arrays."""

    def __init__(self, traced: Any, kept: Any):
        self.traced, self.kept = traced, kept


def _no_tangent(x: Any) -> Any:
    return np.zeros(jnp.shape(x), dtypes.float0)


@rule("custom_vjp_call", narrow=_narrow_custom_vjp)
def tie_custom_vjp(t: Tie) -> Sequence[Value]:
    """As jit; the derivative stays the author's."""
    return _tie_call(t)
