"""Is a program of `ms.jit` as fast as one of `jax.jit`, and what does a call cost?

    python -m experiments.benchmarks.own_jit --out runs/own_jit.json

For convolutional, recurrent, mixed and other networks, at two rates, the forward pass
and the gradient run under either in turn, round after round. Printed are medians of the
ratio ms.jit / jax.jit in the same round, of the time that passed and of processor time,
which other processes disturb less; on platforms other than CPU both are the same. Then
a call whose program does nothing, with as many arrays as a network has.

Asked for: no ratio above 1. Where a network has few convolutions and loops, both are
the same program, and what differs from 1 is noise. What came out: `experiments/LOG.md`.
"""

import dataclasses
import os
import pathlib
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import rich.box
import rich.console
import rich.progress
import rich.table
import tyro
from flax import linen as nn

import mslice_jax as ms
from experiments.benchmarks.result import save
from experiments.benchmarks.small_networks import networks


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """What to measure."""

    only: tuple[str, ...] = ()
    """Which networks, by name; all of them unless given."""
    rates: tuple[float, ...] = (0.25, 1.0)
    seconds: float = 8.0
    """How long to time each row."""
    rounds: int = 7
    """The least number of rounds, however long they take."""
    leaves: int = 300
    """How many arrays the call has that does nothing."""
    out: pathlib.Path | None = None
    """Where to write the numbers as JSON."""


def main(config: Config) -> dict[str, Any]:
    """Measures, prints a table, and returns what it wrote to `config.out`."""
    chosen = {
        name: network
        for name, network in networks().items()
        if not config.only or name in config.only
    }
    rows = [
        row
        for name, (model, x) in rich.progress.track(chosen.items(), "measuring")
        for row in measure(config, name, model, x)
    ]
    result = {
        "rows": rows,
        "call_us": call_microseconds(config.leaves),
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
        "cores": os.cpu_count(),
    }
    table = rich.table.Table(title="ms.jit over jax.jit", box=rich.box.SIMPLE)
    for heading in ("network", "rate", "pass", "jax.jit/ms", "ratio", "of CPU time"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(*map(str, row.values()))
    console = rich.console.Console()
    console.print(table)
    console.print(f"a call of {config.leaves} arrays, in us: {result['call_us']}")
    save(config.out, result)
    return result


def measure(
    config: Config, name: str, model: nn.Module, x: jax.Array
) -> list[dict[str, Any]]:
    """The rows of one network."""
    variables = jax.jit(model.init)(jax.random.key(1), x)
    net = ms.upgrade(model, variables, x, rates=config.rates)
    rows = []
    for rate in config.rates:

        def forward(net: Any, x: Any, rate: float = rate) -> jax.Array:
            return jnp.square(ms.slice_apply(net, x, rate)).mean()

        for passing, fun in {"forward": forward, "gradient": jax.grad(forward)}.items():
            own, plain = ms.jit(fun), jax.jit(fun)
            times = interleaved(
                {"own": lambda f=own: f(net, x), "jax": lambda f=plain: f(net, x)},
                config,
            )
            passed, processor = (
                {name: [pair[which] for pair in pairs] for name, pairs in times.items()}
                for which in (0, 1)
            )
            rows.append(
                {
                    "network": name,
                    "rate": rate,
                    "pass": passing,
                    "jax_jit_ms": round(1e3 * statistics.median(passed["jax"]), 2),
                    "ratio": _ratio(passed),
                    "ratio_cpu": _ratio(processor),
                }
            )
    return rows


def interleaved(
    calls: dict[str, Callable[[], Any]], config: Config
) -> dict[str, list[tuple[float, float]]]:
    """Seconds of each call in each round: that passed, and of processor time."""
    for call in calls.values():
        jax.block_until_ready(call())  # compile
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    stop = time.perf_counter() + config.seconds
    while len(times["jax"]) < config.rounds or time.perf_counter() < stop:
        for name in random.sample(list(calls), len(calls)):
            start, busy = time.perf_counter(), time.process_time()
            jax.block_until_ready(calls[name]())
            passed = time.perf_counter() - start
            times[name].append((passed, time.process_time() - busy))
    return times


def _ratio(seconds: dict[str, list[float]]) -> float:
    pairs = zip(seconds["own"], seconds["jax"], strict=True)
    return round(statistics.median(a / b for a, b in pairs), 2)


def call_microseconds(leaves: int, repeats: int = 2000) -> dict[str, float]:
    """The median time of a call that does nothing, for each of the two."""
    arrays = [jnp.zeros(()) for _ in range(leaves)]
    calls = {
        "jax.jit": jax.jit(lambda arrays: arrays[0]),
        "ms.jit": ms.jit(lambda arrays: arrays[0]),
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            start = time.perf_counter()
            call(arrays)
            times[name].append(1e6 * (time.perf_counter() - start))
    return {name: round(statistics.median(each), 1) for name, each in times.items()}


if __name__ == "__main__":
    main(tyro.cli(Config))
