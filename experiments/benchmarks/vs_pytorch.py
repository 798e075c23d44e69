"""Is slicing as fast as the same networks sliced in PyTorch?

    pip install -e ".[pytorch]"
    python -m experiments.benchmarks.vs_pytorch --out runs/vs_pytorch.json

ResNet-29 and VGG-11 (group norm, 32 x 32 images, batch 64), with the same weights on
both sides: logits at every rate and the losses of a step must agree before anything is
timed. A training step over {1, .5, .25} (SGD with Nesterov momentum and weight decay)
and inference at each rate run in turn, round after round; printed are medians over the
rounds of PyTorch's time over ours, so 1 is as fast, and more is faster.

On CPU both compute in float32, PyTorch eagerly, images channels last, which is its
faster layout here. The process keeps the memory that either frees, as the recipes do:
otherwise single rows depend on the system's memory. On a GPU both compute in bfloat16
with float32 weights: PyTorch with autocast, channels_last and torch.compile.

Expected on two CPU cores: 1.0 or more in inference; in training 0.9 or more for VGG-11
and 0.75 or more for ResNet-29 (`experiments/LOG.md` says why); on a GPU 1.2.
`--profile` shows the share of each kind of operation in the time of our step. On CPU
convolutions run in threads that XLA's profiler does not see, so their share is the
remainder.
"""

# The checks of this project do not install PyTorch.
# pyright: reportMissingImports=false

import collections
import dataclasses
import glob
import os
import pathlib
import re
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import rich.box
import rich.console
import rich.table
import torch
import tyro

import mslice_jax as ms
from experiments.benchmarks import in_pytorch
from experiments.benchmarks.result import save
from mslice_jax.cpu import memory
from mslice_jax.models import CifarResNet, CifarVGG
from mslice_jax.train import TrainState, make_train_step, sgd

