"""Statistics of shared batch norms, measured for each rate after training."""

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from .adapters.modules import ModuleFunction, statistics
from .adapters.norms import NormWarning
from .core.define import define
from .core.rates import rate_key
from .core.run import merge
from .sliceable import Sliceable, check_full, slice_apply


def calibrate(net: Sliceable, batches: Iterable[Any], **call_kwargs: Any) -> Sliceable:
    """Measures the statistics of shared batch norms for each rate.

    Each batch runs with its own statistics; means and mean squares are averaged over
    all examples of all batches (US-Nets, section 3.3, without the momentum).

    Args:
      net: from `upgrade`, with norm="shared" or trained batch norms.
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
    if not isinstance(function, ModuleFunction) or not function.norm.calibrated:
        is_module = isinstance(function, ModuleFunction)
        kind = function.norm.name if is_module else "a plain function"
        raise ValueError(
            "calibrate expects a Flax model upgraded with norm='shared'; got "
            f"{kind!r}. The other strategies need no calibration."
        )
    if function.left:
        warnings.warn(
            "calibrate measures batch norms of Flax; the statistics of "
            f"{', '.join('/'.join(path) for path in function.left[:3])} stay what they "
            "are, which fits the full width alone if they are those of a batch norm.",
            NormWarning,
            stacklevel=2,
        )
    check_full(net, "calibrate")
    per_rate = replace(function, calibrated=True)
    variables = net.variables if function.calibrated else per_rate.spread(net.variables)
    measured = _derived(net, replace(per_rate, measure=True), variables)
    sums: dict[float, Any] = {}
    count = 0
    for batch in batches:
        first, *rest = batch if isinstance(batch, tuple) else (batch,)
        count += len(first)
        for rate in net.plan.rates:
            _, updates = slice_apply(measured, first, rate, *rest, **call_kwargs)
            found = statistics(per_rate.select(updates, rate))
            moments = {
                site: _moments(found[site], weight=len(first))
                for site in function.sites
                if site in found
            }
            if rate in sums:
                moments = jax.tree.map(jnp.add, sums[rate], moments)
            sums[rate] = moments
    if not count:
        raise ValueError("calibrate expects at least one batch; got none.")
    stats = variables["batch_stats"]
    for rate, moments in sums.items():
        for site, sums_there in moments.items():
            own: Any = {rate_key(rate): _statistics(sums_there, count)}
            for name in reversed(site):
                own = {name: own}
            stats = merge(stats, own)
    return _derived(net, per_rate, {**variables, "batch_stats": stats})


def _derived(net: Sliceable, function: ModuleFunction, variables: Any) -> Sliceable:
    """The network with another function; its programs are kept for the next time."""
    base = net.definition
    if function.measure not in base.derived:
        again = define(function, variables, base.call, base.arrays, base.settings)
        plan = replace(again.plan, names=base.plan.names)
        base.derived[function.measure] = replace(again, plan=plan, orders=base.orders)
    return Sliceable(variables, base.derived[function.measure])


def _moments(stats: Mapping[str, Any], weight: float) -> dict[str, Any]:
    """Weighted sums of means and mean squares."""
    square = stats["var"] + stats["mean"] ** 2
    return {"mean": weight * stats["mean"], "square": weight * square}


def _statistics(moments: Mapping[str, Any], count: float) -> dict[str, Any]:
    """Means and variances from the sums of `_moments`."""
    mean = moments["mean"] / count
    return {"mean": mean, "var": jnp.maximum(moments["square"] / count - mean**2, 0)}
