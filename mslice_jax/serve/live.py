"""The numbers of the last minutes, from the counters of `/metrics`, for the page.

Once a second the counters are noted; what happened in between are differences.
"""

import bisect
import collections
import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .metrics import OUTCOMES, Metrics

PAGE = (Path(__file__).parent / "live.html").read_bytes
"""Reads the page, which asks for the numbers once a second."""


@dataclasses.dataclass(frozen=True)
class Note:
    """The counters at one moment; `below` counts requests by their latency."""

    at: float
    outcomes: Mapping[str, float]
    answers: Mapping[float, float]
    below: tuple[float, ...]
    queue: float


class Live:
    """Keeps the counters of the last minutes.

    Args:
      metrics: of the server.
      about: what does not change: name, rates, T.
      seconds: for how long.
    """

    def __init__(
        self, metrics: Metrics, about: Mapping[str, Any], seconds: int = 180
    ) -> None:
        self.metrics, self.about = metrics, dict(about)
        self.notes: collections.deque[Note] = collections.deque(maxlen=seconds + 1)
        self._edges: list[float] = []

    def note(self, at: float) -> None:
        """Notes the counters, at a time in seconds."""
        value = self.metrics.value
        below = []
        (family,) = self.metrics.latency.collect()
        for sample in family.samples:
            if sample.name.endswith("_bucket"):
                below.append((float(sample.labels["le"]), sample.value))
        self._edges = [edge for edge, _ in below]
        self.notes.append(
            Note(
                at,
                self._outcomes(),
                {r: value("mslice_answers_total", rate=r) for r in self.metrics.rates},
                tuple(count for _, count in below),
                value("mslice_queue_requests"),
            )
        )

    def told(self) -> dict[str, Any]:
        """What the page shows: totals, means of the last minutes, and each second."""
        value = self.metrics.value
        notes = list(self.notes)
        each = [self._between(a, b) for a, b in zip(notes, notes[1:], strict=False)]
        found: dict[str, Any] = dict(self.about)
        found["accuracy_of"] = {str(r): a for r, a in self.metrics.accuracy.items()}
        found["total"] = self._outcomes()
        found["answers"] = {
            str(r): value("mslice_answers_total", rate=r) for r in self.metrics.rates
        }
        found["now"] = {
            "rate": value("mslice_rate"),
            "queue": value("mslice_queue_requests"),
            "slowdown": value("mslice_slowdown_factor"),
            "compilations": value("mslice_compilations_after_ready"),
            "ready": bool(value("mslice_ready")),
            "swaps": value("mslice_swaps_total", outcome="done"),
        }
        found["recent"] = self._between(notes[0], notes[-1]) if each else None
        found["seconds"] = each
        return found

    def _outcomes(self) -> dict[str, float]:
        value = self.metrics.value
        return {name: value("mslice_requests_total", outcome=name) for name in OUTCOMES}

    def _between(self, a: Note, b: Note) -> dict[str, Any]:
        answers = {rate: b.answers[rate] - a.answers[rate] for rate in b.answers}
        count, took = sum(answers.values()), max(b.at - a.at, 1e-9)
        known = self.metrics.accuracy
        accuracy = None
        if count and all(rate in known for rate, n in answers.items() if n):
            accuracy = sum(known[rate] * n for rate, n in answers.items() if n) / count
        below = [y - x for x, y in zip(a.below, b.below, strict=True)]
        return {
            "answered_per_s": count / took,
            "rate": sum(r * n for r, n in answers.items()) / count if count else None,
            "accuracy": accuracy,
            "queue": b.queue,
            "p50_ms": self._quantile(below, 0.5),
            "p99_ms": self._quantile(below, 0.99),
            "not_in_time": sum(
                b.outcomes[name] - a.outcomes[name]
                for name in ("late", "shed", "full", "failed")
            ),
        }

    def _quantile(self, below: list[float], share: float) -> float | None:
        """Within the bucket that holds it, as Prometheus does: on a line."""
        if not below or not below[-1]:
            return None
        rank = share * below[-1]
        i = bisect.bisect_left(below, rank)
        low = self._edges[i - 1] if i else 0.0
        if math.isinf(self._edges[i]):
            return 1e3 * low
        before = below[i - 1] if i else 0.0
        within = (rank - before) / (below[i] - before)
        return 1e3 * (low + within * (self._edges[i] - low))
