"""Our server as a process of its own, on a core of its own."""

import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from mslice_jax.serve.tensors import DTYPES

_BATCHES = re.compile(
    r'^mslice_batches_total\{rate="([^"]+)",rows="([^"]+)"\} (\S+)$', re.MULTILINE
)
_ROOT = Path(__file__).parents[2]


class ServerError(RuntimeError):
    """The server did not start, or not end well."""


class Server:
    """``python -m mslice_jax.serve`` with these options; ready when it is made.

    Args:
      options: of the command, but for the port.
      core: to which it is pinned, so that XLA has one thread; None: all cores.
      folder: where its programs are kept, which later starts load, and its log.
      wait_s: how long it may take to be ready.

    Raises:
      ServerError: with its last line, if it ends before it is ready.
    """

    def __init__(
        self,
        options: Sequence[str],
        *,
        core: int | None,
        folder: Path,
        wait_s: float = 900.0,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.log = folder / "server.log"
        kept = {
            "JAX_COMPILATION_CACHE_DIR": str((folder / "compiled").resolve()),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        command = [sys.executable, "-m", "mslice_jax.serve", *options, "--port", "0"]
        with self.log.open("w") as log, _on(core):
            self.process = subprocess.Popen(
                command, cwd=_ROOT, stdout=log, stderr=log, env={**kept, **os.environ}
            )
        try:
            self.port = self._ready(wait_s)
        except BaseException:
            self.process.kill()
            self.process.wait()
            raise

    def _ready(self, wait_s: float) -> int:
        ends = time.monotonic() + wait_s
        while time.monotonic() < ends:
            over = self.process.poll() is not None
            text = self.log.read_text()
            if found := re.search(r"^Ready: http://[^,]*:(\d+),", text, re.MULTILINE):
                return int(found.group(1))
            if over:
                last = text.strip().splitlines() or ["it said nothing"]
                raise ServerError(f"the server ended: {last[-1]}")
            time.sleep(0.1)
        raise ServerError(f"the server was not ready within {wait_s:g} s.")

    @property
    def url(self) -> str:
        """Where inference requests go."""
        return f"http://127.0.0.1:{self.port}/v2/models/default/infer"

    def get(self, path: str) -> bytes:
        """The body at a path."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            connection.request("GET", path)
            return connection.getresponse().read()

    def accuracy(self) -> dict[float, float]:
        """Of each rate, as far as it is known to the server."""
        told = json.loads(self.get("/live.json"))["accuracy_of"]
        return {float(rate): value for rate, value in told.items()}

    def drawn(self, count: int) -> list[dict[str, np.ndarray]]:
        """Inputs of one row, drawn at random: floats are normal, others 0.

        Raises:
          ServerError: for an input with a free axis besides that of rows.
        """
        told: Any = json.loads(self.get("/v2/models/default"))
        random = np.random.default_rng(0)

        def one(shape: list[int], dtype: np.dtype) -> np.ndarray:
            if -1 in shape[1:]:
                raise ServerError(f"an input has a free axis: its shape is {shape}.")
            normal = random.standard_normal((1, *shape[1:]))
            return (normal if dtype.kind == "f" else 0 * normal).astype(dtype)

        return [
            {x["name"]: one(x["shape"], DTYPES[x["datatype"]]) for x in told["inputs"]}
            for _ in range(count)
        ]

    def batches(self) -> dict[tuple[float, int], float]:
        """How many batches ran, by rate and rows."""
        text = self.get("/metrics").decode()
        return {(float(r), int(n)): float(k) for r, n, k in _BATCHES.findall(text)}

    def stop(self) -> None:
        """Lets it answer who waits, and end."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


@contextlib.contextmanager
def _on(core: int | None):
    """Processes that start within are pinned to a core."""
    if core is None:
        yield
        return
    before = os.sched_getaffinity(threading.get_native_id())
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