Call = Callable[[], Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the measurement."""

    models: tuple[str, ...] = ("vgg11", "resnet29")
    """vgg11, or resnet and a depth of 9n + 2."""
    step: tuple[float, ...] = (1.0, 0.5, 0.25)
    """The rates of a training step."""
    rates: tuple[float, ...] = (1.0, 0.75, 0.5, 0.25)
    """The rates of inference."""
    batch_size: int = 64
    image_size: int = 32
    """Pixels on a side."""
    rounds: int = 9
    onednn: bool = False
    """Whether oneDNN computes the convolutions of inference: jaxlib 0.11 on an x86 CPU.
    PyTorch uses its own oneDNN there anyway."""
    profile: bool = False
    """Whether to profile a step instead of comparing."""
    out: pathlib.Path | None = None
    """JSON file for the numbers."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One network and one task; times are medians, the ratio is paired."""

    model: str
    what: str
    examples_per_second: float
    pytorch: float
    """Images per second of PyTorch."""
    ratio: float


class Ours:
    """The network sliced by this project, compiled for each rate."""

    def __init__(self, name: str, config: Config):
        shape = config.batch_size, config.image_size, config.image_size, 3
        self.x = jax.random.normal(jax.random.key(0), shape)
        self.labels = jnp.arange(config.batch_size) % 10
        on_gpu = jax.default_backend() == "gpu"
        self.dtype = jnp.bfloat16 if on_gpu else jnp.float32
        model = network(name)
        variables = jax.jit(model.init)(jax.random.key(1), self.x[:1])
        rates = {1.0, *config.step, *config.rates}
        net = ms.upgrade(
            model, variables, self.x, rates=rates, groups=in_pytorch.GROUPS
        )
        self.params = jax.device_get(net.variables["params"])
        optimizer = sgd(0.01, momentum=0.9, weight_decay=1e-4)
        self._step = make_train_step(
            optimizer, compute_dtype=self.dtype if on_gpu else None
        )
        options = {"xla_cpu_experimental_onednn_custom_call": True}
        self._apply = ms.jit(
            ms.slice_apply,
            static_argnums=2,
            compiler_options=options if config.onednn else None,
        )
        self._small = {rate: ms.extract(net, rate) for rate in config.rates}
        if on_gpu:
            self._small, self.x = jax.tree.map(self._cast, (self._small, self.x))
        self._state = TrainState.create(net, optimizer, key=jax.random.key(2))

    def _cast(self, x: jax.Array) -> jax.Array:
        return x.astype(self.dtype) if x.dtype == jnp.float32 else x

    def logits(self, rate: float) -> jax.Array:
        """(b, 10)."""
        small = self._small[rate]
        return jax.block_until_ready(self._apply(small, self.x, rate))

    def step(self, rates: tuple[float, ...]) -> dict[float, float]:
        """One step; the loss of each rate."""
        self._state, metrics = self._step(self._state, (self.x, self.labels), rates)
        jax.block_until_ready(self._state)
        return {rate: float(metrics[rate]["loss"]) for rate in rates}


class Theirs:
    """The network sliced in PyTorch."""

    def __init__(self, name: str, ours: Ours):
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        on_gpu = self._device == "cuda"
        model: Any = (
            in_pytorch.SlicedVGG11()
            if name == "vgg11"
            else in_pytorch.SlicedResNet(int(name.removeprefix("resnet")))
        )
        in_pytorch.load(model, ours.params)
        model = model.to(self._device).to(memory_format=torch.channels_last)
        x = torch.from_numpy(np.array(ours.x, np.float32)).permute(0, 3, 1, 2)
        self._x = x.to(self._device, memory_format=torch.channels_last)
        self._labels = torch.from_numpy(np.array(ours.labels)).long().to(self._device)
        self._autocast = torch.autocast(
            self._device, dtype=torch.bfloat16, enabled=on_gpu
        )
        self._model = torch.compile(model, dynamic=False) if on_gpu else model
        self._optimizer = torch.optim.SGD(
            model.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=1e-4
        )

    def _wait(self) -> None:
        if self._device == "cuda":
            torch.cuda.synchronize()

    @torch.inference_mode()
    def logits(self, rate: float) -> np.ndarray:
        """(b, 10)."""
        with self._autocast:
            logits = self._model(self._x, rate)
        self._wait()
        return logits.float().cpu().numpy()

    def step(self, rates: tuple[float, ...]) -> dict[float, float]:
        """One step; the loss of each rate."""
        self._optimizer.zero_grad()
        losses = {}
        for rate in rates:
            with self._autocast:
                loss = torch.nn.functional.cross_entropy(
                    self._model(self._x, rate).float(), self._labels
                )
            loss.backward()
            losses[rate] = loss.detach()
        self._optimizer.step()
        self._wait()
        return {rate: float(loss) for rate, loss in losses.items()}


def network(name: str) -> CifarVGG | CifarResNet:
    """The library's network."""
    if name == "vgg11":
        return CifarVGG(11)
    return CifarResNet(depth=int(name.removeprefix("resnet")))


def main(config: Config) -> dict[str, Any]:
    """Measures, prints, and returns the contents of `config.out`."""
    console = rich.console.Console(highlight=False)
    memory.keep_freed()
    result: dict[str, Any] = {
        "jax": jax.__version__,
        "torch": torch.__version__,
        "device": jax.devices()[0].device_kind,
        "cores": os.cpu_count(),
    }
    if config.profile:
        result["profile"] = {name: profile(name, config) for name in config.models}
        for name, shares in result["profile"].items():
            console.print(f"{name}, a step over {config.step}:")
            for kind, share in shares.items():
                console.print(f"  {share:6.1%}  {kind}")
    else:
        rows = [row for name in config.models for row in compare(name, config, console)]
        result["rows"] = [dataclasses.asdict(row) for row in rows]
    save(config.out, result)
    return result


def compare(name: str, config: Config, console: rich.console.Console) -> list[Row]:
    """Checks that both compute the same, and times them in turn."""
    ours = Ours(name, config)
    theirs = Theirs(name, ours)
    # bfloat16 has eight bits.
    tolerance = 1e-4 if ours.dtype == jnp.float32 else 0.1
    for rate in config.rates:
        np.testing.assert_allclose(
            np.asarray(ours.logits(rate), np.float32),
            theirs.logits(rate),
            rtol=tolerance,
            atol=tolerance,
        )
    for _ in range(2):  # the second one sees the first one's update
        losses = ours.step(config.step), theirs.step(config.step)
        for rate in config.step:
            np.testing.assert_allclose(*(x[rate] for x in losses), rtol=tolerance)
    rows = []
    calls: dict[str, tuple[Call, Call]] = {
        f"step {config.step}": (
            lambda: ours.step(config.step),
            lambda: theirs.step(config.step),
        )
    }
    for rate in config.rates:
        calls[f"inference {rate:g}"] = (
            lambda rate=rate: ours.logits(rate),
            lambda rate=rate: theirs.logits(rate),
        )
    table = rich.table.Table(title=name, box=rich.box.SIMPLE)
    for heading in ("", "images/s", "PyTorch", "ratio"):
        table.add_column(heading, justify="right")
    for what, (mine, other) in calls.items():
        seconds = in_turn(mine, other, config.rounds)
        row = Row(
            model=name,
            what=what,
            examples_per_second=config.batch_size / statistics.median(seconds[0]),
            pytorch=config.batch_size / statistics.median(seconds[1]),
            ratio=statistics.median(b / a for a, b in zip(*seconds, strict=True)),
        )
        rows.append(row)
        numbers = f"{row.examples_per_second:.1f}", f"{row.pytorch:.1f}"
        table.add_row(what, *numbers, f"{row.ratio:.2f}")
    console.print(table)
    return rows


def in_turn(first: Call, second: Call, rounds: int) -> tuple[list[float], list[float]]:
    """Seconds of each call in each round, the first round left out."""
    seconds: tuple[list[float], list[float]] = [], []
    for number in range(rounds + 1):
        for call, into in zip((first, second), seconds, strict=True):
            began = time.perf_counter()
            call()
            if number:
                into.append(time.perf_counter() - began)
    return seconds


def profile(name: str, config: Config) -> dict[str, float]:
    """Shares of a step's time on the device, the largest kinds of operation first."""
    ours = Ours(name, config)
    ours.step(config.step)
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            began = time.perf_counter()
            ours.step(config.step)
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
    return {kind: spent / total for kind, spent in times.most_common(12)}


if __name__ == "__main__":
    main(tyro.cli(Config))
