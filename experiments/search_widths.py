"""Non-uniform widths under a budget: do they beat uniform ones at equal FLOPs?

    python -m experiments.search_widths
    python -m experiments.search_widths --seeds 0 --epochs 10

For each seed the digits are split anew into training, validation and held-out images, a
small convolutional network is trained at mixed widths (AutoSlim), and `ms.search`
chooses a rate for each of its layers by the loss on the validation images: greedy
slimming, and an evolutionary search from there. Both are compared with the uniform
widths on the held-out images, at the FLOPs of these.

Expected of the first command (about a minute on one core of an EPYC that does nothing
else; jax 0.10.2): the mean loss on held-out images is below that of uniform widths at
each of the four budgets, by 2 to 14 %, and in all three seeds at those of .625 and .75.
Accuracies differ by less than a point, either way (`experiments/LOG.md`).

It leaves in its workdir (runs/search_widths) results.json, frontier.png (the first
seed's search, on the validation images), and a file of each search, with which a
command that was stopped goes on.
"""

import dataclasses
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from flax import linen as nn
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

import mslice_jax as ms
from mslice_jax.data.digits import read
from mslice_jax.plots import plot_search
from mslice_jax.search import Found, Round

from .process import keep_compiled_programs, print_anything
from .recipe import fail
from .screen import busy

UNIFORM, GREEDY, EVOLUTION = "uniform", "greedy", "evolution"


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is run.

    Attributes:
      seeds: each splits, initialises and searches anew.
      rates: the slice rates.
      channels: of the four convolutions and the dense layer.
      train, validation: how many images; the others of the 1,797 are held out.
      epochs, batch_size, lr: of the training, with Adam.
      budgets: the rates at whose FLOPs they are compared.
      generations, population: of the evolutionary search, for each budget.
      workdir: where results go.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    rates: tuple[float, ...] = (0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)
    budgets: tuple[float, ...] = (0.375, 0.5, 0.625, 0.75)
    channels: tuple[int, ...] = (16, 32, 32, 64, 64)
    train: int = 600
    validation: int = 600
    epochs: int = 40
    batch_size: int = 64
    lr: float = 3e-3
    generations: int = 6
    population: int = 16
    workdir: Path = Path("runs/search_widths")


class Network(nn.Module):
    """Four convolutions, two of stride 2, and two dense layers."""

    channels: tuple[int, ...]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Images (b, 8, 8, 1) to logits (b, 10)."""
        *convolutions, dense = self.channels
        for at, width in enumerate(convolutions):
            x = nn.Conv(width, (3, 3), strides=1 + at % 2)(x)
            x = nn.relu(nn.GroupNorm(num_groups=8)(x))
        x = nn.relu(nn.Dense(dense)(x.mean((1, 2))))
        return nn.Dense(10)(x)


Images = tuple[np.ndarray, np.ndarray]
"""Pixels (n, 8, 8, 1) and labels (n,)."""


def split(settings: Settings, seed: int) -> list[Images]:
    """Training, validation and held-out images."""
    digits = read()
    x = np.concatenate([digits.x_train, digits.x_test]).astype(np.float32)
    y = np.concatenate([digits.y_train, digits.y_test])
    order = np.random.default_rng(seed).permutation(len(x))
    ends = [settings.train, settings.train + settings.validation]
    x = (x - digits.mean) / digits.std
    return [(x[part], y[part]) for part in np.split(order, ends)]


def trained(settings: Settings, images: Images, seed: int) -> ms.Sliceable:
    """The network, trained at the widest, the narrowest, and two mixed widths.

    The mixed ones are drawn anew in every step, with a rate of its own for each layer,
    as AutoSlim trains. All four are masks of the full network, so there is one program.
    """
    x, y = images
    model = Network(settings.channels)
    # One image, so that FLOPs are those of one.
    variables = model.init(jax.random.key(seed), x[:1])
    net = ms.upgrade(model, variables, x[:1], rates=settings.rates)
    per_epoch = len(x) // settings.batch_size
    steps = settings.epochs * per_epoch
    optimizer = optax.adam(optax.cosine_decay_schedule(settings.lr, steps))

    @jax.jit
    def step(variables: Any, state: Any, masks: Any, x: Any, y: Any) -> Any:
        def loss(variables: Any, mask: Any) -> jax.Array:
            kept = net.replace(jax.tree.map(jnp.multiply, variables, mask))
            logits = ms.slice_apply(kept, x, 1.0)
            losses = optax.losses.softmax_cross_entropy_with_integer_labels(logits, y)
            return losses.mean()

        each = [jax.grad(loss)(variables, mask) for mask in masks]
        slopes = jax.tree.map(lambda *slope: sum(slope), *each)
        updates, state = optimizer.update(slopes, state, variables)
        return optax.apply_updates(variables, updates), state

    rng = np.random.default_rng(seed)
    variables, state = net.variables, optimizer.init(net.variables)
    for at in range(steps):
        if at % per_epoch == 0:
            order = rng.permutation(len(x))
        here = order[at % per_epoch :: per_epoch][: settings.batch_size]
        drawn = rng.choice(settings.rates, size=(2, len(net.plan.groups)))
        mixed = [dict(zip(net.plan.groups, map(float, r), strict=True)) for r in drawn]
        masks = [
            net.plan.mask(net.variables, rate)
            for rate in (1.0, settings.rates[0], *mixed)
        ]
        variables, state = step(variables, state, masks, x[here], y[here])
    return net.replace(variables)


def loss_and_accuracy(images: Images) -> Callable[[ms.Sliceable, Any], Any]:
    """(network, rate) -> (mean cross-entropy, accuracy)."""
    x, y = map(jnp.asarray, images)

    def of(net: ms.Sliceable, rate: Any) -> tuple[jax.Array, jax.Array]:
        logits = ms.slice_apply(net, x, rate)
        losses = optax.losses.softmax_cross_entropy_with_integer_labels(logits, y)
        return losses.mean(), (logits.argmax(-1) == y).mean()

    return of


def searched(
    settings: Settings, net: ms.Sliceable, images: Images, seed: int, console: Console
) -> tuple[Found, dict[str, dict[float, Any]]]:
    """The greedy search, and what each way chooses for each budget: a rate's FLOPs."""
    measure = loss_and_accuracy(images)
    work = ms.report(net).to_dict()["contraction_flops"]
    budgets = {rate: work[str(rate)] for rate in settings.budgets}

    def evaluate(net: ms.Sliceable, rate: Any) -> jax.Array:
        return -measure(net, rate)[0]

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


