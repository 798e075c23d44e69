"""The test stand: a server on one core, a load on the other, and what was measured.

A policy is a process of its own: the command that users start. Widths that are fixed
need none, for a request may ask for its rate (and `fixed` is `Elastic` with one rate).
"""

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mslice_jax import serve

from . import costs, network
from .inference import infer
from .journal import Journal
from .load import Message, drive
from .options import Options
from .outcome import Result
from .server import Server

FIXED = "fixed "


class Stand:
    """Serves, and loads what is served.

    Args:
      options: of the command.
      say: is told what is under way.

    Attributes:
      table: what batches take, as the server measured it.
      slo_s: T in seconds.
      accuracy: of each rate.

    Raises:
      ValueError, ServerError: if there is no network, or it cannot be served.
    """

    def __init__(self, options: Options, say: Any = print) -> None:
        self.options, self.say = options, say
        self.workdir = options.workdir
        self.journal = Journal(self.workdir / "runs.jsonl", options.common())
        self.server: Server | None = None
        self.policy = ""
        self.given = self._network()
        try:
            self._measure()
        except BaseException:
            self.close()
            raise

    def _measure(self) -> None:
        options, path = self.options, self.workdir / "table.json"
        if not path.exists():
            self.say("Compiling, and measuring the table ...")
            slo = options.slo_ms or 60_000.0
            more = ["--write-table", str(path.resolve())]
            self._start("elastic", slo, [*more, "--repeats", str(options.repeats)])
            if options.slo_ms is None:
                self.close()  # T is known only now
        self.table = serve.LatencyTable.read(path)
        self.alone_s = self.table.median_ms(self.table.rates[-1], 1) / 1e3
        self.slo_s = (options.slo_ms or 1e4 * self.alone_s) / 1e3
        server = self.serving("elastic")
        self.accuracy = server.accuracy()
        if missing := set(self.table.rates) - set(self.accuracy):
            raise ValueError(f"no accuracy of the rates {missing}: see --accuracy.")
        self.inputs = self._inputs(server)

    def _network(self) -> list[str]:
        options = self.options
        if options.checkpoint is None:
            if not (self.workdir / "network.mslice").exists():
                self.say("Training the network ...")
            return network.checkpoint(self.workdir, options.network, options.epochs)
        given = ["--checkpoint", str(options.checkpoint.resolve())]
        if options.model is not None:
            given += ["--model", options.model]
        if options.accuracy is not None:
            given += ["--accuracy", str(options.accuracy.resolve())]
        return given

    def _inputs(self, server: Server) -> list[dict[str, np.ndarray]]:
        if self.options.checkpoint is not None:
            return server.drawn(64)
        images, _ = network.held_out()
        return [{"image": image[None]} for image in images[:256]]

    # -- the server

    def _start(self, policy: str, slo_ms: float, more: list[str]) -> Server:
        batches = ",".join(map(str, self.options.batches))
        core = self.options.server_core
        flags = [*self.given, "--policy", policy, "--slo-ms", f"{slo_ms:.6g}"]
        flags += ["--margin-ms", f"{_margin_ms(slo_ms):.6g}"]
        self.server = Server(
            [*flags, "--batches", batches, *more],
            core=None if core < 0 else core,
            folder=self.workdir / "server",
        )
        self.policy = policy
        return self.server

    def serving(self, policy: str) -> Server:
        """The server with this policy; it is started unless it runs."""
        if self.server is not None and self.policy == policy:
            return self.server
        self.close()
        self.say(f"Starting the server with the policy {policy} ...")
        table = str((self.workdir / "table.json").resolve())
        return self._start(policy, 1e3 * self.slo_s, ["--table", table])

    def close(self) -> None:
        """Ends the server."""
        if self.server is not None:
            self.server.stop()
            self.server = None

    def __enter__(self) -> "Stand":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- what is measured

    def messages(self, rate: float | None = None) -> list[Message]:
        """Requests, at a rate of their own or at what the policy chooses."""
        parameters = {} if rate is None else {"rate": rate}
        return [infer(one, parameters) for one in self.inputs]

    def drive(self, policy: str, arrivals: np.ndarray, warm: int = 20) -> Result:
        """Loads the server once.

        Args:
          policy: a name of the server's, or "fixed RATE".
          arrivals: seconds, ascending: `[n]`.
          warm: requests before, that do not count.
        """
        rate = float(policy.removeprefix(FIXED)) if policy.startswith(FIXED) else None
        server = self.serving("elastic" if rate is not None else policy)
        core = self.options.load_core
        return drive(
            server.url,
            arrivals,
            self.messages(rate),
            slo_s=self.slo_s,
            core=None if core < 0 else core,
            warm=warm,
        )

    def run(self, key: str, policy: str, arrivals: np.ndarray) -> dict[str, Any]:
        """What became of a load: of the journal, or measured now.

        A run whose load was late itself is tried again, and told as void if it stays
        so; the next command tries it again.

        Returns:
          `key`, `policy`, and the `Result.summary` as `measured`.
        """
        before = self.journal.get(key)
        if before is not None and before["measured"]["void"] is None:
            return before
        for _ in range(self.options.tries):
            done = self.drive(policy, arrivals)
            if done.void is None:
                break
        path = self.requests(key)
        path.parent.mkdir(exist_ok=True)
        done.write(path, self.accuracy)
        told = done.summary(self.accuracy)
        share = f"{100 * told['in_time']:.2f} % in time"
        self.say(f"{key}: {share}" + (f", VOID: {done.void}" if done.void else ""))
        return self.journal.add(key, {"policy": policy, "measured": told})

    def requests(self, key: str) -> Path:
        """Where the requests of a run are, for `Result.read`."""
        name = "".join(c if c.isalnum() or c in ".-" else "_" for c in key)
        return self.workdir / "requests" / f"{name}.json"

    def simulated(self, policy: str, arrivals: np.ndarray) -> dict[str, Any]:
        """What the simulator says of the same load."""
        cost, each_s = self.http, {}
        for rate in self.table.rates:
            each_s[rate] = cost["each_ms"][f"{rate:g}"] / 1e3
        way_s = max(cost["added_ms"] / 1e3 - each_s[self.table.rates[-1]], 0.0)
        done = serve.simulate(
            self.policy_of(policy),
            arrivals,
            self.table,
            slo_s=self.slo_s,
            overhead_s=way_s,
            margin_s=_margin_ms(1e3 * self.slo_s) / 1e3,
            http={rate: serve.Http(s / 2, s / 2) for rate, s in each_s.items()},
            noise=True,
            correct=True,
        )
        return done.summary(self.accuracy)

    def policy_of(self, policy: str) -> serve.Policy:
        """The policy of that name."""
        if policy.startswith(FIXED):
            return serve.fixed(float(policy.removeprefix(FIXED)), slo_s=self.slo_s)
        kinds: Mapping[str, Any] = {
            "elastic": lambda: serve.Elastic(slo_s=self.slo_s),
            "latency-first": lambda: serve.LatencyFirst(slo_s=self.slo_s),
            "window": lambda: serve.Window(slo_s=self.slo_s),
            "slackfit": serve.SlackFit,
        }
        return kinds[policy]()

    @property
    def widths(self) -> tuple[str, ...]:
        """The policies of one width, the narrowest first."""
        return tuple(f"{FIXED}{rate}" for rate in self.table.rates)

    @functools.cached_property
    def capacity(self) -> float:
        """Requests a second that the narrowest rate sustains; measured once."""
        return self.options.capacity or costs.capacity(self)

    @functools.cached_property
    def http(self) -> dict[str, Any]:
        """What HTTP and the queue cost, see `costs.http`; measured once."""
        return costs.http(self)

    def about(self) -> dict[str, Any]:
        """What the results hold for."""
        return {
            "settings": json.loads(
                json.dumps(dataclasses.asdict(self.options), default=str)
            ),
            "slo_ms": 1e3 * self.slo_s,
            "capacity_per_second": self.capacity,
            "alone_ms": 1e3 * self.alone_s,
            "accuracy": {f"{r:g}": a for r, a in sorted(self.accuracy.items())},
            "http": self.http,
            "table": [
                {**key._asdict(), **value._asdict()}
                for key, value in self.table.entries.items()
            ],
        }


def _margin_ms(slo_ms: float) -> float:
    """What an answer needs from the server to the client; the server's own rule."""
    return min(2.0, slo_ms / 20)
