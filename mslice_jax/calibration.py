"""Statistics of shared batch norms, measured for each rate after training."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from .norms import LinenFunction
from .sliceable import Sliceable, define, merge, slice_apply


def calibrate(net: Sliceable, batches: Iterable[Any], **call_kwargs: Any) -> Sliceable:
    """Measures the statistics of shared batch norms for each rate.

    Each batch runs with its own statistics; means and variances are put together over
    all the batches, as if they were one (US-Nets, section 3.3, without the momentum).

    Args:
      net: from `upgrade(..., norm="shared")`.
      batches: inputs; each is an array, or a tuple of the model's inputs.
      **call_kwargs: what else the call takes, as for evaluation.

    Returns:
      The network with statistics per rate in 'batch_stats'; other variables unchanged.
    """
    function = net.definition.function
    if not isinstance(function, LinenFunction) or function.norm != "shared":
        kind = getattr(function, "norm", "a plain function")
        raise ValueError(
            "calibrate expects a Linen module upgraded with norm='shared'; got "
            f"{kind!r}. The other strategies need no calibration."
        )
    if net.rate != 1.0:
        raise ValueError(f"calibrate expects the full network; got rate {net.rate:g}.")
    per_rate = replace(function, per_rate=("batch_stats",))
    variables = net.variables
    if not function.per_rate:
        variables = per_rate.spread(variables)
    definition = net.definition
    arrays, call = definition.arrays, definition.call
    measured = define(
        replace(per_rate, measure=True), variables, call, arrays, net.plan.rates,
        definition.groups,
    )  # fmt: skip
    sums: dict[float, Any] = {}
    count = 0
    for batch in batches:
        inputs = batch if isinstance(batch, tuple) else (batch,)
        count += 1
        for rate in net.plan.rates:
            _, updates = slice_apply(
                measured, inputs[0], rate, *inputs[1:], **call_kwargs
            )
            moments = _moments(per_rate.select(updates, rate)["batch_stats"])
            total = sums.get(rate)
            sums[rate] = (
                moments if total is None else jax.tree.map(jnp.add, total, moments)
            )
    if not count:
        raise ValueError("calibrate expects at least one batch; got none.")
    stats = variables["batch_stats"]
    for rate in net.plan.rates:
        means = jax.tree.map(lambda x: x / count, sums[rate])
        own = per_rate.restore({"batch_stats": _statistics(means)}, rate)
        stats = merge(stats, own["batch_stats"])
    calibrated = {**variables, "batch_stats": stats}
    return define(per_rate, calibrated, call, arrays, net.plan.rates, definition.groups)


def _moments(stats: Any) -> Any:
    """Means and mean squares in the place of means and variances, at any depth."""
    if set(stats) == {"mean", "var"}:
        return {"mean": stats["mean"], "var": stats["var"] + stats["mean"] ** 2}
    return {
        key: _moments(value)
        for key, value in stats.items()
        if isinstance(value, Mapping)
    }


def _statistics(moments: Any) -> Any:
    if set(moments) == {"mean", "var"}:
        var = jnp.maximum(moments["var"] - moments["mean"] ** 2, 0.0)
        return {"mean": moments["mean"], "var": var}
    return {key: _statistics(value) for key, value in moments.items()}
