"""What becomes of a request: an answer, or why there is none; and who is told."""

import dataclasses
from collections.abc import Mapping

import numpy as np


class Refused(Exception):
    """A request that gets no answer; says why."""


class Full(Refused):
    """The queue is full; later there may be room."""


class Draining(Refused):
    """The server stops, and takes nothing new."""


class Late(Refused):
    """No rate answers it by its deadline."""


class Failed(Refused):
    """The batch that it was in failed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """What became of a request.

    Attributes:
      outputs: arrays by name, the rows of this request alone.
      rate: that served it.
      late: whether it was done only after its deadline.
      waited_s: seconds from its arrival to the start of its batch.
    """

    outputs: Mapping[str, np.ndarray]
    rate: float
    late: bool
    waited_s: float


class Watcher:
    """Is told what happens, in the thread where it does; this one does nothing."""

    def ended(self, outcome: str, rate: float | None, seconds: float) -> None:
        """A request that was taken has ended: answered, late, shed, gone or failed."""

    def waited(self, seconds: float) -> None:
        """A request that is answered was in the queue for so long; before it ended."""

    def ran(self, rate: float, rows: int, seconds: float, factor: float) -> None:
        """A batch has run; `factor` is how slow the machine is since."""