class Bar:
    """Rounds, the best score and the time left; nothing but a line off a terminal."""

    def __init__(self, console: Console, what: str):
        self._console, self._what = console, what
        self._progress = Progress(
            TextColumn(what),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[about]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task(what, total=1.0, about="")
        self._last: Round | None = None

    def __enter__(self) -> "Bar":
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()
        if (last := self._last) is not None:
            self._console.print(f"{self._what}: {self._about(last)}", highlight=False)

    def __call__(self, round_: Round) -> None:
        """Moves the bar."""
        self._last = round_
        self._progress.update(
            self._task, completed=round_.done, about=self._about(round_)
        )

    @staticmethod
    def _about(round_: Round) -> str:
        kept = round_.kept
        return (
            f"round {round_.number}, {round_.seen} networks, "
            f"{kept.cost / 1e3:.0f} kFLOPs, loss {-kept.score:.4f}"
        )


def show(console: Console, results: dict[str, Any]) -> None:
    """The means over the seeds: a row for each budget."""
    table = Table(
        title="Held-out images: loss, and accuracy in %, at the FLOPs of each width",
        title_justify="left",
        caption=f"Means of seeds {results['seeds']}; in brackets in how many of them "
        "the loss is below that of uniform widths.",
        caption_justify="left",
    )
    for column in ("r", "kFLOPs", UNIFORM, GREEDY, EVOLUTION):
        table.add_column(column, justify="right")
    for rate, flops in results["flops"].items():
        cells = []
        for way in (UNIFORM, GREEDY, EVOLUTION):
            each = [seed[way][rate] for seed in results["held_out"]]
            loss = statistics.mean(one["loss"] for one in each)
            accuracy = statistics.mean(one["accuracy"] for one in each)
            cells.append(f"{loss:.4f}  {100 * accuracy:.2f}")
            if way != UNIFORM:
                wins = sum(
                    one["loss"] < seed[UNIFORM][rate]["loss"]
                    for one, seed in zip(each, results["held_out"], strict=True)
                )
                cells[-1] += f" ({wins})"
        table.add_row(rate, f"{flops / 1e3:.0f}", *cells)
    console.print(table)


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
    results: dict[str, Any] = {
        "seeds": list(settings.seeds),
        "held_out": [],
        "chosen": [],
        "searches": [],
    }
    try:
        if not settings.seeds or not set(settings.budgets) <= set(settings.rates):
            raise ValueError("expected at least one seed, and budgets that are rates.")
        settings.workdir.mkdir(parents=True, exist_ok=True)
        for seed in settings.seeds:
            train, validation, held_out = split(settings, seed)
            with busy(console, f"Seed {seed}: training"):
                net = trained(settings, train, seed)
            greedy, chosen = searched(settings, net, validation, seed, console)
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
            measure = loss_and_accuracy(held_out)
            found: dict[str, Any] = {}
            with busy(console, "Measuring on held-out images"):
                for way, each in chosen.items():
                    found[way] = {}
                    for rate, one in each.items():
                        loss, accuracy = map(float, measure(net, one))
                        about = {"loss": loss, "accuracy": accuracy}
                        found[way][str(rate)] = about
            results["held_out"].append(found)
            results["chosen"].append(chosen)
            results["searches"].append(greedy.to_dict())
    except (ValueError, OSError) as error:
        return fail(error, 2)
    (settings.workdir / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    show(console, results)
    console.print(f"Results and picture are in {settings.workdir}.", highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
