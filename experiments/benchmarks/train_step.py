"""How much do a training step over several rates and its compilation cost?

    python -m experiments.benchmarks.train_step --out runs/train_step.json

A step over {1, .5, .25} of ResNet-29 (group norm, 32 x 32 images) and one over {1} run
in turn. FLOPs, as XLA counts them in the forward programs, predict the time of the
first: the time of the second times the sum of FLOPs over those of rate 1. The rest is
overhead of slicing, and of narrow programs that use the machine less well.

Then the programs of one rate, and of four at the same time, are compiled, each in its
own process, without the cache of earlier compilations. Last, the start of the main job
(`python -m experiments.cifar_resnet`) up to its first step, with that cache warm.

Targets on two CPU cores: step ratio <= 1.15; compiling four rates <= 2 times as long as
one; start to first step <= 10 s. Only the last is reached; expect 1.2 and 3 for the
others, as half of the widest step is memory traffic, which falls with r and not with
its square, and one compilation keeps both cores busy (`experiments/LOG.md`).
"""

import dataclasses
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import rich.console
import tyro

import mslice_jax as ms
from experiments.benchmarks.result import save
from mslice_jax.cpu import memory
from mslice_jax.models import CifarResNet
from mslice_jax.train import TrainState, make_train_step, sgd


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the measurement."""

    depth: int = 29
    batch_size: int = 64
    image_size: int = 32
    """Pixels on a side."""
    rates: tuple[float, ...] = (1.0, 0.5, 0.25)
    """Rates of the step that is compared with the widest alone."""
    compiled: tuple[float, ...] = (1.0, 0.75, 0.5, 0.25)
    """The rates whose programs are compiled."""
    rounds: int = 7
    start: bool = True
    """Whether to time the start of the main job (twice: the first run warms up)."""
    only_compile: tuple[float, ...] = ()
    """For the process that compiles: print the seconds that these rates take."""
    out: pathlib.Path | None = None
    """JSON file for the numbers."""


def main(config: Config) -> dict[str, Any]:
    """Measures, prints, and returns the contents of `config.out`."""
    if config.only_compile:
        seconds = compile_seconds(config, config.only_compile)
        print(json.dumps({"compile_seconds": seconds}))
        return {"compile_seconds": seconds}
    memory.keep_freed()  # as the recipes do
    result: dict[str, Any] = {"step": step_ratio(config)}
    one, all_of_them = (
        in_a_process(config, rates) for rates in (config.compiled[:1], config.compiled)
    )
    result["compile"] = {"one": one, "all": all_of_them, "ratio": all_of_them / one}
    if config.start:
        result["start_seconds"] = start_seconds()
    result |= {
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
        "cores": os.cpu_count(),
    }
    show(config, result)
    save(config.out, result)
    return result


def prepared(config: Config) -> tuple[Any, TrainState, tuple[jax.Array, jax.Array]]:
    """The step, its state and a batch."""
    shape = config.batch_size, config.image_size, config.image_size, 3
    x = jax.random.normal(jax.random.key(0), shape)
    labels = jnp.zeros(config.batch_size, jnp.int32)
    model = CifarResNet(depth=config.depth)
    variables = jax.jit(model.init)(jax.random.key(1), x[:1])
    rates = {*config.rates, *config.compiled, 1.0}
    net = ms.upgrade(model, variables, x, rates=rates)
    optimizer = sgd(0.01)
    state = TrainState.create(net, optimizer, key=jax.random.key(2))
    return make_train_step(optimizer), state, (x, labels)


def step_ratio(config: Config) -> dict[str, float]:
    """The step's time over the prediction from FLOPs, and both values."""
    step, state, batch = prepared(config)
    work = {rate: flops(state.net, rate, batch[0]) for rate in config.rates}
    predicted = sum(work.values()) / work[1.0]

    def timed(rates: tuple[float, ...]) -> Callable[[], float]:
        def run() -> float:
            nonlocal state
            began = time.perf_counter()
            state, metrics = step(state, batch, rates)
            jax.block_until_ready((state, metrics))
            return time.perf_counter() - began

        return run

    several, widest = timed(config.rates), timed((1.0,))
    several()  # compile
    widest()
    ratios, seconds = [], []
    for _ in range(config.rounds):
        long, short = several(), widest()
        ratios.append(long / short)
        seconds.append(short)
    measured = statistics.median(ratios)
    return {
        "widest_seconds": statistics.median(seconds),
        "measured": measured,
        "predicted": predicted,
        "ratio": measured / predicted,
    }


def flops(net: ms.Sliceable, rate: float, x: jax.Array) -> float:
    """FLOPs of a call, as XLA counts them."""
    lowered = jax.jit(lambda net, x: ms.slice_apply(net, x, rate)).lower(net, x)
    costs: Any = lowered.cost_analysis()
    return costs["flops"]


def compile_seconds(config: Config, rates: tuple[float, ...]) -> float:
    """Seconds to trace and compile the programs of a step over these rates."""
    step, state, batch = prepared(config)
    return step.compile(state, batch, rates)


def in_a_process(config: Config, rates: tuple[float, ...]) -> float:
    """`compile_seconds` in a new process, where nothing is compiled yet."""
    command = [sys.executable, "-m", "experiments.benchmarks.train_step"]
    command += ["--depth", str(config.depth), "--batch-size", str(config.batch_size)]
    command += ["--image-size", str(config.image_size)]
    command += ["--only-compile", *map(str, rates)]
    environment = {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])["compile_seconds"]


def start_seconds() -> float:
    """Seconds from the start of the main job to its first step, with a full cache."""
    seconds = 0.0
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": f"{folder}/compiled"}
        for number in range(2):  # the first run fills the cache
            command = [sys.executable, "-u", "-m", "experiments.cifar_resnet"]
            command += ["--workdir", f"{folder}/{number}"]
            began = time.perf_counter()
            with subprocess.Popen(
                command, stdout=subprocess.PIPE, text=True, env=environment
            ) as job:
                assert job.stdout is not None
                # The line that is printed right before the first step.
                if not any(line.startswith("Compiled") for line in job.stdout):
                    raise RuntimeError("the main job did not get to its first step.")
                seconds = time.perf_counter() - began
                job.kill()
    return seconds


def show(config: Config, result: dict[str, Any]) -> None:
    """Prints the numbers."""
    step, compiled = result["step"], result["compile"]
    console = rich.console.Console(highlight=False)
    console.print(
        f"ResNet-{config.depth}, batch {config.batch_size}: a step over "
        f"{config.rates} takes {step['measured']:.2f} times as long as one over the "
        f"widest rate ({step['widest_seconds']:.2f} s); FLOPs predict "
        f"{step['predicted']:.2f}: ratio {step['ratio']:.2f}."
    )
    console.print(
        f"Compiling {len(config.compiled)} rates takes {compiled['all']:.1f} s, one "
        f"{compiled['one']:.1f} s: ratio {compiled['ratio']:.2f}."
    )
    if "start_seconds" in result:
        console.print(
            f"The main job starts its first step after {result['start_seconds']:.1f} s."
        )


if __name__ == "__main__":
    main(tyro.cli(Config))
