"""Does the server live through half an hour of everything that clients do?

    pip install -e ".[serve,experiments]"
    python -m experiments.benchmarks.mixed_load --out runs/mixed_load.json

A real process of `python -m mslice_jax.serve` gets, over sockets, for `--minutes`:

* right requests: JSON and binary, both ways and mixed, packed, in chunks, slowly,
  several on one connection without waiting; one to four rows, a priority, `min_rate`,
  `rate`, a timeout that nobody can keep. Every row is compared with what `slice_apply`
  gives at the rate that the answer tells, for the weights that were served then;
* malformed ones of every kind (`mixed/wrong.py`), which have to get a 4xx with a
  reason, or the connection closed where it was no HTTP; a right one comes behind them
  on the same connection;
* clients that hang up in the head, in the body, before the answer and in it, some with
  a reset;
* new weights every few seconds, by SIGHUP and by HTTP in turn, and now and then those
  of another network or half a file, which are to be refused.

At the end: no wrong row, no request without exactly one answer (each has an id of its
own, and the server counts as many as were sent), nothing compiled after ready, exit
code 0 after SIGTERM. Memory: the server's resident set is sampled every second; a
straight line through the last two thirds of the run may rise by `--growth-mb` in all.
(It goes up and down by some MB, as weights are loaded in threads of their own.) Exit
code 1 if anything does not hold. Linux.
"""

import asyncio
import dataclasses
import pathlib
import sys
import tempfile
import time
from typing import Any

import numpy as np
import tyro

from experiments.benchmarks.mixed import network, verdict, weights, wire, wrong
from experiments.benchmarks.mixed.clients import Client, History, Seen
from experiments.benchmarks.mixed.weights import Weights
from experiments.benchmarks.processes import Server
from experiments.benchmarks.result import save

_MODEL = "experiments.benchmarks.mixed.network:mlp"
_ROOT = pathlib.Path(__file__).resolve().parents[2]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """What to do to the server."""

    minutes: float = 30.0
    """How long."""
    per_second: float = 60.0
    """What the clients begin in a second, all together; a malformed request and the
    right one behind it are one."""
    clients: int = 12
    """How many there are at a time."""
    swap_s: float = 2.0
    """Seconds between new weights."""
    hidden: int = 512
    """Units of the two hidden layers, so that weights that are kept would show."""
    growth_mb: float = 8.0
    """How far memory may rise over the last two thirds."""
    seed: int = 0
    """Of what the clients do."""
    out: pathlib.Path | None = None
    """Where to write the result as JSON."""


def command(folder: pathlib.Path) -> list[str]:
    """The server's command."""
    flags = {
        "--checkpoint": folder / "network.mslice",
        "--model": _MODEL,
        "--port": 0,
        "--batches": "1,2,4",
        "--slo-ms": 1000,
        "--repeats": 3,
        "--body-mb": wrong.BODY_BYTES / 2**20,
    }
    told = [str(word) for pair in flags.items() for word in pair]
    return [sys.executable, "-m", "mslice_jax.serve", *told, "--finite"]


