"""Non-uniform widths under a budget: do they beat uniform ones at equal FLOPs?

    python -m experiments.search_widths
    python -m experiments.search_widths --seeds 0 --epochs 10
    python -m experiments.search_widths --dataset npz --data-dir cifar10.npz
      --images 20000 2500 10000 --noise 0 --draws 1 --epochs 6 --batch-size 128
      --channels 16 24 24 48 48 64 --strides 2 2 1 2 1 --drawn 1

For each seed the images are split anew into training, validation and held-out images;
a convolutional network, of one width throughout, is trained at mixed widths (AutoSlim),
and `ms.search` chooses a rate for each of its layers by the loss on the validation
images: greedy slimming, and an evolutionary search from there. On the held-out images
both are compared with the uniform widths, at no more FLOPs than these: as slices of the
network that was searched; and of networks trained anew for as many steps, one at the
uniform widths of the budgets, one at those that evolution chose.

Digits are too easy for accuracies to tell widths apart: noise is added to the pixels,
each held-out image is seen with several noises, and differences are paired.

The first command takes some minutes of processor time (AMD EPYC; jax 0.10.2).
Expected: at the four budgets evolution is above uniform widths in accuracy in each of
three seeds, in the mean by 4 to 10 points as slices, and by 3 to 12 points trained anew
(`experiments/LOG.md`). In networks whose widths are balanced, as in the third command,
it is about a point.

It leaves in its workdir (runs/search_widths) results.json, frontier.png (the first
seed's search, on the validation images), and a file of each search, with which a
command that was stopped goes on.
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

from .process import keep_compiled_programs, print_anything
from .recipe import fail
from .screen import busy
from .searching.choosing import searched
from .searching.images import Network, Split, split
from .searching.outcome import (
    ANEW,
    EVOLUTION,
    SEARCHED,
    UNIFORM,
    compared,
    outcomes,
    show,
    summary,
)
from .searching.training import among, mixed, trainer


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
      drawn: how many widths a step draws, besides the widest and the narrowest.
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
    drawn: int = 2
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


def compare(
    settings: Settings, images: Split, seed: int, console: Console
) -> dict[str, Any]:
    """What a seed finds."""
    initial = network(settings, images, seed)
    train = trainer(
        initial,
        images,
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        lr=settings.lr,
        drawn=settings.drawn,
        seed=seed,
    )
    with busy(console, f"Seed {seed}: training at mixed widths"):
        net = train(mixed(initial))
    work = ms.report(net).to_dict()["contraction_flops"]
    greedy, chosen = searched(
        net,
        images.validation,
        {rate: work[str(rate)] for rate in settings.budgets},
        generations=settings.generations,
        population=settings.population,
        seed=seed,
        folder=settings.workdir / f"seed{seed}",
        console=console,
    )
    with busy(console, "Training anew"):
        anew = {
            way: train(among(list(chosen[way].values())))
            for way in (UNIFORM, EVOLUTION)
        }
    held_out: dict[str, Any] = {}
    nets = {SEARCHED: dict.fromkeys(chosen, net), ANEW: anew}
    with busy(console, "Measuring on held-out images"):
        for training, each in nets.items():
            held_out[training] = {}
            for rate in settings.budgets:
                found = {
                    way: outcomes(one, chosen[way][rate], images.held_out)
                    for way, one in each.items()
                }
                held_out[training][str(rate)] = {
                    way: compared(one, found[UNIFORM], settings.draws)
                    for way, one in found.items()
                }
    return {
        "seed": seed,
        "flops": {str(r): work[str(r)] for r in settings.budgets},
        "chosen": chosen,
        "search": greedy,
        "held_out": held_out,
    }


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
    each = []
    try:
        check(settings)
        for seed in settings.seeds:
            images = split(
                settings.dataset,
                settings.data_dir,
                counts=settings.images,
                noise=settings.noise,
                draws=settings.draws,
                seed=seed,
            )
            settings.workdir.mkdir(parents=True, exist_ok=True)
            each.append(compare(settings, images, seed, console))
            greedy = each[-1]["search"]
            each[-1]["search"] = greedy.to_dict()
            if seed == settings.seeds[0]:
                plot_search(
                    settings.workdir / "frontier.png",
                    [(point.cost, -point.score) for point in greedy.frontier],
                    {r: (p.cost, -p.score) for r, p in greedy.uniform.items()},
                    title="Widths by greedy search, and uniform ones",
                    score="loss on validation images",
                )
    except (ValueError, OSError) as error:
        return fail(error, 2)
    results = {
        "seeds": list(settings.seeds),
        "each": each,
        "over_seeds": summary([seed["held_out"] for seed in each]),
    }
    (settings.workdir / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    show(console, results)
    console.print(f"Results and picture are in {settings.workdir}.", highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
