"""Output of a recipe: settings, progress, the table at the end.

On a screen that takes ASCII alone, rich draws bars and boxes in ASCII; the words here
are ASCII anyway.
"""

import contextlib
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from mslice_jax.profile import RateProfile
from mslice_jax.train import Progress as RunProgress
from mslice_jax.train import Watcher

from .measure import ACCURACY, Numbers, Quantity


def show_settings(console: Console, values: Mapping[str, Any]) -> None:
    """All settings that are given, in one paragraph."""
    parts = [
        f"{name} {_plain(value)}" for name, value in values.items() if value is not None
    ]
    console.print(", ".join(parts), style="dim", highlight=False, soft_wrap=True)


def busy(console: Console, what: str) -> contextlib.AbstractContextManager[Any]:
    """Show that work is under way, within: a spinner on a terminal, a line elsewhere.

    Args:
      console: where it is shown.
      what: the work, such as "Compiling".
    """
    if console.is_terminal:
        spinner = "line" if console.options.ascii_only else "dots"
        return console.status(what, spinner=spinner)
    console.print(f"{what} ...", highlight=False, soft_wrap=True)
    return contextlib.nullcontext()


class Bar(Watcher):
    """Loss, rates, images per second and time left; a line for each epoch.

    On a terminal that is a progress bar; elsewhere (a file, a pipe, a cluster's log) a
    line a minute.

    Args:
      console: where it is shown.
      epochs: length of the run.
      steps_per_epoch: batches an epoch.
      every: seconds between two lines without a terminal.
      quantity: the measurement after each epoch.
      pace: the unit of the speed, and its number per example.

    Use it as a context manager; the bar is drawn within.
    """

    def __init__(
        self,
        console: Console,
        *,
        epochs: int,
        steps_per_epoch: int,
        every: float = 60.0,
        quantity: Quantity = ACCURACY,
        pace: tuple[str, int] = ("images", 1),
    ):
        self._console = console
        self._quantity, self._pace = quantity, pace
        self._epochs, self._steps_per_epoch = epochs, steps_per_epoch
        self._every = every
        self._bar = console.is_terminal
        self._first: tuple[int, float] | None = None  # a step, and its time
        self._said = time.monotonic()
        self._progress = Progress(
            TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
            BarColumn(bar_width=8),  # the line has to fit into 80 columns
            TextColumn("{task.fields[losses]}"),
            TextColumn("{task.fields[speed]}"),
            TimeRemainingColumn(),
            console=console,
        )
        self._task = self._progress.add_task(
            "train",
            total=epochs * steps_per_epoch,
            epoch=1,
            epochs=epochs,
            losses="starting",
            speed="",
        )

    def __enter__(self) -> "Bar":
        if self._bar:
            self._progress.start()
        self._said = time.monotonic()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar:
            self._progress.stop()

    def restored(self, step: int, progress: RunProgress) -> None:
        """Print the step at which the run continues."""
        self._progress.update(self._task, completed=step)
        epochs = "1 epoch" if progress.epoch == 1 else f"{progress.epoch} epochs"
        self._print(
            f"Resumed at step {step} ({epochs} done, "
            f"{progress.train_seconds:.0f} s so far)."
        )

    def stepped(
        self, step: int, losses: dict[float, float], examples_per_second: float
    ) -> None:
        """Move the bar, or print a line if the last one is a minute old."""
        text = " ".join(
            f"r{rate:g} {losses[rate]:.2f}" for rate in sorted(losses, reverse=True)
        )
        epoch = (step - 1) // self._steps_per_epoch + 1
        what, each = self._pace
        speed = f"{each * examples_per_second:.0f} {what}/s"
        if self._bar:
            self._progress.update(
                self._task,
                completed=step,
                epoch=epoch,
                losses=f"loss {text}",
                speed=speed,
            )
            return
        now = time.monotonic()
        self._first = self._first or (step, now)
        if now - self._said < self._every:
            return
        self._said = now
        total = self._epochs * self._steps_per_epoch
        self._print(
            f"step {step} of {total}, epoch {epoch} of {self._epochs}  loss {text}  "
            f"{speed}{self._left(step, total, now)}"
        )

    def _left(self, step: int, total: int, now: float) -> str:
        """Estimated time left, in words."""
        assert self._first is not None
        since, began = self._first
        if step == since:
            return ""
        minutes = (now - began) / (step - since) * (total - step) / 60
        if minutes < 90:
            return f"  {max(round(minutes), 1)} min left"
        return f"  {minutes / 60:.1f} h left"

    def _print(self, text: str) -> None:
        self._console.print(text, highlight=False, soft_wrap=True)

    def evaluated(self, epoch: int, accuracy: dict[float, Any], loss: float) -> None:
        """One line for the epoch."""
        name, short = self._quantity.name, self._quantity.short
        values = {
            rate: found[name] if isinstance(found, Mapping) else found
            for rate, found in accuracy.items()
        }
        text = "  ".join(
            f"r{rate:g} {short(values[rate])}" for rate in sorted(values, reverse=True)
        )
        unit = self._quantity.unit
        self._print(f"epoch {epoch:3d}  loss {loss:.3f}  {name} {text}{unit}")


class TensorBoard:
    """The lines of metrics.jsonl for TensorBoard: a curve for every key.

    Args:
      folder: made if absent; a resumed run continues in it.

    Raises:
      ImportError: without tensorboardX, of the extra "tensorboard".

    Use it as a context manager; leaving it writes everything.
    """

    def __init__(self, folder: Path):
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(folder))

    def __enter__(self) -> "TensorBoard":
        return self

    def __exit__(self, *exception: object) -> None:
        self._writer.close()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add a point to each of the curves, at `step`."""
        for name, value in values.items():
            if value is not None:
                self._writer.add_scalar(name, value, step)


def show_table(
    console: Console,
    title: str,
    numbers: Numbers,
    profiles: Mapping[float, RateProfile],
    *,
    device: str,
    quantity: Quantity = ACCURACY,
) -> None:
    """The result: a row for each rate, the widest first.

    Args:
      console: where it is shown.
      title: the line above.
      numbers: accuracy and loss of each rate on the held-out examples.
      profiles: the cost of each rate for one example.
      device: where the latency was measured.
      quantity: the number beside the loss.
    """
    name = quantity.name
    table = Table(
        title=title,
        title_justify="left",
        caption=f"For one {quantity.example}: all FLOPs of a call; latency on "
        f"{device}, batch of 1. {name.capitalize()} and loss are of the held-out "
        "examples.",
        caption_justify="left",
    )
    for column in ("rate", name, "loss", "parameters", "FLOPs", "latency"):
        table.add_column(column, justify="right")
    for rate, value in sorted(quantity.of(numbers).items(), reverse=True):
        cost = profiles[rate]
        table.add_row(
            f"{rate:g}",
            quantity.text(value),
            f"{numbers.loss[rate]:.3f}",
            f"{cost.parameters:,}",
            "unknown" if math.isnan(cost.flops) else f"{cost.flops / 1e6:,.2f} M",
            f"{cost.latency_ms:.3f} ms",
        )
    console.print(table)


def _plain(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
