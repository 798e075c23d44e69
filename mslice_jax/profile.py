"""What each rate costs: parameters, floating-point operations, latency."""

import dataclasses
import math
import statistics
import time
from collections.abc import Sequence
from typing import Any

import jax

from .core.flops import further_turns
from .cpu.compilation import jit
from .report import contraction_flops
from .sliceable import Sliceable, extract, slice_apply


@dataclasses.dataclass(frozen=True, kw_only=True)
class RateProfile:
    """The cost of one rate, measured on the extracted network.

    Attributes:
      parameters: numbers in the narrow "params" that this rate reads, as the report
        counts them. Of norms with one set per rate, only its own set counts; batch
        statistics do not.
      flops: floating-point operations of one call, all of them, as XLA counts them
        before it optimizes: a multiplication with an addition is 2, and norms,
        activations and sums count as well as convolutions. The body of a loop counts
        as often as it runs, where that is known before it does.
      latency_ms: median time of a call in milliseconds, compiled, weights in place.
      contraction_flops: those of dense layers, convolutions and attention alone, as
        the report counts them, for the inputs of this call.
    """

    parameters: int
    flops: float
    latency_ms: float
    contraction_flops: float = math.nan


def profile(
    net: Sliceable,
    *inputs: Any,
    rates: Sequence[float] | None = None,
    repeats: int = 30,
    **call_kwargs: Any,
) -> dict[float, RateProfile]:
    """Measure the cost of every rate on the default device.

    Each rate is extracted and compiled; then the rates take turns, so that a machine
    that slows down or is shared slows all of them alike.

    Args:
      net: a network at full width.
      *inputs: what a call takes, arrays; with batch 1 the latency is a request's.
      rates: which of the network's rates; all of them unless given.
      repeats: calls per rate that are timed.
      **call_kwargs: what else a call takes.

    Returns:
      A profile for each rate, in ascending order.

    Raises:
      ValueError: if `repeats` is below 1. Errors of `extract` for a wrong rate.

    Example:
      >>> import mslice_jax as ms, jax, jax.numpy as jnp
      >>> from flax import linen as nn
      >>> from mslice_jax.profile import profile
      >>> model = nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(2)])
      >>> x = jnp.ones((1, 3))
      >>> net = ms.upgrade(model, model.init(jax.random.key(0), x), x, rates=(0.5, 1.0))
      >>> {rate: cost.parameters for rate, cost in profile(net, x).items()}
      {0.5: 26, 1.0: 50}
    """
    if repeats < 1:
        raise ValueError(f"expected at least one repeat, got {repeats}.")
    rates = sorted(net.rates if rates is None else rates)
    runs, parameters, flops, contractions = {}, {}, {}, {}
    for rate in rates:
        small = extract(net, rate)

        def call(small: Sliceable, *inputs: Any, rate: float = rate) -> Any:
            return slice_apply(small, *inputs[:1], rate, *inputs[1:], **call_kwargs)

        lowered = jit(call).lower(small, *inputs)
        parameters[rate] = count_parameters(small, rate)
        # XLA counts the body of a loop once.
        program = jax.make_jaxpr(call)(small, *inputs)
        flops[rate] = _flops(lowered) + further_turns(program, _flops_of)
        contractions[rate] = contraction_flops(small, inputs, call_kwargs)
        compiled = lowered.compile()
        runs[rate] = lambda compiled=compiled, small=small: compiled(small, *inputs)

    latency = _interleaved_medians(runs, repeats)
    return {
        rate: RateProfile(
            parameters=parameters[rate],
            flops=flops[rate],
            latency_ms=1e3 * latency[rate],
            contraction_flops=contractions[rate],
        )
        for rate in rates
    }


def count_parameters(net: Sliceable, rate: float) -> int:
    """Numbers in `net`'s "params" that `rate` reads.

    Norms with one set per rate keep each under the name of its rate; an extracted
    network still holds the sets of narrower rates, which do not count here.
    """
    return net.definition.parameters(rate)


def _flops_of(function: Any, types: Sequence[Any]) -> float:
    return _flops(jax.jit(function).lower(*types))


def _flops(lowered: jax.stages.Lowered) -> float:
    """XLA's count for the whole program; NaN where the backend gives none."""
    costs = lowered.cost_analysis()
    if isinstance(costs, list):  # some backends give one dictionary per device
        costs = costs[0] if costs else None
    return float(costs["flops"]) if costs and "flops" in costs else float("nan")


def _interleaved_medians(runs: dict[float, Any], repeats: int) -> dict[float, float]:
    """Median seconds of each function, all of them called in turn."""
    seconds: dict[float, list[float]] = {rate: [] for rate in runs}
    for turn in range(repeats + 2):
        for rate, run in runs.items():
            began = time.perf_counter()
            jax.block_until_ready(run())
            if turn >= 2:  # the first turns warm caches
                seconds[rate].append(time.perf_counter() - began)
    return {rate: statistics.median(values) for rate, values in seconds.items()}
