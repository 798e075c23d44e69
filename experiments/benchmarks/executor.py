"""What does the executor of the server cost: memory, a change of the rate, a call?

    python -m experiments.benchmarks.executor --out runs/executor.json

A network of dense layers. Each row of the table of memory is a process of its own,
which prepares an executor and then serves every rate and bucket, twice: the peak of its
resident memory (VmHWM of Linux), above what it had before there were weights, so that
programs and temporary buffers count and Python and JAX do not; and the same of the
whole process.

A change of the rate: the time of a batch right after one at another rate, and right
after one at the same rate. A call: `run` in turn with its program alone.

Asked for: peak at most 2.2 times that of full width alone with all widths kept, at most
1.1 times and the active slice with a limit; a change adds less than 1 ms at p99. What
came out: `experiments/LOG.md`.
"""

import dataclasses
import gc
import json
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import mslice_jax as ms
from experiments.benchmarks.result import save
from mslice_jax.cpu.memory import give_back, keep_freed
from mslice_jax.serve import Executor

RATES = (0.25, 0.5, 0.75, 1.0)
MODES = ("full width alone", "all widths kept", "a limit of 0 bytes")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """What to measure."""

    width: int = 2048
    """Units of each layer."""
    layers: int = 6
    """Dense layers between the first and the last."""
    batches: tuple[int, ...] = (1, 4, 8)
    """The batch buckets."""
    repeats: int = 1000
    """How many batches of a kind are timed, on a network of a quarter of the width."""
    only: str | None = None
    """A row of the table of memory, measured in this very process."""
    out: pathlib.Path | None = None
    """Where to write the numbers as JSON."""


def layers(p: Any, x: jax.Array) -> jax.Array:
    """(b, 64) -> (b, 10)."""
    for name in sorted(p):
        x = x @ p[name] if name == "z" else jnp.tanh(x @ p[name])
    return x


def network(width: int, count: int) -> ms.Sliceable:
    """The network with random weights."""
    sizes = {f"layer_{i:02}": (width, width) for i in range(count)}
    sizes = {"first": (64, width), **sizes, "z": (width, 10)}
    keys = jax.random.split(jax.random.key(0), len(sizes))
    p = {
        name: jax.random.normal(key, size) / size[0] ** 0.5
        for key, (name, size) in zip(keys, sizes.items(), strict=True)
    }
    return ms.upgrade(layers, p, jnp.ones((1, 64)), rates=RATES)


def memory(config: Config, mode: str) -> dict[str, float]:
    """The memory of one way to serve, in this process, in MB."""
    jax.random.normal(jax.random.key(0), (8,)).block_until_ready()  # JAX is there
    gc.collect()
    before = _resident("VmRSS")
    net = jax.block_until_ready(network(config.width, config.layers))
    give_back()
    _forget_peak()
    limit = 0 if mode == MODES[2] else None
    rates = (1.0,) if mode == MODES[0] else RATES
    executor = Executor(
        net, rates=rates, batch_sizes=config.batches, memory_bytes=limit
    )
    executor.prepare()
    rng, held = np.random.default_rng(0), 0.0
    for _ in range(2):
        for rate in executor.rates:
            for batch in config.batches:
                x = rng.normal(size=(batch, 64)).astype(np.float32)
                executor.run(rate, [{"x": x}])
            # Two arrays may be views of one buffer.
            live = {x.unsafe_buffer_pointer(): x.nbytes for x in jax.live_arrays()}
            held = max(held, sum(live.values()) / 1e6)
    return {
        "weights": sum(x.nbytes for x in jax.tree.leaves(net)) / 1e6,
        "live arrays": held,
        "peak above start": _resident("VmHWM") - before,
        "peak of process": _resident("VmHWM"),
    }


def _resident(what: str) -> float:
    """Resident memory of this process in MB, as Linux tells: VmRSS, or VmHWM."""
    text = pathlib.Path("/proc/self/status").read_text()
    line = next(line for line in text.splitlines() if line.startswith(what))
    return int(line.split()[1]) * 1024 / 1e6


def _forget_peak() -> None:
    """VmHWM begins anew."""
    pathlib.Path("/proc/self/clear_refs").write_text("5")


