"""A cascade of sub-networks against one of networks that were trained apart.

    python -m experiments.cascade_ranking
    python -m experiments.cascade_ranking --dataset cifar10 --data-dir DIR --epochs 100

The paper's setting (Model Slicing, Cai et al., PVLDB 2019, simulation of cascade
ranking): items of ten categories, a query asks for the items of one. Every stage looks
at what the stage before left, with a wider network. It keeps what it says is of the
category (filter), or a fixed number, the best (ranking: the same FLOPs by
construction). After every stage: precision, of what is left the share that is
relevant; and aggregate recall, of all that is relevant the share that is left. Beside
it the agreement: the share of the items that the networks of two stages put into the
same category.

One network is trained sliced, all rates in every update; and for each rate one alone,
from other initial weights, as many updates. Widths, and FLOPs for a candidate, are the
same.

The default, drawn items of a random network with noise and three seeds, takes 30 s of
processor time on one core (AMD EPYC). Expected: neighbouring sub-networks agree on 90
to 92 % of the items, networks trained apart on 84 to 85 %. So the filter ends with an
aggregate recall of 58 % against 54 %, at a precision of 73 % against 75 % and 3 % more
FLOPs, because more is left; the ranking ends alike, with 66 % (`experiments/LOG.md`).
Digits have only 355 held-out images, 35 for a query: no difference of few points shows.
Images train a VGG of the original, which takes far more time and epochs; no result of
it is known yet but that 10 epochs of digits are too few.

It leaves results.json and cascade.png in the workdir (runs/cascade_ranking).
"""

import dataclasses
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from rich.console import Console

import mslice_jax as ms
from mslice_jax.core.rates import check_rates
from mslice_jax.data import train_batches
from mslice_jax.serve import Above, Cascade
from mslice_jax.train import TrainState, make_train_step

