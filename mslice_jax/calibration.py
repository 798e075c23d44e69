"""Statistics of shared batch norms, measured for each rate after training."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from .functions.base import ModuleFunction
from .run import merge
from .sliceable import Sliceable, define, slice_apply


def calibrate(net: Sliceable, batches: Iterable[Any], **call_kwargs: Any) -> Sliceable:
    """Measures the statistics of shared batch norms for each rate.

    Each batch runs with its own statistics; means and mean squares are averaged over
    all examples of all batches (US-Nets, section 3.3, without the momentum).

    Args:
      net: from `upgrade(..., norm="shared")`.
      batches: inputs; each is an array, or a tuple of the model's inputs. The first
        axis of the first input counts the examples, by which batches are weighted
        (also where a mask leaves some of them out).
      **call_kwargs: what else the call takes, as for evaluation.

    Returns:
      The network with statistics per rate in 'batch_stats'; other variables unchanged.

    Raises:
      ValueError: for another norm strategy, an extracted network, or no batches.
    """
    function = net.definition.function
    if not isinstance(function, ModuleFunction) or function.norm != "shared":
        kind = getattr(function, "norm", "a plain function")
        raise ValueError(
            "calibrate expects a Flax model upgraded with norm='shared'; got "
            f"{kind!r}. The other strategies need no calibration."
        )
    if net.rate != 1.0:
        raise ValueError(f"calibrate expects the full network; got rate {net.rate:g}.")
    per_rate = replace(function, per_rate=("batch_stats",))
    variables = net.variables if function.per_rate else per_rate.spread(net.variables)
    measured = _derived(net, replace(per_rate, measure=True), variables)
    sums: dict[float, Any] = {}
    count = 0
    for batch in batches:
        first, *rest = batch if isinstance(batch, tuple) else (batch,)
        count += len(first)
        for rate in net.plan.rates:
            _, updates = slice_apply(measured, first, rate, *rest, **call_kwargs)
            stats = per_rate.select(updates, rate)["batch_stats"]
            moments = _moments(stats, weight=len(first))
            if rate in sums:
                moments = jax.tree.map(jnp.add, sums[rate], moments)
            sums[rate] = moments
    if not count:
        raise ValueError("calibrate expects at least one batch; got none.")
    stats = variables["batch_stats"]
    for rate, moments in sums.items():
        own = {"batch_stats": _statistics(moments, count)}
        stats = merge(stats, per_rate.restore(own, rate)["batch_stats"])
    return _derived(net, per_rate, {**variables, "batch_stats": stats})


def _derived(net: Sliceable, function: ModuleFunction, variables: Any) -> Sliceable:
    """The network with another function; its programs are kept for the next time."""
    base = net.definition
    if function.measure not in base.derived:
        again = define(function, variables, base.call, base.arrays, base.settings)
        base.derived[function.measure] = replace(again.definition, orders=base.orders)
    return Sliceable(variables, base.derived[function.measure])


def _moments(stats: Any, weight: float) -> Any:
    """Weighted sums of means and mean squares, at any depth of the tree."""
    if set(stats) == {"mean", "var"}:
        square = stats["var"] + stats["mean"] ** 2
        return {"mean": weight * stats["mean"], "square": weight * square}
    inner = {name: tree for name, tree in stats.items() if isinstance(tree, Mapping)}
    return {name: _moments(tree, weight) for name, tree in inner.items()}


def _statistics(moments: Any, count: float) -> Any:
    """Means and variances from the sums of `_moments`."""
    if set(moments) == {"mean", "square"}:
        mean = moments["mean"] / count
        return {
            "mean": mean,
            "var": jnp.maximum(moments["square"] / count - mean**2, 0),
        }
    return {name: _statistics(tree, count) for name, tree in moments.items()}
