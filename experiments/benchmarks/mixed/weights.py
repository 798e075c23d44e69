"""New weights for the server while it is asked, and what it must refuse for such."""

import asyncio
import dataclasses
import pathlib
import signal
import time
from collections.abc import Sequence

import mslice_jax as ms
from experiments.benchmarks.processes import Server

from . import wire
from .clients import History, Seen

VERSIONS = 3
_LOAD = "/v2/repository/models/default/load"


def write(
    folder: pathlib.Path, nets: Sequence[ms.Sliceable], other: ms.Sliceable
) -> None:
    """Writes every version, another network, half a file, and the checkpoint."""
    for version, net in enumerate(nets):
        ms.save(net, folder / f"{version}.mslice", programs=False)
    ms.save(other, folder / "other.mslice", programs=False)
    first = (folder / "0.mslice").read_bytes()
    (folder / "network.mslice").write_bytes(first)
    (folder / "cut.mslice").write_bytes(first[: len(first) // 2])


@dataclasses.dataclass
class Weights:
    """Puts other weights in place, by SIGHUP and by HTTP in turn.

    Attributes:
      server, port: who is to take them.
      folder: of `write`.
      history: is told what is served.
      seen: is told what was wrong.
      swapped, refused: how often.
    """

    server: Server
    port: int
    folder: pathlib.Path
    history: History
    seen: Seen
    swapped: int = 0
    refused: int = 0

    async def swap(self, seconds: float, pause_s: float) -> None:
        """Goes on for so long, three times at least."""
        end, turn = time.monotonic() + seconds, 0
        while True:
            await asyncio.sleep(pause_s)
            if time.monotonic() > end and turn >= 3:
                return
            turn += 1
            by_http = turn % 2 == 0
            if turn % 5 in (2, 3):
                await self._refused("other" if turn % 2 else "cut", by_http)
            else:
                version = turn % VERSIONS
                self._put(f"{version}")
                self.history.begins(version)
                await self._reload(by_http, "New weights.", 200)
                self.history.surely()
                self.swapped += 1

    async def _refused(self, name: str, by_http: bool) -> None:
        self._put(name)
        await self._reload(by_http, "the old weights stay", 400)
        self.refused += 1

    def _put(self, name: str) -> None:
        """The checkpoint becomes another, at once."""
        new = self.folder / "new"
        new.write_bytes((self.folder / f"{name}.mslice").read_bytes())
        new.replace(self.folder / "network.mslice")

    async def _reload(self, by_http: bool, line: str, code: int) -> None:
        if by_http:
            connection = wire.Connection(self.port)
            reply = await connection.ask(wire.request(b"", path=_LOAD))
            connection.close()
            if reply.code != code or (code != 200 and not reply.reason):
                told = f"load: expected {code}, got {reply.code} {reply.reason!r}"
                self.seen.faults.append(told)
            return
        after = len(self.server.lines)
        self.server.send(signal.SIGHUP)
        words = ("New weights.", "the old weights stay")
        said = await asyncio.to_thread(
            self.server.said, *words, after=after, seconds=60
        )
        if line not in said:
            self.seen.faults.append(f"SIGHUP: expected {line!r}, got {said!r}")