from .cascading.items import Items, Relevance, drawn, images
from .cascading.outcome import APART, SLICED, agreement, measured, show, summary
from .cascading.picture import plot
from .kind import initialize
from .process import keep_compiled_programs, print_anything
from .recipe import fail
from .screen import busy


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What is run.

    Attributes:
      dataset: items that are drawn; or images.
      data_dir: of images, see `mslice_jax.data.load`.
      rates: of the stages.
      shares: of the ranking: how much of all items is left after each stage.
      seeds: each initializes and trains all networks anew.
      epochs: passes over the training items.
      batch_size: items of an update.
      lr: learning rate of Adam, at its highest; it falls as a cosine.
      width: hidden units of the network for drawn items.
      sharpness: how sure the categories of drawn items are; less is more noise.
      depth, widen: of the VGG for images.
      candidates: how many held-out items a query ranks; all if there are fewer.
      workdir: where results go.
    """

    dataset: Literal["drawn", "digits", "cifar10", "cifar100", "npz"] = "drawn"
    data_dir: Path | None = None
    rates: tuple[float, ...] = (0.375, 0.5, 0.75, 1.0)
    shares: tuple[float, ...] = (0.5, 0.25, 0.15, 0.1)
    seeds: tuple[int, ...] = (0, 1, 2)
    epochs: int = 25
    batch_size: int = 256
    lr: float = 3e-3
    width: int = 128
    sharpness: float = 6.0
    depth: int = 13
    widen: float = 0.25
    candidates: int = 4000
    workdir: Path = Path("runs/cascade_ranking")


def main(args: list[str] | None = None) -> int:
    """The command; returns the exit code: 0, or 2 for a setting that does not fit."""
    print_anything()
    began = time.perf_counter()
    console = Console()
    keep_compiled_programs()
    try:
        settings = tyro.cli(
            Settings,
            prog="python -m experiments.cascade_ranking",
            description="A cascade of sub-networks against one of networks apart.",
            args=args,
        )
        check(settings)
        items = load(settings)
        if settings.batch_size > (most := len(items.x_train)):
            raise ValueError(f"--batch-size is at most {most}, the training items.")
        settings.workdir.mkdir(parents=True, exist_ok=True)
    except (ValueError, OSError) as error:
        return fail(error, 2)
    try:
        seeds = Comparison(settings, items).run(console)
    except KeyboardInterrupt:
        print("\nInterrupted.")
        return 130
    found = summary(seeds)
    results = {
        "settings": json.loads(json.dumps(dataclasses.asdict(settings), default=str)),
        "candidates": min(settings.candidates, len(items.x_test)),
        "queries": items.classes,
        "summary": found,
        "seeds": seeds,
        "seconds": round(time.perf_counter() - began, 1),
    }
    path = settings.workdir / "results.json"
    path.write_text(json.dumps(results, indent=2) + "\n")
    title = f"{items.classes} queries on {results['candidates']} items, "
    title += f"{settings.dataset}, {len(seeds)} seeds"
    plot(settings.workdir / "cascade.png", found, settings.rates, title=title)
    show(console, found, settings.rates)
    console.print(f"Numbers and picture are in {settings.workdir}.", highlight=False)
    return 0


def check(settings: Settings) -> None:
    """Raises ValueError for settings that do not fit."""
    check_rates(settings.rates)
    if list(settings.rates) != sorted(settings.rates):
        raise ValueError(f"--rates ascend; got {settings.rates}.")
    falling = sorted(settings.shares, reverse=True) == list(settings.shares)
    fits = len(settings.shares) == len(settings.rates) and falling
    if not fits or not 0 < settings.shares[-1] <= settings.shares[0] <= 1:
        raise ValueError(
            "--shares are one in (0, 1] for each rate, and none is larger than the "
            f"one before; got {settings.shares} for the rates {settings.rates}."
        )
    for name in ("epochs", "batch_size", "candidates", "width"):
        if getattr(settings, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} is at least 1.")
    if not settings.seeds or min(settings.seeds) < 0:
        raise ValueError("--seeds are numbers from 0, one at least.")


def load(settings: Settings) -> Items:
    """The items that the flags name; DataError if they are not there."""
    if settings.dataset == "drawn":
        return drawn(width=settings.width, sharpness=settings.sharpness)
    return images(
        settings.dataset,
        settings.data_dir,
        depth=settings.depth,
        widen=settings.widen,
    )


class Comparison:
    """Networks and cascades of the two kinds; programs are compiled once for all seeds.

    Args:
      settings: of the command.
      items: to train on, and to rank.
    """

    def __init__(self, settings: Settings, items: Items) -> None:
        self.settings, self.items = settings, items
        self.x = np.asarray(items.transform(items.x_test[: settings.candidates]))
        self.labels = items.y_test[: settings.candidates]
        self.model = Relevance(items.body)
        updates = settings.epochs * (len(items.x_train) // settings.batch_size)
        self.optimizer = optax.adam(optax.cosine_decay_schedule(settings.lr, updates))
        self.updates = updates
        self.step = make_train_step(self.optimizer, transform=items.train_transform)
        self.predict = ms.jit(_predicted, static_argnames="rate")
        self.cascades: dict[tuple[str, str], Cascade] = {}

    def run(self, console: Console) -> list[dict[str, Any]]:
        """What each seed found."""
        found = []
        for seed in self.settings.seeds:
            with busy(console, f"Seed {seed}: training"):
                nets = self.networks(seed)
            with busy(console, f"Seed {seed}: cascades"):
                found.append(self.compared(nets))
        return found

    def networks(self, seed: int) -> Mapping[str, Mapping[float, ms.Sliceable]]:
        """For each rate a network that was trained sliced, and one trained alone."""
        rates = self.settings.rates
        one = self.trained(rates, seed=seed, start=0)
        alone = {
            rate: self.trained((rate,), seed=seed, start=1 + i)
            for i, rate in enumerate(rates)
        }
        return {SLICED: dict.fromkeys(rates, one), APART: alone}

    def trained(
        self, rates: tuple[float, ...], *, seed: int, start: int
    ) -> ms.Sliceable:
        """A network, trained at these rates in every update.

        Args:
          rates: of an update.
          seed: of the order of the items; with `start`, of all else.
          start: which initial weights.
        """
        items, settings = self.items, self.settings
        first, key = jax.random.split(jax.random.fold_in(jax.random.key(seed), start))
        x = jnp.zeros((settings.batch_size, *self.x.shape[1:]))
        variables = initialize(self.model, first, x)
        net = ms.upgrade(self.model, variables, x, rates=settings.rates)
        state = TrainState.create(net, self.optimizer, key=key)
        batches = train_batches(
            items.x_train, items.y_train, settings.batch_size, seed=seed
        )
        for _ in range(self.updates):
            state, _ = self.step(state, next(batches), tuple(reversed(rates)))
        return state.net

    def compared(self, nets: Mapping[str, Mapping[float, Any]]) -> dict[str, Any]:
        """Both ways to keep, and the agreement, of both kinds of networks."""
        found: dict[str, Any] = {"filter": {}, "rank": {}, "agreement": {}}
        for who, each in nets.items():
            for way in ("filter", "rank"):
                cascade = self.cascade(who, way, each)
                queries = np.arange(self.items.classes, dtype=np.int32)
                rankings = [
                    cascade(self.x, np.full(len(self.x), q, np.int32)) for q in queries
                ]
                flops = [cascade.flops(*ranking.scored) for ranking in rankings]
                found[way][who] = {
                    **measured(rankings, self.labels),
                    "flops": float(np.mean(flops)),
                }
            classes = {rate: self.classes(net, rate) for rate, net in each.items()}
            found["agreement"][who] = agreement(self.labels, classes)
            found.setdefault("accuracy", {})[who] = [
                float(np.mean(predicted == self.labels))
                for predicted in classes.values()
            ]
        return found

    def cascade(self, who: str, way: str, nets: Mapping[float, Any]) -> Cascade:
        """The cascade, with the weights of these networks."""
        if (who, way) in self.cascades:
            weights = {rate: net.variables for rate, net in nets.items()}
            self.cascades[who, way].swap(weights)
            return self.cascades[who, way]
        count = len(self.x)
        shares = self.settings.shares
        ranked = [max(1, int(share * count)) for share in shares]
        keeps = [Above(0.0)] * len(shares) if way == "filter" else ranked
        made = Cascade(
            nets,
            list(zip(nets, keeps, strict=True)),
            jax.ShapeDtypeStruct((1, *self.x.shape[1:]), self.x.dtype),
            jax.ShapeDtypeStruct((1,), np.int32),
            candidates=count,
        )
        self.cascades[who, way] = made.prepare()
        return made

    def classes(self, net: Any, rate: float) -> np.ndarray:
        """The categories that a network puts the items into."""
        parts = [self.x[i : i + 1000] for i in range(0, len(self.x), 1000)]
        return np.concatenate([self.predict(net, x, rate=rate) for x in parts])


def _predicted(net: ms.Sliceable, x: Any, *, rate: float) -> jax.Array:
    return jnp.argmax(ms.slice_apply(net, x, rate), axis=-1)


if __name__ == "__main__":
    sys.exit(main())
