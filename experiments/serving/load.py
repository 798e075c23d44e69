"""An open-loop load over HTTP: every request at its time, whatever came of the others.

A client that waits for an answer before it asks again (a closed loop) slows down with
the server, and hides what a burst does to it. Here the arrival times are given, each
request is sent when it is due, and its latency counts from then. The generator is a
process of its own, and says how late it was itself; where that was too late, the run is
void.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .outcome import Result
from .wire import address_of, request


class Message(NamedTuple):
    """The body of a POST, and its headers."""

    body: bytes
    headers: Mapping[str, str] = {}


class LoadError(RuntimeError):
    """The generator could not begin."""


def drive(
    url: str,
    arrivals: np.ndarray | Sequence[float],
    messages: Sequence[Message | bytes],
    *,
    slo_s: float,
    core: int | None = None,
    connections: int = 64,
    warm: int = 20,
    patience_s: float | None = None,
    late_s: float | None = None,
) -> Result:
    """Sends a POST at each of the times, and notes what becomes of it.

    Args:
      url: ``http://HOST:PORT/PATH``, of any server.
      arrivals: seconds from the begin, ascending: `[n]`.
      messages: bodies; the i-th request has the i-th, and after the last comes the
        first again.
      slo_s: T in seconds.
      core: of the processor, to which the generator is pinned.
      connections: opened before the begin, and kept alive. Where all of them wait for
        answers, more are opened.
      warm: requests before the begin, one after the other, that do not count.
      patience_s: how long to wait for answers after the last arrival; 5 T unless given,
        and two seconds at least.
      late_s: how late the generator may be at p99; unless given, 5 % of T, and two
        milliseconds at most.

    Returns:
      What became of each request. A run that was late itself is returned, too: ask
      `Result.void`.

    Raises:
      LoadError: without a server at the URL.
      ValueError: for a URL that is not of HTTP, or arrivals that do not ascend from 0.

    Example::

        body = json.dumps({"inputs": [...]}).encode()
        done = drive("http://127.0.0.1:8000/v2/models/default/infer",
                     mslice_jax.serve.poisson(100, 10), [body], slo_s=0.1, core=1)
        print(done.share, done.void or "the load was on time")
    """
    due = np.asarray(arrivals, float)
    fits = due.ndim == 1 and len(due) and due[0] >= 0 and (np.diff(due) >= 0).all()
    if not fits or not messages or not slo_s > 0:
        raise ValueError(
            "expected arrivals from 0 on, ascending, messages, and a T above 0."
        )
    address = address_of(url)
    each = [m if isinstance(m, Message) else Message(m) for m in messages]
    ready = [request(address, m.body, m.headers) for m in each]
    about = {
        "host": address.host,
        "port": address.port,
        "core": core,
        "connections": connections,
        "warm": warm,
        "patience_s": max(2.0, 5 * slo_s) if patience_s is None else patience_s,
    }
    with tempfile.TemporaryDirectory() as folder:
        job, found = Path(folder, "job.npz"), Path(folder, "result.npz")
        np.savez(
            job,
            about=np.array(json.dumps(about)),
            arrivals=due,
            blob=np.frombuffer(b"".join(ready), np.uint8),
            ends=np.cumsum([len(one) for one in ready]),
        )
        command = [sys.executable, "-m", f"{__package__}.sender", str(job), str(found)]
        root = Path(__file__).parents[2]
        ran = subprocess.run(command, cwd=root, capture_output=True, text=True)
        if ran.returncode:
            said = ran.stderr.strip().splitlines() or ["it said nothing"]
            raise LoadError(f"the load generator failed at {url}: {said[-1]}")
        with np.load(found) as loaded:
            told = json.loads(str(loaded["about"]))
            columns = {
                name: loaded[name] for name in ("sent", "answered", "status", "rate")
            }
    columns["answered"][columns["status"] <= 0] = np.nan
    return Result(
        due=due,
        **columns,
        slo_s=slo_s,
        late_s=min(2e-3, slo_s / 20) if late_s is None else late_s,
        cpu_s=told["cpu_s"],
        opened=told["opened"],
    )
