"""Clients that ask rightly, ask wrongly, and hang up; what they saw is counted."""

import asyncio
import collections
import dataclasses
import time

import numpy as np

from . import right, wrong
from .network import Pool
from .wire import Connection, Lost, Reply, head

SHARES = {"right": 0.6, "wrong": 0.2, "hang up": 0.15, "look": 0.05}
"""Of what a client does next."""
_PAGES = ("/metrics", "/live.json", "/", "/v2/models/default", "/v2/health/ready")


class History:
    """Which weights may have been served when."""

    def __init__(self) -> None:
        self._spans = [(0, 0.0, float("inf"))]

    def begins(self, version: int) -> None:
        """From now on these may be served, beside those before."""
        self._spans.append((version, time.monotonic(), float("inf")))

    def surely(self) -> None:
        """From now on only those that began last are served."""
        version, began, _ = self._spans.pop()
        before = [(v, b, min(e, time.monotonic())) for v, b, e in self._spans[-20:]]
        self._spans = [*before, (version, began, float("inf"))]

    def between(self, began: float, ended: float) -> set[int]:
        """The versions that may have answered a request of that time."""
        return {v for v, first, last in self._spans if first <= ended and last >= began}


@dataclasses.dataclass
class Seen:
    """What the clients saw.

    Attributes:
      counts: requests by what became of them.
      rates: answers by rate.
      wrong: malformed requests by kind.
      faults: what was answered otherwise than it has to be.
      lost: requests without an answer.
      counted: how many of all the server must have counted.
      maybe: how many it may have counted beside: of a connection that was reset, or
        none of HTTP for some parsers.
    """

    counts: collections.Counter[str] = dataclasses.field(
        default_factory=collections.Counter
    )
    rates: collections.Counter[str] = dataclasses.field(
        default_factory=collections.Counter
    )
    wrong: collections.Counter[str] = dataclasses.field(
        default_factory=collections.Counter
    )
    faults: list[str] = dataclasses.field(default_factory=list)
    lost: list[str] = dataclasses.field(default_factory=list)
    counted: int = 0
    maybe: int = 0


@dataclasses.dataclass
class Client:
    """One client, with one connection at a time.

    Attributes:
      port: of the server.
      pool: what it asks for.
      history: which weights are served.
      seen: where it notes what came.
      rng: draws what it does.
      number: tells its requests from those of others.
    """

    port: int
    pool: Pool
    history: History
    seen: Seen
    rng: np.random.Generator
    number: int

    def __post_init__(self) -> None:
        self._connection, self._asked = Connection(self.port), 0
        kinds = wrong.kinds()
        # Every kind comes, in an order of its own.
        names = self.rng.permutation([*kinds]).tolist()
        self._wrong = [(name, kinds[name]) for name in names]
        self._next = 0

    async def work(self, seconds: float, pause_s: float) -> None:
        """Goes on for so long, with pauses of that mean."""
        end = time.monotonic() + seconds
        names, shares = [*SHARES], [*SHARES.values()]
        while time.monotonic() < end:
            await asyncio.sleep(self.rng.exponential(pause_s))
            match self.rng.choice(names, p=shares):
                case "right":
                    await self.ask_rightly(int(self.rng.choice([1, 1, 1, 1, 2, 3])))
                case "wrong":
                    await self.ask_wrongly()
                case "hang up":
                    await self.hang_up()
                case _:
                    await self.look()
        self._connection.close()

    async def every_kind(self) -> None:
        """Every malformed request once."""
        for _ in self._wrong:
            await self.ask_wrongly()

    def _drawn(self) -> right.Right:
        self._asked += 1
        return right.drawn(self.rng, self.pool, self._asked * 1000 + self.number)

    async def ask_rightly(self, count: int = 1) -> None:
        """Right requests, one after the other without waiting for answers."""
        asked = [self._drawn() for _ in range(count)]
        content = b"".join(each.content for each in asked)
        self.seen.counted += count
        began, answered = time.monotonic(), 0
        try:
            if self.rng.integers(8) == 0:  # slowly
                cuts = sorted(self.rng.integers(1, len(content), 3).tolist())
                for first, last in zip([0, *cuts], [*cuts, len(content)], strict=True):
                    await self._connection.send(content[first:last])
                    await asyncio.sleep(0.01)
            else:
                await self._connection.send(content)
            for each in asked:
                reply = await self._connection.reply()
                answered += 1
                self._look_at(each, reply, began)
        except (Lost, OSError) as error:
            self.seen.lost += [f"{error}"] * (count - answered)
            self._connection.close()
        if self.rng.integers(10) == 0:
            self._connection.close()

    def _look_at(self, asked: right.Right, reply: Reply, began: float) -> None:
        versions = self.history.between(began, time.monotonic())
        fault = right.fault(asked, reply, self.pool, versions)
        self.seen.counts[f"right, {reply.code}"] += 1
        if fault is not None:
            self.seen.faults.append(f"{fault} ({asked.content[:300]!r})")
        elif reply.code == 200:
            told, _ = right.found(reply)
            self.seen.rates[f"{told['parameters']['rate']:g}"] += 1

    async def ask_wrongly(self) -> None:
        """The next malformed request; if it was HTTP, a right one behind it."""
        name, asked = self._wrong[self._next % len(self._wrong)]
        self._next += 1
        self.seen.wrong[name] += 1
        self.seen.counted += asked.counted is True
        self.seen.maybe += asked.counted is None
        fresh = Connection(self.port) if asked.closed else self._connection
        try:
            reply = await fresh.ask(asked.content)
        except (Lost, OSError) as error:
            if asked.closed and not str(error).startswith("no answer"):
                self.seen.counts["wrong, closed"] += 1
            else:
                self.seen.lost.append(f"{name}: {error}")
            return
        finally:
            if asked.closed:
                fresh.close()
        self.seen.counts[f"wrong, {reply.code}"] += 1
        if reply.code not in asked.codes or not reply.reason:
            told = f"{reply.code} {reply.reason!r}"
            self.seen.faults.append(f"{name}: expected {asked.codes}, got {told}")
        if not asked.closed:
            await self.ask_rightly()

    async def hang_up(self) -> None:
        """Hangs up: in the head, in the body, before the answer, in the midst of it."""
        content = self._drawn().content
        at = content.index(b"\r\n\r\n") + 4
        where = self.rng.integers(4)
        size = (int(self.rng.integers(1, at - 4)), at, len(content) - 3, len(content))
        reset, connection = bool(self.rng.integers(2)), Connection(self.port)
        self.seen.counts["hung up"] += 1
        if where:
            # What was sent right before a reset may never be read.
            self.seen.maybe += reset
            self.seen.counted += not reset
        try:
            await connection.send(content[: size[where]])
            if self.rng.integers(2):
                await asyncio.sleep(self.rng.exponential(0.004))
            connection.close(reset=reset)
        except (Lost, OSError) as error:
            self.seen.lost.append(f"hang up: {error}")

    async def look(self) -> None:
        """Looks at a page, as a person or Prometheus would."""
        page = str(self.rng.choice(_PAGES))
        try:
            reply = await self._connection.ask(head({}, path=page, method="GET"))
        except (Lost, OSError) as error:
            self.seen.lost.append(f"{page}: {error}")
            return
        self.seen.counts[f"page, {reply.code}"] += 1
        if reply.code != 200:
            self.seen.faults.append(f"{page}: {reply.code} {reply.reason}")
