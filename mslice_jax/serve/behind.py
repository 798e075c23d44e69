"""What HTTP asks of what is behind it: an engine and its executor, or a handle."""

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any, Protocol

from .answers import Answer
from .rows import Rows
from .signature import Tensor


class Takes(Protocol):
    """What the routes ask of an `Engine`, or of a `Handle` of several."""

    @property
    def clock(self) -> Callable[[], float]:
        """Seconds."""
        ...

    @property
    def slo_s(self) -> float:
        """T."""
        ...

    @property
    def running(self) -> bool:
        """Whether requests are taken and answered."""
        ...

    @property
    def draining(self) -> bool:
        """Whether nothing new is taken."""
        ...

    def submit(
        self,
        rows: Rows,
        *,
        arrived: float | None = None,
        timeout_s: float | None = None,
        **wishes: Any,
    ) -> "Future[Answer]":
        """Takes a request."""
        ...


class Reads(Protocol):
    """What the routes ask of an `Executor`, or of a `Handle`."""

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """What a request brings."""
        ...

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        """What an answer has."""
        ...

    @property
    def rates(self) -> tuple[Any, ...]:
        """The rates that are served."""
        ...

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """The batch buckets, ascending."""
        ...

    def check(self, request: Mapping[str, Any]) -> Rows:
        """Checks a request."""
        ...
