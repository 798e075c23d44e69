"""Which collectives and how much memory does a sliced training step have on a pod?

    python -m experiments.benchmarks.tpu_topology --out runs/tpu_topology.json
    python -m experiments.benchmarks.tpu_topology --topology cpu

Compiles training steps (gradients at one rate, and the update) for devices that are
not there, and reads the compiled programs: `jax.experimental.topologies` describes a
TPU slice, and libtpu (`pip install libtpu`, the release that `jax[tpu]` of the
installed JAX names) compiles for it without a chip. "cpu" stands for the CPU devices of
this process, of which ``XLA_FLAGS=--xla_force_host_platform_device_count=8`` makes 8.

For every network, placement and rate: the collectives, the bytes of their results on
one device, and the memory of one device. Exits with 1 if a rate has a collective that
the same step at the widest rate does not have, or moves more.

Expected: none is added. With replicated weights there is one all-reduce of the
gradients, which are those of the narrow network; with sharded weights also the
gathering of narrow weights. ``--no-shards`` upgrades without ``shards=``, and shows the
collectives that this adds.
"""

import dataclasses
import datetime
import os
import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import rich.box
import rich.console
import rich.table
import tyro
from flax import linen as nn
from jax.experimental import topologies
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import mslice_jax as ms
from experiments.benchmarks.analysis import network
from experiments.benchmarks.collectives import collectives
from experiments.benchmarks.result import save
from mslice_jax.train import Placement, TrainState, make_train_step, sgd


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the compilation."""

    topology: str = "v5e:2x4"
    """A TPU slice as libtpu names it, or cpu."""
    networks: tuple[str, ...] = ("resnet8", "decoder2")
    """resnet and a depth of 6n + 2 or 9n + 2, or decoder and a number of layers."""
    rates: tuple[float, ...] = (1.0, 0.5, 0.25)
    fsdp: tuple[int, ...] = (1, 2)
    """Devices that the weights are sharded over; 1 replicates them."""
    shards: bool = True
    """Whether the networks are upgraded with shards= the size of fsdp."""
    batch_size: int = 1024
    """Batch size of all devices together."""
    smallest: int = 2**12
    """Arrays of fewer numbers are replicated."""
    out: pathlib.Path | None = None
    """JSON file for the numbers."""


COLUMNS = (
    "network", "weights", "rate", "collectives", "MB moved", "MB arguments",
    "MB temporary",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One compiled step; bytes are those of one device."""

    network: str
    fsdp: int
    rate: float
    collectives: dict[str, int]
    """Number of collectives of each kind."""
    moved: dict[str, int]
    """The bytes of their results."""
    arguments: int
    """Bytes of state and batch."""
    temporary: int
    """Bytes of all intermediate values."""


def main(config: Config) -> dict[str, Any]:
    """Compiles, prints a table, and returns the contents of `config.out`."""
    devices = devices_of(config.topology)
    rows = [
        Row(network=name, fsdp=fsdp, rate=rate, **measured)
        for name in config.networks
        for fsdp in config.fsdp
        for rate, measured in steps(config, name, devices, fsdp).items()
    ]
    result = {
        "date": datetime.date.today().isoformat(),
        "device": f"compiled for {len(devices)} devices of {devices[0].device_kind} "
        f"({config.topology})",
        "software": f"jax {jax.__version__}",
        "command": " ".join(
            ["python -m experiments.benchmarks.tpu_topology", *sys.argv[1:]]
        ),
        "columns": list(COLUMNS),
        "rows": [shown(row) for row in rows],
        "compiled": [dataclasses.asdict(row) for row in rows],
        "added": added(rows),
    }
    show(result)
    save(config.out, result)
    return result


def devices_of(topology: str) -> list[Any]:
    """The devices of a TPU slice, which need not be there, or those of this process.

    Raises:
      RuntimeError: if libtpu is not installed, or does not know the slice.
    """
    if topology == "cpu":
        return jax.devices("cpu")
    # Nothing here runs: a chip that is there should stay free for other programs.
    jax.config.update("jax_platforms", "cpu")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # asks no metadata server
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # takes no lock on a chip
    try:
        return list(topologies.get_topology_desc(topology, "tpu").devices)
    except Exception as error:
        raise RuntimeError(
            f"cannot compile for {topology}: {error} Install the libtpu that jax[tpu] "
            "of this JAX names, or give --topology cpu."
        ) from error


