"""Narrow networks at full width: what a choice drops is zero.

Such networks are of one shape, so one program runs all of them, and the widths are
data. Where no mean, norm or maximum runs along an axis that narrows, they compute what
the slices compute (the fifth proof of CONTRIBUTING.md); whether they do is tried out.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core import axes as axes_lib
from ..core.call import Call
from ..core.plan import WidthPlan
from ..core.rates import SubNetwork
from ..core.run import resolve, run, slice_variables
from ..sliceable import Sliceable
from .space import Space


def masked(
    plan: WidthPlan,
    source: SubNetwork,
    variables: Any,
    groups: Sequence[str],
    widths: Any,
) -> Any:
    """The variables with zero for all that narrower widths drop.

    Args:
      plan: of the network.
      source: that the variables are at.
      variables: the tree; leaves that no group runs through stay as they are.
      groups: the names of all groups.
      widths: an array (number of groups,), how many indices each keeps; it may be
        traced.
    """
    place = {name: at for at, name in enumerate(groups)}
    prefix = {name: np.arange(kept) for name, kept in source.widths}

    def of_leaf(path: Any, x: Any) -> Any:
        leaf = plan.leaf(path)
        for dim, axis in enumerate(leaf.axes if leaf else ()):
            here = axes_lib.indices(axis, prefix)
            for name in dict.fromkeys(axes_lib.groups_in(axis)):
                owner = axes_lib.owners(axis, name)[here]  # -1 where it is no unit's
                kept = jnp.asarray(owner) < widths[place[name]]
                kept = kept.reshape([-1 if i == dim else 1 for i in range(x.ndim)])
                x = jnp.where(kept, x, jnp.zeros_like(x))
        return x

    return jax.tree_util.tree_map_with_path(of_leaf, variables)


def masker(net: Sliceable, space: Space) -> Callable[[Any, Any], Any]:
    """(variables, widths) -> masked variables, compiled once."""
    plan, part = net.plan, net.part

    @jax.jit
    def mask(variables: Any, widths: Any) -> Any:
        return masked(plan, part, variables, space.groups, widths)

    return mask


def are_exact(
    net: Sliceable,
    space: Space,
    inputs: Sequence[Any],
    kwargs: Mapping[str, Any] | None,
) -> bool:
    """Whether masks compute what slices do, up to rounding.

    Tried with the inputs, or else with random ones of the call that `upgrade` saw: all
    groups at their narrowest, and every other one. Two narrow programs are compiled.
    False, too, where outputs tell nothing: all of them zero.
    """
    definition, source = net.definition, net.part
    if inputs:
        call, arrays = Call.split(inputs, kwargs or {})
    else:
        call, types = definition.call, definition.arrays
        if any(jnp.issubdtype(x.dtype, jax.dtypes.extended) for x in types):
            return False  # draws of other shapes are other draws
        arrays = [drawn(x, seed) for seed, x in enumerate(types)]
    every_other = tuple(last if at % 2 else 0 for at, last in enumerate(space.widest))
    mask = masker(net, space)
    for choice in dict.fromkeys((space.narrowest, every_other)):
        part = resolve(definition, space.mapping(choice), source)
        narrow = slice_variables(definition, part, source, net.variables)
        sliced = run(definition, part, part, call, narrow, arrays)
        widths = np.array(list(space.kept(choice).values()))
        zeroed = mask(net.variables, widths)
        full = run(definition, source, source, call, zeroed, arrays)
        if not all(map(same, jax.tree.leaves(sliced), jax.tree.leaves(full))):
            return False
    return True


def drawn(x: Any, seed: int) -> Any:
    """Random numbers of a type; integers are 0 or 1, which all tables have."""
    rng = np.random.default_rng(seed)
    if jnp.issubdtype(x.dtype, jnp.inexact):
        return jnp.asarray(rng.normal(size=x.shape), x.dtype)
    return jnp.asarray(rng.integers(0, 2, size=x.shape), x.dtype)


def same(a: Any, b: Any) -> bool:
    """Whether two outputs differ by rounding at most, and are not zero alone."""
    if a.shape != b.shape:
        return False
    if not jnp.issubdtype(a.dtype, jnp.inexact):
        return np.array_equal(np.asarray(a), np.asarray(b))
    # Other platforms multiply single precision with fewer bits.
    exact = jax.default_backend() == "cpu" and jnp.finfo(a.dtype).nmant >= 23
    tolerance = 1e-4 if exact else 3e-2
    wide = np.complex128 if jnp.iscomplexobj(a) else np.float64
    a, b = np.asarray(a).astype(wide), np.asarray(b).astype(wide)
    scale = np.max(np.abs(a), initial=0)
    return bool(scale > 0 and np.allclose(a, b, rtol=0, atol=tolerance * scale))
