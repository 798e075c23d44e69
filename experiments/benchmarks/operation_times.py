"""Shares of each kind of operation in the time of a call, by XLA's profiler."""

import collections
import glob
import re
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax


def shares(call: Callable[[], Any], count: int = 12) -> dict[str, float]:
    """Shares of a call's time on the device, the largest kinds of operation first.

    On CPU convolutions run in threads that the profiler does not see: theirs is the
    remainder.
    """
    call()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            began = time.perf_counter()
            call()
            total = 1e9 * (time.perf_counter() - began)
        (path,) = glob.glob(f"{folder}/**/*.xplane.pb", recursive=True)
        trace = jax.profiler.ProfileData.from_file(path)
    times: collections.Counter[str] = collections.Counter()
    for plane in trace.planes:
        for line in plane.lines:
            if line.name is None or "XLA" not in line.name:
                continue
            for event in line.events:
                # Operations are named as in HLO, with a number: dot.12, add_fusion.3
                if event.name and re.fullmatch(r"[a-z_\-]+(\.\d+)*", event.name):
                    times[re.sub(r"(\.\d+)+$", "", event.name)] += event.duration_ns
    if jax.default_backend() == "cpu":
        for kind in [kind for kind in times if "conv" in kind]:
            del times[kind]
        times["convolutions, and waiting"] = int(total - sum(times.values()))
    return {kind: spent / total for kind, spent in times.most_common(count)}
