"""A plan for requests that differ: in length, in the rates they accept, in priority."""

import heapq
from collections.abc import Sequence

from .latency import LatencyTable
from .policy import Decision, Request

_First = tuple[list[Request], float]


def first_of_several(
    order: Sequence[Request],
    slack: Sequence[float],
    within: float,
    table: LatencyTable,
    rates: tuple[float, ...],
) -> Decision:
    """The batch that runs now, at the widest rate that will do.

    Args:
      order: requests by deadline.
      slack: seconds until those, of the table without its factor.
      within: seconds within which all is to be done, likewise.
      table: the latency table.
      rates: those that may be used, ascending.
    """
    alone: dict[tuple, float] = {}
    shed, waiting = [], []
    for request, left in zip(order, slack, strict=True):
        took = alone.get(request.kind)
        if took is None:
            took = alone[request.kind] = _Group(request, rates[0], table, rates).alone
        if left < took:
            shed.append(request)
        else:
            waiting.append((request, left))
    if not waiting:
        return Decision(shed=tuple(shed))

    low, high, found = 0, len(rates), None
    while low < high:
        middle = (low + high) // 2
        if first := _walk(waiting, within, rates[middle], table, rates):
            low, found = middle + 1, first
        else:
            high = middle
    if found is None:
        found = _as_many_as_can(waiting, table, rates)
    return Decision(tuple(found[0]), found[1], tuple(shed))


def _as_many_as_can(
    waiting: Sequence[tuple[Request, float]],
    table: LatencyTable,
    rates: tuple[float, ...],
) -> _First:
    """At the narrowest rate: the most urgent priorities, as far as they can be met."""
    found: _First | None = None
    numbers = sorted({request.priority for request, _ in waiting})
    for number in numbers:
        these = [it for it in waiting if it[0].priority <= number]
        first = _walk(these, float("inf"), rates[0], table, rates)
        if first is None:
            break
        found = first
    if found is None:
        these = [it for it in waiting if it[0].priority == numbers[0]]
        found = _walk(these, float("inf"), rates[0], table, rates, skip=True)
    assert found is not None  # nobody is here who could not be met alone
    return found


class _Group:
    """Requests that may share a batch."""

    def __init__(
        self, like: Request, rate: float, table: LatencyTable, rates: tuple[float, ...]
    ) -> None:
        self.rate = like.at(rate, table.rates)
        self.among = rates if like.rate is None else (self.rate,)
        self.ways = table.ways(self.rate, like.length, among=self.among)
        self.alone = self.ways.took(like.rows)
        self.length = like.length
        self.waiting: list[tuple[Request, float]] = []
        self.at = self.rows = 0

    def take(self, most: int) -> list[Request]:
        """The next requests whose rows fit, at least one."""
        taken, rows = [], 0
        while self.at < len(self.waiting):
            request = self.waiting[self.at][0]
            if taken and rows + request.rows > most:
                break
            taken.append(request)
            rows += request.rows
            self.at += 1
        self.rows -= rows
        return taken


def _walk(
    waiting: Sequence[tuple[Request, float]],
    within: float,
    rate: float,
    table: LatencyTable,
    rates: tuple[float, ...],
    *,
    skip: bool = False,
) -> _First | None:
    """Plan all of them at a rate, and return the first batch with the rate it runs at.

    Args:
      waiting: requests and their slack, by deadline.
      within, rate, table, rates: as above.
      skip: pass over a request that would force a batch smaller than what does most;
        otherwise the plan fails where one is late.
    """
    groups: dict[tuple, _Group] = {}
    of_kind: dict[tuple, _Group] = {}
    for pair in waiting:
        request = pair[0]
        group = of_kind.get(request.kind)  # few kinds, many requests
        if group is None:
            at = request.at(rate, table.rates)
            key = (request.length, request.signature, at, request.rate is not None)
            group = groups.get(key)
            if group is None:
                group = groups[key] = _Group(request, rate, table, rates)
            of_kind[request.kind] = group
        group.waiting.append(pair)
        group.rows += request.rows

    # Most rates that are too wide need no plan to show it.
    soonest = sum(group.ways.least(group.rows) for group in groups.values())
    if not skip and soonest > min(within, waiting[-1][1]):
        return None

    heads = [(g.waiting[0][1], i, g) for i, g in enumerate(groups.values())]
    heapq.heapify(heads)
    elapsed, first = 0.0, None
    while heads:
        left, number, group = heads[0]
        ways, head = group.ways, group.waiting[group.at][0]
        size = max(ways.first(group.rows, gentle=not skip), head.rows)
        if elapsed + ways.took(size) > left and not skip:
            size = ways.most(head.rows, left - elapsed)
            if not size:
                return None
        if elapsed + ways.took(size) > left:
            group.rows -= head.rows
            group.at += 1
        else:
            taken = group.take(size)
            rows = sum(request.rows for request in taken)
            elapsed += ways.took(rows)
            if elapsed > within:
                return None
            if first is None:
                ran = table.served(group.rate, rows, group.length, group.among)
                first = (taken, ran)
            if skip:
                break  # some are late in any case: nothing depends on what follows
        if group.at < len(group.waiting):
            heapq.heapreplace(heads, (group.waiting[group.at][1], number, group))
        else:
            heapq.heappop(heads)
    return first
