"""The elastic policy: as wide as the queue allows, and narrower when it grows."""

import dataclasses
from collections.abc import Sequence

from .latency import LatencyTable
from .mixed import first_of_several
from .policy import Decision, PolicyError, Request, by_deadline


@dataclasses.dataclass(frozen=True, kw_only=True)
class Elastic:
    """The widest rate at which all who wait are on time, and gone within T/2.

    The queue is planned in the order of deadlines, in batches, with p99 latencies: a
    rate will do if every request is answered by its deadline and the last of them
    within `backlog` times T. The first batch of that plan runs; what comes meanwhile is
    planned after it. T/2 is what the paper gives a batch (section 4.1): whoever comes
    while the backlog runs waits that long at most, and has as much left.

    * If no rate clears the backlog in that time, the narrowest runs, in the batches
      that do most.
    * If even so not all can be on time, as many as can are, and those run that still
      have a chance: of one kind exactly as many as possible. Who is late anyway does
      not hold up the others, and stays in the queue as long as a batch of its own,
      now and at the narrowest rate it accepts, would be on time. Then it is shed, and
      nothing else ever is.
    * It never waits for a batch to fill. Batches grow by themselves when the queue
      does; a short queue runs in the batches of the least mean latency.

    Requests of one kind (`Request.kind`) are planned exactly. If they differ in length,
    rates, rows or priority, the plan is greedy: the most urgent request leads each
    batch, and those that may share it fill it.

    Attributes:
      slo_s: T in seconds, the deadline of a request that brings none.
      backlog: within which share of T the queue has to be gone.
      rates: those that may be used; all of the table's unless given.

    Example:
      >>> table = LatencyTable({(0.5, 1): (25, 25), (1.0, 1): (100, 100)})
      >>> policy = Elastic(slo_s=1.0)
      >>> def rate_of(count):
      ...     queue = [Request(arrived=0, deadline=1.0) for _ in range(count)]
      ...     return policy(0.0, queue, table).rate
      >>> rate_of(1), rate_of(5), rate_of(6)  # five take half a second
      (1.0, 1.0, 0.5)
    """

    slo_s: float
    backlog: float = 0.5
    rates: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if not self.slo_s > 0 or not self.backlog > 0:
            raise PolicyError(
                f"expected slo_s and backlog above 0, got {self.slo_s}, {self.backlog}."
            )

    def usable(self, table: LatencyTable) -> tuple[float, ...]:
        """The rates that may be used, ascending.

        Raises:
          PolicyError: for a rate that the table does not have.
        """
        if self.rates is None:
            return table.rates
        if not self.rates or (unknown := set(self.rates) - set(table.rates)):
            unknown = sorted(unknown) if self.rates else "no rate"
            raise PolicyError(f"{unknown} of {table.rates} in the latency table.")
        return tuple(sorted(self.rates))

    def check(self, table: LatencyTable) -> None:
        """Refuse a T within which not even one request can be answered.

        Raises:
          PolicyError: for such a T, or rates that the table does not have.
        """
        least = min(
            table.p99_ms(self.usable(table)[0], 1, length) for length in table.lengths
        )
        if least > self.slo_s * 1e3:
            raise PolicyError(
                f"T is {self.slo_s * 1e3:g} ms, but the narrowest program takes "
                f"{least:g} ms (p99). Allow more, or a narrower rate."
            )

    def within(self, table: LatencyTable) -> float:
        """Within how many seconds the queue has to be gone."""
        del table
        return self.backlog * self.slo_s

    def __call__(
        self, now: float, queue: Sequence[Request], table: LatencyTable
    ) -> Decision:
        """Decide; see the class."""
        if not queue:
            return Decision()
        rates = self.usable(table)
        # A little more, as the sum of many times rounds.
        within = self.within(table) / table.factor * (1 + 1e-9)
        # The table times the factor, or the time that is left divided by it: the same.
        order = sorted(queue, key=by_deadline)
        slack = [(request.deadline - now) / table.factor for request in order]
        if len({request.kind for request in order}) > 1:
            return first_of_several(order, slack, within, table, rates)
        return self._of_one_kind(order, slack, within, table, rates)

    def _of_one_kind(
        self,
        order: list[Request],
        slack: list[float],
        within: float,
        table: LatencyTable,
        rates: tuple[float, ...],
    ) -> Decision:
        like = order[0]
        length, rows, allowed = like.length, like.rows, rates
        if like.rate is not None or like.min_rate > rates[0]:
            lowest = like.at(rates[0], table.rates)
            allowed = tuple(r for r in rates if r >= lowest)
            if like.rate is not None or not allowed:
                allowed = (lowest,)

        narrowest = table.ways(allowed[0], length, rows=rows, among=allowed)
        alone, gone = narrowest.took(1), 0
        while gone < len(slack) and slack[gone] < alone:
            gone += 1
        shed = tuple(order[:gone])
        if gone:
            order, slack = order[gone:], slack[gone:]
        if not order:
            return Decision(shed=shed)

        # What is late at some rate is late at every wider one.
        low, high, size, rate = 0, len(allowed), 0, allowed[0]
        while low < high:
            middle = (low + high) // 2
            ways = table.ways(allowed[middle], length, rows=rows, among=allowed)
            if begun := ways.begin(slack, within):
                low, size, rate = middle + 1, begun, allowed[middle]
            else:
                high = middle
        at = 0
        if not size:
            latest = narrowest.latest(slack)
            # Of one kind, those with the latest deadlines are as many as can be met.
            while latest[at] < 0:
                at += 1
            size = narrowest.choose(slack[at:], latest[at:], gentle=False)
        rate = table.served(rate, size * rows, length, allowed)
        return Decision(tuple(order[at : at + size]), rate, shed)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatencyFirst(Elastic):
    """As `Elastic`, for those who would rather be quick than accurate.

    The queue has to be gone within what one request takes alone at the widest rate, not
    within T/2: nearly everyone is answered as if nobody else were there, narrower.

    Example:
      >>> table = LatencyTable({(0.5, 1): (25, 25), (1.0, 1): (100, 100)})
      >>> queue = [Request(arrived=0, deadline=1.0) for _ in range(2)]
      >>> LatencyFirst(slo_s=1.0)(0.0, queue, table).rate
      0.5
    """

    def within(self, table: LatencyTable) -> float:
        """Within how many seconds the queue has to be gone."""
        widest, length = self.usable(table)[-1], table.lengths[-1]
        return table.p99_ms(widest, 1, length) / 1e3


def fixed(rate: float, *, slo_s: float) -> Elastic:
    """The policy of a server that has one width: `Elastic` with this rate alone.

    Args:
      rate: the one that serves everything.
      slo_s: T in seconds.

    Example:
      >>> table = LatencyTable({(0.5, 1): (25, 25), (1.0, 1): (100, 100)})
      >>> fixed(1.0, slo_s=1.0)(0.0, [Request(arrived=0, deadline=1.0)] * 9, table).rate
      1.0
    """
    return Elastic(slo_s=slo_s, rates=(rate,))
