"""Table, picture and numbers of a comparison whose runs are finished."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from rich import box
from rich.console import Console
from rich.table import Table

from ..measure import ACCURACY, Quantity
from . import outcome, results
from .picture import plot
from .schemes import Member

RESULTS, TABLE, PICTURE = "results.json", "results.md", "schemes.png"


def write(
    quantity: Quantity,
    seeds: Sequence[int],
    runs: Sequence[Member],
    workdir: Path,
    console: Console,
) -> None:
    """Write results, table and picture of finished runs, and show the table.

    Args:
      quantity: accuracy or perplexity.
      seeds: of the runs.
      runs: all of the comparison, in the order of the table.
      workdir: its folder.
      console: shows the table.
    """
    found = results.cells(runs, quantity.name)
    further = {
        name: results.cells(runs, name) for name in results.further(runs, quantity.name)
    }
    summary = cast(dict[str, Any], results.summary(runs[0]))
    seconds, flops = results.seconds(runs), results.flops(runs)
    numbers = {
        **{name: summary[name] for name in ("recipe", "dataset", "model", "epochs")},
        "quantity": quantity.name,
        "seeds": list(seeds),
        "train_seconds": {name: round(took, 1) for name, took in seconds.items()},
        "training_flops": {
            name: each if math.isfinite(each) else None for name, each in flops.items()
        },
        "schemes": outcome.as_json(found),
        **{name: outcome.as_json(each) for name, each in further.items()},
    }
    (workdir / RESULTS).write_text(json.dumps(numbers, indent=2) + "\n")

    scale = 100.0 if quantity is ACCURACY else 1.0
    axis = f"{quantity.name}{', %' if quantity is ACCURACY else ''}, held-out examples"
    title = f"{summary['model']} on {summary['dataset']}, {summary['epochs']} epochs"
    passes = {run.scheme: run.passes for run in runs}
    cost = {name: each / flops[runs[0].scheme] for name, each in flops.items()}
    table = outcome.rows(found, passes, cost, scale=scale)
    caption = _caption(f"{title}; {axis}", seeds, found)
    written = outcome.markdown(table, caption)
    for name, each in further.items():
        if name == "loss":
            rows = outcome.rows(each, passes, cost, digits=4)
        else:
            rows = outcome.rows(each, passes, cost, scale=scale)
        said = "loss, nats" if name == "loss" else name.replace("_", " ")
        written += "\n" + outcome.markdown(rows, f"The same, {said}.")
    (workdir / TABLE).write_text(written)
    plot(workdir / PICTURE, found, title=title, axis=axis, scale=scale)
    _show(table, title, caption, console)
    console.print(
        f"Table, picture and numbers are in {workdir}.", highlight=False, soft_wrap=True
    )


def _caption(
    what: str,
    seeds: Sequence[int],
    found: dict[str, dict[float, outcome.Cell]],
) -> str:
    several = len(seeds) > 1
    caption = f"{what}; seeds {', '.join(map(str, seeds))}: mean"
    caption += " ± standard deviation." if several else "."
    cells = [cell for row in found.values() for cell in row.values()]
    if any(cell.difference is not None for cell in cells):
        caption += " In brackets: more than separately trained networks have"
        caption += ", ± standard error." if several else "."
    return caption


def _show(
    table: Sequence[Sequence[str]], title: str, caption: str, console: Console
) -> None:
    """The table, close, to fit into 80 columns."""
    shown = Table(
        title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False
    )
    shown.caption, shown.caption_justify = caption, "left"
    for scheme, _, _, *row in table:
        if not shown.columns:
            shown.add_column(scheme, max_width=24)
            for rate in row:
                shown.add_column(rate, justify="right", no_wrap=True)
            continue
        close = (text.replace(" (", "\n(").replace(" ± ", "±") for text in row)
        shown.add_row(scheme, *close)
    console.print(shown)
