"""Is a sliced network as fast as the same network written narrow by hand?

    python -m experiments.benchmarks.narrow_vs_hand --out runs/narrow_vs_hand.json

For VGG-11 and ResNet-29 (group norm, 32 x 32 images), three rates and two batch sizes,
four calls run in turn, round after round, so that a disturbance of the machine affects
all of them alike:

    hand        the network written narrow (`hand_written.py`), jitted
    extracted   `extract` once, then jitted `slice_apply` on the narrow weights
    repeated    `slice_apply` on the full weights again and again, outside jit
    full        the network written at full width, jitted

Printed are medians over the rounds of the ratio to `hand` in the same round. All four
use the same weights, and the narrow three must give the same logits before they are
timed.

Expected on two CPU cores, in about 5 minutes: extracted <= 1.03, repeated <= 1.1 and
never slower than full.
"""

import dataclasses
import itertools
import os
import pathlib
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import rich.box
import rich.console
import rich.progress
import rich.table
import tyro

import mslice_jax as ms
from experiments.benchmarks.hand_written import GROUPS, NarrowResNet, NarrowVGG11
from experiments.benchmarks.result import save
from mslice_jax.models import CifarResNet, CifarVGG

Call = Callable[[], Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the measurement."""

    models: tuple[str, ...] = ("vgg11", "resnet29")
    """vgg11, or resnet and a depth of 9n + 2."""
    rates: tuple[float, ...] = (0.25, 0.5, 0.75)
    batch_sizes: tuple[int, ...] = (1, 64)
    image_size: int = 32
    """Pixels on a side."""
    seconds: float = 20.0
    """Seconds for timing each row."""
    rounds: int = 15
    """The least number of rounds, however long they take."""
    seed: int = 0
    out: pathlib.Path | None = None
    """JSON file for the numbers."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One network, batch size and rate; times are medians, ratios are paired."""

    model: str
    batch_size: int
    rate: float
    hand_ms: float
    extracted: float
    repeated: float
    full: float
    flops: float
    """FLOPs of the extracted program over those of the hand-written one."""


def main(config: Config) -> dict[str, Any]:
    """Measures, prints a table, and returns the contents of `config.out`."""
    each = list(itertools.product(config.models, config.batch_sizes, config.rates))
    rows = [measure(config, *one) for one in rich.progress.track(each, "measuring")]
    result = {
        "rows": [dataclasses.asdict(row) for row in rows],
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
        "cores": os.cpu_count(),
    }
    show(rows)
    save(config.out, result)
    return result


def networks(name: str) -> tuple[nn.Module, Callable[[float], nn.Module]]:
    """The zoo's network, and the one by hand as a function of the rate."""
    if name == "vgg11":
        return CifarVGG(11), NarrowVGG11
    depth = int(name.removeprefix("resnet"))
    return CifarResNet(depth=depth), lambda rate: NarrowResNet(depth, rate)


def measure(config: Config, name: str, batch_size: int, rate: float) -> Row:
    """Makes the four calls, checks that they agree, and times them in turn."""
    model, by_hand = networks(name)
    shape = batch_size, config.image_size, config.image_size, 3
    x = jax.random.normal(jax.random.key(config.seed), shape)
    variables = jax.jit(model.init)(jax.random.key(config.seed + 1), x)
    net = ms.upgrade(model, variables, x, rates=(*config.rates, 1.0), groups=GROUPS)
    small = ms.extract(net, rate)
    weights = small.variables
    hand, whole = jax.jit(by_hand(rate).apply), jax.jit(by_hand(1.0).apply)
    extracted = jax.jit(lambda small, x: ms.slice_apply(small, x, rate))
    calls: dict[str, Call] = {
        "hand": lambda: hand(weights, x),
        "extracted": lambda: extracted(small, x),
        "repeated": lambda: ms.slice_apply(net, x, rate),
        "full": lambda: whole(net.variables, x),
    }
    logits = calls["hand"]()
    for same in ("extracted", "repeated"):
        np.testing.assert_allclose(calls[same](), logits, rtol=1e-4, atol=1e-4)
    times = interleaved(calls, config)
    ratio = {
        call: statistics.median(
            a / b for a, b in zip(times[call], times["hand"], strict=True)
        )
        for call in calls
    }
    return Row(
        model=name,
        batch_size=batch_size,
        rate=rate,
        hand_ms=1e3 * statistics.median(times["hand"]),
        extracted=ratio["extracted"],
        repeated=ratio["repeated"],
        full=ratio["full"],
        flops=flops(extracted, small, x) / flops(hand, weights, x),
    )


def interleaved(calls: dict[str, Call], config: Config) -> dict[str, list[float]]:
    """Seconds of each call in each round; the order is shuffled in every round."""
    shuffle = random.Random(config.seed).shuffle
    for call in calls.values():
        jax.block_until_ready(call())  # compile
    times: dict[str, list[float]] = {name: [] for name in calls}
    stop = time.perf_counter() + config.seconds
    while len(times["hand"]) < config.rounds or time.perf_counter() < stop:
        names = list(calls)
        shuffle(names)
        for name in names:
            start = time.perf_counter()
            jax.block_until_ready(calls[name]())
            times[name].append(time.perf_counter() - start)
    return times


def flops(jitted: Any, *arguments: Any) -> float:
    """FLOPs of the compiled program, as XLA counts them."""
    return jitted.lower(*arguments).compile().cost_analysis()["flops"]


def show(rows: list[Row]) -> None:
    """Prints the table."""
    title = "time (and FLOPs) over that of the network written by hand"
    table = rich.table.Table(title=title, box=rich.box.SIMPLE)
    measured = "hand/ms", "extracted", "repeated", "full", "FLOPs"
    for heading in ("model", "batch", "rate", *measured):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            row.model,
            str(row.batch_size),
            str(row.rate),
            f"{row.hand_ms:.2f}",
            *(f"{ratio:.3f}" for ratio in (row.extracted, row.repeated)),
            f"{row.full:.2f}",
            f"{row.flops:.4f}",
        )
    rich.console.Console().print(table)


if __name__ == "__main__":
    main(tyro.cli(Config))
