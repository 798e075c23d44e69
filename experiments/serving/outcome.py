"""What became of every request of an open-loop load, and whether the load was true."""

import collections
import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .sender import HUNG_UP, NO_ANSWER

_WORDS = {NO_ANSWER: "no answer", HUNG_UP: "hung up"}


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Result:
    """A run: of each request what became of it, arrays `[n]` in the order of `due`.

    Attributes:
      due: seconds from the begin, when it had to be sent.
      sent: when it was; NaN where it never was.
      answered: when its answer was there; NaN where none came.
      status: of HTTP; 0 without an answer, -1 where the connection ended.
      rate: that our server used; NaN where the answer tells none.
      slo_s: T: an answer with status 200 counts if it is there within T of `due`.
      late_s: how late the generator may be (p99 of sent - due), else the run is void.
      cpu_s: processor time of the generator, of all requests.
      opened: how many connections.
    """

    due: np.ndarray
    sent: np.ndarray
    answered: np.ndarray
    status: np.ndarray
    rate: np.ndarray
    slo_s: float
    late_s: float
    cpu_s: float
    opened: int

    @property
    def served(self) -> np.ndarray:
        """Which were answered with status 200: `[n]` of bool."""
        return self.status == 200

    @property
    def latency_s(self) -> np.ndarray:
        """Seconds from when it was due to its answer; NaN where not served."""
        return np.where(self.served, self.answered - self.due, np.nan)

    @property
    def in_time(self) -> np.ndarray:
        """Which were served within T of when they were due: `[n]` of bool."""
        # NaN compares as false; and times are sums that round.
        return self.latency_s <= self.slo_s + 1e-9

    @property
    def share(self) -> float:
        """The share of all requests that were served in time."""
        return float(self.in_time.mean())

    @functools.cached_property
    def lateness_s(self) -> dict[str, float]:
        """Of the generator itself: p50, p99 and max of sent - due."""
        late = np.where(np.isnan(self.sent), np.inf, self.sent - self.due)
        found = np.quantile(late, (0.5, 0.99, 1.0), method="inverted_cdf")
        return dict(zip(("p50", "p99", "max"), found.tolist(), strict=True))

    @property
    def void(self) -> str | None:
        """Why the run does not count; None: it does."""
        late = self.lateness_s["p99"]
        if late <= self.late_s:
            return None
        return (
            f"the load generator was late itself: {1e3 * late:.2f} ms (p99), allowed "
            f"are {1e3 * self.late_s:g} ms"
        )

    def mean_over_in_time(self, of_rate: Mapping[float, float]) -> float:
        """Mean of something that depends on the rate, over those in time; NaN of none.

        Raises:
          KeyError: for a rate that the mapping lacks.
        """
        rates, counts = np.unique(self.rate[self.in_time], return_counts=True)
        total = sum(
            of_rate[float(r)] * int(n) for r, n in zip(rates, counts, strict=True)
        )
        return float(total / counts.sum()) if len(counts) else float("nan")

    def summary(self, accuracy: Mapping[float, float] | None = None) -> dict[str, Any]:
        """The numbers of the run, as JSON has them.

        Args:
          accuracy: rate -> accuracy in [0, 1].

        Returns:
          Among others `in_time` (a share), `p50_ms` ... `max_ms` of those served,
          `status` (counts), `lateness_ms` and `cpu_ms` of the generator (a request),
          `void` (why, or None), and `accuracy` and `mean_rate` of those in time.
        """
        count = len(self.due)
        latency = 1e3 * self.latency_s[self.served]
        found: dict[str, Any] = {
            "requests": count,
            "per_second": count / float(self.due[-1]) if self.due[-1] > 0 else None,
            "slo_ms": 1e3 * self.slo_s,
            "in_time": self.share,
            "status": status_counts(self.status),
            "void": self.void,
            "lateness_ms": {k: 1e3 * v for k, v in self.lateness_s.items()},
            "cpu_ms": 1e3 * self.cpu_s / count,
            "connections": self.opened,
        }
        for name, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99), ("max", 1.0)):
            told = (
                np.quantile(latency, share, method="inverted_cdf")
                if len(latency)
                else None
            )
            found[f"{name}_ms"] = None if told is None else float(told)
        rates, counts = np.unique(self.rate[self.in_time], return_counts=True)
        if len(rates) and not np.isnan(rates).any():
            by_rate = zip(rates.tolist(), counts.tolist(), strict=True)
            found["rates"] = {f"{rate:g}": n for rate, n in by_rate}
            found["mean_rate"] = float(rates @ counts / counts.sum())
            if accuracy is not None:
                found["accuracy"] = self.mean_over_in_time(accuracy)
        return found

    def write(
        self, path: str | Path, accuracy: Mapping[float, float] | None = None
    ) -> None:
        """Write JSON: the summary, and every request, in columns."""
        columns = {
            name: [None if x != x else x for x in getattr(self, name).tolist()]
            for name in ("due", "sent", "answered", "status", "rate")
        }
        about = {"late_s": self.late_s, "cpu_s": self.cpu_s, "opened": self.opened}
        told = {"summary": self.summary(accuracy), "slo_s": self.slo_s, **about}
        text = json.dumps({**told, "records": columns})
        Path(path).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: str | Path) -> "Result":
        """Read what `write` wrote."""
        told = json.loads(Path(path).read_text(encoding="utf-8"))
        columns = {
            name: np.array([np.nan if x is None else x for x in column])
            for name, column in told["records"].items()
        }
        names = ("slo_s", "late_s", "cpu_s", "opened")
        return cls(**columns, **{name: told[name] for name in names})


def status_counts(status: np.ndarray) -> dict[str, int]:
    """How many requests ended with each status, by its number or in words."""
    found = collections.Counter(status.tolist())
    return {_WORDS.get(code, str(code)): found[code] for code in sorted(found)}
