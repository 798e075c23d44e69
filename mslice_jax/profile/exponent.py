"""The exponent of a cost against the rate: cost ~ r to that power."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Exponent:
    """A power that was fitted to costs at several rates.

    The paper has 2 for the FLOPs of layers that narrow at both ends (section 3.2); time
    on a device falls more slowly.

    Attributes:
      of: the cost, such as "latency_ms".
      value: the exponent.
      rates: that it was fitted on, ascending.
      worst: by which factor the fit is off at most, at one of them; 1 is exact.
    """

    of: str
    value: float
    rates: tuple[float, ...]
    worst: float

    def __str__(self) -> str:
        rates = ", ".join(f"{rate:g}" for rate in self.rates)
        return (
            f"{self.of} ~ r^{self.value:.2f}, least squares of the logarithms at r = "
            f"{rates}; off by a factor of {self.worst:.2f} at most"
        )


def fit(of: str, costs: Mapping[float, float]) -> Exponent | None:
    """Least squares of log cost against log rate; None of less than two rates.

    Costs that are unknown or not above 0 are left out.

    >>> fit("flops", {0.25: 1.0, 0.5: 4.0, 1.0: 16.0}).value
    2.0
    """
    known = {r: c for r, c in sorted(costs.items()) if math.isfinite(c) and c > 0}
    if len(known) < 2:
        return None
    x, y = np.log([*known]), np.log([*known.values()])
    x_off, y_off = x - x.mean(), y - y.mean()
    slope = float(x_off @ y_off / (x_off @ x_off))
    worst = float(np.exp(np.abs(y_off - slope * x_off).max()))
    return Exponent(of=of, value=round(slope, 12), rates=tuple(known), worst=worst)
