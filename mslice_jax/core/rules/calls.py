"""Equations that call a jaxpr: jit, remat, and functions with their own derivative.

A call is read where it stands, so one function that is called at two widths has two
readings. jit is inlined. remat stays remat. A function with a derivative, transpose or
batching rule of its own keeps it: the jaxpr of the author's rule is taken at full
width, read and narrowed like any program.
"""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import dtypes
from jax.extend import core

from ..axes import Whole
from ..growth import COTANGENT, INPUT, Known, to_power
from .base import Dims, Narrow, Tie, Value, fix_everything, rule


def _jaxpr(params: dict[str, Any]) -> Any:
    for name in ("jaxpr", "call_jaxpr"):
        if name in params:
            return params[name]
    raise KeyError(f"no jaxpr among {sorted(params)}")


def _tie_call(t: Tie) -> Sequence[Value]:
    return t.call(_jaxpr(t.params), t.ins)


def _narrow_inline(n: Narrow, *operands: Any) -> Any:
    return n.call(0, *operands)


@rule("call", "closed_call", "composite", "eval_jaxpr", "jit", narrow=_narrow_inline)
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


def _expanded(prim: Any) -> Callable[..., Any]:
    """What a composed primitive (jax.experimental.hijax) is made of."""

    def run(*leaves: Any) -> Any:
        return jax.tree.leaves(prim.expand(*jax.tree.unflatten(prim.in_tree, leaves)))

    return run


def _narrow_hi_primitive(n: Narrow, *operands: Any) -> Any:
    return n.bind(*operands) if n.note is None else n.call(0, *operands)


@rule("call_hi_primitive", narrow=_narrow_hi_primitive)
def tie_hi_primitive(t: Tie) -> Sequence[Value | Dims]:
    """As jit, for those of JAX's own functions; others may have their derivative."""
    prim = t.params["_prim"]
    # Of integers nobody takes a derivative, and NumPy's functions have the usual one.
    integers = not any(jnp.issubdtype(out.dtype, jnp.inexact) for out in t.outs)
    of_numpy = type(prim).__module__.startswith("jax._src.numpy.")
    if prim.effects or not (integers or of_numpy):
        return fix_everything(t, f"{type(prim).__name__} has rules of its own")
    t.note("expanded")
    types = _types(t.eqn.invars)
    return t.call(jax.make_jaxpr(_expanded(prim))(*types), t.ins)


def _narrow_jaxpr(n: Narrow, which: int, operands: Sequence[Any]) -> Any:
    return jax.make_jaxpr(lambda *xs: n.call(which, *xs))(*operands)


def _narrow_call(n: Narrow, *operands: Any) -> Any:
    return n.bind(*operands, jaxpr=_narrow_jaxpr(n, 0, operands))


@rule("compute_on", "xla_metadata_call", narrow=_narrow_call)
def tie_annotated(t: Tie) -> Sequence[Value]:
    """As jit; where or how it is to run stays."""
    return _tie_call(t)


def _types(variables: Sequence[Any]) -> list[Any]:
    """The types of variables; inside of shard_map they name mesh axes."""
    return [var.aval for var in variables]


def _bind(eqn: Any) -> Callable[..., Any]:
    """An equation as a function of its operands."""

    def call(*operands: Any) -> Any:
        params = eqn.primitive.get_bind_params(eqn.params)
        return eqn.primitive.bind(*operands, **params)

    return call


def _of_moving(
    eqn: Any, primals: Sequence[Any], moving: Sequence[int]
) -> Callable[..., Any]:
    """The equation as a function of the operands that have a tangent."""

    def call(*xs: Any) -> Any:
        arguments = list(primals)
        for i, x in zip(moving, xs, strict=True):
            arguments[i] = x
        return _bind(eqn)(*arguments)

    return call


def _moving(eqn: Any, perturbed: Sequence[bool]) -> list[int]:
    """Which operands have a tangent: those perturbed, of a type that can be."""
    return [
        i
        for i, (var, moves) in enumerate(zip(eqn.invars, perturbed, strict=True))
        if moves and jnp.issubdtype(var.aval.dtype, np.inexact)
    ]


def _each(n: Narrow, make: Callable[[Any], Any]) -> tuple[Any, Any]:
    """make(equation), and the same of the function's own equation at these widths."""
    full, own = make(n.eqn), None
    if n.own is not None:
        # A size that the author's derivative holds fixed fits no narrow array.
        with contextlib.suppress(TypeError, ValueError):
            own = make(n.own)
    return full, own


def _tangent(x: Any) -> Any:
    """An array in place of a tangent that is known to be zero."""
    if isinstance(x, jax.custom_derivatives.SymbolicZero):
        aval: Any = x
        return jnp.zeros(aval.shape, aval.dtype)
    return x


