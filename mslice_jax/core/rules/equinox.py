"""Primitives of Equinox: what its loops, checks and debugging put into a program.

They are known by name: Equinox need not be installed, and is not imported.
"""

from collections.abc import Sequence
from typing import Any

import jax

from .base import RULES, Dim, Dims, Narrow, Rule, Tie, Value, fix_everything, rule
from .fixed import HOST


@rule(
    "announce_jaxpr",
    "nonbatchable",
    "nondifferentiable_backward",
    "nontraceable",
)
def tie_marked(t: Tie) -> Sequence[Value]:
    """(a, b) -> (a, b): the same array, of which a transformation is told."""
    return list(t.ins)


@rule("select_if_vmap")
def tie_select_if_vmap(t: Tie) -> Sequence[Dims]:
    """whether, (a, b), (a, b) -> (a, b): one of both."""
    return [t.broadcast(t.ins)]


@rule("unvmap_all", "unvmap_any", "unvmap_max")
def tie_unvmap(t: Tie) -> Sequence[Dims]:
    """(a, b) -> (): of all entries."""
    return [() for _ in t.outs]


@rule("maybe_set", "vprim")
def tie_expanded(t: Tie) -> Sequence[Value]:
    """whether, buffer (n, a), (a), at -> (n, a): as what it is made of, a scatter."""
    batched = t.params.get("__batch_axes", ())
    for value, axis in zip(t.ins, batched, strict=False):
        if isinstance(axis, int):
            t.fix([value.dims[axis]], "a batch of a fixed size")
    implementation: Any = t.eqn.primitive.impl
    types = [var.aval for var in t.eqn.invars]
    made_of = jax.make_jaxpr(lambda *xs: implementation(*xs, **t.params))(*types)
    return t.call(made_of, t.ins)


@rule("noinline")
def tie_noinline(t: Tie) -> Sequence[Dims]:
    """fixed: it runs as a program of its own, which is compiled for these sizes."""
    return fix_everything(t, "runs as a program of its own, compiled for these sizes")


def _narrow_callback(n: Narrow, *operands: Any) -> Any:
    if n.note is None:
        return n.bind(*operands)
    avals = n.params["result_avals"]
    shapes = [n.shape(var) for var in n.eqn.outvars]
    avals = [a.update(shape=shape) for a, shape in zip(avals, shapes, strict=True)]
    return n.bind(*operands, result_avals=tuple(avals))


def tie_callback(t: Tie) -> Sequence[Dims]:
    """fixed, but where Equinox raises an error: what a function does is not known."""
    function = getattr(t.params["callback"], "callback_func", None)
    raises = getattr(function, "__module__", "") == "equinox._errors"
    if not raises or getattr(function, "__name__", "") not in ("raises", "tpu_msg"):
        return fix_everything(t, HOST)
    # Nothing comes back from it, but on TPU something of the shapes that are asked for.
    t.note("raises an error")
    return [[Dim(size) for size in aval.shape] for aval in t.outs]


# Other callbacks are fixed, see `fixed`.
RULES["pure_callback"] = Rule(tie_callback, _narrow_callback)
