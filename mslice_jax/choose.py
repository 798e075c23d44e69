"""The widest rate within a budget: of time, operations, memory, parameters."""

import math
import numbers
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .core.call import keywords
from .core.errors import RateError
from .core.run import resolve
from .sliceable import Sliceable

if TYPE_CHECKING:
    from .profile import Profile

_UNITS = {"latency_ms": " ms", "memory_bytes": " bytes"}
_COUNTED = ("parameters", "flops")  # known without compiling


def choose_rate(
    net: Sliceable,
    *inputs: Any,
    latency_ms: float | None = None,
    flops: float | None = None,
    memory_bytes: float | None = None,
    parameters: float | None = None,
    profile: "Profile | str | os.PathLike[str] | None" = None,
    rates: Sequence[float] | None = None,
    repeats: int = 30,
    call: Mapping[str, Any] | None = None,
    **call_kwargs: Any,
) -> float:
    """The widest declared rate that keeps within all limits that are given.

    Only what a limit asks for is looked at. Parameters and FLOPs are counted without
    compiling; for memory each rate that they leave is compiled, and for latency it is
    run on the default device, the rates in turn. With `profile` nothing is.

    Args:
      net: from `upgrade` or `extract`.
      *inputs: what a call takes, arrays, at the batch that the limits are for. With a
        profile, and for `parameters` alone, they are not needed.
      latency_ms: of the median call, in milliseconds.
      flops: operations of one call, as `RateProfile.flops` counts them.
      memory_bytes: bytes of all variables of the extracted network and of what its
        compiled program needs beside weights, inputs and results (XLA's temporaries).
        Inputs, results and the program's own code are not in it.
      parameters: numbers that a rate reads of the parameters.
      profile: costs that were measured before, or the path of the file that they were
        saved in, in place of measuring. The limits hold for its device and batch.
      rates: of the declared rates those to choose from; all of them unless given.
      repeats: calls per rate that are timed.
      call: keywords of the call, for such as are named like an argument here.
      **call_kwargs: what else a call takes.

    Returns:
      The rate.

    Raises:
      RateError: if no rate keeps within the limits: it says which of them the narrowest
        one does not keep, and by how much. Also for a rate that was not declared, and
        for a profile of other rates, or of another network.
      ValueError: without a limit, for one that is no number above 0, without inputs
        where they are needed, with both inputs and a profile, for keywords of a call
        without inputs.
      StorageError: for a file that is no profile.

    Example:
      >>> import jax.numpy as jnp, mslice_jax as ms
      >>> def mlp(p, x):
      ...     return jnp.tanh(x @ p["w1"]) @ p["w2"]
      >>> p = {"w1": jnp.ones((3, 16)), "w2": jnp.ones((16, 2))}
      >>> x = jnp.ones((1, 3))
      >>> net = ms.upgrade(mlp, p, x, rates=(0.25, 0.5, 1.0))
      >>> ms.choose_rate(net, parameters=50)  # 5 for each of 16 hidden units
      0.5
      >>> ms.choose_rate(net, x, flops=100, parameters=50)  # 10 for each
      0.5
    """
    asked = {
        "latency_ms": latency_ms,
        "flops": flops,
        "memory_bytes": memory_bytes,
        "parameters": parameters,
    }
    limits = {name: _limit(name, v) for name, v in asked.items() if v is not None}
    if not limits:
        raise ValueError(
            f"expected a limit: one of {', '.join(asked)}, such as latency_ms=5."
        )
    declared = net.rates if rates is None else rates
    among = sorted({_declared(net, rate) for rate in declared})
    if not among:
        raise RateError("rates is empty; leave it out to choose from all of them.")
    given = keywords(call, call_kwargs)
    if given and not inputs:  # one may be a limit, misspelt
        raise ValueError(
            f"the keywords {', '.join(given)} belong to a call, and without inputs "
            f"nothing is called. Limits are {', '.join(asked)}."
        )
    if profile is not None:
        if inputs:
            raise ValueError(
                "expected either inputs, to measure with, or profile=; got both."
            )
        costs = _of_profile(net, among, profile, limits)
    else:
        if not inputs and set(limits) != {"parameters"}:
            raise ValueError(
                f"{', '.join(n for n in limits if n != 'parameters')} is of a call: "
                "give its inputs, choose_rate(net, x, ...), or profile=."
            )
        costs = _measured(net, among, limits, inputs, given, repeats)
    fitting = [r for r in among if not _over(costs[r], limits)]
    if fitting:
        return fitting[-1]
    narrowest = among[0]
    lines = [
        f"  {name}: {_text(name, value)} are needed, {_text(name, limits[name])} are "
        f"allowed, {value / limits[name]:.3g} times as much"
        for name, value in _over(costs[narrowest], limits).items()
    ]
    raise RateError(
        f"no rate keeps within the limits; the narrowest, {narrowest:g}, does not:\n"
        + "\n".join(lines)
        + "\nRaise these limits, or declare a narrower rate in `upgrade`."
    )


