"""A profile as text: a row for each rate, or for each layer of one."""

import math
from collections.abc import Sequence

from ..core.rates import rate_key
from ..report import table_lines
from .record import COSTS, Profile, RateProfile


def of_rates(profile: Profile) -> str:
    """The costs of every rate, where they were measured, and how they go with r."""
    head = [
        "rate", "parameters", "FLOPs", "XLA's count", "activations", "weights",
        "temporary", "median", "p99",
    ]  # fmt: skip
    rows = [
        [
            rate_key(rate),
            f"{cost.parameters:,}",
            _number(cost.flops),
            _number(cost.xla_flops),
            _bytes(cost.activation_bytes),
            _bytes(cost.weight_bytes),
            _bytes(cost.temporary_bytes),
            _milliseconds(cost.latency_ms),
            _milliseconds(cost.latency_p99_ms),
        ]
        for rate, cost in profile.items()
    ]
    lines = table_lines([head, *rows])
    inputs = f" of {', '.join(profile.inputs)}" if profile.inputs else ""
    lines += [
        "",
        f"One call{inputs}; {profile.repeats} calls timed on {profile.device}"
        + (f", batch {profile.batch}." if profile.batch is not None else "."),
    ]
    fits = [profile.exponent(name) for name in COSTS]
    lines += [f"  {found}" for found in fits if found is not None]
    reasons = {cost.flops_differ: None for cost in profile.values()}
    lines += [f"The counts of FLOPs differ: {why}" for why in reasons if why]
    return "\n".join(lines)


def of_layers(cost: RateProfile) -> str:
    """The layers of one rate with their share of the FLOPs, and the sums."""
    rows = [
        [
            layer.name,
            _shape(layer.shape),
            f"{layer.parameters:,}",
            _number(layer.flops),
            _bytes(layer.activation_bytes),
            _share(layer.flops, cost.flops),
        ]
        for layer in cost.layers
    ]
    head = ["layer", "output", "parameters", "FLOPs", "activations", "share"]
    total = [
        "total",
        "",
        f"{cost.parameters:,}",
        _number(cost.flops),
        _bytes(cost.activation_bytes),
        _share(cost.flops, cost.flops),
    ]
    return "\n".join(table_lines([head, *rows, total]))


def _shape(shape: Sequence[object] | None) -> str:
    return "" if shape is None else f"({', '.join(map(str, shape))})"


def _share(part: float, total: float) -> str:
    return f"{part / total:.1%}" if total else ""


def _number(value: float) -> str:
    return "unknown" if math.isnan(value) else f"{value:,.0f}"


def _milliseconds(value: float) -> str:
    return "unknown" if math.isnan(value) else f"{value:.3f} ms"


def _bytes(value: float) -> str:
    """Bytes with a decimal prefix, up to three digits and one more."""
    if math.isnan(value):
        return "unknown"
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= unit:
            return f"{value / unit:,.1f} {name}"
    return f"{value:.0f} B"
