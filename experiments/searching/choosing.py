"""Widths are chosen for each budget, by greedy slimming and from there by evolution."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

import mslice_jax as ms
from mslice_jax.search import Found, Round

from .images import Images
from .outcome import EVOLUTION, GREEDY, UNIFORM, outcomes


def searched(
    net: ms.Sliceable,
    images: Images,
    budgets: Mapping[float, float],
    *,
    generations: int,
    population: int,
    seed: int,
    folder: Path,
    console: Console,
) -> tuple[Found, dict[str, dict[float, dict[str, float]]]]:
    """The greedy search, and what each way chooses for each budget.

    Args:
      net: trained at mixed widths.
      images: to search on.
      budgets: the FLOPs of rates.
      generations, population, seed: of the evolutionary search, for each budget.
      folder: for a file of each search.
      console: where bars are.
    """

    def evaluate(net: ms.Sliceable, rate: Any) -> float:
        return -float(outcomes(net, rate, images)[0].mean())

    with Bar(console, "greedy") as bar:
        greedy = ms.search(
            net,
            evaluate,
            flops=min(budgets.values()),
            path=folder / "greedy.json",
            progress=bar,
        )
    chosen: dict[str, dict[float, dict[str, float]]] = {
        UNIFORM: {},
        GREEDY: {},
        EVOLUTION: {},
    }
    best: list[Any] = []  # of the last budget, which fits the next
    for rate, limit in budgets.items():
        chosen[UNIFORM][rate] = dict.fromkeys(net.plan.groups, rate)
        chosen[GREEDY][rate] = dict(greedy.within(limit).mapping)
        with Bar(console, f"evolution, FLOPs of r = {rate:g}") as bar:
            found = ms.search(
                net,
                evaluate,
                flops=limit,
                method="evolution",
                start=[chosen[GREEDY][rate], *best],
                generations=generations,
                population=population,
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
