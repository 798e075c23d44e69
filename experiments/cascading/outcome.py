"""What a cascade found, stage by stage; of all seeds, as data and as a table."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from mslice_jax.serve import Ranking

from ..consistency import compare

SLICED, APART = "sub-networks", "trained apart"


def measured(found: Sequence[Ranking], labels: np.ndarray) -> dict[str, list[float]]:
    """Precision and aggregate recall after each stage, over all queries.

    A query asks for a category, its items are relevant. An item that a stage drops is
    lost, so aggregate recall counts the relevant items that all stages so far kept.

    Args:
      found: of query q, which asks for category q.
      labels: (n,), the category of each item.

    Example:
      >>> kept = [np.array([0, 1, 2]), np.array([0])]
      >>> one = Ranking(kept[-1], np.ones(1), tuple(kept), (4, 3))
      >>> measured([one], np.array([0, 0, 1, 0]))["recall"]  # of three
      [0.6666666666666666, 0.3333333333333333]
    """
    stages = range(len(found[0].survivors))
    relevant = sum(int((labels == q).sum()) for q in range(len(found)))
    hits = [
        sum(int((labels[each.survivors[i]] == q).sum()) for q, each in enumerate(found))
        for i in stages
    ]
    left = [sum(len(each.survivors[i]) for each in found) for i in stages]
    return {
        "precision": [hit / max(n, 1) for hit, n in zip(hits, left, strict=True)],
        "recall": [hit / relevant for hit in hits],
        "left": [n / len(found) for n in left],
        "scored": [float(np.mean([each.scored[i] for each in found])) for i in stages],
    }


def agreement(labels: np.ndarray, classes: Mapping[float, np.ndarray]) -> list[float]:
    """Of every two neighbouring rates the share of items put into one category.

    As `experiments.consistency` measures it for trained runs.

    Args:
      labels: (n,), the category of each item.
      classes: rate -> (n,), the predicted categories; ascending rates.
    """
    named = {f"r = {rate:g}": predicted for rate, predicted in classes.items()}
    found = compare(labels, named).agreement
    return [float(found[i, i + 1]) for i in range(len(named) - 1)]


def summary(seeds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation over seeds of everything, in the same tree.

    Example:
      >>> summary([{"recall": [0.5, 1.0]}, {"recall": [0.7, 1.0]}])["recall"]["mean"]
      [0.6, 1.0]
    """
    first = seeds[0]
    found = {}
    for name in first:
        values = [each[name] for each in seeds]
        if isinstance(first[name], Mapping):
            found[name] = summary(values)
        else:
            found[name] = {
                "mean": np.round(np.mean(values, axis=0), 6).tolist(),
                "sd": np.round(np.std(values, axis=0, ddof=len(seeds) > 1), 6).tolist(),
            }
    return found


def show(console: Console, found: Mapping[str, Any], rates: Sequence[float]) -> None:
    """A table for each way to keep, and one of the agreement.

    Args:
      console: where to.
      found: from `summary`.
      rates: of the stages.
    """
    for way, title in (
        ("filter", "Filter: kept is what the stage says is of the category"),
        ("rank", "Ranking: a fixed number is kept, so the FLOPs are the same"),
    ):
        table = Table(title=title, title_justify="left")
        table.add_column("after stage")
        for who in (SLICED, APART):
            for what in ("precision", "recall"):
                table.add_column(f"{who}\n{what}", justify="right")
        for i, rate in enumerate(rates):
            cells = [
                _percent(found[way][who][what], i)
                for who in (SLICED, APART)
                for what in ("precision", "recall")
            ]
            table.add_row(f"r = {rate:g}", *cells)
        flops = [found[way][who]["flops"]["mean"] for who in (SLICED, APART)]
        cells = [f"{flops[0]:,.0f}", "", f"{flops[1]:,.0f}", ""]
        table.add_row("FLOPs", *cells)
        console.print(table)
    table = Table(title="Items put into one category by both", title_justify="left")
    table.add_column("")
    for a, b in zip(rates, rates[1:], strict=False):
        table.add_column(f"{a:g} and {b:g}", justify="right")
    for who in (SLICED, APART):
        cells = [_percent(found["agreement"][who], i) for i in range(len(rates) - 1)]
        table.add_row(who, *cells)
    console.print(table)
    console.print(
        "%, mean ± standard deviation over seeds; recall is aggregate recall.",
        highlight=False,
    )


def _percent(value: Mapping[str, Any], i: int) -> str:
    return f"{100 * value['mean'][i]:.1f} ± {100 * value['sd'][i]:.1f}"
