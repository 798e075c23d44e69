"""What a replica did in the last seconds, for the rule that scales."""

import collections
import threading
import time
from collections.abc import Callable

from .answers import Watcher
from .scaling import BUSY, REQUESTS, SHARE


class Recent(Watcher):
    """Means over the last seconds.

    Args:
      window_s: over how many.
      clock: seconds.

    Example:
      >>> recent = Recent(2.0, clock=lambda: 100.0)
      >>> recent.ended_at(1.0), recent.ended_at(0.5), recent.ran(0.5, 1, 0.4, 1.0)
      (None, None, None)
      >>> recent.told()
      {'mslice_requests': 2.0, 'mslice_share': 0.75, 'mslice_busy': 0.2}
    """

    def __init__(
        self, window_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.window_s, self.clock = window_s, clock
        self._lock = threading.Lock()  # batches end in a thread of their own
        # [since, requests, sum of shares, busy seconds], of a twentieth of the window
        self._parts: collections.deque[list[float]] = collections.deque()

    def ran(self, rate: float, rows: int, seconds: float, factor: float) -> None:
        """A batch has run."""
        del rate, rows, factor
        with self._lock:
            self._part()[3] += seconds

    def ended_at(self, share: float) -> None:
        """A request has ended, at a share of the widest rate that it accepts."""
        with self._lock:
            part = self._part()
            part[1] += 1
            part[2] += share

    def told(self) -> dict[str, float]:
        """See `scaling.Told`."""
        with self._lock:
            self._part()
            requests = sum(part[1] for part in self._parts)
            shares = sum(part[2] for part in self._parts)
            busy = sum(part[3] for part in self._parts) / self.window_s
        share = shares / requests if requests else 1.0
        return {REQUESTS: float(requests), SHARE: share, BUSY: min(busy, 1.0)}

    def _part(self) -> list[float]:
        """The part of this moment; those that are too old are dropped."""
        now, parts = self.clock(), self._parts
        while parts and parts[0][0] <= now - self.window_s:
            parts.popleft()
        if not parts or now - parts[-1][0] >= self.window_s / 20:
            parts.append([now, 0.0, 0.0, 0.0])
        return parts[-1]
