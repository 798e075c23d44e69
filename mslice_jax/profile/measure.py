"""Measuring a profile: counts from the program, memory and latency from its run."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from ..core.call import Call, keywords, type_of
from ..core.flops import flops as contraction_flops
from ..core.layers import Layer, Layers, layers
from ..core.paths import Path, path_parts
from ..core.rates import Rate, rate_key
from ..core.run import program_of, resolve
from ..cpu.compilation import jit
from ..sliceable import Sliceable, extract, slice_apply
from .record import Profile, RateProfile
from .timing import in_turn, median_ms, p99_ms

_ALIKE = 0.02  # so far apart may two counts be without a reason


def profile(
    net: Sliceable,
    *inputs: Any,
    rates: Sequence[float] | None = None,
    repeats: int = 30,
    call: Mapping[str, Any] | None = None,
    **call_kwargs: Any,
) -> Profile:
    """Measure the cost of every rate on the default device.

    Each rate is extracted and compiled; then the rates take turns, so that a machine
    that slows down or is shared slows all of them alike.

    Args:
      net: a network at full width.
      *inputs: what a call takes, arrays; with batch 1 the latency is a request's.
      rates: which of the network's rates; all of them unless given.
      repeats: calls per rate that are timed.
      call: keywords of the call, whatever their names.
      **call_kwargs: what else a call takes.

    Returns:
      A `Profile`: a mapping from each rate to its costs, to print, save or plot.

    Raises:
      ValueError: if `repeats` is below 1. Errors of `extract` for a wrong rate.

    Example:
      >>> import mslice_jax as ms, jax, jax.numpy as jnp
      >>> from flax import linen as nn
      >>> from mslice_jax.profile import profile
      >>> model = nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(2)])
      >>> x = jnp.ones((1, 3))
      >>> net = ms.upgrade(model, model.init(jax.random.key(0), x), x, rates=(0.5, 1.0))
      >>> costs = profile(net, x, repeats=3)
      >>> {rate: cost.parameters for rate, cost in costs.items()}
      {0.5: 26, 1.0: 50}
      >>> [(layer.name, layer.shape, layer.flops) for layer in costs[0.5].layers]
      [('layers_0', (1, 4), 28.0), ('(top)', (1, 4), 4.0), ('layers_2', (1, 2), 18.0)]
    """
    if repeats < 1:
        raise ValueError(f"expected at least one repeat, got {repeats}.")
    given = keywords(call, call_kwargs)
    rates = sorted(net.rates if rates is None else rates)
    runs: dict[float, Callable[[], Any]] = {}
    costs: dict[float, dict[str, Any]] = {}
    for rate in rates:
        small = extract(net, rate)
        run = _call(rate, given)
        counts = count(small, rate, inputs, given)
        xla_flops = _flops(jax.jit(run).lower(small, *inputs))
        compiled = jit(run).lower(small, *inputs).compile()
        costs[rate] = {
            **_from(counts),
            "xla_flops": xla_flops,
            "flops_differ": _differ(counts, xla_flops),
            "weight_bytes": weight_bytes(small),
            "temporary_bytes": _temporary_bytes(compiled),
        }
        runs[rate] = lambda compiled=compiled, small=small: compiled(small, *inputs)
    seconds = in_turn(runs, repeats)
    _, arrays = Call.split(inputs, given)
    device = jax.local_devices()[0]
    return Profile(
        costs={
            rate: RateProfile(**cost, **_latency(seconds[rate]))
            for rate, cost in costs.items()
        },
        device=device.device_kind,
        platform=device.platform,
        inputs=tuple(f"{x.dtype}[{','.join(map(str, x.shape))}]" for x in arrays),
        batch=arrays[0].shape[0] if arrays and arrays[0].shape else None,
        repeats=repeats,
        jax=jax.__version__,
    )


def profile_layers(
    net: Sliceable,
    rate: Rate,
    *inputs: Any,
    call: Mapping[str, Any] | None = None,
    **call_kwargs: Any,
) -> tuple[Layer, ...]:
    """The costs of each layer at a rate, counted without compiling or measuring.

    Args:
      net: a network; types in place of arrays are enough, also of inputs.
      rate: as `slice_apply` takes it, a rate for each group too.
      *inputs: what a call takes.
      call: keywords of the call, whatever their names.
      **call_kwargs: what else a call takes.

    Returns:
      The layers in the order in which they run, then those that the call does not run.
      Parameters, FLOPs and bytes add up to those of `profile`.

    Raises:
      RateError: for a rate that was not declared, or is wider than the network.

    Example:
      >>> import jax.numpy as jnp, mslice_jax as ms
      >>> from mslice_jax.profile import profile_layers
      >>> def mlp(p, x):
      ...     return jnp.maximum(x @ p["w1"], 0) @ p["w2"]
      >>> p = {"w1": jnp.ones((3, 16)), "w2": jnp.ones((16, 2))}
      >>> x = jnp.ones((1, 3))
      >>> net = ms.upgrade(mlp, p, x, rates=(0.5, 1.0))
      >>> [(layer.name, layer.flops) for layer in profile_layers(net, 0.5, x)]
      [('w1', 48.0), ('(top)', 8.0), ('w2', 32.0)]
    """
    return count(net, rate, inputs, keywords(call, call_kwargs)).layers.rows


def count_parameters(net: Sliceable, rate: float) -> int:
    """Numbers in `net`'s "params" that `rate` reads.

    Norms with one set per rate keep each under the name of its rate; an extracted
    network still holds the sets of narrower rates, which do not count here.
    """
    return net.definition.parameters(rate)


class Counts:
    """What is known of a rate without compiling it."""

    def __init__(self, found: Layers, contractions: float):
        self.layers = found
        self.contraction_flops = float(contractions)
        rows = found.rows
        self.parameters = sum(row.parameters for row in rows)
        self.flops = float(sum(row.flops for row in rows))
        self.activation_bytes = sum(row.activation_bytes for row in rows)


def count(
    net: Sliceable, rate: Rate, inputs: Sequence[Any], kwargs: Mapping[str, Any]
) -> Counts:
    """Counts a call at a rate, layer by layer, from its program."""
    definition = net.definition
    part = resolve(definition, rate, net.part)
    call, arrays = Call.split(inputs, kwargs)
    types = [type_of(x) for x in arrays]
    program = program_of(definition, part, net.part, call, net.variables, types)
    widths = definition.plan.widths(part)
    paths = [p for p, _ in jax.tree_util.tree_leaves_with_path(net.variables)]
    names = {parts: _in_layers(net, parts) for parts in map(path_parts, paths)}
    parameters: dict[Path, int] = {}
    for parts, number in definition.parameters_by_leaf(part).items():
        parameters[names[parts]] = parameters.get(names[parts], 0) + number
    found = layers(program.analysis, widths, [*names.values()], parameters)
    return Counts(found, contraction_flops(program.analysis, widths))


def _in_layers(net: Sliceable, parts: Path) -> Path:
    """The path of a variable as layers have it: modules and its own name.

    Without the collection of a Flax model, and without the rate of a set of a norm, of
    which a program reads one. Haiku writes several modules as one key.
    """
    if isinstance(net.variables, Mapping) and "params" in net.variables:
        parts = parts[1:]
    modules, name = parts[:-1], parts[-1:]
    if net.definition.function.depends_on_rate:
        sets = {rate_key(rate) for rate in net.plan.rates}
        modules = [part for part in modules if part not in sets]
    pieces = [piece for part in modules for piece in part.split("/")]
    return (*(piece for piece in pieces if piece not in ("", "~")), *name)


def weight_bytes(net: Sliceable) -> int:
    """Bytes of all variables."""
    leaves = jax.tree.leaves(net.variables)
    return sum(x.size * x.dtype.itemsize for x in leaves)


def memory_bytes(
    net: Sliceable, rate: float, inputs: Sequence[Any], kwargs: Mapping[str, Any]
) -> float:
    """Bytes of weights and temporaries of a rate, as `RateProfile.memory_bytes`."""
    small = extract(net, rate)
    compiled = jit(_call(rate, kwargs)).lower(small, *inputs).compile()
    return weight_bytes(small) + _temporary_bytes(compiled)


def _call(rate: float, kwargs: Mapping[str, Any]) -> Callable[..., Any]:
    def call(small: Sliceable, *inputs: Any) -> Any:
        return slice_apply(small, *inputs[:1], rate, *inputs[1:], **kwargs)

    return call


def _from(counts: Counts) -> dict[str, Any]:
    return {
        "parameters": counts.parameters,
        "flops": counts.flops,
        "contraction_flops": counts.contraction_flops,
        "activation_bytes": counts.activation_bytes,
        "layers": counts.layers.rows,
    }


def _differ(counts: Counts, xla_flops: float) -> str:
    """Why XLA's count is not ours; empty where it is, or where there is none."""
    apart = xla_flops - counts.flops
    if not abs(apart) > _ALIKE * max(xla_flops, counts.flops):
        return ""
    reasons = []
    found = counts.layers
    if loops := sorted({length for length in found.loops if length}):
        lengths = ", ".join(map(str, loops))
        reasons.append(f"XLA counts the body of a loop once, not {lengths} times")
    if 0 in found.loops:
        reasons.append("a loop whose length only the run knows counts once")
    if found.uncounted:
        reasons.append(
            "XLA makes other operations of " + ", ".join(sorted(found.uncounted))
        )
    if found.constants and apart > 0:
        reasons.append("constants that the program makes are counted by XLA alone")
    return "; ".join(reasons) or "XLA writes the program with other operations"


def _temporary_bytes(compiled: Any) -> float:
    memory = compiled.memory_analysis()
    return float("nan") if memory is None else float(memory.temp_size_in_bytes)


def _flops(lowered: jax.stages.Lowered) -> float:
    """XLA's count for the whole program; NaN where the backend gives none."""
    costs = lowered.cost_analysis()
    if isinstance(costs, list):  # some backends give one dictionary per device
        costs = costs[0] if costs else None
    return float(costs["flops"]) if costs and "flops" in costs else float("nan")


def _latency(seconds: Sequence[float]) -> dict[str, Any]:
    return {"latency_ms": median_ms(seconds), "latency_p99_ms": p99_ms(seconds)}
