"""What a policy is: a pure function of the clock, the queue and the latency table.

It is asked whenever the device is idle and requests wait, and says which of them run
now and at which rate, or that none does yet. It remembers nothing, so the same policy
serves behind a real clock and on the virtual one of the simulator.
"""

import dataclasses
from collections.abc import Hashable, Sequence
from operator import attrgetter
from typing import Any, NamedTuple, Protocol

from .latency import LatencyTable


class PolicyError(ValueError):
    """Settings of a policy, or of a request, that do not fit the latency table."""


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class Request:
    """A request that waits. Times are seconds on one clock, whichever it is.

    Attributes:
      arrived: when it came.
      deadline: when its answer is due: `arrived` and T, or its own timeout.
      rows: how many rows of a batch it takes.
      length: its length bucket in the latency table, None where it has none.
      signature: what else must be equal among the requests of a batch.
      min_rate: no narrower rate may serve it.
      rate: this rate alone may serve it.
      priority: where not all can be on time, those of a higher number are late first.
      payload: the caller's own; no policy reads it.
      kind: made from these; requests of one kind are planned exactly.
    """

    arrived: float
    deadline: float
    rows: int = 1
    length: int | None = None
    signature: Hashable = None
    min_rate: float = 0.0
    rate: float | None = None
    priority: int = 0
    payload: Any = None
    kind: tuple = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        kind = (self.length, self.signature, self.rate, self.min_rate, self.rows)
        object.__setattr__(self, "kind", (*kind, self.priority))

    def check(self, table: LatencyTable) -> None:
        """Refuse what no policy could ever serve.

        Raises:
          PolicyError: for a rate, length or number of rows that the table lacks, or
            wishes that contradict each other.
        """
        if self.rate is not None and self.rate not in table.rates:
            raise PolicyError(f"rate {self.rate} is not one of {table.rates}.")
        if self.rate is not None and self.rate < self.min_rate:
            raise PolicyError(f"rate {self.rate} is below min_rate {self.min_rate}.")
        if self.min_rate > table.rates[-1]:
            raise PolicyError(
                f"min_rate {self.min_rate} is above the widest, {table.rates[-1]}."
            )
        if not 1 <= self.rows <= table.batches[-1]:
            raise PolicyError(
                f"expected 1 to {table.batches[-1]} rows, got {self.rows}."
            )
        if self.length not in table.lengths:
            raise PolicyError(f"length {self.length} is not one of {table.lengths}.")

    def at(self, rate: float, rates: Sequence[float]) -> float:
        """Which of all rates serves it where the others are served at `rate`."""
        if self.rate is not None:
            return self.rate
        if rate >= self.min_rate:
            return rate
        return next((r for r in rates if r >= self.min_rate), rates[-1])


class Decision(NamedTuple):
    """What a policy says.

    Attributes:
      requests: they run now, as one batch.
      rate: at which they run; None where none does.
      shed: they get no answer, and leave the queue.
      wait: when to ask again at the latest, on the clock of the requests; None: when
        the next request comes. Without meaning where requests run.
    """

    requests: tuple[Request, ...] = ()
    rate: float | None = None
    shed: tuple[Request, ...] = ()
    wait: float | None = None


class Policy(Protocol):
    """Which requests run now, and at which rate."""

    def __call__(
        self, now: float, queue: Sequence[Request], table: LatencyTable
    ) -> Decision:
        """Decide; the device is idle, and the queue is in order of arrival."""
        ...


by_deadline = attrgetter("deadline")


def past_and_waiting(
    now: float, queue: Sequence[Request]
) -> tuple[tuple[Request, ...], list[Request]]:
    """Those whose deadline has passed, and the others by deadline."""
    order = sorted(queue, key=by_deadline)
    past = sum(request.deadline <= now for request in order)
    return tuple(order[:past]), order[past:]


def batch_of(
    head: Request, order: Sequence[Request], most: int, rate: float, rates: Sequence
) -> tuple[Request, ...]:
    """The first requests, `head` before all, that can run with it in one batch.

    Args:
      head: a request of `order`.
      order: requests, the most urgent first.
      most: rows that the batch holds.
      rate: what a request without a wish runs at.
      rates: all there are.
    """
    chosen, rows = [head], head.rows
    wanted = (head.length, head.signature, head.at(rate, rates))
    for other in order:
        if rows >= most:
            break
        if other is head or rows + other.rows > most:
            continue
        if (other.length, other.signature, other.at(rate, rates)) == wanted:
            chosen.append(other)
            rows += other.rows
    return tuple(chosen)
