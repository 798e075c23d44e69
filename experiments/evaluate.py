"""Evaluate the network that a recipe trained.

    python -m experiments.evaluate runs/cifar_resnet
    python -m experiments.evaluate runs/cifar_resnet --checkpoint best

Loads a checkpoint from the workdir and shows accuracy, loss and cost of each rate on
the held-out examples, as the recipe does at its end; writes nothing there. `network`
gives the trained network to other programs::

    from experiments.evaluate import network

    net = network("runs/cifar_resnet")
    y = ms.slice_apply(net, images, 0.5)  # normalized images (b, h, w, c)

And `model` gives the server the code of the network in a workdir::

    python -m mslice_jax.serve --checkpoint runs/cifar_resnet \\
        --model-from experiments.evaluate:model
"""

import dataclasses
import json
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import tyro
from flax import linen as nn
from rich.console import Console

import mslice_jax as ms
from mslice_jax.train import CheckpointError, restore_narrow

from . import prepare
from .checks import check_ranges
from .process import keep_compiled_programs, print_anything
from .recipe import as_summary, costs, device, fail
from .screen import busy, show_table
from .settings import ImageSettings, Int, Place, flag, local, read_settings, resolve


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """What is measured of a run: weights and data."""

    checkpoint: Literal["last", "best"] = "last"
    """The last checkpoint, or the one of the highest accuracy at the widest rate."""
    data_dir: Place = None
    """Folder or file of the data, if it has moved."""
    text: Place = None
    """The text of a language model, if it has moved, or another text."""
    held_out: Literal["valid", "test"] | None = None
    """The evaluated part of a folder of texts; that of the run if not given."""
    max_test_examples: Int = None
    """Evaluate at most this many of the held-out examples; as many as the run did if
    not given."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags(Source):
    """Flags of the command."""

    workdir: Annotated[Path, tyro.conf.Positional]
    """The folder of a run, with settings.json and checkpoints."""
    output: Place = None
    """JSON file for the numbers."""


def network(
    workdir: str | Path,
    *,
    checkpoint: Literal["last", "best"] = "last",
    recipe: prepare.Recipe | None = None,
) -> ms.Sliceable:
    """The network that a recipe trained; with averaged weights, if it kept them.

    Args:
      workdir: of the run, with settings.json and checkpoints.
      checkpoint: the last one, or the one of the highest accuracy.
      recipe: of the run; found by its name in settings.json unless given.

    Raises:
      ValueError, OSError, CheckpointError: if there is no such run. The message says
        what is missing.
    """
    return open_run(Path(workdir), Source(checkpoint=checkpoint), recipe).net


def model(workdir: str | Path) -> nn.Module:
    """The model with which the network.mslice of a recipe loads; reads no data.

    Args:
      workdir: of the run, or its network.mslice.

    Raises:
      ValueError, OSError: if there is no such run, or its files are missing.
    """
    path = Path(workdir)
    recipe, settings = _run(path if path.is_dir() else path.parent, None)
    return recipe.kind.model(recipe, settings, settings.workdir)


@dataclasses.dataclass(frozen=True)
class Opened:
    """The run of a folder, with its data and its network."""

    recipe: prepare.Recipe
    settings: Any
    dataset: Any
    net: ms.Sliceable


def open_run(
    workdir: Path, source: Source, recipe: prepare.Recipe | None = None
) -> Opened:
    """The run of a folder.

    Raises:
      ValueError, OSError, CheckpointError: if there is no such run, or it has no use
        for a flag.
    """
    recipe, settings = _run(workdir, recipe)
    changes = {
        name: getattr(source, name)
        for name in ("data_dir", "text", "held_out", "max_test_examples")
        if getattr(source, name) is not None
    }
    check_ranges(changes)
    for name in changes:
        if not hasattr(settings, name):
            raise ValueError(
                f"{flag(name)} has no effect on a run of experiments.{recipe.name}. "
                "Leave it out."
            )
    for name in {"data_dir", "text"} & changes.keys():
        changes[name] = local(changes[name], flag(name))
    settings = dataclasses.replace(settings, **changes)
    dataset = recipe.kind.load(settings, run=settings.workdir)
    net = _restored(recipe, settings, dataset, source.checkpoint)
    return Opened(recipe, settings, dataset, net)


def with_example(
    workdir: str | Path,
    *,
    checkpoint: Literal["last", "best"] = "last",
    recipe: prepare.Recipe | None = None,
) -> tuple[ms.Sliceable, Any]:
    """The trained network in the form that is saved, and one input of a call.

    Args and errors are those of `network`.
    """
    recipe, settings = _run(Path(workdir), recipe)
    dataset = recipe.kind.load(settings, run=settings.workdir)
    net = _restored(recipe, settings, dataset, checkpoint)
    net = recipe.kind.shipped(recipe, settings, dataset, net)
    return net, recipe.kind.example(settings, dataset)


def main(args: list[str] | None = None, recipe: prepare.Recipe | None = None) -> int:
    """The command; returns the exit code: 0, or 2 for a setting that does not fit."""
    print_anything()
    flags = tyro.cli(
        Flags,
        prog="python -m experiments.evaluate",
        description="Evaluate the network that a recipe trained.",
        args=args,
    )
    console = Console()
    keep_compiled_programs()
    try:
        run = open_run(flags.workdir, flags, recipe)
        recipe, settings, dataset, net = run.recipe, run.settings, run.dataset, run.net
        kind = recipe.kind
        with busy(console, f"Measuring {kind.quantity.name} and loss"):
            numbers = kind.measurement(settings, dataset)(net)
        net = kind.shipped(recipe, settings, dataset, net)
        profiles = costs(net, kind.example(settings, dataset), console)
        if flags.output is not None:
            summary = as_summary(numbers, profiles, kind.quantity)
            text = json.dumps(summary, indent=2)
            flags.output.expanduser().write_text(text + "\n")
    except (ValueError, OSError, CheckpointError) as error:
        return fail(error, 2)
    except KeyboardInterrupt:
        print("\nInterrupted.")
        return 130
    title = f"{flags.workdir}, the {flags.checkpoint} checkpoint, on {dataset.name}"
    show_table(
        console, title, numbers, profiles, device=device(), quantity=kind.quantity
    )
    return 0


def _run(workdir: Path, recipe: prepare.Recipe | None) -> tuple[prepare.Recipe, Any]:
    """The recipe and the settings of the run in a folder."""
    workdir = local(workdir, "the run's folder")
    file = workdir / "settings.json"
    if not file.is_file():
        raise ValueError(
            "expected the folder of a run, with settings.json and checkpoints; "
            f"{workdir} "
            f"{'has no settings.json' if workdir.is_dir() else 'is not a folder'}. "
            "The last line of a recipe names its folder, such as runs/cifar_resnet."
        )
    recipe = recipe or _recipe(file)
    settings: Any = read_settings(file, recipe.name, recipe.kind.settings)
    settings = dataclasses.replace(settings, workdir=workdir)
    if isinstance(settings, ImageSettings):  # it needs its first weights no more
        settings = dataclasses.replace(settings, weights=None)
    defaults = recipe.kind.defaults(recipe, settings)
    return recipe, resolve(settings, recipe.name, defaults)


def _recipe(file: Path) -> prepare.Recipe:
    """The recipe that a file of settings names, from the module of that name."""
    name = json.loads(file.read_text()).get("recipe")
    try:
        return prepare.named(str(name))
    except ValueError:
        raise ValueError(
            f"{file} names no recipe of experiments (found {name!r}). Runs of earlier "
            'versions get it with a line such as "recipe": "cifar_resnet".'
        ) from None


def _restored(
    recipe: prepare.Recipe, settings: Any, dataset: Any, which: str
) -> ms.Sliceable:
    net, _ = recipe.kind.network(recipe, settings, dataset)
    folder = cast(Path, settings.workdir) / "checkpoints"
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        restored = restore_narrow(folder, net, max(net.rates), best=which == "best")
    for warning in told:
        print(f"Warning: {warning.message}", file=sys.stderr)
    return restored


if __name__ == "__main__":
    sys.exit(main())
