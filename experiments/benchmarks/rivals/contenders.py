"""The servers that are compared: how each is started, and how it is asked."""

import concurrent.futures
import dataclasses
import os
import pathlib
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence

import numpy as np

from experiments.benchmarks.processes import Server
from experiments.serving.inference import infer
from experiments.serving.load import Message

from . import network

_ROOT = pathlib.Path(__file__).resolve().parents[3]
_NETWORK = "experiments.benchmarks.rivals.network"
ROWS = (1, 2, 4, 8)
"""Batch buckets of our own server."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """Where servers run, and what they serve.

    Attributes:
      folder: of `network.prepare`; tables and compiled programs are there, too.
      network: its name.
      core: of the processor; None: any.
    """

    folder: pathlib.Path
    network: str
    core: int | None

    def start(self, command: Sequence[str], more: Mapping[str, str]) -> Server:
        """Starts a server on that core, XLA in one thread."""
        flags = os.environ.get("XLA_FLAGS", "")
        env = {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"{flags} --xla_cpu_multi_thread_eigen=false".strip(),
            "OMP_NUM_THREADS": "1",
            # Each program is compiled once, whoever runs it.
            "JAX_COMPILATION_CACHE_DIR": str(self.folder / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
            "RIVAL_FOLDER": str(self.folder),
            "RIVAL_NETWORK": self.network,
            **more,
        }
        cores = None if self.core is None else {self.core}
        return Server([sys.executable, *command], cores=cores, env=env, cwd=_ROOT)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contender:
    """A server with its settings.

    Attributes:
      name: "ours", "elastic", "mosec" or "litserve".
      rows: the largest batch, of the rivals.
      wait_ms: how long they wait for it to fill.
    """

    name: str
    rows: int = 0
    wait_ms: int = 0

    @property
    def setting(self) -> str:
        """Its batching, in words."""
        return f"{self.rows} x {self.wait_ms} ms" if self.rows else "by the policy"

    def start(self, place: Place, slo_ms: float) -> "Running":
        """Starts it; returns when it answers.

        Raises:
          RuntimeError: if it does not.
        """
        if not self.rows:
            rates = network.RATES if self.name == "elastic" else network.RATES[-1:]
            table = place.folder / f"table_{self.name}.json"
            server = place.start(ours(place, rates, slo_ms, table), {})
            return self._ready(server, _port_of(server), "/v2/models/default/infer")
        port = _free_port()
        more = {
            "RIVAL_ROWS": str(self.rows),
            "RIVAL_WAIT_MS": str(self.wait_ms),
            "RIVAL_PORT": str(port),
        }
        command = ["-m", f"experiments.benchmarks.rivals.with_{self.name}"]
        path = "/predict"
        if self.name == "mosec":
            command += ["--address", "127.0.0.1", "--port", str(port)]
            # Who waits longer is late anyway; none is to be cut off earlier.
            command += ["--timeout", "60000"]
            path = "/inference"
        return self._ready(place.start(command, more), port, path)

    def _ready(self, server: Server, port: int, path: str) -> "Running":
        running = Running(self, server, f"http://127.0.0.1:{port}{path}")
        try:
            running.wait()
        except BaseException:
            server.stop(5)
            raise
        return running

    def message(self, image: np.ndarray, *, patient: bool = False) -> Message:
        """A request for one image (32, 32, 3).

        Args:
          image: it.
          patient: whether it waits for an answer of full width.
        """
        if self.rows:
            kind = {"Content-Type": "application/octet-stream"}
            return Message(image.tobytes(), kind)
        wishes = {"timeout": 60_000_000, "rate": 1.0} if patient else None
        return infer({"x": image[None]}, wishes)

    def logits(self, body: bytes, headers: Mapping[str, str]) -> np.ndarray:
        """The answer to one request, (10,)."""
        size = int(headers.get("Inference-Header-Content-Length") or 0)
        return np.frombuffer(body[size:], np.float32)


@dataclasses.dataclass(frozen=True)
class Running:
    """A contender that runs."""

    contender: Contender
    server: Server
    url: str

    def ask(self, image: np.ndarray) -> np.ndarray:
        """The logits of one image at full width.

        Raises:
          OSError: without an answer, or for an error.
        """
        message = self.contender.message(image, patient=True)
        request = urllib.request.Request(
            self.url, message.body, dict(message.headers), method="POST"
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return self.contender.logits(answer.read(), answer.headers)

    def wait(self, seconds: float = 600.0) -> None:
        """Until it answers.

        Raises:
          RuntimeError: if it ends, or takes longer; its last lines are in it.
        """
        image, end = np.zeros(network.SHAPE, np.float32), time.monotonic() + seconds
        while True:
            try:
                self.ask(image)
                return
            except (OSError, urllib.error.URLError) as error:
                if not self.server.running or time.monotonic() > end:
                    told = "\n".join(self.server.lines[-20:])
                    raise RuntimeError(
                        f"{self.contender.name} does not answer ({error}):\n{told}"
                    ) from error
            time.sleep(0.2)

    def check(self, place: Place) -> float:
        """Asks one by one and many at once; returns how far answers are from ours.

        Raises:
          RuntimeError: if one is not equal, to a thousandth of the largest logit.
        """
        images, expected = network.images(), np.load(place.folder / "logits.npy")
        found = [self.ask(images[0])]
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            found += pool.map(self.ask, images[1:])
        furthest = float(np.abs(np.stack(found) - expected).max())
        if not furthest < 1e-3 * np.abs(expected).max():
            name = f"{self.contender.name}, {self.contender.setting}"
            raise RuntimeError(f"{name}: answers differ from ours by {furthest}.")
        return furthest


def ours(
    place: Place,
    rates: Sequence[float],
    slo_ms: float,
    table: pathlib.Path,
    *more: str,
) -> list[str]:
    """The command of our server; it measures its table unless the file is there."""
    flags = {
        "--checkpoint": place.folder / "network.mslice",
        "--model": f"{_NETWORK}:{place.network}",
        "--rates": ",".join(map(str, rates)),
        "--batches": ",".join(map(str, ROWS)),
        "--slo-ms": slo_ms,
        "--port": 0,
        "--table" if table.exists() else "--write-table": table,
    }
    told = [str(word) for pair in flags.items() for word in pair]
    return ["-m", "mslice_jax.serve", *told, *more]


def _port_of(server: Server) -> int:
    ready = server.said("Ready: ", seconds=1200)
    return int(ready.split(",")[0].rpartition(":")[2])


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return found.getsockname()[1]
