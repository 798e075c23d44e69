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

import flax.linen as nn
import jax
import jax.numpy as jnp
import rich.box
import rich.console
import rich.progress
import rich.table
import tyro

import mslice_jax as ms
from experiments.benchmarks.result import save
from mslice_jax.models import CifarResNet, CifarVGG


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


class Recurrent(nn.Module):
    """Two layers over a sequence, as a language model has them."""

    cell: Callable[..., nn.RNNCellBase]

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """(b, t) -> (b, t, vocabulary)."""
        x: Any = nn.Embed(512, 256)(tokens)
        for _ in range(2):
            x = nn.RNN(self.cell(256))(x)
        return nn.Dense(512)(x)


class Dense(nn.Module):
    """Dense layers with layer norms."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(b, c) -> (b, 10)."""
        for _ in range(3):
            x = nn.LayerNorm()(nn.relu(nn.Dense(512)(x)))
        return nn.Dense(10)(x)


class Transformer(nn.Module):
    """Two blocks of attention and a gated layer."""

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """(b, t) -> (b, t, vocabulary)."""
        x = nn.Embed(512, 256)(tokens)
        for _ in range(2):
            x = x + nn.SelfAttention(8)(nn.RMSNorm()(x))
            y = nn.RMSNorm()(x)
            x = x + nn.Dense(256)(nn.silu(nn.Dense(512)(y)) * nn.Dense(512)(y))
        return nn.Dense(512)(x)


class Patches(nn.Module):
    """A vision transformer of two blocks: one convolution, little of the work."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(b, h, w, c) -> (b, 10)."""
        x = nn.Conv(192, (4, 4), strides=4)(x)
        x = x.reshape(len(x), -1, 192)
        for _ in range(2):
            x = x + nn.SelfAttention(6)(nn.LayerNorm()(x))
            x = x + nn.Dense(192)(nn.gelu(nn.Dense(768)(nn.LayerNorm()(x))))
        return nn.Dense(10)(x.mean(1))


class Hybrid(nn.Module):
    """Convolutions, then a block of attention: half of the work each."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(b, h, w, c) -> (b, 10)."""
        for features, stride in ((32, 1), (32, 1), (64, 2), (128, 2)):
            x = nn.relu(nn.Conv(features, (3, 3), strides=stride)(x))
        x = x.reshape(len(x), -1, 128)
        for _ in range(2):
            x = x + nn.SelfAttention(8)(nn.LayerNorm()(x))
            x = x + nn.Dense(128)(nn.gelu(nn.Dense(512)(nn.LayerNorm()(x))))
        return nn.Dense(10)(x.mean(1))


class ConvolutionAndLSTM(nn.Module):
    """One convolution over time before a recurrent network."""

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """(b, t) -> (b, t, vocabulary)."""
        x = nn.relu(nn.Conv(256, (3,))(nn.Embed(512, 256)(tokens)))
        return nn.Dense(512)(nn.RNN(nn.OptimizedLSTMCell(256))(x))


class ConvolutionAndDense(nn.Module):
    """A small convolution before dense layers."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(b, h, w, c) -> (b, 10)."""
        x = nn.max_pool(nn.relu(nn.Conv(8, (3, 3))(x)), (2, 2), strides=(2, 2))
        x = x.reshape(len(x), -1)
        for _ in range(2):
            x = nn.relu(nn.Dense(512)(x))
        return nn.Dense(10)(x)


def networks() -> dict[str, tuple[nn.Module, jax.Array]]:
    """Modules and inputs, by name."""
    images = jax.random.normal(jax.random.key(0), (64, 32, 32, 3))
    tokens = jax.random.randint(jax.random.key(0), (8, 128), 0, 512)
    return {
        "ResNet-20": (CifarResNet(depth=20), images),
        "VGG-11": (CifarVGG(11), images),
        "LSTM": (Recurrent(nn.OptimizedLSTMCell), tokens),
        "GRU": (Recurrent(nn.GRUCell), tokens),
        "transformer": (Transformer(), tokens),
        "dense": (Dense(), jnp.ones((64, 256))),
        "patches, transformer": (Patches(), images[:16]),
        "convolutions, transformer": (Hybrid(), images[:16]),
        "convolution, LSTM": (ConvolutionAndLSTM(), tokens),
        "convolution, dense": (ConvolutionAndDense(), images),
    }


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
