"""What a comparison found: means, deviations, and differences to separate training."""

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from mslice_jax.core.rates import rate_key

from .schemes import INDEPENDENT

Values = Mapping[str, Mapping[float, Sequence[float]]]
"""scheme -> rate -> the value of each seed, in the order of the seeds."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """A scheme at a rate.

    Attributes:
      values: of each seed.
      mean: over the seeds.
      deviation: standard deviation over the seeds (n - 1); None for one seed.
      difference: mean of what a seed has more than the separately trained network of
        that seed; None without those, and for those.
      error: standard error of the difference, over the seeds; None for one seed.
    """

    values: tuple[float, ...]
    mean: float
    deviation: float | None
    difference: float | None
    error: float | None


def cells(values: Values) -> dict[str, dict[float, Cell]]:
    """The table: a cell for each scheme and rate.

    Example:
      >>> found = cells({"independent": {1.0: [1, 3]}, "static": {1.0: [4, 8]}})
      >>> cell = found["static"][1.0]
      >>> cell.mean, cell.difference, cell.error
      (6.0, 4.0, 1.0)
    """
    base = values.get(INDEPENDENT)
    return {
        scheme: {
            rate: _cell(
                each, None if base is None or scheme == INDEPENDENT else base[rate]
            )
            for rate, each in row.items()
        }
        for scheme, row in values.items()
    }


def _cell(values: Sequence[float], base: Sequence[float] | None) -> Cell:
    difference = error = None
    if base is not None:
        # The same seed has the same initial weights and data order.
        more = [x - y for x, y in zip(values, base, strict=True)]
        difference, spread = statistics.fmean(more), _deviation(more)
        error = None if spread is None else spread / math.sqrt(len(more))
    return Cell(
        values=tuple(float(x) for x in values),
        mean=statistics.fmean(values),
        deviation=_deviation(values),
        difference=difference,
        error=error,
    )


def _deviation(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def as_json(found: Mapping[str, Mapping[float, Cell]]) -> dict[str, Any]:
    """Plain values, for results.json."""
    return {
        scheme: {rate_key(rate): dataclasses.asdict(cell) for rate, cell in row.items()}
        for scheme, row in found.items()
    }


def rows(
    found: Mapping[str, Mapping[float, Cell]],
    passes: Mapping[str, int],
    cost: Mapping[str, float],
    *,
    scale: float = 1.0,
    digits: int = 2,
) -> list[list[str]]:
    """The table in text, its head first.

    Args:
      found: from `cells`.
      passes: rates that a step of each scheme trains.
      cost: FLOPs of the training, beside those of the first scheme; NaN if not known.
      scale: what values are multiplied with, 100 for per cent.
      digits: after the point.
    """
    rates = sorted(next(iter(found.values())), reverse=True)
    head = ["scheme", "rates a step", "FLOPs", *(f"r = {rate:g}" for rate in rates)]
    return [head] + [
        [
            scheme,
            str(passes[scheme]),
            "" if math.isnan(cost[scheme]) else f"{cost[scheme]:.2f}",
            *(_text(row[rate], scale, digits) for rate in rates),
        ]
        for scheme, row in found.items()
    ]


def _text(cell: Cell, scale: float, digits: int) -> str:
    def with_error(value: float, error: float | None, sign: str = "") -> str:
        text = f"{scale * value:{sign}.{digits}f}"
        return text if error is None else f"{text} ± {scale * error:.{digits}f}"

    text = with_error(cell.mean, cell.deviation)
    if cell.difference is None:
        return text
    return f"{text} ({with_error(cell.difference, cell.error, '+')})"


def markdown(table: Sequence[Sequence[str]], caption: str) -> str:
    """The table as Markdown, with a line below it."""
    head, *rest = table
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rest]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines) + f"\n{caption}\n"
