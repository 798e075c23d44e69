"""The queue of an engine: bounded, in order of arrival, for one thread that takes."""

import itertools
import threading
from collections.abc import Sequence

from .answers import Draining, Full
from .policy import Request


class Waiting:
    """Requests that wait, by the number of their arrival. Any thread may put and leave.

    The payload of a request has a `future`; who cancelled it is not taken.

    Args:
      most: how many requests it holds.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._requests: dict[int, Request] = {}  # in order of arrival
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._closed = self._news = False

    def __len__(self) -> int:
        return len(self._requests)

    @property
    def closed(self) -> bool:
        """Whether nothing new is taken."""
        return self._closed

    def put(self, request: Request) -> int:
        """Puts a request at the end, and returns its number.

        Raises:
          Full: if the queue is.
          Draining: after `close`.
        """
        with self._changed:
            if self._closed:
                raise Draining("the server stops, and takes no new requests.")
            if len(self._requests) >= self._most:
                raise Full(f"the queue is full: {self._most} requests wait.")
            number = next(self._numbers)
            self._requests[number], self._news = request, True
            self._changed.notify()
        return number

    def leave(self, number: int) -> None:
        """Takes a request out, if it is still there."""
        with self._changed:
            self._requests.pop(number, None)

    def close(self) -> None:
        """Takes nothing new."""
        with self._changed:
            self._closed = self._news = True
            self._changed.notify()

    def until_news(self, seconds: float | None) -> bool:
        """Returns when there is something to decide.

        That is when somebody came since `now`, or somebody waits and so many seconds
        are over; None: only when somebody comes.

        Returns:
          False at the end: it is closed, and nobody waits.
        """
        with self._changed:
            if not self._news:
                # Who waits for nobody knows what, with no one to come, is asked.
                anyway = 0.05 if self._closed else None
                self._changed.wait(anyway if seconds is None else seconds)
            while not self._requests and not self._closed:
                self._changed.wait()
            return bool(self._requests)

    def now(self) -> dict[int, Request]:
        """Who waits, by number, in order of arrival."""
        with self._changed:
            self._news = False
            return dict(self._requests)

    def take(self, numbers: Sequence[int] | None = None) -> list[Request]:
        """Takes requests out, all unless given; not those who left."""
        with self._changed:
            if numbers is None:
                numbers = list(self._requests)
            found = [self._requests.pop(n) for n in numbers if n in self._requests]
        return [r for r in found if r.payload.future.set_running_or_notify_cancel()]
