"""What came out, of all seeds: as data, as a table, and as a picture."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from mslice_jax.core.rates import rate_key

AS_IS, CALIBRATED, DISTILLED = "as it is", "calibrated", "distilled"

Scores = dict[str, dict[float, np.ndarray]]
"""By row and rate the share of each example that is right, (n,)."""


def interval(
    a: np.ndarray, b: np.ndarray, *, draws: int = 10_000, seed: int = 0
) -> tuple[float, float, float]:
    """The mean of a - b, and its 95 % interval: a bootstrap over examples, paired.

    Args:
      a, b: (n,), of the same examples.
      draws: how often the examples are drawn anew.
      seed: of the draws.
    """
    difference = np.asarray(a, float) - b
    rng = np.random.default_rng(seed)
    means = [rng.choice(difference, len(difference)).mean() for _ in range(draws)]
    low, high = np.percentile(means, (2.5, 97.5))
    return float(difference.mean()), float(low), float(high)


def results(
    accuracy: Mapping[int, Scores], agreement: Mapping[int, Scores]
) -> dict[str, Any]:
    """What is written down, of all seeds: means of every row, and differences."""
    seeds = list(accuracy)
    rows, rates = list(accuracy[seeds[0]]), list(accuracy[seeds[0]][AS_IS])
    rates.sort(reverse=True)

    def means(of: Mapping[int, Scores], name: str, rate: float) -> list[float]:
        return [round(float(of[seed][name][rate].mean()), 4) for seed in seeds]

    best = "by activations"
    pairs = [(best, "by l1"), (best, CALIBRATED if CALIBRATED in rows else AS_IS)]
    return {
        "seeds": seeds,
        "held_out": len(accuracy[seeds[0]][AS_IS][rates[0]]),
        "rows": {
            name: {
                rate_key(rate): {
                    "accuracy": means(accuracy, name, rate),
                    "agreement": means(agreement, name, rate),
                }
                for rate in rates
            }
            for name in rows
        },
        "differences": [
            {
                "of": a,
                "minus": b,
                "rate": rate,
                "seed": seed,
                **dict(
                    zip(
                        ("mean", "low", "high"),
                        interval(accuracy[seed][a][rate], accuracy[seed][b][rate]),
                        strict=True,
                    )
                ),
            }
            for a, b in pairs
            for rate in rates
            if rate < 1
            for seed in seeds
        ],
    }


def rows(found: Mapping[str, Any]) -> list[list[str]]:
    """The table in text, its head first: means over seeds, in percent.

    Accuracy, and agreement with the original in brackets.
    """
    rates = list(found["rows"][AS_IS])

    def text(cell: Mapping[str, Any]) -> str:
        accuracy, agreement = (
            100 * np.mean(cell[name]) for name in ("accuracy", "agreement")
        )
        return f"{accuracy:.1f} ({agreement:.1f})"

    return [["", *(f"r = {float(rate):g}" for rate in rates)]] + [
        [name, *(text(row[rate]) for rate in rates)]
        for name, row in found["rows"].items()
    ]


def differences(found: Mapping[str, Any]) -> list[str]:
    """The differences and their intervals, a line each."""
    return [
        f"{each['of']} - {each['minus']}, r = {each['rate']:g}, seed {each['seed']}: "
        f"{100 * each['mean']:+.1f} points "
        f"[{100 * each['low']:+.1f}, {100 * each['high']:+.1f}]"
        for each in found["differences"]
    ]


def show(console: Console, title: str, found: Mapping[str, Any]) -> None:
    """Table and differences on the screen."""
    head, *rest = rows(found)
    table = Table(title=title, title_justify="left")
    for at, column in enumerate(head):
        table.add_column(column, justify="right" if at else "left")
    for row in rest:
        table.add_row(*row)
    console.print(table)
    for line in differences(found):
        console.print(line, highlight=False, markup=False)


def plot(path: Path, title: str, found: Mapping[str, Any]) -> None:
    """A line for each row: accuracy over the rate."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.0), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name, row in found["rows"].items():
        x = [float(rate) for rate in row]
        y = [100 * np.mean(cell["accuracy"]) for cell in row.values()]
        axes.plot(x, y, marker="o", label=name)
    axes.grid(color="#e5e5e5")
    axes.legend(fontsize=8)
    axes.set_xlabel("slice rate")
    axes.set_ylabel("accuracy on held-out examples, %")
    axes.set_title(title, fontsize=11, loc="left")
    figure.savefig(path)
