"""What the simulator says of a load, with what HTTP takes of the processor.

Server and network share one core: what a request costs to read and to answer is time
that the network does not have. The simulator has one device, so this time is added to
what a batch takes. The policy knows the measured table alone, as in the server, and
corrects it as the server does.
"""

from collections.abc import Sequence

import numpy as np

from mslice_jax.serve import (
    Decision,
    Latency,
    LatencyTable,
    Policy,
    Request,
    Simulation,
    SlowDown,
    simulate,
)

_FORGET_S = 1.0  # as the engine of the server


def with_http(table: LatencyTable, http_s: float) -> LatencyTable:
    """The table with so many seconds more for each row; a bucket for every number."""
    if table.lengths != (None,):
        raise ValueError("tables with length buckets are not simulated here.")
    return LatencyTable(
        {
            (rate, rows): Latency(
                table.p99_ms(rate, rows) + 1e3 * http_s * rows,
                table.median_ms(rate, rows) + 1e3 * http_s * rows,
            )
            for rate in table.rates
            for rows in range(1, table.batches[-1] + 1)
        }
    )


class Planning:
    """A policy that plans with one table, where batches take what another says.

    Args:
      policy: any.
      plan: what it plans with.
      truth: what batches take.
    """

    def __init__(self, policy: Policy, plan: LatencyTable, truth: LatencyTable) -> None:
        self.policy, self.plan, self.truth = policy, plan, truth
        self.slow, self.ran_at = SlowDown(), 0.0

    def __call__(
        self, now: float, queue: Sequence[Request], table: LatencyTable
    ) -> Decision:
        """Decide."""
        del table
        if now - self.ran_at > _FORGET_S:
            self.slow = SlowDown()
        decision = self.policy(now, queue, self.plan.scaled(self.slow.factor))
        if decision.requests:
            assert decision.rate is not None
            rows = sum(request.rows for request in decision.requests)
            took = self.truth.median_ms(decision.rate, rows)
            self.ran_at = now + took / 1e3
            self.slow.observe(self.plan.median_ms(decision.rate, rows), took)
        return decision


def predicted(
    policy: Policy,
    arrivals: np.ndarray,
    table: LatencyTable,
    *,
    slo_s: float,
    http_s: float,
    waits_s: float,
    seed: int = 0,
) -> Simulation:
    """Plays a load.

    Args:
      policy: any.
      arrivals: seconds, ascending: `[n]`.
      table: as measured.
      slo_s: T in seconds.
      http_s: seconds of the processor that HTTP takes for a request.
      waits_s: what HTTP adds to the latency of a request that is alone.
      seed: of the noise of the times.
    """
    truth = with_http(table, http_s)
    return simulate(
        Planning(policy, table, truth),
        arrivals,
        truth,
        slo_s=slo_s,
        overhead_s=max(waits_s - http_s, 0.0),
        noise=True,
        seed=seed,
    )
