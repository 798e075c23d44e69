"""How many bytes of a checkpoint are read for a narrow network?

    python -m experiments.benchmarks.restore_narrow --out runs/restore_narrow.json

Saves networks with random weights, optimizer state too, and restores each rate with
`restore_narrow`. Bytes are those that the process read from the system (`rchar` of
/proc/self/io: Linux), so the index of the checkpoint and its JSON files count, over the
bytes of the narrow weights. Every result is compared with `extract`.

    ratio     bytes read over the bytes of the narrow weights; below 1, since the files
              are compressed
    seconds   of the restore; in the row of rate 1 in brackets those of `restore`, which
              reads the optimizer state and compares checksums as well
    save      until `save` returns, and until all is on disk

Expected: ratios <= 1.15, but about 1.4 for ResNet-29 at 0.25, whose weights are 84 kB:
the index holds all of 65 small leaves (23 kB where 5 kB are needed), and kernels of a
few kB are in blocks longer than the kept part (98 kB, compressed, for 79 kB).
"""

import dataclasses
import pathlib
import tempfile
import time
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
from experiments.benchmarks.analysis import Decoder
from experiments.benchmarks.result import save
from mslice_jax.models import CifarResNet, CifarVGG
from mslice_jax.train import Checkpoints, Progress, TrainState, restore_narrow, sgd


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the measurement."""

    models: tuple[str, ...] = ("resnet29", "vgg11", "decoder6")
    """resnet and a depth of 9n + 2, vgg11, or decoder and a number of layers."""
    rates: tuple[float, ...] = (0.25, 0.5)
    dim: int = 512
    """Width of the decoder."""
    out: pathlib.Path | None = None
    """JSON file for the numbers."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One network at one rate."""

    model: str
    rate: float
    narrow_bytes: int
    read_bytes: int
    ratio: float
    seconds: float
    restore_seconds: float
    save_seconds: float
    written_seconds: float


def main(config: Config) -> dict[str, Any]:
    """Measures, prints a table, and returns the contents of `config.out`."""
    each = rich.progress.track(config.models, "saving and restoring")
    rows = [row for name in each for row in measure(config, name)]
    result = {
        "rows": [dataclasses.asdict(row) for row in rows],
        "jax": jax.__version__,
    }
    show(rows)
    save(config.out, result)
    return result


def network(config: Config, name: str) -> tuple[nn.Module, np.ndarray]:
    """A network by its name, and an input."""
    image = np.zeros((1, 32, 32, 3), np.float32)
    if name.startswith("resnet"):
        return CifarResNet(depth=int(name.removeprefix("resnet"))), image
    if name == "vgg11":
        return CifarVGG(11), image
    layers = int(name.removeprefix("decoder"))
    model = Decoder(layers, dim=config.dim, vocabulary=16 * config.dim)
    return model, np.zeros((1, 8), np.int32)


def measure(config: Config, name: str) -> list[Row]:
    """Saves once, restores at every rate."""
    model, x = network(config, name)
    random = np.random.default_rng(0)
    variables = jax.tree.map(  # scales and biases too, since constants would compress
        lambda t: 0.05 * random.normal(size=t.shape).astype(t.dtype),
        jax.eval_shape(model.init, jax.random.key(0), x),
    )
    net = ms.upgrade(model, variables, x, rates=(*config.rates, 1.0))
    state = TrainState.create(net, sgd(0.1), key=jax.random.key(0))
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        with Checkpoints(directory) as checkpoints:
            began = time.perf_counter()
            checkpoints.save(state, Progress())
            saved = time.perf_counter() - began
            checkpoints.wait()
            written = time.perf_counter() - began
            began = time.perf_counter()
            jax.block_until_ready(checkpoints.restore(state))
            restored = time.perf_counter() - began
        types = jax.eval_shape(lambda: net)
        restore_narrow(directory, types, config.rates[0])  # imports, compilation
        for rate in (*config.rates, 1.0):
            before, began = bytes_read(), time.perf_counter()
            small = jax.block_until_ready(restore_narrow(directory, types, rate))
            seconds, read = time.perf_counter() - began, bytes_read() - before
            expected = ms.extract(net, rate)
            jax.tree.map(
                np.testing.assert_array_equal, small.variables, expected.variables
            )
            size = sum(leaf.nbytes for leaf in jax.tree.leaves(expected.variables))
            rows.append(
                Row(
                    model=name,
                    rate=rate,
                    narrow_bytes=size,
                    read_bytes=read,
                    ratio=read / size,
                    seconds=seconds,
                    restore_seconds=restored,
                    save_seconds=saved,
                    written_seconds=written,
                )
            )
    return rows


def bytes_read() -> int:
    """Bytes that this process has read so far, from anywhere."""
    lines = pathlib.Path("/proc/self/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["rchar"])


def show(rows: list[Row]) -> None:
    """Prints the table."""
    table = rich.table.Table(box=rich.box.SIMPLE)
    for title in ("network", "rate", "weights", "read", "ratio", "seconds", "save"):
        table.add_column(title, justify="left" if title == "network" else "right")
    for row in rows:
        full = f" ({row.restore_seconds:.2f})" if row.rate == 1 else ""
        save = f"{row.save_seconds:.2f}, {row.written_seconds:.2f}"
        table.add_row(
            row.model,
            f"{row.rate:g}",
            f"{row.narrow_bytes / 1e6:.2f} MB",
            f"{row.read_bytes / 1e6:.2f} MB",
            f"{row.ratio:.3f}",
            f"{row.seconds:.2f}{full}",
            save if row.rate == 1 else "",
        )
    rich.console.Console().print(table)


if __name__ == "__main__":
    main(tyro.cli(Config))
