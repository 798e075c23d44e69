"""What the finished runs of a comparison left in their folders."""

import json
import math
from collections.abc import Sequence
from typing import Any, cast

from mslice_jax.core.rates import rate_key

from . import outcome
from .schemes import Member


def summary(run: Member) -> dict[str, Any] | None:
    """What a finished run left; None for one that is not finished."""
    try:
        return json.loads((run.settings.workdir / "summary.json").read_text())
    except (OSError, ValueError):  # not there, or half-written
        return None


def value(run: Member, name: str, rate: float) -> float:
    """One of the numbers of a finished run, such as "accuracy" or "loss"."""
    return _rates(run)[rate_key(rate)][name]


def further(runs: Sequence[Member], quantity: str) -> list[str]:
    """What all runs were measured by besides: "accuracy_6_views", and "loss"."""
    each = [set(of) for run in runs for of in _rates(run).values()]
    found = set.intersection(*each)
    views = sorted(name for name in found if name.startswith(f"{quantity}_"))
    return [*views, *found & {"loss"}]


def cells(runs: Sequence[Member], name: str) -> dict[str, dict[float, outcome.Cell]]:
    """The table of one of the numbers of finished runs."""
    values: dict[str, dict[float, list[float]]] = {}
    for run in runs:
        for rate in run.measured:
            row = values.setdefault(run.scheme, {}).setdefault(rate, [])
            row.append(value(run, name, rate))
    return outcome.cells(values)


def seconds(runs: Sequence[Member]) -> dict[str, float]:
    """How long the training of each scheme took, of all its runs together."""
    each = {run.scheme: 0.0 for run in runs}
    for run in runs:
        each[run.scheme] += _finished(run)["train_seconds"]
    return each


def flops(runs: Sequence[Member]) -> dict[str, float]:
    """FLOPs of all forward passes of a scheme's training; NaN if they are not counted.

    A backward pass has about twice as many, at each rate.
    """
    each = {run.scheme: 0.0 for run in runs}
    for run in runs:
        examples = _finished(run).get("examples")  # runs of earlier versions have none
        counted = {rate: of.get("flops") for rate, of in _rates(run).items()}
        if examples is None or None in counted.values():
            each[run.scheme] = math.nan
        else:
            each[run.scheme] += sum(n * counted[rate] for rate, n in examples.items())
    return each


def _rates(run: Member) -> dict[str, dict[str, Any]]:
    return _finished(run)["rates"]


def _finished(run: Member) -> dict[str, Any]:
    return cast(dict[str, Any], summary(run))