def changes(executor: Executor, repeats: int) -> dict[str, float]:
    """Milliseconds of a batch after one at another rate, and at the same rate."""
    row = executor.check({"x": np.ones((1, 64), np.float32)})
    rng = np.random.default_rng(0)
    after: dict[str, dict[Any, list[float]]] = {
        kind: {rate: [] for rate in executor.rates} for kind in ("other", "same")
    }
    for _ in range(repeats):
        first, second = rng.choice(executor.rates, 2, replace=False).tolist()
        executor.run(first, [row])
        after["other"][second].append(executor.run(second, [row])[1])
        after["same"][second].append(executor.run(second, [row])[1])
    added = {
        quantile: max(
            1e3 * (np.quantile(after["other"][r], q) - np.quantile(after["same"][r], q))
            for r in executor.rates
        )
        for quantile, q in (("p50", 0.5), ("p99", 0.99))
    }
    return {name: float(value) for name, value in added.items()}


def overhead(executor: Executor, sizes: Sequence[int], repeats: int) -> float:
    """Microseconds that `run` takes beyond its program, for requests of these sizes."""
    requests = [executor.check({"x": np.ones((n, 64), np.float32)}) for n in sizes]
    loaded, rate = executor._ready(), 0.25
    part = executor._offer.part(rate)
    batch = next(n for n in executor.batch_sizes if n >= sum(sizes))
    program, full = loaded._programs[part, batch, None], np.ones((batch, 64), "f4")
    leaves = loaded.cut(rate)

    def bare() -> None:
        np.asarray(program(leaves, [full])[0])

    def run() -> None:
        executor.run(rate, requests)

    times: dict[Callable[[], None], list[float]] = {bare: [], run: []}
    for turn in range(repeats + 20):
        for function, found in times.items():
            began = time.perf_counter()
            function()
            if turn >= 20:
                found.append(time.perf_counter() - began)
    return 1e6 * (statistics.median(times[run]) - statistics.median(times[bare]))


def swaps(executor: Executor, net: ms.Sliceable) -> dict[str, float]:
    """Milliseconds of a swap."""
    other = net.replace(jax.tree.map(lambda x: x + 1, net.variables))
    took = []
    for _ in range(10):
        began = time.perf_counter()
        executor.swap(other)
        took.append(time.perf_counter() - began)
    return {"p50": 1e3 * statistics.median(took), "max": 1e3 * max(took)}


def main(config: Config) -> None:
    """Measures and prints."""
    keep_freed()  # as the server does
    if config.only is not None:
        print(json.dumps(memory(config, config.only)))
        return
    table = {}
    for mode in MODES:
        command = [sys.executable, "-m", "experiments.benchmarks.executor"]
        command += ["--only", mode, "--width", str(config.width)]
        command += ["--layers", str(config.layers)]
        command += ["--batches", *map(str, config.batches)]
        ran = subprocess.run(command, capture_output=True, text=True, check=True)
        table[mode] = json.loads(ran.stdout.splitlines()[-1])
        print(mode, {name: round(value) for name, value in table[mode].items()})
    alone, kept, limited = (table[mode]["peak above start"] for mode in MODES)
    print(f"peak over full width alone: {kept / alone:.2f} with all kept")
    active = 0.75**2 * table[MODES[0]]["weights"]  # the largest that is cut
    print(f"{(limited - active) / alone:.2f} with a limit, beside the active slice")

    net = network(config.width // 4, config.layers)
    executor = Executor(net, batch_sizes=config.batches)
    began = time.perf_counter()
    executor.prepare()
    result = {
        "memory_mb": table,
        "prepare_s": time.perf_counter() - began,
        "programs": executor.compilations,
        "rate_change_ms": changes(executor, config.repeats),
        "overhead_us": {
            str(sizes): overhead(executor, sizes, config.repeats)
            for sizes in ((1,), (1, 1, 1, 1), (1, 2), (1,) * 8)
            if sum(sizes) <= config.batches[-1]
        },
        "swap_ms": swaps(executor, net),
    }
    for name, value in result.items():
        if name != "memory_mb":
            print(name, value)
    save(config.out, {"device": str(jax.devices()[0]), **result})


if __name__ == "__main__":
    main(tyro.cli(Config))
