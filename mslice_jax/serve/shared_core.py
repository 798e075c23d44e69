"""A core that HTTP and the network share, on a virtual clock."""

import collections
import dataclasses
import math
from typing import Any


@dataclasses.dataclass(frozen=True)
class Http:
    """Seconds of the processor that serving takes of a core, beside the network.

    Attributes:
      read_s: to read a request, and to plan for it.
      answer_s: to answer one, be it served or shed.
    """

    read_s: float = 0.0
    answer_s: float = 0.0

    def __post_init__(self) -> None:
        if not all(0 <= x < math.inf for x in dataclasses.astuple(self)):
            raise ValueError(f"expected seconds, 0 or more, got {self}.")


class Core:
    """Two threads of one core: HTTP, one thing after the other, and the network.

    While both have something to do, each gets half of the core, as Linux shares it
    between threads of the same priority.

    Attributes:
      now: seconds.

    Example:
      >>> core = Core()
      >>> core.run("batch", 1.0)
      >>> core.tell("answer", 0.25)
      >>> core.until(9.0), core.now  # a quarter of a second, at half speed
      ('answer', 0.5)
      >>> core.until(9.0), core.now
      ('batch', 1.25)
      >>> core.until(9.0), core.now
      (None, 9.0)
    """

    def __init__(self) -> None:
        self.now = 0.0
        self._http: collections.deque[tuple[Any, float]] = collections.deque()
        self._batch: Any = None
        # Seconds of the whole core: for the first of HTTP, and for the batch.
        self._http_s = self._batch_s = 0.0

    @property
    def runs(self) -> bool:
        """Whether the network runs a batch."""
        return self._batch is not None

    @property
    def talks(self) -> bool:
        """Whether HTTP has something to do."""
        return bool(self._http)

    def tell(self, what: Any, seconds: float) -> None:
        """Gives HTTP something to do, after what it has."""
        if not self._http:
            self._http_s = seconds
        self._http.append((what, seconds))

    def run(self, what: Any, seconds: float) -> None:
        """Gives the network a batch; it has none."""
        self._batch, self._batch_s = what, seconds

    def until(self, limit: float) -> Any:
        """Lets time pass until something is done, and not beyond `limit`.

        Returns:
          What is done; None at the limit. Of two at once HTTP is first.
        """
        share = 0.5 if self.talks and self.runs else 1.0
        http = self.now + self._http_s / share if self.talks else math.inf
        batch = self.now + self._batch_s / share if self.runs else math.inf
        then = max(min(http, batch, limit), self.now)
        self._http_s -= (then - self.now) * share
        self._batch_s -= (then - self.now) * share
        self.now = then
        if http <= then:
            what, _ = self._http.popleft()
            self._http_s = self._http[0][1] if self._http else 0.0
            return what
        if batch <= then:
            what, self._batch = self._batch, None
            return what
        return None
