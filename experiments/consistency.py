"""How far the predictions of neighbouring rates agree.

    python -m experiments.consistency runs/cifar_resnet
    python -m experiments.consistency runs/compare_schedules/independent-*/seed-0

For every two rates of a finished run: the share of held-out examples of which both
predict the same class (of a text: of which both find the same next token likeliest),
and of the errors of the one the share that the other makes too. A cascade of rates, in
which a narrow one decides what the next one sees, loses least where both are high (the
paper calls it consistency). Several runs are compared with each other: separately
trained networks of other widths, say. They need the same held-out examples.

It shows the table, and leaves consistency.json and consistency.png in the folder of
the (first) run, or in that of --output.
"""

import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from mslice_jax.train import CheckpointError

from . import prepare
from .comparison.flags import one_line
from .evaluate import Source, open_run
from .predictions import Predictions
from .process import keep_compiled_programs, print_anything
from .recipe import fail
from .screen import busy
from .settings import Place, local

RESULTS, PICTURE = "consistency.json", "consistency.png"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags(Source):
    """Flags of the command."""

    workdirs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """The folders of one or more runs, with settings.json and checkpoints."""
    output: Place = None
    """Folder for numbers and picture; that of the first run if not given."""


@dataclasses.dataclass(frozen=True)
class Consistency:
    """What two networks, of n, have in common; in [0, 1].

    Attributes:
      names: of the networks, (n,).
      accuracy: of each, (n,).
      agreement: share of the examples with the same predicted class, (n, n).
      errors: of the errors of a row's network the share that a column's network makes
        too, whatever it predicts, (n, n); NaN for a network without errors.
    """

    names: tuple[str, ...]
    accuracy: np.ndarray
    agreement: np.ndarray
    errors: np.ndarray

    def as_json(self) -> dict[str, Any]:
        """Plain values; null for NaN."""

        def plain(values: Any) -> Any:
            if isinstance(values, list):
                return [plain(value) for value in values]
            return None if np.isnan(values) else round(values, 6)

        return {
            "networks": list(self.names),
            **{
                name: plain(getattr(self, name).tolist())
                for name in ("accuracy", "agreement", "errors")
            },
        }


def compare(labels: np.ndarray, classes: dict[str, np.ndarray]) -> Consistency:
    """What networks have in common.

    Args:
      labels: (n,), the right classes.
      classes: name -> (n,), the predicted ones.

    Example:
      >>> right = np.array([0, 1, 2, 3])
      >>> one, other = np.array([0, 1, 0, 0]), np.array([0, 1, 1, 3])
      >>> found = compare(right, {"one": one, "other": other})
      >>> found.agreement.tolist(), found.errors.tolist()
      ([[1.0, 0.5], [0.5, 1.0]], [[1.0, 0.5], [1.0, 1.0]])
    """
    predicted = np.stack(list(classes.values()))
    wrong = predicted != labels
    pairs = [(a, b) for a in range(len(predicted)) for b in range(len(predicted))]
    square = (len(predicted), len(predicted))
    agreement = [np.mean(predicted[a] == predicted[b]) for a, b in pairs]
    errors = [
        np.mean(wrong[b][wrong[a]]) if wrong[a].any() else np.nan for a, b in pairs
    ]
    return Consistency(
        tuple(classes),
        1 - wrong.mean(axis=1),
        np.array(agreement).reshape(square),
        np.array(errors).reshape(square),
    )


def main(
    args: Sequence[str] | None = None, recipe: prepare.Recipe | None = None
) -> int:
    """The command; returns the exit code: 0, or 2 for a setting that does not fit."""
    print_anything()
    console = Console()
    keep_compiled_programs()
    try:
        flags = one_line(
            lambda: tyro.cli(
                Flags,
                prog="python -m experiments.consistency",
                description="How far the predictions of neighbouring rates agree.",
                args=args,
            )
        )
        if not flags.workdirs:
            raise ValueError("expected the folder of a run, such as runs/cifar_resnet.")
        output = local(flags.output or flags.workdirs[0], "--output")
        labels, classes = predictions(flags, console, recipe)
        found = compare(labels, classes)
        output.mkdir(parents=True, exist_ok=True)
        numbers = {"examples": len(labels), **found.as_json()}
        (output / RESULTS).write_text(json.dumps(numbers, indent=2) + "\n")
        plot(output / PICTURE, found, title=_title(flags.workdirs))
    except (ValueError, OSError, CheckpointError) as error:
        return fail(error, 2)
    except KeyboardInterrupt:
        print("\nInterrupted.")
        return 130
    show(console, _title(flags.workdirs), found, len(labels))
    console.print(f"Numbers and picture are in {output}.", highlight=False)
    return 0