def _narrow_custom_jvp(n: Narrow, *operands: Any) -> Any:
    @jax.custom_jvp
    def call(*operands: Any) -> Any:
        return n.call(0, *operands)

    def derivative(primals: Any, tangents: Any) -> Any:
        zero = jax.custom_derivatives.SymbolicZero
        moving = _moving(n.eqn, [not isinstance(t, zero) for t in tangents])

        def trace(eqn: Any) -> Any:
            def jvp(primals: Any, moved: Any) -> Any:
                call = _of_moving(eqn, primals, moving)
                return jax.jvp(call, tuple(primals[i] for i in moving), tuple(moved))

            avals = _types(eqn.invars)
            return jax.make_jaxpr(jvp)(avals, [avals[i] for i in moving])

        traced, own = _each(n, trace)
        axes = [n.axes(var) for var in n.eqn.invars]
        outs = [n.axes(var) for var in n.eqn.outvars]
        known = n.known
        run = n.analysis.follow(
            traced,
            [*axes, *(axes[i] for i in moving)],
            [*outs, *outs],
            [*known, *(INPUT for _ in moving)],
            own,
        )
        flat = n.evaluate(
            run, run.frame, n.widths, [*primals, *(tangents[i] for i in moving)]
        )
        return flat[: len(outs)], flat[len(outs) :]

    call.defjvp(derivative, symbolic_zeros=True)
    return call(*operands)


@rule("custom_jvp_call", narrow=_narrow_custom_jvp)
def tie_custom_jvp(t: Tie) -> Sequence[Value]:
    """As jit; the derivative stays the author's."""
    return _tie_call(t)


class _Forward:
    """The author's forward pass of an equation, traced; its residuals come last."""

    def __init__(self, eqn: Any, moving: Sequence[int]):
        avals = _types(eqn.invars)
        self.outs = len(eqn.outvars)
        self._tree: Any = None  # of the pullback

        def vjp(*primals: Any) -> Any:
            call = _of_moving(eqn, primals, moving)
            out, pullback = jax.vjp(call, *(primals[i] for i in moving))
            residuals, self._tree = jax.tree.flatten(pullback)
            return out, residuals

        self._vjp = vjp
        self.traced = jax.make_jaxpr(vjp)(*avals)
        self.backward = self._backward()

    def both(self) -> Any:
        """Forward and backward in one, traced: results, residuals, gradients."""

        def run(primals: Any, cotangents: Any) -> Any:
            out, residuals = self._vjp(*primals)
            pullback = jax.tree.unflatten(self._tree, residuals)
            return out, residuals, pullback(list(cotangents))

        types = self.traced.out_avals
        return jax.make_jaxpr(run)(self.traced.in_avals, types[: self.outs])

    def _backward(self) -> Any:
        """The pullback, traced: residuals and cotangents to gradients."""
        types = self.traced.out_avals

        def pull(residuals: Any, cotangents: Any) -> Any:
            return jax.tree.unflatten(self._tree, residuals)(list(cotangents))

        return jax.make_jaxpr(pull)(types[self.outs :], types[: self.outs])


def _narrow_custom_vjp(n: Narrow, *operands: Any) -> Any:
    outs = [n.axes(var) for var in n.eqn.outvars]
    axes = [n.axes(var) for var in n.eqn.invars]

    def forward(*given: Any) -> Any:
        moving = _moving(n.eqn, [each.perturbed for each in given])
        full, own = _each(n, lambda eqn: _Forward(eqn, moving))
        # Ties of a residual may show in the backward pass alone.
        count = len(full.traced.out_avals)
        grads = [axes[i] for i in moving]
        both = n.analysis.follow(
            full.both(),
            [*axes, *outs],
            [*outs, *[None] * (count - len(outs)), *grads],
            [*n.known, *(INPUT for _ in outs)],
        )
        kept = [both.axes(both.frame.value(v).dims) for v in both.closed.jaxpr.outvars]
        kept = kept[:count]
        run = n.analysis.follow(full.traced, axes, kept, n.known, own and own.traced)
        flat = n.evaluate(run, run.frame, n.widths, [each.value for each in given])
        # Facts about residuals reach the backward pass, numbers that wait for
        # a sum do not: they have been computed with.
        known = [replace(each, pending=()) for each in run.counts.results]
        told = _Told(full, own, moving, kept[len(outs) :], known[len(outs) :])
        return flat[: len(outs)], (flat[len(outs) :], told)

    def pull(saved: Any, cotangents: Any) -> Any:
        residuals, told = saved
        run = n.analysis.follow(
            told.full.backward,
            [*told.kept, *outs],
            [axes[i] for i in told.moving],
            [*told.known, *(COTANGENT for _ in outs)],
            told.own and told.own.backward,
        )
        # The gradient of what has grown shrinks as much.
        run.wanted = [to_power(n.known[i].growth, -1) for i in told.moving]
        run.tell_open(n.widths)
        cotangents = map(_tangent, cotangents)
        flat = n.evaluate(run, run.frame, n.widths, [*residuals, *cotangents])
        # A certain zero is passed on as such: 0 * inf is not 0 further back.
        grads = {
            i: None if known.zero else grad
            for i, grad, known in zip(
                told.moving, flat, run.counts.results, strict=True
            )
        }
        return tuple(
            grads[i] if i in grads else _no_tangent(x) for i, x in enumerate(operands)
        )

    call = jax.custom_vjp(lambda *xs: n.call(0, *xs))
    call.defvjp(forward, pull, symbolic_zeros=True)
    return call(*operands)


