"""Asks replicas: one after the other if one is lost, until the deadline."""

import asyncio
import importlib
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Future
from typing import Any, Protocol

from .answers import Answer, Draining, Failed, Full, Late, Refused, Watcher
from .attempts import Lost, answered
from .policy import PolicyError
from .replica import Described, Sent, machine, network_of
from .rows import InvalidRequest, Rows, check
from .signature import Tensor


class Response(Awaitable[Any], Protocol):
    """What asking a replica gives at once."""

    def cancel(self) -> Any:
        """Nobody waits for it any more."""
        ...


class Handle:
    """Requests to replicas, wherever they run.

    It knows its requests' deadlines. A request goes to a replica with the time that is
    left; if that replica dies, it goes to another with what is left then. So a request
    is answered, or refused with a reason, at its deadline at the latest.

    Args:
      remote: sends rows, seconds that are left, `Sent` and wishes to `Replica.ask` of
        one replica.
      about: what the replicas serve.
      gone: the errors that say that a replica is gone.
      full: those that say that no replica takes more.
      watcher: is told what becomes of the requests.

    Attributes:
      waiting: how many requests have no answer yet.
      lost: how many times a replica was gone before it had answered.
    """

    def __init__(
        self,
        remote: Callable[[Rows, float, Sent, Mapping[str, Any]], Response],
        about: Described,
        *,
        gone: tuple[type[Exception], ...],
        full: tuple[type[Exception], ...],
        watcher: Watcher | None = None,
    ) -> None:
        self._remote, self.about, self._gone, self._full = remote, about, gone, full
        self.watcher, self.clock = watcher or Watcher(), time.monotonic
        self._machine, self._network = machine(), network_of(about.signature)
        self.waiting = self.lost = 0
        self._own: asyncio.AbstractEventLoop | None = None
        self._making = threading.Lock()

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """What a request brings."""
        return self.about.signature.inputs

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        """What an answer has."""
        return self.about.signature.outputs

    @property
    def rates(self) -> tuple[float, ...]:
        """The rates that are served."""
        return self.about.rates

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """The batch buckets, ascending."""
        return self.about.signature.batches

    @property
    def slo_s(self) -> float:
        """T, within which a request is due that brings no timeout."""
        return self.about.slo_s

    @property
    def running(self) -> bool:
        """Whether requests are taken; for replicas that are gone they wait."""
        return True

    @property
    def draining(self) -> bool:
        """Whether nothing new is taken: Ray Serve sends nothing to who stops."""
        return False

    def check(self, request: Mapping[str, Any]) -> Rows:
        """Checks a request; whether numbers are finite, a replica looks.

        Raises:
          InvalidRequest: for a wrong name, dtype, shape or number of rows.
        """
        return check(self.about.signature, request, ())

    def ask(
        self,
        request: Mapping[str, Any],
        *,
        timeout_s: float | None = None,
        min_rate: float = 0.0,
        rate: float | None = None,
        priority: int = 0,
    ) -> Answer:
        """Asks, and waits for the answer.

        Args:
          request: an array for each input, by name, rows along its batch axis.
          timeout_s: seconds within which it is due, in place of T.
          min_rate: no narrower rate may serve it.
          rate: this rate alone may serve it.
          priority: where not all can be on time, higher numbers are late first.

        Raises:
          InvalidRequest, PolicyError: for a request that cannot be served.
          Late: when its deadline has passed, or no rate could meet it.
          Full: if no replica takes more.
          Failed: if its batch did.
        """
        wishes = {"min_rate": min_rate, "rate": rate, "priority": priority}
        asked = self._until_due(self.check(request), None, timeout_s, wishes)
        return asyncio.run_coroutine_threadsafe(asked, self._loop()).result()

    def submit(
        self,
        rows: Rows,
        *,
        arrived: float | None = None,
        timeout_s: float | None = None,
        **wishes: Any,
    ) -> "Future[Answer]":
        """As `Engine.submit`, but that every refusal is one of the future."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            loop = self._loop()
        asked = self._until_due(rows, arrived, timeout_s, wishes)
        return asyncio.run_coroutine_threadsafe(asked, loop)

    async def _until_due(
        self,
        rows: Rows,
        arrived: float | None,
        timeout_s: float | None,
        wishes: Mapping[str, Any],
    ) -> Answer:
        came = self.clock() if arrived is None else arrived
        due = came + (self.slo_s if timeout_s is None else timeout_s)
        outcome, rate = "gone", None
        self.waiting += 1
        try:
            answer = await answered(
                lambda left: self._once(rows, left, wishes), due, clock=self.clock
            )
            outcome, rate = "late" if self.clock() > due else "answered", answer.rate
            return answer
        except Refused as error:
            outcome = "shed" if isinstance(error, Late) else "failed"
            if isinstance(error, Full):
                outcome = ""  # was not taken
            raise
        except (InvalidRequest, PolicyError):
            outcome = ""
            raise
        finally:
            self.waiting -= 1
            if outcome:
                self.watcher.ended(outcome, rate, self.clock() - came)

    async def _once(self, rows: Rows, left: float, wishes: Mapping[str, Any]) -> Answer:
        sent, response = Sent(self._machine, self.clock(), self._network), None
        try:
            response = self._remote(rows, left, sent, wishes)
            found = await response
        except asyncio.CancelledError:
            if response is not None:
                response.cancel()  # the replica need not answer it any more
            raise
        except self._gone as error:
            self.lost += 1
            raise Lost(f"the replica is gone: {type(error).__name__}") from error
        except self._full as error:
            raise Full("every queue is full.") from error
        except Exception as error:
            raise Failed(f"the replica failed: {error!r:.200}") from error
        if isinstance(found, Draining):
            raise Lost(str(found).rstrip(".").replace("the server", "the replica"))
        if isinstance(found, Exception):
            raise found
        return found

    def _loop(self) -> asyncio.AbstractEventLoop:
        """A loop of its own, for those who have none."""
        with self._making:
            if self._own is None:
                self._own = asyncio.new_event_loop()
                run = self._own.run_forever
                threading.Thread(target=run, name="handle", daemon=True).start()
            return self._own


def ray_modules() -> tuple[Any, Any]:
    """Ray and Ray Serve.

    Raises:
      ImportError: if they are not installed.
    """
    try:
        return importlib.import_module("ray"), importlib.import_module("ray.serve")
    except ImportError as error:
        raise ImportError(
            'several replicas need Ray Serve; run: pip install "mslice_jax[ray]"'
        ) from error


def of_ray(replicas: Any, about: Described, watcher: Watcher | None = None) -> Handle:
    """A handle of replicas that Ray Serve runs.

    Args:
      replicas: Ray Serve's handle of them.
      about: what they serve.
      watcher: is told what becomes of the requests.
    """
    ray, serve = ray_modules()
    gone = (ray.exceptions.RayActorError, ray.exceptions.ObjectLostError)
    full = (serve.exceptions.BackPressureError,)
    return Handle(replicas.ask.remote, about, gone=gone, full=full, watcher=watcher)
