"""The process that sends requests at their times, whatever came of earlier ones.

    python -m experiments.serving.sender JOB.npz RESULT.npz

`load.drive` starts it. It is a process of its own, so that nobody holds it up: pinned
to a core where asked for, before others there where the system allows that, its
garbage collector at rest, with waits that are exact to a tenth of a millisecond, where
asyncio's own are rounded up to whole ones.
"""

import asyncio
import contextlib
import gc
import json
import os
import re
import resource
import select
import selectors
import sys
import time
from pathlib import Path

import numpy as np

from .wire import Head, MalformedAnswer, end_of, head_of

NO_ANSWER, HUNG_UP = 0, -1
"""In place of a status: nothing came as long as was waited; the connection ended."""

_RATE = re.compile(rb'"rate": ?([0-9.eE+-]+)')
_BEGIN = 512  # bytes of an answer within which our server tells the rate


class ExactSelector(selectors.DefaultSelector):
    """Waits to the microsecond, where epoll takes milliseconds.

    `select` on the selector's own descriptor has a finer clock, and says when it has
    something to tell.
    """

    def select(self, timeout: float | None = None):
        """As of any selector."""
        if timeout is not None and timeout > 0:
            select.select([self.fileno()], [], [], timeout)
            timeout = 0
        return super().select(timeout)


class Connection(asyncio.Protocol):
    """A connection that carries one request at a time."""

    def __init__(self, sender: "Sender") -> None:
        self.sender, self.number = sender, -1
        self.data, self.head = b"", None
        self.transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is open."""
        assert isinstance(transport, asyncio.WriteTransport)
        self.transport = transport

    def send(self, number: int) -> None:
        """Sends a request."""
        assert self.transport is not None
        self.number, self.data, self.head = number, b"", None
        self.transport.write(self.sender.message(number))
        self.sender.sent[number] = time.monotonic()

    def data_received(self, data: bytes) -> None:
        """A part of an answer."""
        assert self.transport is not None
        if self.number < 0:
            self.transport.abort()  # nobody asked
            return
        self.data = self.data + data if self.data else data
        try:
            if self.head is None:
                self.head = head_of(self.data)
                if self.head is not None and self.head.status < 200:
                    rest, self.head, self.data = self.data[self.head.start :], None, b""
                    if rest:
                        self.data_received(rest)
                    return
            end = None if self.head is None else end_of(self.data, self.head)
        except MalformedAnswer:
            self.transport.abort()
            return
        if self.head is not None and end is not None:
            keep = self.head.keep and end == len(self.data)
            self._answered(self.head)
            if keep:
                self.sender.idle.append(self)
            else:
                self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """It has ended, on whichever side."""
        if self in self.sender.idle:
            self.sender.idle.remove(self)
        if self.number < 0:
            return
        if exc is None and self.head is not None and self.head.length is None:
            self._answered(self.head)  # its end is the end of the answer
        else:
            number, self.number = self.number, -1
            self.sender.ended(number, HUNG_UP, b"")

    def _answered(self, head: Head) -> None:
        number, self.number = self.number, -1
        begin = self.data[head.start : head.start + _BEGIN]
        self.sender.ended(number, head.status, begin)


class Sender:
    """Sends, and notes what came of it.

    Args:
      job: see `load.drive`.
    """

    def __init__(self, job: dict) -> None:
        about = json.loads(str(job["about"]))
        self.host, self.port = about["host"], about["port"]
        self.connections, self.warm = about["connections"], about["warm"]
        self.patience_s = about["patience_s"]
        blob, ends = job["blob"].tobytes(), job["ends"].tolist()
        self.messages = [blob[a:b] for a, b in zip([0, *ends], ends, strict=False)]
        self.due = job["arrivals"].tolist()
        # After the others come requests that nobody counts.
        count = len(self.due) + self.warm
        self.sent, self.answered = [float("nan")] * count, [float("nan")] * count
        self.status, self.begin = [NO_ANSWER] * count, [b""] * count
        self.idle: list[Connection] = []
        self.opened, self.left, self.next = 0, len(self.due), 0
        self.opening: set[asyncio.Task] = set()

    def message(self, number: int) -> bytes:
        """The bytes of a request."""
        return self.messages[number % len(self.messages)]

    async def run(self) -> dict[str, float]:
        """Sends all of it; returns the begin on the clock, and what it cost."""
        self.loop, self.done = asyncio.get_running_loop(), asyncio.Event()
        self.idle += [await self.open() for _ in range(self.connections)]
        await self._warm()
        gc.collect()
        gc.freeze()
        gc.disable()
        used = _cpu_s()
        self.began = self.loop.time() + 0.05
        self._go()
        with contextlib.suppress(TimeoutError):
            last = 0.05 + self.due[-1] + self.patience_s
            await asyncio.wait_for(self.done.wait(), last)
        return {"began": self.began, "cpu_s": _cpu_s() - used, "opened": self.opened}

    async def open(self) -> Connection:
        """A new connection."""
        self.opened += 1
        _, found = await self.loop.create_connection(
            lambda: Connection(self), self.host, self.port
        )
        return found

    async def _warm(self) -> None:
        """Asks a few times, for the first answer of a server is slower."""
        first = len(self.due)
        for number in range(first, first + self.warm):
            connection = self.idle.pop(0) if self.idle else await self.open()
            connection.send(number)
            ends = self.loop.time() + 30
            while self.status[number] == NO_ANSWER:
                if self.loop.time() > ends:
                    raise TimeoutError("the server did not answer within 30 s")
                await asyncio.sleep(0.002)

    def _go(self) -> None:
        """Sends what is due, and comes back when the next is."""
        now = self.loop.time() - self.began
        while self.next < len(self.due) and self.due[self.next] <= now:
            number, self.next = self.next, self.next + 1
            if self.idle:
                self.idle.pop().send(number)
            else:
                task = self.loop.create_task(self._open_and_send(number))
                self.opening.add(task)
                task.add_done_callback(self.opening.discard)
        if self.next < len(self.due):
            self.loop.call_at(self.began + self.due[self.next], self._go)

    async def _open_and_send(self, number: int) -> None:
        try:
            (await self.open()).send(number)
        except OSError:
            self.ended(number, HUNG_UP, b"")

    def ended(self, number: int, status: int, begin: bytes) -> None:
        """A request has ended."""
        self.answered[number] = time.monotonic()
        self.status[number], self.begin[number] = status, begin
        if number < len(self.due):
            self.left -= 1
            if not self.left:
                self.done.set()


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main(job: Path, result: Path) -> None:
    """Reads the job, sends, writes the result."""
    with np.load(job) as loaded:
        found = dict(loaded)
    core = json.loads(str(found["about"]))["core"]
    if core is not None:
        os.sched_setaffinity(0, {core})
        with contextlib.suppress(PermissionError):
            os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    sender = Sender(found)
    with asyncio.Runner(
        loop_factory=lambda: asyncio.SelectorEventLoop(ExactSelector())
    ) as runner:
        about = runner.run(sender.run())
    count = len(sender.due)
    rates = [_RATE.search(begin) for begin in sender.begin[:count]]
    np.savez(
        result,
        about=np.array(json.dumps(about)),
        sent=np.array(sender.sent[:count]) - about["began"],
        answered=np.array(sender.answered[:count]) - about["began"],
        status=np.array(sender.status[:count]),
        rate=np.array([float(r[1]) if r else np.nan for r in rates]),
    )


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), Path(sys.argv[2]))
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
