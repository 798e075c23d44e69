"""Non-uniform widths under a budget: do they beat uniform ones at equal FLOPs?

    python -m experiments.search_widths

TODO
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import tyro
from rich.console import Console

import mslice_jax as ms
from mslice_jax.plots import plot_search
from mslice_jax.search import Found

from .process import keep_compiled_programs, print_anything
from .recipe import fail
from .screen import busy
from .searching.bars import Bar
from .searching.images import Images, Network, Split, split
from .searching.outcome import (
    EVOLUTION,
    GREEDY,
    UNIFORM,
    compared,
    outcomes,
    over_seeds,
    show,
)
from .searching.training import trained


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is run.

    Attributes:
      seeds: each splits, initialises and searches anew.
      dataset, data_dir: see `mslice_jax.data.load`.
      images: how many to train on, to search on and to compare on; no image is in two.
      noise: standard deviation of noise on the pixels, in units of theirs.
      draws: with how many noises each image to search or compare on is seen.
      rates: the slice rates.
      budgets: the rates at whose FLOPs they are compared.
      channels: of the convolutions and the dense layer.
      strides: of the convolutions.
      epochs, batch_size, lr: of the training, with Adam.
      mixed: how many networks of mixed widths a step trains.
      generations, population: of the evolutionary search, for each budget.
      workdir: where results go.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    dataset: str = "digits"
    data_dir: Path | None = None
    images: tuple[int, int, int] = (600, 500, 697)
    noise: float = 1.0
    draws: int = 4
    rates: tuple[float, ...] = (0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)
    budgets: tuple[float, ...] = (0.375, 0.5, 0.625, 0.75)
    channels: tuple[int, ...] = (24, 24, 24, 24, 24)
    strides: tuple[int, ...] = (1, 1, 2, 2)
    epochs: int = 150
    batch_size: int = 64
    lr: float = 3e-3
    mixed: int = 2
    generations: int = 6
    population: int = 16
    workdir: Path = Path("runs/search_widths")


def network(settings: Settings, images: Split, seed: int) -> ms.Sliceable:
    """The network with its initial weights."""
    model = Network(settings.channels, settings.strides, images.classes)
    # One image, so that FLOPs are those of one.
    x = jnp.asarray(images.held_out.x[:1])
    variables = model.init(jax.random.key(seed), x)
    return ms.upgrade(model, variables, x, rates=settings.rates)


def searched(
    settings: Settings, net: ms.Sliceable, images: Images, seed: int, console: Console
) -> tuple[Found, dict[str, dict[float, Any]]]:
    """The greedy search, and what each way chooses for each budget: a rate's FLOPs."""
    work = ms.report(net).to_dict()["contraction_flops"]
    budgets = {rate: work[str(rate)] for rate in settings.budgets}

    def evaluate(net: ms.Sliceable, rate: Any) -> float:
        return -float(outcomes(net, rate, images)[0].mean())

    folder = settings.workdir / f"seed{seed}"
    with Bar(console, "greedy") as bar:
        greedy = ms.search(
            net,
            evaluate,
            flops=min(budgets.values()),
            path=folder / "greedy.json",
            progress=bar,
        )
    chosen: dict[str, dict[float, Any]] = {UNIFORM: {}, GREEDY: {}, EVOLUTION: {}}
    best: list[Any] = []  # of the last budget, which fits the next
    for rate, limit in budgets.items():
        chosen[UNIFORM][rate] = rate
        chosen[GREEDY][rate] = dict(greedy.within(limit).mapping)
        with Bar(console, f"evolution, FLOPs of r = {rate:g}") as bar:
            found = ms.search(
                net,
                evaluate,
                flops=limit,
                method="evolution",
                start=[chosen[GREEDY][rate], *best],
                generations=settings.generations,
                population=settings.population,
                seed=seed,
                path=folder / f"evolution_{rate:g}.json",
                progress=bar,
            )
        chosen[EVOLUTION][rate] = dict(found.mapping)
        best = [found.mapping]
    return greedy, chosen


def check(settings: Settings) -> None:
    """Raises ValueError for settings that do not fit."""
    if not settings.seeds or not set(settings.budgets) <= set(settings.rates):
        raise ValueError("expected at least one seed, and budgets that are rates.")
    if len(settings.channels) != len(settings.strides) + 1:
        raise ValueError(
            "expected channels of each convolution and of the dense layer, and strides "
            f"of each convolution; got {len(settings.channels)} and "
            f"{len(settings.strides)}."
        )
    if not 1 <= settings.batch_size <= settings.images[0]:
        raise ValueError(
            f"--batch-size is from 1 to the {settings.images[0]} training images."
        )


def measured(
    net: ms.Sliceable, chosen: dict[str, dict[float, Any]], images: Images
) -> dict[str, Any]:
    """Each budget and way: what came out on images that nothing was chosen by."""
    found: dict[str, Any] = {}
    for rate in chosen[UNIFORM]:
        uniform = outcomes(net, rate, images)
        found[str(rate)] = {}
        for way, each in chosen.items():
            one = uniform if way == UNIFORM else outcomes(net, each[rate], images)
            found[str(rate)][way] = compared(one, uniform, images.draws)
    return found


def main(args: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    print_anything()
    settings = tyro.cli(
        Settings,
        prog="python -m experiments.search_widths",
        description=(__doc__ or "").split("\n\n")[0],
        args=args,
    )
    console = Console()
    keep_compiled_programs()
    results: dict[str, Any] = {"seeds": list(settings.seeds)}
    results |= {"held_out": [], "chosen": [], "searches": []}
    try:
        check(settings)
        settings.workdir.mkdir(parents=True, exist_ok=True)
        for seed in settings.seeds:
            images = split(
                settings.dataset,
                settings.data_dir,
                counts=settings.images,
                noise=settings.noise,
                draws=settings.draws,
                seed=seed,
            )
            with busy(console, f"Seed {seed}: training"):
                net = trained(
                    network(settings, images, seed),
                    images,
                    epochs=settings.epochs,
                    batch_size=settings.batch_size,
                    lr=settings.lr,
                    mixed=settings.mixed,
                    seed=seed,
                )
            greedy, chosen = searched(settings, net, images.validation, seed, console)
            if seed == settings.seeds[0]:
                plot_search(
                    settings.workdir / "frontier.png",
                    [(point.cost, -point.score) for point in greedy.frontier],
                    {r: (p.cost, -p.score) for r, p in greedy.uniform.items()},
                    title="Widths by greedy search, and uniform ones",
                    score="loss on validation images",
                )
            work = ms.report(net).to_dict()["contraction_flops"]
            results["flops"] = {str(r): work[str(r)] for r in settings.budgets}
            with busy(console, "Measuring on held-out images"):
                found = measured(net, chosen, images.held_out)
            results["held_out"].append(found)
            results["chosen"].append(chosen)
            results["searches"].append(greedy.to_dict())
    except (ValueError, OSError) as error:
        return fail(error, 2)
    results["over_seeds"] = {
        rate: {
            way: over_seeds([seed[rate][way] for seed in results["held_out"]])
            for way in ways
        }
        for rate, ways in results["held_out"][0].items()
    }
    (settings.workdir / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    show(console, results)
    console.print(f"Results and picture are in {settings.workdir}.", highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