def predictions(
    flags: Flags, console: Console, recipe: prepare.Recipe | None
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Labels, and the predicted classes of every rate of every run."""
    several = len(flags.workdirs) > 1
    above = os.path.commonpath([path.absolute() for path in flags.workdirs])
    labels: np.ndarray | None = None
    classes: dict[str, np.ndarray] = {}
    twice = {path for path in flags.workdirs if flags.workdirs.count(path) > 1}
    if twice:
        raise ValueError(f"{min(twice)} is given twice.")
    for workdir in flags.workdirs:
        run = open_run(workdir, flags, recipe)
        with busy(console, f"Predictions of {workdir}"):
            found: Predictions = run.recipe.kind.predictions(run.settings, run.dataset)(
                run.net
            )
        if labels is not None and not np.array_equal(labels, found.labels):
            raise ValueError(
                f"{workdir} has other held-out examples than {flags.workdirs[0]}. "
                "Compare runs on the same data."
            )
        labels = found.labels
        name = f"{os.path.relpath(workdir.absolute(), above)}, " if several else ""
        for rate in sorted(found.classes, reverse=True):
            classes[f"{name}r = {rate:g}"] = found.classes[rate]
    assert labels is not None  # there is at least one folder
    return labels, classes


def _title(workdirs: Sequence[Path]) -> str:
    if len(workdirs) == 1:
        return str(workdirs[0])
    return os.path.commonpath(workdirs) or "several runs"


def show(console: Console, title: str, found: Consistency, examples: int) -> None:
    """The table: agreement, and shared errors in brackets, in per cent."""
    table = Table(
        title=title,
        title_justify="left",
        caption=f"%, of {examples} held-out examples: the same class predicted by row "
        "and column; in brackets, of the row's errors those that the column makes too.",
        caption_justify="left",
    )
    table.add_column("", overflow="fold")
    table.add_column("accuracy", justify="right")
    rows, columns = _headings(found)
    for name in columns:
        table.add_column(name, justify="right")
    for at, name in enumerate(rows):
        pairs = zip(found.agreement[at], found.errors[at], strict=True)
        cells = [f"{100 * same:.1f} ({_share(wrong)})" for same, wrong in pairs]
        table.add_row(name, f"{100 * found.accuracy[at]:.1f}", *cells)
    console.print(table)


def _headings(found: Consistency) -> tuple[list[str], list[str]]:
    """Of rows and columns: the names; of columns numbers, where names are long."""
    names = list(found.names)
    if max(map(len, names)) <= 10:
        return names, names
    numbers = [str(at) for at in range(1, len(names) + 1)]
    return [f"{name} ({at})" for name, at in zip(names, numbers, strict=True)], numbers


def _share(value: float) -> str:
    return "-" if np.isnan(value) else f"{100 * value:.0f}"


def plot(path: Path, found: Consistency, *, title: str) -> None:
    """Write a PNG: a heat map of the agreement, and one of the shared errors.

    Args:
      path: of the PNG.
      found: from `compare`.
      title: the line above.
    """
    # Agg directly: it needs no screen.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure

    colours = LinearSegmentedColormap.from_list(
        "shares", ["#f3f8fa", "#a8d0e2", "#2a7097", "#12384a"]
    )
    count, (rows, columns) = len(found.names), _headings(found)
    side = 0.62 * count
    names = 0.075 * max(map(len, rows))
    figure = Figure(
        figsize=(2 * side + names + 1.3, side + 1.2), dpi=160, layout="constrained"
    )
    FigureCanvasAgg(figure)
    shown = {
        "same class predicted, %": (found.agreement, "{:.1f}"),
        "errors of the row, made by the column too, %": (found.errors, "{:.0f}"),
    }
    for axes, (name, (values, form)) in zip(
        figure.subplots(1, 2, sharey=True), shown.items(), strict=True
    ):
        apart = values[~np.eye(count, dtype=bool)]
        apart = apart[~np.isnan(apart)]
        low = apart.min() if apart.size else 0.0
        axes.imshow(values, cmap=colours, vmin=low - 0.1 * (1 - low), vmax=1.0)
        for (row, column), value in np.ndenumerate(values):
            dark = value > low + 0.5 * (1 - low)
            axes.text(
                column,
                row,
                "-" if np.isnan(value) else form.format(100 * value),
                ha="center",
                va="center",
                fontsize=8,
                color="white" if dark else "#333333",
            )
        axes.set_xticks(range(count), columns, fontsize=8)
        axes.set_yticks(range(count), rows, fontsize=8)
        axes.tick_params(length=0, top=False, bottom=False)
        axes.set_xticks(np.arange(1, count) - 0.5, minor=True)
        axes.set_yticks(np.arange(1, count) - 0.5, minor=True)
        axes.grid(which="minor", color="white", linewidth=1.5)
        axes.tick_params(which="minor", length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
        axes.set_title(name, fontsize=8, loc="left", color="#333333")
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    figure.savefig(path)


if __name__ == "__main__":
    sys.exit(main())
