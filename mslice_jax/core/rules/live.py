"""What the results of a program need: what they do not need ties no axes.

``jnp.ones_like(h[:, :1])`` cuts the units of h only to have a shape, and padding by
(0, 0) lays nothing beside them: a part without entries is made of nothing.
"""

from typing import Any

import numpy as np
from jax.core import ShapedArray
from jax.extend import core
from jax.extend.core.primitives import broadcast_in_dim_p


def live(jaxpr: Any) -> Any:
    """The jaxpr without equations that no result and no effect depends on.

    An input that nothing else reads keeps what is made of it: running statistics, whose
    update a call in training mode computes even where nobody asks for it.
    """
    kept = _needed(jaxpr, set())
    used = [*jaxpr.outvars, *(var for eqn in kept for var in eqn.invars)]
    read = {var for var in used if not isinstance(var, core.Literal)}
    if alone := set(jaxpr.invars) - read:
        kept = _needed(jaxpr, _made_of(alone, jaxpr))
    same = len(kept) == len(jaxpr.eqns)
    same = same and all(a is b for a, b in zip(kept, jaxpr.eqns, strict=True))
    return jaxpr if same else jaxpr.replace(eqns=kept)


def _made_of(inputs: set[Any], jaxpr: Any) -> set[Any]:
    """The variables that depend on these inputs."""
    found = set(inputs)
    for eqn in jaxpr.eqns:
        if any(not isinstance(v, core.Literal) and v in found for v in eqn.invars):
            found.update(eqn.outvars)
    return found


def _needed(jaxpr: Any, more: set[Any]) -> list[Any]:
    """The equations that results, effects, or `more` variables depend on."""
    needed = {var for var in jaxpr.outvars if not isinstance(var, core.Literal)} | more
    kept = []
    for eqn in reversed(jaxpr.eqns):
        if not eqn.effects and not any(var in needed for var in eqn.outvars):
            continue
        for part in _nothing(eqn) or [eqn]:
            kept.append(part)
            needed.update(v for v in part.invars if not isinstance(v, core.Literal))
    kept.reverse()
    return kept


def _nothing(eqn: Any) -> list[Any]:
    """An equation whose results have no entries, as equations without operands."""
    avals = [var.aval for var in eqn.outvars]
    if eqn.effects or not all(map(_is_empty, avals)):
        return []
    if all(isinstance(var, core.Literal) for var in eqn.invars):
        return []
    return [
        eqn.replace(
            primitive=broadcast_in_dim_p,
            invars=[core.Literal(np.zeros((), a.dtype), ShapedArray((), a.dtype))],
            outvars=[var],
            params={"shape": a.shape, "broadcast_dimensions": (), "sharding": None},
        )
        for var, a in zip(eqn.outvars, avals, strict=True)
    ]


def _is_empty(aval: Any) -> bool:
    sizes, dtype = getattr(aval, "shape", ()), getattr(aval, "dtype", None)
    return isinstance(dtype, np.dtype) and any(
        isinstance(size, int) and size == 0 for size in sizes
    )
