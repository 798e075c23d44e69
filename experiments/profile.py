"""Show what each rate of a trained network costs on this device, layer by layer.

    python -m experiments.profile runs/cifar_resnet
    python -m experiments.profile runs/cifar_resnet --per-layer --rates .5
    python -m experiments.profile runs/cifar_resnet --batch 32 --output costs.json
    python -m experiments.profile costs.json --per-layer

Restores the network of a recipe's run, and measures parameters, FLOPs, memory and
latency of each rate; `--per-layer` is the table of the PyTorch original's profiler
(layer, output, parameters, FLOPs, bytes of activations, share of the FLOPs), each of
its numbers at the rate. A file that `--output` wrote is shown without measuring, and is
what `ms.choose_rate(net, profile="costs.json", latency_ms=5)` takes.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro
from rich.console import Console

from mslice_jax.profile import Profile, profile
from mslice_jax.storage import StorageError
from mslice_jax.train import CheckpointError

from . import prepare
from .evaluate import with_example
from .process import keep_compiled_programs, print_anything
from .recipe import fail
from .screen import busy
from .settings import Place, local


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """Flags of the command."""

    source: Annotated[Path, tyro.conf.Positional]
    """The folder of a run, with settings.json and checkpoints; or the JSON file of a
    profile."""
    per_layer: bool = False
    """Also a table of the layers for each rate."""
    rates: tuple[float, ...] | None = None
    """Of the declared rates those to show; all of them if not given."""
    batch: int = 1
    """How many examples a call has."""
    repeats: int = 30
    """How many calls of each rate are timed."""
    checkpoint: Literal["last", "best"] = "last"
    """The last checkpoint, or the one of the highest accuracy at the widest rate."""
    output: Place = None
    """JSON file for the profile; one that is there is replaced."""
    picture: Place = None
    """PNG file for costs over the rate."""


def main(args: list[str] | None = None, recipe: prepare.Recipe | None = None) -> int:
    """The command; returns the exit code: 0, or 2 for a setting that does not fit."""
    print_anything()
    flags = tyro.cli(
        Flags,
        prog="python -m experiments.profile",
        description="Show what each rate of a trained network costs on this device.",
        args=args,
    )
    keep_compiled_programs()
    try:
        found = _found(flags, recipe)
        if flags.output is not None:
            found.save(flags.output, overwrite=True)
        if flags.picture is not None:
            found.plot(flags.picture.expanduser(), title=str(flags.source))
    except (ValueError, OSError, CheckpointError) as error:
        return fail(error, 2)
    except KeyboardInterrupt:
        print("\nInterrupted.")
        return 130
    if flags.per_layer:
        for rate, cost in sorted(found.items(), reverse=True):
            print(f"r = {rate:g}\n{cost.table()}\n")
    print(found)
    return 0


def _found(flags: Flags, recipe: prepare.Recipe | None) -> Profile:
    """The profile of a file, or of the network of a run."""
    if flags.batch < 1:
        raise ValueError(f"--batch is at least 1; got {flags.batch}.")
    source = local(flags.source, "the run's folder")
    if source.is_file():
        try:
            known = Profile.load(source)
        except StorageError as error:
            raise ValueError(
                f"expected the folder of a run, or the JSON file of a profile: {error}"
            ) from None
        kept = known if flags.rates is None else flags.rates
        if missing := [rate for rate in kept if rate not in known]:
            raise ValueError(f"{source} has the rates {[*known]}, and not {missing}.")
        return dataclasses.replace(known, costs={rate: known[rate] for rate in kept})
    net, example = with_example(source, checkpoint=flags.checkpoint, recipe=recipe)
    with busy(Console(), "Measuring what each rate costs"):
        return profile(
            net,
            np.repeat(example, flags.batch, axis=0),
            rates=flags.rates,
            repeats=flags.repeats,
        )


if __name__ == "__main__":
    sys.exit(main())
