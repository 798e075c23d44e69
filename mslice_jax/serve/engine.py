"""The core of a server: a queue, and one thread that asks the policy.

It knows neither HTTP nor asyncio. `submit` gives a future; the thread asks the policy
whenever the device is idle and requests wait, runs what it says, and hands the rows
back. Who cancels a future leaves the queue.
"""

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from .answers import Answer, Failed, Late, Refused, Watcher
from .endings import Ticket, answered, refused
from .latency import LatencyTable
from .policy import Decision, Policy, Request
from .rows import Rows
from .runs import Runs
from .slow_down import SlowDown
from .waiting import Waiting

_log = logging.getLogger(__name__)


class Engine:
    """Answers requests at the rate that a policy chooses.

    Args:
      executor: ready. `run` is called by one thread alone.
      policy: any.
      table: what a batch takes.
      slo_s: T, the seconds within which a request is due that brings no timeout.
      most_waiting: how many requests the queue holds.
      margin_s: seconds that an answer needs from here to the client: the policy plans
        with deadlines that are earlier by that.
      watcher: is told what happens.
      clock: seconds.

    Raises:
      PolicyError: for a T that is too short for the narrowest program.

    Example:
      >>> import jax.numpy as jnp, numpy as np, mslice_jax as ms
      >>> from mslice_jax.serve import Elastic, Engine, Executor, LatencyTable
      >>> def mlp(p, x):
      ...     return {"y": jnp.tanh(x @ p["w1"]) @ p["w2"]}
      >>> p = {"w1": jnp.ones((3, 16)), "w2": jnp.ones((16, 2))}
      >>> net = ms.upgrade(mlp, p, jnp.ones((1, 3)), rates=(0.5, 1.0))
      >>> executor = Executor(net, batch_sizes=(1,)).prepare()
      >>> table = LatencyTable({(0.5, 1): (1, 1), (1.0, 1): (2, 2)})
      >>> engine = Engine(executor, Elastic(slo_s=60.0), table, slo_s=60.0).start()
      >>> future = engine.submit(executor.check({"x": np.ones((1, 3), np.float32)}))
      >>> answer = future.result(60)
      >>> answer.rate, answer.outputs["y"].shape
      (1.0, (1, 2))
      >>> engine.drain()
      True
    """

    def __init__(
        self,
        executor: Runs,
        policy: Policy,
        table: LatencyTable,
        *,
        slo_s: float,
        most_waiting: int = 1000,
        margin_s: float = 0.0,
        watcher: Watcher | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if hasattr(policy, "check"):
            policy.check(table)  # pyright: ignore[reportAttributeAccessIssue]
        self.executor, self.policy, self.table = executor, policy, table
        self.slo_s, self.most_waiting, self.margin_s = slo_s, most_waiting, margin_s
        self.watcher, self.clock = watcher or Watcher(), clock
        self._queue = Waiting(most_waiting)
        self._thread: threading.Thread | None = None
        self._slow, self._ran_at = SlowDown(), clock()
        self._swapping = threading.Lock()

    # -- for callers, in any thread

    @property
    def waiting(self) -> int:
        """How many requests are in the queue; those of the running batch are not."""
        return len(self._queue)

    @property
    def draining(self) -> bool:
        """Whether nothing new is taken."""
        return self._queue.closed

    @property
    def running(self) -> bool:
        """Whether requests are taken and answered."""
        alive = self._thread is not None and self._thread.is_alive()
        return alive and not self.draining

    @property
    def factor(self) -> float:
        """How many times as long batches take as they took when measured."""
        return self._slow.factor

    def submit(
        self,
        rows: Rows,
        *,
        arrived: float | None = None,
        timeout_s: float | None = None,
        **wishes: Any,
    ) -> "Future[Answer]":
        """Puts a request into the queue.

        Args:
          rows: as `executor.check` gives them.
          arrived: when it came, on the clock; now unless given.
          timeout_s: in place of T.
          **wishes: `min_rate`, `rate`, `priority`, as a `Request` has them.

        Returns:
          A future of an `Answer`, or of a `Refused`. Cancelled while it waits, the
          request leaves the queue.

        Raises:
          PolicyError: for wishes that the table cannot serve.
          Full: if the queue is.
          Draining: after `drain`.
        """
        came = self.clock() if arrived is None else arrived
        length = None
        if rows.length is not None:
            fits = (n for n in self.executor.lengths if n is not None)
            length = next(n for n in fits if n >= rows.length)
        due = came + (self.slo_s if timeout_s is None else timeout_s) - self.margin_s
        ticket = Ticket(rows, Future())
        request = Request(
            arrived=came,
            deadline=due,
            rows=rows.rows,
            length=length,
            payload=ticket,
            **wishes,
        )
        request.check(self.table)
        number = self._queue.put(request)

        def left(future: "Future[Answer]") -> None:
            if future.cancelled():
                self._queue.leave(number)
                self.watcher.ended("gone", None, self.clock() - came)

        ticket.future.add_done_callback(left)
        return ticket.future

    def swap(self, variables: Any) -> None:
        """Puts other weights in place, see `Executor.swap`; requests go on."""
        with self._swapping:
            self.executor.swap(variables)

    def start(self) -> "Engine":
        """Starts the thread."""
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()
        return self

    def drain(self, timeout_s: float | None = None) -> bool:
        """Takes nothing new, and returns when all who wait have their answer.

        Returns:
          Whether the queue is empty, and not `timeout_s` over.
        """
        self._queue.close()
        if self._thread is not None:
            self._thread.join(timeout_s)
            return not self._thread.is_alive()
        return not self._queue

    # -- in the thread

    def _work(self) -> None:
        wait: float | None = 0.0
        while self._queue.until_news(wait):
            try:
                wait = self.turn()
            except Exception:  # of a policy: the queue must not stand still for it
                _log.exception("the policy failed; those who wait are refused")
                self._end(self._queue.take(), Failed("the policy failed."), "failed")
                wait = 0.0

    def turn(self) -> float | None:
        """Asks the policy once, and does what it says.

        Returns:
          Seconds after which to ask again, 0 for at once; None: when the next request
          comes.
        """
        queue = self._queue.now()
        if not queue:
            return None
        now = self.clock()
        table = self.table.scaled(self._slow.after(now - self._ran_at))
        decision = self.policy(now, list(queue.values()), table)
        number = {id(request): n for n, request in queue.items()}
        shed = self._queue.take([number[id(request)] for request in decision.shed])
        self._end(shed, Late("no rate answers it by its deadline."), "shed")
        if not decision.requests:
            return None if decision.wait is None else max(decision.wait - now, 1e-4)
        batch = self._queue.take([number[id(r)] for r in decision.requests])
        self._run(decision, batch)
        return 0.0

    def _run(self, decision: Decision, batch: list[Request]) -> None:
        if not batch:
            return  # all of them hung up meanwhile
        rate, rows = decision.rate, sum(request.rows for request in batch)
        assert rate is not None
        began = self.clock()
        try:
            each = [request.payload.rows for request in batch]
            answers, seconds = self.executor.run(rate, each)
        except Exception as error:
            _log.exception("a batch of %d rows at rate %s failed", rows, rate)
            self._end(batch, Failed(f"the batch failed: {error!r:.200}"), "failed")
            self._ran_at = self.clock()
            return
        ended = self._ran_at = self.clock()
        median = self.table.median_ms(rate, rows, batch[0].length)
        factor = self._slow.observe(median, 1e3 * seconds)
        self.watcher.ran(rate, rows, seconds, factor)
        answered(
            batch,
            answers,
            self.watcher,
            rate=rate,
            began=began,
            ended=ended,
            margin_s=self.margin_s,
        )

    def _end(self, requests: list[Request], error: Refused, outcome: str) -> None:
        refused(requests, error, self.watcher, outcome=outcome, now=self.clock())