def _limit(name: str, value: Any) -> float:
    ok = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not ok or not float(value) > 0:  # written so that nan fails too
        raise ValueError(f"{name} is a limit, a number above 0; got {value!r}.")
    return float(value)


def _declared(net: Sliceable, rate: Any) -> float:
    """The rate; RateError if it was not declared or is wider than the network."""
    part = resolve(net.definition, rate, net.part)
    if part.rate is None:
        raise RateError(f"rates are numbers, one for all groups; got {rate!r}.")
    return part.rate


def _over(costs: Mapping[str, float], limits: Mapping[str, float]) -> dict[str, float]:
    """The costs above their limits; one that is not known is not within it."""
    found = {name: costs[name] for name in limits if name in costs}
    return {name: cost for name, cost in found.items() if not cost <= limits[name]}


def _text(name: str, value: float) -> str:
    number = f"{value:,.0f}"
    if name == "latency_ms":
        number = f"{value:,.3f}" if value >= 0.01 else f"{value:.3g}"
    return number + _UNITS.get(name, f" {name}")


def _of_profile(
    net: Sliceable, rates: Sequence[float], profile: Any, limits: Mapping[str, float]
) -> dict[float, dict[str, float]]:
    """The costs that a profile has; RateError for one of another network."""
    from .profile import Profile, load  # with the others of its kind, when asked for

    known = profile if isinstance(profile, Profile) else load(profile)
    if missing := [rate for rate in rates if rate not in known]:
        raise RateError(
            f"the profile has the rates {tuple(known)}, and not {missing}; measure "
            "these too, or choose among the others with rates=."
        )
    for rate in rates:
        expected, found = net.definition.parameters(rate), known[rate].parameters
        if expected != found:
            raise RateError(
                f"the profile is of another network: {found:,} parameters at rate "
                f"{rate:g}, where this one has {expected:,}. Measure this one."
            )
    costs = {r: {n: float(getattr(known[r], n)) for n in limits} for r in rates}
    unknown = [n for n in limits if any(math.isnan(costs[r][n]) for r in rates)]
    if unknown:
        raise ValueError(
            f"the profile does not know {', '.join(unknown)}, for its device does not "
            "say; leave that limit out."
        )
    return costs


def _measured(
    net: Sliceable,
    rates: Sequence[float],
    limits: Mapping[str, float],
    inputs: Sequence[Any],
    kwargs: Mapping[str, Any],
    repeats: int,
) -> dict[float, dict[str, float]]:
    """What the limits ask for; the cheap ones first, the others of what these leave."""
    # With the others of its kind, when asked for.
    from .profile import measure, profile

    costs: dict[float, dict[str, float]] = {
        rate: {"parameters": float(net.definition.parameters(rate))} for rate in rates
    }
    if set(limits) == {"parameters"} and inputs:
        # Not needed, but a call that does not fit, or a limit misspelt, is told.
        measure.count(net, rates[0], inputs, kwargs)
    if "flops" in limits:
        for rate in rates:
            costs[rate]["flops"] = measure.count(net, rate, inputs, kwargs).flops
    # The narrowest is looked at in any case: an error tells of all that it needs.
    left = [r for r in rates if r == rates[0] or not _over(costs[r], limits)]
    if "latency_ms" in limits:
        found = profile(net, *inputs, rates=left, repeats=repeats, call=kwargs)
        for rate in left:
            costs[rate]["latency_ms"] = found[rate].latency_ms
            costs[rate]["memory_bytes"] = found[rate].memory_bytes
    elif "memory_bytes" in limits:
        for rate in left:
            used = measure.memory_bytes(net, rate, inputs, kwargs)
            costs[rate]["memory_bytes"] = used
    return costs
