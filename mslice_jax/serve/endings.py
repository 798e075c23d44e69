"""The end of a request: its future gets what became of it, and the watcher is told."""

import dataclasses
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from .answers import Answer, Refused, Watcher
from .policy import Request
from .rows import Rows


@dataclasses.dataclass(eq=False, slots=True)
class Ticket:
    """The payload of a request in an engine: its rows, and who waits for them."""

    rows: Rows
    future: Future[Answer]


def answered(
    batch: Sequence[Request],
    outputs: Sequence[Mapping[str, Any]],
    watcher: Watcher,
    *,
    rate: float,
    began: float,
    ended: float,
    margin_s: float,
) -> None:
    """Ends the requests of a batch with their answers.

    Args:
      batch: whose payloads are tickets.
      outputs: of each request.
      watcher: is told.
      rate: that served them.
      began, ended: when the batch did.
      margin_s: seconds by which deadlines were planned too early.
    """
    for request, each in zip(batch, outputs, strict=True):
        late = ended > request.deadline + margin_s
        waited = began - request.arrived
        answer = Answer(outputs=each, rate=rate, late=late, waited_s=waited)
        # Before the answer goes out: who has it finds it counted.
        watcher.waited(waited)
        watcher.ended("late" if late else "answered", rate, ended - request.arrived)
        request.payload.future.set_result(answer)


def refused(
    requests: Sequence[Request],
    error: Refused,
    watcher: Watcher,
    *,
    outcome: str,
    now: float,
) -> None:
    """Ends requests without an answer.

    Args:
      requests: whose payloads are tickets.
      error: what their futures raise, for each one of its own.
      watcher: is told.
      outcome: shed or failed.
      now: seconds.
    """
    for request in requests:
        watcher.ended(outcome, None, now - request.arrived)
        request.payload.future.set_exception(type(error)(*error.args))
