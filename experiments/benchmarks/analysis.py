"""How long does reading a network take, and does that grow linearly?

    python -m experiments.benchmarks.analysis --out runs/analysis.json

For pre-activation ResNets and decoder transformers of growing depth, on one core,
without compiling anything:

    analysis     the part of `upgrade` after its trace: reading the program, making the
                 plan
    plain        tracing the network, at full width, to a jaxpr
    first        tracing `slice_apply` at rate .5 the first time: a trace at full width,
                 the reading under the plan, the narrow program
    again        the same at another rate, with the program read already

`first` and `again` are multiples of `plain`, medians over rounds in which all of them
take turns.

Expected: analysis of 3,000 equations <= 1.5 s, time per equation the same from 1,000
to 20,000 equations; the overhead of `slice_apply` (first - 1) <= 2.
"""

import contextlib
import dataclasses
import os
import pathlib
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.extend.core
import numpy as np
import rich.box
import rich.console
import rich.progress
import rich.table
import tyro

import mslice_jax as ms
from experiments.benchmarks.result import save
from mslice_jax.core.analysis import discover
from mslice_jax.core.definition import Definition
from mslice_jax.core.groups import Parameter, Units
from mslice_jax.models import CifarResNet


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the measurement."""

    models: tuple[str, ...] = (
        "resnet29", "resnet110", "resnet326", "resnet731",
        "decoder6", "decoder24", "decoder96", "decoder180",
    )  # fmt: skip
    """resnet and a depth of 9n + 2, or decoder and a number of layers."""
    rounds: int = 5
    out: pathlib.Path | None = None
    """JSON file for the numbers."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One network; times are medians in seconds."""

    model: str
    equations: int
    analysis: float
    plain: float
    first: float
    """Multiple of plain, as `again`."""
    again: float


class Decoder(nn.Module):
    """A causal transformer with a gated MLP: (batch, time) tokens -> logits."""

    layers: int
    dim: int = 64
    vocabulary: int = 128

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """(batch, time) -> (batch, time, vocabulary)."""
        x = nn.Embed(self.vocabulary, self.dim)(tokens)
        mask = nn.make_causal_mask(tokens)
        for _ in range(self.layers):
            y = nn.LayerNorm()(x)
            x += nn.MultiHeadDotProductAttention(4)(y, mask=mask)
            y = nn.LayerNorm()(x)
            gate = nn.silu(nn.Dense(4 * self.dim)(y))
            x += nn.Dense(self.dim)(gate * nn.Dense(4 * self.dim)(y))
        return nn.Dense(self.vocabulary)(nn.LayerNorm()(x))


def main(config: Config) -> dict[str, Any]:
    """Measures, prints a table, and returns the contents of `config.out`."""
    with one_core():
        rows = [
            measure(name, config.rounds)
            for name in rich.progress.track(config.models, "reading")
        ]
    result = {
        "rows": [dataclasses.asdict(row) for row in rows],
        "jax": jax.__version__,
    }
    show(rows)
    save(config.out, result)
    return result


def network(name: str) -> tuple[nn.Module, jax.ShapeDtypeStruct]:
    """A network by its name, and its input."""
    if name.startswith("resnet"):
        model: nn.Module = CifarResNet(depth=int(name.removeprefix("resnet")))
        return model, jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
    layers = int(name.removeprefix("decoder"))
    return Decoder(layers), jax.ShapeDtypeStruct((1, 8), np.int32)


def measure(name: str, rounds: int) -> Row:
    """Times one network on types; nothing is computed."""
    model, x = network(name)
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    net = ms.upgrade(model, variables, x, rates=(0.25, 0.5, 1.0))
    definition, weights = net.definition, net.variables
    closed = jax.make_jaxpr(
        lambda v, x: definition.function(v, 1.0, x)  # with its norms swapped
    )(weights, x)
    kinds: list[Parameter | str] = [
        Parameter(jax.tree_util.keystr(path))
        for path, _ in jax.tree.leaves_with_path(weights)
    ]

    def sliced(rate: float, fresh: Definition) -> Definition:
        jax.make_jaxpr(lambda w, x: ms.slice_apply(ms.Sliceable(w, fresh), x, rate))(
            weights, x
        )
        return fresh

    def new() -> Definition:  # JAX caches the traces of another
        return dataclasses.replace(definition)

    def plain() -> None:
        jax.make_jaxpr(lambda v, x: definition.function(v, 1.0, x))(weights, x)

    read = [sliced(0.5, new()) for _ in range(rounds)]
    calls: dict[str, Callable[[], Any]] = {
        "analysis": lambda: discover(
            closed, [*kinds, "an input"], ["an output"], Units()
        ),
        "plain": plain,
        "first": lambda: sliced(0.5, new()),
        "again": lambda: sliced(0.25, read.pop()),
    }
    times: dict[str, list[float]] = {call: [] for call in calls}
    for _ in range(rounds):
        for call, run in calls.items():
            start = time.perf_counter()
            run()
            times[call].append(time.perf_counter() - start)
    over_plain = {
        call: statistics.median(
            a / b for a, b in zip(times[call], times["plain"], strict=True)
        )
        for call in ("first", "again")
    }
    return Row(
        model=name,
        equations=equations_in(closed.jaxpr),
        analysis=statistics.median(times["analysis"]),
        plain=statistics.median(times["plain"]),
        **over_plain,
    )


def equations_in(jaxpr: Any) -> int:
    """Equations of a jaxpr and of those that it calls."""
    return sum(
        1 + sum(map(equations_in, jax.extend.core.jaxprs_in_params(eqn.params)))
        for eqn in jaxpr.eqns
    )


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """Pins this process to one core, where the system can."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def show(rows: list[Row]) -> None:
    """Prints the table."""
    title = "reading networks, on one core"
    table = rich.table.Table(title=title, box=rich.box.SIMPLE)
    for heading in (
        "model", "equations", "analysis/s", "us/equation", "plain trace/s", "first",
        "again",
    ):  # fmt: skip
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            row.model,
            f"{row.equations:,}",
            f"{row.analysis:.3f}",
            f"{1e6 * row.analysis / row.equations:.1f}",
            f"{row.plain:.3f}",
            f"{row.first:.2f}",
            f"{row.again:.2f}",
        )
    rich.console.Console().print(table)


if __name__ == "__main__":
    main(tyro.cli(Config))
