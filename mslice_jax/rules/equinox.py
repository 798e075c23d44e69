"""Primitives of Equinox: what its loops, checks and debugging put into a program.

They are known by name: Equinox need not be installed, and is not imported.
"""

from collections.abc import Sequence
from typing import Any

import jax

from .base import Dims, Tie, Value, fix_everything, rule


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
