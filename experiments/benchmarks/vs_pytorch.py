"""Is slicing as fast as the same networks sliced in PyTorch?

    pip install -e ".[pytorch]"
    python -m experiments.benchmarks.vs_pytorch --out runs/vs_pytorch.json

Networks of nine makes (`pairs`), with the same weights on both sides: logits at every
rate and the losses of two steps must agree before anything is timed. A training step
over {1, .5, .25} (SGD with Nesterov momentum and weight decay) and inference at each
rate for 1 and 16 examples run in turn in one process, round after round; ours under
`ms.jit` and under `jax.jit`. Printed are medians over the rounds of PyTorch's time over
ours, so 1 is as fast, and more is faster; then the geometric mean and the worst.

On CPU both compute in float32, PyTorch eagerly on all cores, images contiguous or
channels last, whichever is faster in a row. Its narrow networks are narrow modules; in
training they read cuts of the wide weights. The process keeps the memory that either
frees, as the recipes do: otherwise single rows depend on the system's memory. On a GPU
both compute in bfloat16 with float32 weights: PyTorch with autocast and torch.compile.

What came out on two CPU cores: `experiments/LOG.md`. `--profile` shows the share of
each kind of operation in the time of our step. On CPU convolutions run in threads that
XLA's profiler does not see, so their share is the remainder.
"""

# The checks of this project do not install PyTorch.
# pyright: reportMissingImports=false

import dataclasses
import functools
import math
import os
import pathlib
import random
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import rich.box
import rich.console
import rich.table
import torch
import tyro

import mslice_jax as ms
from experiments.benchmarks.operation_times import shares
from experiments.benchmarks.pairs import PAIRS
from experiments.benchmarks.pairs.pair import RATES
from experiments.benchmarks.pairs.sides import Ours, Theirs, agree
from experiments.benchmarks.result import save
from mslice_jax.cpu import memory

Call = Callable[[], Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the measurement."""

    only: tuple[str, ...] = ()
    """Which networks, by name; all of them unless given."""
    tasks: tuple[str, ...] = ("step", "inference")
    """What to time: step, inference."""
    batches: tuple[int, ...] = (1, 16)
    """Examples of a call of inference."""
    rounds: int = 9
    at_least: float = 0.02
    """Seconds: a call that takes less is repeated so often in each round."""
    processor_time: bool = False
    """Whether to compare processor time, where other processes run, too: on one core
    (`taskset -c 0`), for threads that wait for others count as busy."""
    tiny: bool = False
    """Whether to take tiny networks, to see that all of this works."""
    onednn: bool = False
    """Whether oneDNN computes the convolutions of inference: jaxlib 0.11 on an x86 CPU.
    PyTorch uses its own oneDNN there anyway."""
    profile: bool = False
    """Whether to profile a step instead of comparing."""
    out: pathlib.Path | None = None
    """JSON file for the numbers."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One network and one task; times are medians, ratios are paired."""

    network: str
    task: str
    ms_jit_ms: float
    pytorch_ms: float
    ms_jit: float
    """PyTorch's time over ours under ms.jit."""
    jax_jit: float
    """PyTorch's time over ours under jax.jit."""
    layout: str
    """Of PyTorch's images, the faster one."""


def main(config: Config) -> dict[str, Any]:
    """Measures, prints, and returns the contents of `config.out`."""
    console = rich.console.Console(highlight=False)
    memory.keep_freed()
    torch.set_num_threads(cores())
    names = config.only or tuple(PAIRS)
    result: dict[str, Any] = {
        "jax": jax.__version__,
        "torch": torch.__version__,
        "device": jax.devices()[0].device_kind,
        "cores": cores(),
    }
    if config.profile:
        result["profile"] = {name: profile(name, config) for name in names}
        for name, parts in result["profile"].items():
            console.print(f"{name}, a step over {RATES}:")
            for kind, share in parts.items():
                console.print(f"  {share:6.1%}  {kind}")
    else:
        rows = [row for name in names for row in compare(name, config, console)]
        result["rows"] = [dataclasses.asdict(row) for row in rows]
        result["summary"] = summary(rows)
        for task, numbers in result["summary"].items():
            console.print(task, numbers)
    save(config.out, result)
    return result


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0))  # Linux