def steps(
    config: Config, name: str, devices: list[Any], fsdp: int
) -> dict[float, dict[str, Any]]:
    """The contents of the compiled step of each rate."""
    model, x, labels, call = problem(name, config.batch_size)
    optimizer = sgd(0.1)
    placement = dataclasses.replace(
        Placement.over(devices, fsdp=fsdp), smallest=config.smallest
    )

    def fresh(key: jax.Array, x: jax.Array) -> TrainState:
        net = ms.upgrade(
            model,
            model.init(key, x),
            x,
            rates=config.rates,
            norm="group",
            shards=fsdp if config.shards else 1,
        )
        return TrainState.create(net, optimizer, key=key)

    state = jax.eval_shape(fresh, jax.random.key(0), x)
    examples = NamedSharding(placement.mesh, P(placement.mesh.axis_names))
    arguments = (
        placed(state, placement.weights(state)),
        placed((x, labels), (examples, examples)),
    )
    step = make_train_step(optimizer, placement=placement, call_kwargs=call)
    # LLVM's part does not matter here, and takes most of the time on CPU.
    quick: dict[str, str | bool] = {"xla_backend_optimization_level": "0"}
    options = quick if devices[0].platform == "cpu" else None
    found = {}
    for rate in sorted(config.rates, reverse=True):
        whole = jax.jit(lambda s, b, rate=rate: step(s, b, (rate,)), donate_argnums=0)
        compiled = whole.lower(*arguments).compile(options)
        memory: Any = compiled.memory_analysis()
        number, moved = collectives(compiled.as_text() or "")
        found[rate] = {
            "collectives": number,
            "moved": moved,
            "arguments": memory.argument_size_in_bytes,
            "temporary": memory.temp_size_in_bytes,
        }
    return found


def problem(name: str, batch_size: int) -> tuple[nn.Module, Any, Any, dict[str, Any]]:
    """A network, types of its input and labels, and further keywords of its call."""
    model, like = network(name)
    if name.startswith("resnet"):
        x = jax.ShapeDtypeStruct((batch_size, *like.shape[1:]), like.dtype)
        labels = jax.ShapeDtypeStruct((batch_size,), jnp.int32)
        return model, x, labels, {"train": True}
    tokens = jax.ShapeDtypeStruct((batch_size, 64), jnp.int32)
    return model, tokens, tokens, {}


def placed(tree: Any, places: Any) -> Any:
    """Types of arrays with these shardings."""
    return jax.tree.map(
        lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at),
        tree,
        places,
    )


def added(rows: list[Row]) -> list[str]:
    """Collectives of a rate that the same step at the widest rate lacks, in words."""
    found = []
    widest = max(row.rate for row in rows)
    wides = {(row.network, row.fsdp): row for row in rows if row.rate == widest}
    for row in rows:
        wide = wides[row.network, row.fsdp]
        for kind, size in row.moved.items():
            where = f"{row.network}, fsdp={row.fsdp}, rate {row.rate:g}: {kind}"
            if kind not in wide.moved:
                found.append(f"{where} is not there at rate {wide.rate:g}")
            elif size > wide.moved[kind]:
                found.append(f"{where} moves {size} bytes, {wide.moved[kind]} there")
    return found


def shown(row: Row) -> list[Any]:
    """A line of the table."""
    kinds = sorted(row.collectives.items())
    return [
        row.network,
        "whole" if row.fsdp == 1 else f"over {row.fsdp}",
        row.rate,
        ", ".join(f"{number} {kind}" for kind, number in kinds) or "none",
        round(sum(row.moved.values()) / 1e6, 2),
        round(row.arguments / 1e6, 2),
        round(row.temporary / 1e6, 1),
    ]


def show(result: dict[str, Any]) -> None:
    """Prints the table, and the collectives that slicing adds."""
    table = rich.table.Table(title=result["device"], box=rich.box.SIMPLE)
    for heading in result["columns"]:
        table.add_column(heading)
    for row in result["rows"]:
        table.add_row(*map(str, row))
    console = rich.console.Console(highlight=False)
    console.print(table)
    for line in result["added"] or ["Slicing adds no collective."]:
        console.print(line)


if __name__ == "__main__":
    sys.exit(bool(main(tyro.cli(Config))["added"]))
