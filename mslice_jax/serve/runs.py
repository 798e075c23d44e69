"""What an engine asks of an executor; an `Executor` has it, and so may others."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from .rows import Rows


class Runs(Protocol):
    """What an engine asks of an `Executor`."""

    @property
    def lengths(self) -> tuple[int | None, ...]:
        """The length buckets."""
        ...

    def check(self, request: Mapping[str, Any]) -> Rows:
        """Checks a request."""
        ...

    def run(
        self, rate: Any, requests: Sequence[Rows]
    ) -> tuple[list[dict[str, np.ndarray]], float]:
        """Runs a batch."""
        ...

    def swap(self, variables: Any) -> None:
        """Puts other weights in place."""
        ...
