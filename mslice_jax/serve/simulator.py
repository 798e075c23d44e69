"""A policy on a virtual clock: what a server with this table would have answered."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from .latency import LatencyTable
from .policy import Decision, Policy, Request
from .shared_core import Core, Http
from .simulation import Simulation
from .slow_down import SlowDown
from .traces import TraceError

# The standard normal distribution has 1 in 100 above this.
_P99 = 2.3263478740408408


def simulate(
    policy: Policy,
    arrivals: np.ndarray | Sequence[float],
    table: LatencyTable,
    *,
    slo_s: float,
    options: Sequence[Mapping[str, Any]] | None = None,
    overhead_s: float = 0.0,
    margin_s: float | None = None,
    http: Mapping[float, Http] | None = None,
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
      overhead_s: what the way to the server and back adds to each request, half on the
        way in, half on the way back.
      margin_s: how much earlier than at the client an answer is due for the policy;
        half of `overhead_s` unless given, which is when it has to leave.
      http: what serving takes of the device where both share a core, by the rate that
        runs meanwhile (or did last): reading a request also drives a network out of the
        caches, some more than others. The policy does not know of it.
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
    margin_s = overhead_s / 2 if margin_s is None else margin_s
    due, requests = _requests(arrived, table, slo_s, options, overhead_s, margin_s)
    started, finished, rate = (np.full(len(due), np.nan) for _ in range(3))
    batch = np.zeros(len(due), int)

    random, slow = np.random.default_rng(seed), SlowDown()
    core, costs = Core(), {rate: Http() for rate in table.rates} | dict(http or {})
    waiting: dict[int, Request] = {}  # in the order in which they were read
    after, ask_at, ran_at = 0, 0.0, 0.0
    beside = costs[table.rates[0]]

    def asked() -> Decision:
        known = table.scaled(slow.after(core.now - ran_at)) if correct else table
        decision = policy(core.now, list(waiting.values()), known)
        for request in (*decision.shed, *decision.requests):
            if waiting.pop(request.payload, None) is not request:
                raise RuntimeError(f"{policy} took a request that does not wait.")
        for request in decision.shed:
            core.tell(("shed", request.payload), beside.answer_s)
        return decision

    def run(decision: Decision) -> None:
        nonlocal beside
        ran, rows = decision.rate, sum(it.rows for it in decision.requests)
        assert ran is not None
        length = decision.requests[0].length
        median = table.median_ms(ran, rows, length)
        took = median * (slowdown(core.now) if slowdown else 1.0)
        if noise:
            spread = np.log(max(table.p99_ms(ran, rows, length) / median, 1.0)) / _P99
            took *= float(np.exp(spread * random.standard_normal()))
        ids = [request.payload for request in decision.requests]
        started[ids], rate[ids], batch[ids] = core.now, ran, rows
        beside = costs[ran]
        core.run(("ran", (ids, median, core.now)), took / 1e3)

    while after < len(due) or waiting or core.talks or core.runs:
        comes = requests[after].arrived if after < len(due) else np.inf
        asks = bool(waiting) and not core.runs
        done = core.until(min(comes, ask_at) if asks else comes)
        if done is None and comes <= core.now:
            core.tell(("read", after), beside.read_s)
            after += 1
        elif done is None:
            decision = asked()
            if decision.requests:
                run(decision)
                continue
            ask_at = np.inf if decision.wait is None else decision.wait
            later = comes < np.inf or core.talks or ask_at < np.inf
            if waiting and not (later and ask_at > core.now):
                raise RuntimeError(f"{policy} waits for ever.")
        elif done[0] == "read":
            waiting[done[1]], ask_at = requests[done[1]], 0.0
        elif done[0] == "answered":
            finished[done[1]] = core.now + overhead_s / 2
        elif done[0] == "ran":
            ids, median, began = done[1]
            slow.observe(median, 1e3 * (core.now - began))
            ran_at = core.now
            ask_at = 0.0
            for number in ids:
                core.tell(("answered", number), beside.answer_s)

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
    margin_s: float,
) -> tuple[np.ndarray, list[Request]]:
    """When they are due at the client, and as they are at the server, with numbers."""
    if options is not None and len(options) != len(arrived):
        raise TraceError(f"{len(options)} options for {len(arrived)} arrivals.")
    due, found = [], []
    for number, at in enumerate(arrived.tolist()):
        given = dict(options[number]) if options is not None else {}
        if "length" not in given:
            given["length"] = table.lengths[0]
        due.append(at + given.pop("timeout_s", slo_s))
        request = Request(
            arrived=at + overhead_s / 2,
            deadline=due[-1] - margin_s,
            payload=number,
            **given,
        )
        request.check(table)
        found.append(request)
    return np.array(due), found
