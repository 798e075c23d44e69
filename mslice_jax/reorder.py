"""Putting the most important units first, in networks that are already trained.

A rate keeps the leading indices of every width group. A network that was trained at
full width alone has its important channels anywhere; `reorder` sorts the indices of
each group, consistently over all arrays that it runs through, so that the network
computes what it did and a rate drops what matters least. Once-for-all (Cai et al.,
ICLR 2020, section 3.3) sorts channels by the L1 norm of their weights; gradient times
weight is the first-order Taylor criterion (Molchanov et al., CVPR 2019).
"""

import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .adapters.modules import ModuleFunction
from .adapters.norms import NormWarning
from .core.axes import groups_in, owners
from .core.errors import PlanError
from .core.patterns import Patterns, as_patterns, names_group, no_match
from .core.plan import WidthPlan
from .sliceable import Sliceable, check_full

Scores = dict[str, np.ndarray]
"""For each width group the importance of every index."""

NORMS: dict[str, Callable[[np.ndarray], np.ndarray]] = {"l1": np.abs, "l2": np.square}


def reorder(
    net: Sliceable,
    by: str | Mapping[str, Any] = "l1",
    *,
    loss: Callable[..., jax.Array] | None = None,
    batches: Iterable[Any] = (),
    exclude: Patterns | None = None,
) -> Sliceable:
    """Sorts the units of every width group by importance, the most important first.

    At rate 1 the function stays the same up to rounding (random draws such as dropout
    masks are not reordered). The scores of the arrays that a group runs through are
    divided by their mean and added, so that each array counts the same.

    Args:
      net: a network at full width.
      by: how important an index is: 'l1' or 'l2', the norm of all weights at it; or
        'taylor', how much the loss would change without them, to first order; or a
        mapping from width groups to scores (size,), higher is more important, which
        moves these groups alone.
      loss: for 'taylor': a function loss(net, batch) -> scalar.
      batches: for 'taylor': a few batches, whatever `loss` takes.
      exclude: patterns of width groups that keep their order.

    Returns:
      The network with its variables, and the constants that the function captured, in
      the new order.

    Raises:
      ValueError: for an extracted network, an unknown criterion, or missing batches.
      PlanError: for a pattern or group that is not in the plan, or a wrong size.

    Warns:
      NormWarning: if `calibrate` measured statistics, which are of other units now.

    Example:
      >>> import mslice_jax as ms, jax.numpy as jnp
      >>> def mlp(p, x):
      ...     return jnp.tanh(x @ p["w1"]) @ p["w2"]
      >>> p = {"w1": jnp.array([[1.0, 3.0, 2.0, 4.0]]), "w2": jnp.ones((4, 1))}
      >>> net = ms.upgrade(mlp, p, jnp.ones((1, 1)), rates=(0.5, 1.0))
      >>> ms.reorder(net).variables["w1"]
      Array([[4., 3., 2., 1.]], dtype=float32)
    """
    check_full(net, "reorder")
    function = net.definition.function
    if isinstance(function, ModuleFunction) and function.calibrated:
        warnings.warn(
            "reorder changes which units a narrow rate keeps, and the statistics that "
            "calibrate measured for it are of others. Calibrate again.",
            NormWarning,
            stacklevel=2,
        )
    plan = net.plan
    scores = _scores(net, by, loss, batches)
    for pattern in as_patterns(exclude, "exclude"):
        named = [name for name in plan.groups if names_group(pattern, name)]
        if not named:
            raise PlanError(no_match(pattern, plan.groups, "exclude"))
        for name in named:
            scores.pop(name, None)
    orders = {
        # Equal scores keep their order.
        name: np.argsort(-np.asarray(score, np.float64), kind="stable")
        for name, score in scores.items()
    }
    return net.permute(orders)


def _scores(net: Sliceable, by: Any, loss: Any, batches: Iterable[Any]) -> Scores:
    plan, variables = net.plan, net.variables
    if isinstance(by, Mapping):
        for name, score in by.items():
            size = plan.groups[name].size if name in plan.groups else None
            if np.shape(score) != (size,):
                raise PlanError(
                    f"scores of group {name!r}: expected shape ({size},), got "
                    f"{np.shape(score)}."
                    if size is not None
                    else no_match(name, plan.groups, "by")
                )
        return {name: np.asarray(score) for name, score in by.items()}
    if by in NORMS:
        return _of_groups(plan, jax.tree.map(lambda w: NORMS[by](_numpy(w)), variables))
    if by != "taylor":
        raise ValueError(
            f"by is 'l1', 'l2', 'taylor' or a mapping of width groups to scores; got "
            f"{by!r}."
        )
    if loss is None:
        raise ValueError("by='taylor' needs loss=, a function loss(net, batch).")
    gradient = jax.jit(jax.grad(loss, allow_int=True))
    total: Scores = {}
    for batch in batches:
        slopes = gradient(net, batch).variables
        products = jax.tree.map(_slope_times_weight, variables, slopes)
        for name, score in _of_groups(plan, products, signed=True).items():
            total[name] = total.get(name, 0) + score
    if not total:
        raise ValueError("by='taylor' needs batches=, at least one; got none.")
    return total


def _of_groups(plan: WidthPlan, entries: Any, signed: bool = False) -> Scores:
    """Adds up what the entries of every array say of each index of a group."""
    scores = {name: np.zeros(group.size) for name, group in plan.groups.items()}
    for path, leaf in jax.tree_util.tree_leaves_with_path(entries):
        axes = plan.leaf(path)
        for dim, axis in enumerate(axes.axes if axes is not None else ()):
            along = leaf.sum(tuple(i for i in range(leaf.ndim) if i != dim))
            for group in dict.fromkeys(groups_in(axis)):
                owner = owners(axis, group)
                score = np.bincount(
                    owner[owner >= 0], along[owner >= 0], plan.groups[group].size
                )
                score = np.square(score) if signed else score
                mean = score.mean()
                scores[group] += score / mean if mean > 0 else score
    return scores


def _slope_times_weight(weight: Any, slope: Any) -> np.ndarray:
    if slope.dtype == jax.dtypes.float0:
        return np.zeros(np.shape(weight))
    return _numpy(weight) * _numpy(slope)


def _numpy(x: Any) -> np.ndarray:
    if jnp.issubdtype(x.dtype, jax.dtypes.extended):  # keys of random numbers
        return np.zeros(x.shape)
    return np.asarray(x, np.float64)