def compare(name: str, config: Config, console: rich.console.Console) -> list[Row]:
    """Checks that both compute the same, and times them in turn."""
    pair = PAIRS[name](config.tiny)
    net = pair.network()
    onednn = {"xla_cpu_experimental_onednn_custom_call": True}
    options = onednn if config.onednn else None
    ours = {
        "ms.jit": Ours(pair, net, ms.jit, options),
        "jax.jit": Ours(pair, net, jax.jit, options),
    }
    formats = {"contiguous": torch.contiguous_format}
    if pair.images:
        formats["channels last"] = torch.channels_last
    theirs = {name: Theirs(pair, net, each) for name, each in formats.items()}
    for mine in ours.values():  # each with a twin that has taken no step
        fresh = Theirs(pair, net, torch.contiguous_format)
        agree(mine, fresh, config.batches[0])
    sides: dict[str, Any] = {**ours, **theirs}
    tasks: dict[str, Callable[[Any], Any]] = {}
    if "step" in config.tasks:
        tasks["step"] = lambda side: side.step(RATES)
    if "inference" in config.tasks:
        for batch in config.batches:
            for rate in RATES:
                tasks[f"inference {rate:g}, batch {batch}"] = (
                    lambda side, rate=rate, batch=batch: side.logits(rate, batch)
                )
    table = rich.table.Table(title=name, box=rich.box.SIMPLE)
    for heading in ("", "ms.jit/ms", "PyTorch/ms", "ms.jit", "jax.jit", "layout"):
        table.add_column(heading, justify="right")
    rows = []
    for what, run in tasks.items():
        calls = {key: functools.partial(run, side) for key, side in sides.items()}
        clock = time.process_time if config.processor_time else time.perf_counter
        seconds = in_turn(calls, config.rounds, config.at_least, clock)
        row = _row(name, what, seconds, tuple(theirs))
        rows.append(row)
        table.add_row(*map(str, list(dataclasses.astuple(row))[1:]))
    console.print(table)
    return rows


def _row(
    name: str, what: str, seconds: Mapping[str, list[float]], layouts: tuple[str, ...]
) -> Row:
    medians = {key: statistics.median(each) for key, each in seconds.items()}
    layout = min(layouts, key=medians.__getitem__)

    def ratio(side: str) -> float:
        pairs = zip(seconds[layout], seconds[side], strict=True)
        return round(statistics.median(b / a for b, a in pairs), 3)

    return Row(
        network=name,
        task=what,
        ms_jit_ms=round(1e3 * medians["ms.jit"], 2),
        pytorch_ms=round(1e3 * medians[layout], 2),
        ms_jit=ratio("ms.jit"),
        jax_jit=ratio("jax.jit"),
        layout=layout,
    )


def in_turn(
    calls: Mapping[str, Call],
    rounds: int,
    at_least: float,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each call in each round, in an order drawn anew.

    Short calls are repeated: threads of one library spin for a while after its last
    operation, and would slow down the other's.
    """
    repeats = {}
    for name, call in calls.items():
        call()
        began = clock()
        call()
        repeats[name] = math.ceil(at_least / (clock() - began))
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name in random.sample(list(calls), len(calls)):
            call = calls[name]
            call()
            began = clock()
            for _ in range(repeats[name]):
                call()
            seconds[name].append((clock() - began) / repeats[name])
    return seconds


def summary(rows: list[Row]) -> dict[str, dict[str, Any]]:
    """The geometric mean and the worst of training and of inference."""
    found = {}
    for task in ("step", "inference"):
        chosen = [row for row in rows if row.task.startswith(task)]
        for jit in ("ms_jit", "jax_jit"):
            if chosen:
                ratios = {f"{r.network}, {r.task}": getattr(r, jit) for r in chosen}
                worst = min(ratios, key=ratios.__getitem__)
                mean = statistics.geometric_mean(ratios.values())
                found[f"{task} {jit}"] = {
                    "geometric mean": round(mean, 3),
                    "worst": ratios[worst],
                    "of": worst,
                }
    return found


def profile(name: str, config: Config) -> dict[str, float]:
    """Shares of a step's time on the device, the largest kinds of operation first."""
    pair = PAIRS[name](config.tiny)
    ours = Ours(pair, pair.network(), ms.jit)
    return shares(lambda: ours.step(RATES))


if __name__ == "__main__":
    main(tyro.cli(Config))