@jax.tree_util.register_static
@dataclass(frozen=True, eq=False, slots=True)
class _Told:
    """What forward tells backward besides arrays."""

    full: _Forward
    own: _Forward | None
    moving: Sequence[int]
    kept: Sequence[Any]  # the axes of the residuals
    known: Sequence[Known]  # and what is known of them


def _narrow_remat_opt(n: Narrow, *operands: Any) -> Any:
    forward = _narrow_jaxpr(n, 0, operands)
    if forward.consts:  # the primitive takes none
        return n.call(0, *operands)
    primals = slice(n.params["num_consts"], None)
    axes = [n.axes(var) for var in n.eqn.invars[primals]]
    outs = [n.axes(var) for var in n.eqn.outvars[n.params["num_res"] :]]

    def function() -> Any:
        jaxpr, consts = n.params["fun_jaxpr_thunk"]()
        full = core.jaxpr_as_fun(core.ClosedJaxpr(jaxpr, consts))
        run = n.analysis.follow(
            jax.make_jaxpr(full)(*_types(n.eqn.invars[primals])),
            axes,
            outs,
            n.known[primals],
        )
        narrow = jax.make_jaxpr(lambda *xs: n.evaluate(run, run.frame, n.widths, xs))(
            *operands[primals]
        )
        return narrow.jaxpr, narrow.consts

    return n.bind(*operands, fwd_jaxpr=forward, fun_jaxpr_thunk=function)


@rule("remat_opt", narrow=_narrow_remat_opt)
def tie_remat_opt(t: Tie) -> Sequence[Value]:
    """As jit; a forward pass of custom_vjp that remat may replace by the function."""
    return t.call(t.params["fwd_jaxpr"], t.ins)


def _narrow_custom_vmap(n: Narrow, *operands: Any) -> Any:
    call = jax.custom_batching.custom_vmap(lambda *xs: tuple(n.call(0, *xs)))

    @call.def_vmap
    def batched(size: Any, which: Any, *operands: Any) -> Any:
        avals = _types(n.eqn.invars)
        types = [
            jax.ShapeDtypeStruct((size, *a.shape) if moved else a.shape, a.dtype)
            for a, moved in zip(avals, which, strict=True)
        ]
        in_axes = [0 if moved else None for moved in which]
        batch = Whole(size)
        ins = [
            (batch, *n.axes(var)) if moved else n.axes(var)
            for var, moved in zip(n.eqn.invars, which, strict=True)
        ]
        outs = [(batch, *n.axes(var)) for var in n.eqn.outvars]
        run = n.analysis.follow(
            jax.make_jaxpr(jax.vmap(n.bind, in_axes, axis_size=size))(*types),
            ins,
            outs,
            n.known,
        )
        results = n.evaluate(run, run.frame, n.widths, operands)
        return tuple(results), (True,) * len(results)

    return list(call(*operands))


@rule("custom_vmap_call", narrow=_narrow_custom_vmap)
def tie_custom_vmap(t: Tie) -> Sequence[Value]:
    """As jit; vmap goes by the author's rule."""
    return t.call(t.params["call"], t.ins)


def _narrow_linear_call(n: Narrow, *operands: Any) -> Any:
    consts = n.params["num_callee_consts"]
    held = consts + n.params["num_res"]
    axes = [n.axes(var) for var in n.eqn.invars]
    outs = [n.axes(var) for var in n.eqn.outvars]

    def transposed(residuals: Any, cotangents: Any) -> Any:
        jaxpr, captured = n.params["transpose_thunk"]()
        full = core.jaxpr_as_fun(jaxpr)
        run = n.analysis.follow(
            jax.make_jaxpr(lambda *xs: full(*captured, *xs))(
                *_types([*n.eqn.invars[consts:held], *n.eqn.outvars])
            ),
            [*axes[consts:held], *outs],
            axes[held:],
            [*n.known[consts:held], *(COTANGENT for _ in outs)],
        )
        xs = [*residuals[consts:], *cotangents]
        return tuple(n.evaluate(run, run.frame, n.widths, xs))

    return jax.custom_derivatives.linear_call(
        lambda residuals, xs: n.call(0, *residuals, *xs),
        transposed,
        tuple(operands[:held]),
        tuple(operands[held:]),
    )


@rule("linear_call", narrow=_narrow_linear_call)
def tie_linear_call(t: Tie) -> Sequence[Value]:
    """As jit; the transpose stays the author's."""
    return t.call(t.params["callee"], t.ins)


def _no_tangent(x: Any) -> Any:
    return np.zeros(jnp.shape(x), dtypes.float0)


@rule("custom_vjp_call", narrow=_narrow_custom_vjp)
def tie_custom_vjp(t: Tie) -> Sequence[Value]:
    """As jit; the derivative stays the author's."""
    return _tie_call(t)
