"""What a server counts, for Prometheus and for its own page.

Each server has a registry of its own, and nothing is counted twice: the page reads the
same numbers as `/metrics` shows.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Summary

from .answers import Watcher
from .engine import Engine
from .executor import Executor

OUTCOMES = (
    "answered",
    "late",
    "shed",
    "gone",
    "failed",
    "invalid",
    "full",
    "draining",
)
"""What becomes of a request: answered in time, or after its deadline; shed, as no rate
was quick enough; its client hung up; its batch failed; it was malformed; the queue was
full; the server stopped."""

_SHARES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.25, 1.5, 2, 4)


class Metrics(Watcher):
    """Counters of one server.

    Args:
      rates: at which it serves.
      slo_s: T, on which the buckets of latencies depend.
      accuracy: of each rate, where it is known.

    Attributes:
      registry: of prometheus_client.
      accuracy: as given.
    """

    def __init__(
        self,
        rates: Sequence[float],
        *,
        slo_s: float,
        accuracy: Mapping[float, float] | None = None,
    ) -> None:
        self.registry = CollectorRegistry()
        self.rates, self.accuracy = tuple(rates), dict(accuracy or {})
        to: Any = {"registry": self.registry}
        self.requests = Counter(
            "mslice_requests", "Requests by what became of them", ["outcome"], **to
        )
        self.answers = Counter("mslice_answers", "Answers by rate", ["rate"], **to)
        buckets = [float(f"{slo_s * share:.6g}") for share in _SHARES]
        self.latency = Histogram(
            "mslice_request_seconds",
            "From the arrival of a request to the end of its batch",
            buckets=buckets,
            **to,
        )
        self.queue = Summary(
            "mslice_queue_seconds",
            "From the arrival of a request that was answered to the start of its batch",
            **to,
        )
        self.unanswered = Summary(
            "mslice_unanswered_seconds",
            "From the arrival of a request to its end without an answer",
            **to,
        )
        of = ["rate", "rows"]
        self.batches = Counter("mslice_batches", "Batches by rate and rows", of, **to)
        self.busy = Counter("mslice_busy_seconds", "Time in which they ran", of, **to)
        self.last = Gauge(
            "mslice_last_batch_timestamp_seconds", "When the last batch ended", **to
        )
        self.rate = Gauge("mslice_rate", "Rate of the last batch", **to)
        self.swaps = Counter(
            "mslice_swaps", "New weights by what became of them", ["outcome"], **to
        )
        self.known = Gauge("mslice_accuracy", "Accuracy of each rate", ["rate"], **to)
        # What has not happened yet is 0, not absent.
        for outcome in OUTCOMES:
            self.requests.labels(outcome)
        for outcome in ("done", "failed"):
            self.swaps.labels(outcome)
        for rate in self.rates:
            self.answers.labels(rate)
            if rate in self.accuracy:
                self.known.labels(rate).set(self.accuracy[rate])

    def of(self, engine: Engine, executor: Executor) -> "Metrics":
        """Adds what an engine and an executor tell when they are asked."""
        to: Any = {"registry": self.registry}
        before = executor.compilations
        waiting = Gauge("mslice_queue_requests", "Requests that wait", **to)
        waiting.set_function(lambda: engine.waiting)
        slowdown = Gauge(
            "mslice_slowdown_factor",
            "How many times as long batches take as when they were measured",
            **to,
        )
        slowdown.set_function(lambda: engine.factor)
        compiled = Gauge(
            "mslice_compilations_after_ready", "Programs compiled since ready", **to
        )
        compiled.set_function(lambda: executor.compilations - before)
        ready = Gauge("mslice_ready", "Whether requests are taken", **to)
        ready.set_function(lambda: float(engine.running))
        narrow = Gauge("mslice_narrow_weights_bytes", "Narrow weights kept", **to)
        narrow.set_function(lambda: executor.narrow_bytes)
        return self

    def ended(self, outcome: str, rate: float | None, seconds: float) -> None:
        """Counts a request that was taken."""
        self.requests.labels(outcome).inc()
        if rate is None:
            self.unanswered.observe(seconds)
        else:
            self.answers.labels(rate).inc()
            self.latency.observe(seconds)

    def waited(self, seconds: float) -> None:
        """Counts the time in the queue of a request that is answered."""
        self.queue.observe(seconds)

    def ran(self, rate: float, rows: int, seconds: float, factor: float) -> None:
        """Counts a batch."""
        self.batches.labels(rate, rows).inc()
        self.busy.labels(rate, rows).inc(seconds)
        self.last.set_to_current_time()
        self.rate.set(rate)
        del factor  # is asked for

    def refused(self, outcome: str) -> None:
        """Counts a request that was not taken: invalid, full or draining."""
        self.requests.labels(outcome).inc()

    def swapped(self, outcome: str) -> None:
        """Counts new weights: done, or failed."""
        self.swaps.labels(outcome).inc()

    def value(self, name: str, **labels: object) -> float:
        """A number as `/metrics` shows it; 0 where there is none."""
        texts = {key: str(value) for key, value in labels.items()}
        return self.registry.get_sample_value(name, texts) or 0.0

    def each(self, name: str) -> Iterator[tuple[dict[str, str], float]]:
        """The labels and the number of every sample of that name."""
        for family in self.registry.collect():
            for sample in family.samples:
                if sample.name == name:
                    yield sample.labels, sample.value
