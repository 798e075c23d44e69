"""Runs of a load against a contender: what is in the journal is not measured again."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from experiments.serving.journal import Journal
from experiments.serving.load import drive
from mslice_jax import serve

from . import network
from .contenders import Contender, Place, Running

_TRIES = 3
"""Runs of a cell, if the load generator was late in the first."""


@dataclasses.dataclass
class Bench:
    """Runs loads against contenders, one server at a time.

    Attributes:
      place: where servers run.
      journal: of the cells.
      slo_ms: T.
      load_core: on which the load generator runs; None: on any.
      late_ms: how late the generator may be at p99; None: as `drive` has it.
      say: is told each cell.
    """

    place: Place
    journal: Journal
    slo_ms: float
    load_core: int | None = None
    late_ms: float | None = None
    say: Callable[[str], None] = print

    def __post_init__(self) -> None:
        self._running: Running | None = None
        self.furthest: dict[str, float] = {}

    def cell(
        self, contender: Contender, per_second: float, seconds: float, seed: int
    ) -> dict[str, Any]:
        """One run of Poisson arrivals; the same arrivals for every contender.

        Returns:
          What `Result.summary` has, and `p99_of_all_ms`: of all requests, also those
          that were refused, which are later than any; None if it is one of those.
        """
        asked = {
            "contender": contender.name,
            "setting": contender.setting,
            "per_second": round(per_second, 3),
            "seconds": seconds,
            "seed": seed,
        }
        key = ", ".join(map(str, asked.values()))
        found = self.journal.get(key)
        for _ in range(_TRIES):
            if found is not None and not found["void"]:
                break
            ran = asked | self._run(contender, per_second, seconds, seed)
            found = self.journal.add(key, ran)
            self.say(_told(found))
        assert found is not None
        return found

    def _run(
        self, contender: Contender, per_second: float, seconds: float, seed: int
    ) -> dict[str, Any]:
        running = self._of(contender)
        arrivals = serve.poisson(per_second, seconds, seed=seed)
        done = drive(
            running.url,
            arrivals,
            [contender.message(image) for image in network.images()],
            slo_s=self.slo_ms / 1e3,
            core=self.load_core,
            late_s=None if self.late_ms is None else self.late_ms / 1e3,
        )
        told = done.summary()
        of_all = np.where(done.served, done.latency_s, np.inf)
        p99 = 1e3 * float(np.quantile(of_all, 0.99, method="inverted_cdf"))
        told["offered_per_second"] = told.pop("per_second")
        return told | {"p99_of_all_ms": p99 if np.isfinite(p99) else None}

    def _of(self, contender: Contender) -> Running:
        """The contender, running; whichever ran before has ended."""
        if self._running is None or self._running.contender != contender:
            self.stop()
            self._running = contender.start(self.place, self.slo_ms)
            off = self._running.check(self.place)
            name = f"{contender.name}, {contender.setting}"
            self.furthest[name] = off
            self.say(f"{name}: logits of full width as they should be, to {off:.1e}")
        return self._running

    def stop(self) -> None:
        """Ends the server that runs."""
        if self._running is not None:
            self._running.server.stop(10)
        self._running = None


def holds(cell: dict[str, Any]) -> bool | None:
    """Whether p99 of all requests was within T; None for a run that is void."""
    return None if cell["void"] else cell["in_time"] >= 0.99


def _told(cell: dict[str, Any]) -> str:
    p99 = cell["p99_of_all_ms"]
    return (
        f"{cell['contender']:9} {cell['setting']:14} {cell['per_second']:7.1f}/s  "
        f"in time {cell['in_time']:.4f}  p99 "
        + ("refused" if p99 is None else f"{p99:.0f} ms")
        + (f"  VOID: {cell['void']}" if cell["void"] else "")
    )