@dataclasses.dataclass
class Run:
    """One run.

    Attributes:
      config: what to do.
      server: the process, ready.
      port: of it.
      folder: with the checkpoint.
      pool: rows and right answers.
    """

    config: Config
    server: Server
    port: int
    folder: pathlib.Path
    pool: network.Pool

    def __post_init__(self) -> None:
        self.history, self.seen = History(), Seen()
        self.weights = Weights(
            self.server, self.port, self.folder, self.history, self.seen
        )
        self.sampled: list[tuple[float, float]] = []

    async def go(self) -> str:
        """All of it; returns what `/metrics` shows at the end."""
        config, seconds = self.config, 60 * self.config.minutes
        beside = [
            asyncio.create_task(self.weights.swap(seconds, config.swap_s)),
            asyncio.create_task(self._memory(seconds)),
            asyncio.create_task(self._stalled(seconds)),
        ]
        pause_s = config.clients / config.per_second
        children = np.random.SeedSequence(config.seed).spawn(config.clients)
        clients = [
            Client(
                self.port,
                self.pool,
                self.history,
                self.seen,
                np.random.default_rng(child),
                number,
            )
            for number, child in enumerate(children)
        ]
        await clients[0].every_kind()
        await asyncio.gather(*(each.work(seconds, pause_s) for each in clients))
        await asyncio.gather(*beside)
        return await self._settled()

    async def _settled(self) -> str:
        """`/metrics` once nothing is counted any more: who hung up may come late."""
        before = ""
        for _ in range(40):
            reply = await wire.Connection(self.port).ask(
                wire.head({"Connection": "close"}, path="/metrics", method="GET")
            )
            text = reply.body.decode()
            if before and verdict.outcomes(text) == verdict.outcomes(before):
                return text
            before = text
            await asyncio.sleep(0.25)
        return before

    # -- beside

    async def _stalled(self, seconds: float) -> None:
        """A body that does not come; the server waits for half a minute."""
        if seconds < 60:
            return
        connection = wire.Connection(self.port)
        self.seen.counted += 1
        await connection.send(wire.head({"Content-Length": 100}) + b"{")
        try:
            reply = await connection.reply()
        except wire.Lost as error:
            self.seen.lost.append(f"a body that does not come: {error}")
            return
        finally:
            connection.close()
        self.seen.counts[f"stalled, {reply.code}"] += 1
        if reply.code != 408 or not reply.reason:
            self.seen.faults.append(f"a body that does not come: {reply.code}")

    async def _memory(self, seconds: float) -> None:
        began = time.monotonic()
        pause_s = min(1.0, seconds / 20)
        while (at := time.monotonic() - began) < seconds:
            self.sampled.append((at, self.server.resident_mb()))
            await asyncio.sleep(pause_s)


def main(config: Config) -> dict[str, Any]:
    """Runs, prints the verdicts, and returns the result."""
    nets = [network.network(v, config.hidden) for v in range(weights.VERSIONS)]
    pool = network.Pool.of(nets)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        weights.write(folder, nets, network.network(0, config.hidden + 4))
        with Server(command(folder), cwd=_ROOT) as server:
            ready = server.said("Ready: ")
            port = int(ready.split(",")[0].rpartition(":")[2])
            run = Run(config, server, port, folder, pool)
            metrics = asyncio.run(run.go())
            code = server.stop()
            stopped = server.said("Stopped. Requests", seconds=5)
            lines = server.lines
    return _result(run, metrics, code, stopped, lines)


def _result(
    run: Run, metrics: str, code: int | None, stopped: str, lines: list[str]
) -> dict[str, Any]:
    seen, config = run.seen, run.config
    growth = verdict.growth_mb(*zip(*run.sampled, strict=True))
    last = run.sampled[-1][1]
    strange = [x for x in lines if "Traceback" in x or x.startswith("ERROR")]
    verdicts = [
        *verdict.of_answers(seen, [*wrong.kinds()]),
        *verdict.of_server(seen, metrics, code, stopped),
        verdict.of_swaps(run.weights.swapped, run.weights.refused, metrics),
        verdict.of_memory(growth, config.growth_mb, last),
        verdict.Verdict("the server logs no error", not strange, f"{strange[:3]}"),
    ]
    for each in verdicts:
        print(each)
    for text in [*seen.faults[:10], *seen.lost[:10]]:
        print(" ", text)
    result = {
        "minutes": config.minutes,
        "holds": all(each.holds for each in verdicts),
        "verdicts": [dataclasses.asdict(each) for each in verdicts],
        "requests": dict(sorted(seen.counts.items())),
        "rates": dict(sorted(seen.rates.items())),
        "malformed": dict(sorted(seen.wrong.items())),
        "faults": seen.faults[:100],
        "lost": seen.lost[:100],
        "counted": verdict.outcomes(metrics),
        "resident_mb": [
            (round(at, 1), round(size, 2))
            for at, size in run.sampled[:: max(1, len(run.sampled) // 200)]
        ],
    }
    save(config.out, result)
    return result


if __name__ == "__main__":
    sys.exit(not main(tyro.cli(Config))["holds"])
