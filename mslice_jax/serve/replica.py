"""One of several replicas: an engine, and what it tells of itself.

It knows nothing of Ray, which makes it an actor of its own process.
"""

import argparse
import asyncio
import dataclasses
import gc
import hashlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..cpu import memory
from . import starting
from .answers import Answer, Draining, Late, Refused
from .latency import LatencyTable
from .policy import PolicyError
from .recent import Recent
from .rows import InvalidRequest, Rows
from .signature import Signature


@dataclasses.dataclass(frozen=True, kw_only=True)
class Described:
    """What is served, as one replica found it, for those who ask all of them.

    Attributes:
      signature: of the call, without its static part.
      rates: at which it is served.
      table: what a batch takes.
      slo_s: T.
      accuracy: of each rate, as far as it is known.
    """

    signature: Signature
    rates: tuple[float, ...]
    table: LatencyTable
    slo_s: float
    accuracy: Mapping[float, float]


class Sent(NamedTuple):
    """When a request was sent, on the monotonic clock of a machine; and to whom.

    Attributes:
      machine: whose clock it is.
      at: seconds.
      to: the network that is meant, by `network_of`; "" for whichever it is.
    """

    machine: str
    at: float
    to: str = ""


def network_of(signature: Signature) -> str:
    """Tells networks apart of which one takes no requests for the other.

    While Ray replaces replicas, those of two networks are asked by whoever knows one of
    them, and arrays come without their names.
    """
    told = repr((signature.inputs, signature.outputs))
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def machine() -> str:
    """Names the machine (its start, in fact) whose monotonic clock this process reads.

    Processes of one name have the same clock. "" where nobody can tell.
    """
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
    except OSError:
        return ""


def described(flags: argparse.Namespace) -> Described:
    """Tries the network as a replica has it, and measures it unless there is a table.

    Raises:
      ValueError, TypeError, OSError: for anything that does not fit, a T that is too
        short among it.
    """
    source, executor = _network(flags)
    if flags.table is None:
        executor.prepare()
    table = starting.table(flags, executor)
    starting.engine(flags, executor, table)  # checks T, and is not started
    return Described(
        signature=dataclasses.replace(executor.signature, call=None),
        rates=executor.rates,
        table=table,
        slo_s=flags.slo_ms / 1e3,
        accuracy=source.accuracy,
    )


def _network(flags: argparse.Namespace) -> tuple[starting.Network, Any]:
    # Where the driver finds the user's model, if the folder is here, too.
    if flags.model is not None and flags.folder not in sys.path:
        sys.path.insert(0, flags.folder)
    memory.keep_freed()
    source = starting.network(flags)
    return source, starting.executor(flags, source.net)


class Replica:
    """An engine whose requests come from elsewhere.

    It is ready when it is made: everything is compiled.

    Args:
      flags: the options of the command, and `folder`, where the driver runs.
      about: what `described` found.
      window_s: seconds that `record_autoscaling_stats` tells of.
    """

    def __init__(
        self, flags: argparse.Namespace, about: Described, window_s: float
    ) -> None:
        self._about, self._network = about, network_of(about.signature)
        source, self.executor = _network(flags)
        here = dataclasses.replace(self.executor.signature, call=None)
        if here != about.signature or self.executor.rates != about.rates:
            # Of a replica that takes the place of one that died, later.
            raise ValueError(
                f"{flags.checkpoint} has another network by now than the one that was "
                "measured; serve it by run(...) again."
            )
        self.executor.prepare()
        self.recent = Recent(window_s)
        self.engine = starting.engine(
            flags, self.executor, about.table, watcher=self.recent
        )
        self._machine, self._drain_s = machine(), flags.drain_s
        del source  # the executor has the weights
        gc.collect()
        gc.freeze()  # as the command does, and the interval, too
        sys.setswitchinterval(5e-4)
        self.engine.start()

    async def ask(
        self, rows: Rows, left_s: float, sent: Sent, wishes: Mapping[str, Any]
    ) -> Answer | Refused | InvalidRequest | PolicyError:
        """Answers a request, or says why not; nothing is raised that was foreseen.

        Args:
          rows: as `rows.check` gives them.
          left_s: seconds until it is due, when it was sent.
          sent: when that was. The way here counts if the clock is the same; between
            machines clocks differ by more than the way takes, and it does not. A
            request for another network is for another replica.
          wishes: `min_rate`, `rate`, `priority`.
        """
        arrived = self.engine.clock()
        if sent.to not in ("", self._network):
            return Draining("the replica serves another network")
        if sent.machine == self._machine != "":
            left_s -= max(arrived - sent.at, 0.0)
        names = [tensor.name for tensor in self.executor.inputs]
        try:
            checked = self.executor.check(dict(zip(names, rows.arrays, strict=True)))
            future = self.engine.submit(
                checked, arrived=arrived, timeout_s=left_s, **wishes
            )
            answer = await asyncio.wrap_future(future)
        except (Refused, InvalidRequest, PolicyError) as error:
            if isinstance(error, Late):
                self.recent.ended_at(0.0)
            return error
        widest = wishes.get("rate") or max(self.executor.rates)
        self.recent.ended_at(answer.rate / widest)
        return answer

    def describe(self) -> Described:
        """What is served."""
        return self._about

    def record_autoscaling_stats(self) -> dict[str, float]:
        """What Ray Serve hands to `scaling.ByMeanRate`."""
        return self.recent.told()

    def check_health(self) -> None:
        """Asked by Ray Serve, which replaces a replica whose engine has ended.

        Raises:
          RuntimeError: if it has.
        """
        if not self.engine.running and not self.engine.draining:
            raise RuntimeError("the engine has ended.")

    def __del__(self) -> None:
        # Ray Serve calls it when a replica is stopped, and no request is left.
        if hasattr(self, "engine"):
            self.engine.drain(self._drain_s)
