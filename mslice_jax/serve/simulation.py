"""What became of every request of a load."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Simulation:
    """What became of every request, in the order in which they came: arrays `[n]`.

    Attributes:
      arrived: seconds, when the client sent it.
      deadline: seconds, when it was due at the client.
      started: seconds, when its batch began to run; NaN where it was shed.
      finished: seconds, when its answer was at the client; NaN where it was shed.
      rate: that served it; NaN where it was shed.
      batch: how many rows ran with it; 0 where it was shed.
    """

    arrived: np.ndarray
    deadline: np.ndarray
    started: np.ndarray
    finished: np.ndarray
    rate: np.ndarray
    batch: np.ndarray

    @property
    def shed(self) -> np.ndarray:
        """Which were given up: `[n]` of bool."""
        return np.isnan(self.finished)

    @property
    def in_time(self) -> np.ndarray:
        """Which were answered by their deadline: `[n]` of bool."""
        return self.finished <= self.deadline + 1e-9  # of the sums of many times

    @property
    def latency_s(self) -> np.ndarray:
        """Seconds from the client and back; NaN where it was shed: `[n]`."""
        return self.finished - self.arrived

    def mean_over_served(self, of_rate: Mapping[float, float]) -> float:
        """Mean of something that depends on the rate, over those answered in time.

        Args:
          of_rate: rate -> value, such as accuracy.

        Returns:
          NaN where nobody was answered in time.
        """
        served = self.rate[self.in_time]
        if not len(served):
            return float("nan")
        rates, counts = np.unique(served, return_counts=True)
        return float(
            sum(of_rate[float(r)] * n for r, n in zip(rates, counts, strict=True))
            / len(served)
        )

    def summary(self, accuracy: Mapping[float, float] | None = None) -> dict[str, Any]:
        """The numbers to compare policies with.

        Args:
          accuracy: rate -> accuracy in [0, 1].

        Returns:
          `requests`, `in_time` (a share of them), `shed` (how many), `mean_rate` and
          `accuracy` over those in time, and quantiles of the latency of all that were
          answered, in milliseconds. Plain numbers, None where there is none.
        """
        latency = self.latency_s[~self.shed] * 1e3
        rates = [float(rate) for rate in np.unique(self.rate[~self.shed])]
        found: dict[str, Any] = {
            "requests": len(self.arrived),
            "in_time": float(self.in_time.mean()),
            "shed": int(self.shed.sum()),
            "mean_rate": self.mean_over_served({rate: rate for rate in rates}),
        }
        if accuracy is not None:
            found["accuracy"] = self.mean_over_served(accuracy)
        for name, share in (("p50", 50), ("p95", 95), ("p99", 99), ("max", 100)):
            value = np.percentile(latency, share) if len(latency) else float("nan")
            found[f"{name}_ms"] = float(value)
        return {k: None if v != v else v for k, v in found.items()}

    def write(
        self, path: str | Path, accuracy: Mapping[float, float] | None = None
    ) -> None:
        """Write JSON: the summary, and a record of every request, in columns."""
        columns = {
            field.name: [
                None if value != value else value
                for value in getattr(self, field.name).tolist()
            ]
            for field in dataclasses.fields(self)
        }
        told = {"summary": self.summary(accuracy), "records": columns}
        Path(path).write_text(json.dumps(told) + "\n", encoding="utf-8")
