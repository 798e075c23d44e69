"""Policies to compare with: the paper's window, and SlackFit."""

import bisect
import dataclasses
import functools
import math
from collections.abc import Sequence

from .latency import LatencyTable
from .policy import Decision, PolicyError, Request, batch_of, past_and_waiting


@dataclasses.dataclass(frozen=True, kw_only=True)
class Window:
    """The paper's rule: every T/2 a batch, at the widest r with n·r²·t ≤ T/2.

    Windows begin at multiples of T/2. The n requests that came in one run in the next;
    t is the time of one sample at the widest rate, in the largest batch, and r counts
    relative to it (section 4.1 of the paper). Where n needs several batches, or the
    device was late, the rule is applied to the requests and the time that are left of
    the window. If no rate will do, the narrowest runs. Requests are shed when their
    deadline has passed, and not before.

    Attributes:
      slo_s: T in seconds.

    Example:
      >>> from mslice_jax.serve.latency import LatencyTable
      >>> table = LatencyTable({(0.5, 1): (25, 25), (1.0, 1): (100, 100)})
      >>> came = [Request(arrived=0.1, deadline=1.1) for _ in range(6)]
      >>> policy = Window(slo_s=1.0)
      >>> policy(0.1, came, table).wait, policy(0.5, came, table).rate
      (0.5, 0.5)
    """

    slo_s: float

    def __post_init__(self) -> None:
        if not self.slo_s > 0:
            raise PolicyError(f"expected slo_s above 0, got {self.slo_s}.")

    def __call__(
        self, now: float, queue: Sequence[Request], table: LatencyTable
    ) -> Decision:
        """Decide; see the class."""
        shed, waiting = past_and_waiting(now, queue)
        half = self.slo_s / 2
        # A clock that woke up for the window is in it, whatever it rounds to.
        number = math.floor(now / half + 1e-9)
        came = [it for it in waiting if it.arrived <= number * half]
        if not came:
            wait = (number + 1) * half if waiting else None
            return Decision(shed=shed, wait=wait)

        widest, largest = table.rates[-1], table.batches[-1]
        left = (number + 1) * half - now
        time = {
            length: table.p99_ms(widest, largest, length) / 1e3 / largest
            for length in {it.length for it in came}
        }
        work = sum(it.rows * time[it.length] for it in came)
        # n·r²·t is compared with the largest square that fits, free of rounding.
        fit = [r for r in table.rates if (r / widest) ** 2 * work <= left * (1 + 1e-9)]
        rate = fit[-1] if fit else table.rates[0]
        head, rate = came[0], came[0].at(rate, table.rates)
        chosen = batch_of(head, came, largest, rate, table.rates)
        # Five do not run in a bucket of eight where four and one take less.
        ways = table.ways(rate, head.length, among=(rate,))
        size = max(ways.first(sum(it.rows for it in chosen)), head.rows)
        return Decision(batch_of(head, came, size, rate, table.rates), rate, shed)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SlackFit:
    """SlackFit of SuperServe (NSDI 2025), as we read it.

    Ahead of time the span of latencies, from one request at the narrowest rate to the
    largest batch at the widest, is cut into even buckets, and each keeps one choice of
    those (rate, batch) whose latency lies in it: the largest batch, of equal ones the
    widest rate. Online the slack of the most urgent request selects the highest bucket
    that ends by it (or the nearest below that is not empty), and its choice runs, with
    fewer requests if fewer wait. So little slack means narrow and large batches, much
    slack a wide rate. Below all buckets the quickest program runs.

    Requests are shed when their deadline has passed, and not before.

    Attributes:
      buckets: how many.

    Example:
      >>> from mslice_jax.serve.latency import LatencyTable
      >>> table = LatencyTable({(0.5, 1): (25, 25), (1.0, 1): (100, 100)})
      >>> queue = [Request(arrived=0, deadline=0.09)]
      >>> SlackFit()(0.0, queue, table).rate
      0.5
    """

    buckets: int = 16

    def __post_init__(self) -> None:
        if self.buckets < 1:
            raise PolicyError(f"expected at least one bucket, got {self.buckets}.")

    def __call__(
        self, now: float, queue: Sequence[Request], table: LatencyTable
    ) -> Decision:
        """Decide; see the class."""
        shed, waiting = past_and_waiting(now, queue)
        if not waiting:
            return Decision(shed=shed)
        head = waiting[0]
        latencies = _latencies(table.scaled(1.0), head.length)
        ends, choices, quickest = _choices(latencies, self.buckets)
        slack = (head.deadline - now) / table.factor
        # The same slack, a rounding less, is in the same bucket.
        at = bisect.bisect_right(ends, slack * (1 + 1e-9)) - 1
        rate, most = choices[at] if at >= 0 else quickest
        chosen = batch_of(head, waiting, max(most, head.rows), rate, table.rates)
        return Decision(chosen, head.at(rate, table.rates), shed)


_Choice = tuple[float, int]  # a rate and a batch


def _latencies(
    table: LatencyTable, length: int | None
) -> tuple[tuple[float, int, float], ...]:
    """(seconds, batch, rate) of every program, the quickest first."""
    return tuple(
        sorted(
            (table.p99_ms(rate, batch, length) / 1e3, batch, rate)
            for rate in table.rates
            for batch in table.batches
        )
    )


@functools.lru_cache(maxsize=64)
def _choices(
    latencies: tuple[tuple[float, int, float], ...], buckets: int
) -> tuple[list[float], list[_Choice], _Choice]:
    """The ends of the buckets in seconds, the choice of each, and the quickest."""
    low, high = latencies[0][0], latencies[-1][0]
    ends = [low + (high - low) * (i + 1) / buckets for i in range(buckets)]
    quickest = (latencies[0][2], latencies[0][1])
    choices, begin = [], -math.inf
    for end in ends:
        end = end * (1 + 1e-9)
        inside = [it for it in latencies if begin < it[0] <= end]
        best = max(inside, key=lambda it: (it[1], it[2]), default=None)
        before = choices[-1] if choices else quickest
        choices.append((best[2], best[1]) if best else before)
        begin = end
    return ends, choices, quickest
