"""Putting the most important units first, in networks that are already trained.

A rate keeps the leading indices of every width group. A network that was trained at
full width alone has its important channels anywhere; `reorder` sorts the indices of
each group, consistently over all arrays that it runs through, so that the network
computes what it did and a rate drops what matters least (`importance`).
"""

import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

from .adapters.modules import ModuleFunction
from .adapters.norms import NormWarning
from .core.errors import PlanError
from .core.patterns import Patterns, as_patterns, names_group, no_match
from .core.plan import WidthPlan
from .importance import Scores, importance
from .sliceable import Sliceable, check_full


def reorder(
    net: Sliceable,
    by: str | Mapping[str, Any] = "l1",
    *,
    loss: Callable[..., jax.Array] | None = None,
    batches: Iterable[Any] = (),
    exclude: Patterns | None = None,
    **call_kwargs: Any,
) -> Sliceable:
    """Sorts the units of every width group by importance, the most important first.

    At rate 1 the function stays the same up to rounding (random draws such as dropout
    masks are not reordered).

    Args:
      net: a network at full width.
      by: how important an index is: 'l1', 'l2', 'taylor', 'activations' or
        'activations x weights', see `importance`; or a mapping from width groups to
        scores (size,), higher is more important, which moves these groups alone.
      loss: for 'taylor', see `importance`.
      batches: for 'taylor' and activations, see `importance`.
      exclude: patterns of width groups that keep their order.
      **call_kwargs: for activations: what else the call takes, as for evaluation.

    Returns:
      The network with its variables, and the constants that the function captured, in
      the new order.

    Raises:
      ValueError: for an extracted network, an unknown criterion, missing batches, or
        inputs that do not fit.
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
    if isinstance(by, Mapping):
        scores = _given(plan, by)
    else:
        scores = importance(net, by, loss=loss, batches=batches, **call_kwargs)
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


def _given(plan: WidthPlan, by: Mapping[str, Any]) -> Scores:
    for name, score in by.items():
        if name not in plan.groups:
            raise PlanError(no_match(name, plan.groups, "by"))
        size = plan.groups[name].size
        if np.shape(score) != (size,):
            raise PlanError(
                f"scores of group {name!r}: expected shape ({size},), got "
                f"{np.shape(score)}."
            )
    return {name: np.asarray(score) for name, score in by.items()}
