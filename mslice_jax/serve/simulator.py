"""A policy on a virtual clock: what a server with this table would have answered."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .latency import LatencyTable, SlowDown
from .policy import Policy, Request
from .traces import TraceError

# The standard normal distribution has 1 in 100 above this.
_P99 = 2.3263478740408408


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


def simulate(
    policy: Policy,
    arrivals: np.ndarray | Sequence[float],
    table: LatencyTable,
    *,
    slo_s: float,
    options: Sequence[Mapping[str, Any]] | None = None,
    overhead_s: float = 0.0,
    noise: bool = False,
    slowdown: Callable[[float], float] | None = None,
    correct: bool = False,
    seed: int = 0,
) -> Simulation:
    """Serve a trace on a virtual clock.

    One device runs one batch at a time. Whenever it is idle and requests wait, the
    policy is asked. A batch takes its median by the table, times what `noise` and
    `slowdown` add.

    Args:
      policy: any.
      arrivals: seconds, ascending: `[n]`.
      table: what the policy plans with.
      slo_s: T in seconds, for requests that bring no deadline.
      options: for each arrival, what its `Request` is given beside: `rows`, `length`,
        `min_rate`, `rate`, `priority`, and `timeout_s` in place of T.
      overhead_s: what HTTP adds to each request, half on the way in, half on the way
        back. The policy knows of it: its deadlines are those at which an answer has
        to leave.
      noise: times are drawn from the log-normal distribution that has the table's
        median and p99.
      slowdown: second -> how many times as long batches take that begin then.
      correct: the table is corrected by what batches took, as the server does.
      seed: of the noise.

    Returns:
      A record of every request.

    Raises:
      TraceError: without arrivals, or if they are not ascending.
      PolicyError: for a T or a request that the table cannot serve at all.
      RuntimeError: if the policy runs what does not wait, or too much, or would wait
        for ever.

    Example:
      >>> from mslice_jax.serve.elastic import Elastic
      >>> table = LatencyTable({(0.5, 1): (25, 25), (1.0, 1): (100, 100)})
      >>> done = simulate(Elastic(slo_s=1), [0.0] * 7, table, slo_s=1)
      >>> done.rate.tolist(), round(float(done.finished.max()), 3)
      ([0.5, 0.5, 1.0, 1.0, 1.0, 1.0, 1.0], 0.55)
    """
    arrived = np.asarray(arrivals, float)
    if not len(arrived) or (np.diff(arrived) < 0).any():
        raise TraceError("expected arrivals, ascending: got none, or one out of order.")
    if hasattr(policy, "check"):
        policy.check(table)  # pyright: ignore[reportAttributeAccessIssue]
    requests = _requests(arrived, table, slo_s, options, overhead_s)
    count = len(requests)
    started, finished, rate = (np.full(count, np.nan) for _ in range(3))
    batch = np.zeros(count, int)

    random, slow = np.random.default_rng(seed), SlowDown()
    waiting: dict[int, Request] = {}  # in order of arrival
    current, after, now = table, 0, 0.0
    while waiting or after < count:
        if not waiting:
            now = max(now, requests[after].arrived)
        while after < count and requests[after].arrived <= now:
            waiting[after] = requests[after]
            after += 1
        decision = policy(now, list(waiting.values()), current)
        for request in (*decision.shed, *decision.requests):
            if waiting.pop(request.payload, None) is not request:
                raise RuntimeError(f"{policy} took a request that does not wait.")
        if not decision.requests:
            times = [requests[after].arrived] if after < count else []
            times += [] if decision.wait is None else [decision.wait]
            if waiting and not (times and min(times) > now):
                raise RuntimeError(f"{policy} waits for ever.")
            now = min(times) if waiting else now
            continue

        ran, rows = decision.rate, sum(it.rows for it in decision.requests)
        assert ran is not None
        length = decision.requests[0].length
        median = table.median_ms(ran, rows, length)
        took = median * (slowdown(now) if slowdown else 1.0)
        if noise:
            spread = np.log(max(table.p99_ms(ran, rows, length) / median, 1.0)) / _P99
            took *= float(np.exp(spread * random.standard_normal()))
        ids = [request.payload for request in decision.requests]
        started[ids], rate[ids], batch[ids] = now, ran, rows
        now += took / 1e3
        finished[ids] = now + overhead_s / 2
        if correct:
            current = table.scaled(slow.observe(median, took))

    due = np.array([request.deadline for request in requests]) + overhead_s / 2
    return Simulation(
        arrived=arrived,
        deadline=due,
        started=started,
        finished=finished,
        rate=rate,
        batch=batch,
    )


def _requests(
    arrived: np.ndarray,
    table: LatencyTable,
    slo_s: float,
    options: Sequence[Mapping[str, Any]] | None,
    overhead_s: float,
) -> list[Request]:
    """The requests as they are at the server, each with its number."""
    if options is not None and len(options) != len(arrived):
        raise TraceError(f"{len(options)} options for {len(arrived)} arrivals.")
    found = []
    for number, at in enumerate(arrived.tolist()):
        given = dict(options[number]) if options is not None else {}
        if "length" not in given:
            given["length"] = table.lengths[0]
        due = at + given.pop("timeout_s", slo_s) - overhead_s / 2
        request = Request(
            arrived=at + overhead_s / 2, deadline=due, payload=number, **given
        )
        request.check(table)
        found.append(request)
    return found
