"""What a recipe shows: settings, a progress bar, the table at the end."""

import math
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


def show_settings(console: Console, values: Mapping[str, Any]) -> None:
    """All settings, a few on each line."""
    parts = [
        f"{name} {_plain(value)}" for name, value in values.items() if value is not None
    ]
    console.print(" · ".join(parts), style="dim", highlight=False, soft_wrap=True)


class Bar(Watcher):
    """A progress bar with loss, rates and images per second; a line for each epoch.

    Args:
      console: where it is shown.
      epochs: length of the run.
      steps_per_epoch: batches an epoch.

    Use it as a context: the bar is drawn within.
    """

    def __init__(self, console: Console, *, epochs: int, steps_per_epoch: int):
        self._console = console
        self._progress = Progress(
            TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
            BarColumn(bar_width=8),  # all of the line has to fit into 80 columns
            TextColumn("{task.fields[losses]}"),
            TextColumn("{task.fields[speed]}"),
            TimeRemainingColumn(),
            console=console,
        )
        self._steps_per_epoch = steps_per_epoch
        self._task = self._progress.add_task(
            "train",
            total=epochs * steps_per_epoch,
            epoch=1,
            epochs=epochs,
            losses="compiling",
            speed="",
        )

    def __enter__(self) -> "Bar":
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def restored(self, step: int, progress: RunProgress) -> None:
        """Say where the run goes on."""
        self._progress.update(self._task, completed=step)
        self._console.print(
            f"Resumed at step {step} (epoch {progress.epoch} done, "
            f"{progress.train_seconds:.0f} s so far)."
        )

    def stepped(
        self, step: int, losses: dict[float, float], images_per_second: float
    ) -> None:
        """Move the bar."""
        text = " ".join(
            f"r{rate:g} {losses[rate]:.2f}" for rate in sorted(losses, reverse=True)
        )
        self._progress.update(
            self._task,
            completed=step,
            epoch=(step - 1) // self._steps_per_epoch + 1,
            losses=f"loss {text}",
            speed=f"{images_per_second:.0f} images/s",
        )

    def evaluated(self, epoch: int, accuracy: dict[float, float], loss: float) -> None:
        """One line for the epoch."""
        text = "  ".join(
            f"r{rate:g} {100 * accuracy[rate]:.1f}"
            for rate in sorted(accuracy, reverse=True)
        )
        self._console.print(f"epoch {epoch:3d}  loss {loss:.3f}  accuracy {text} %")


class TensorBoard(Watcher):
    """The numbers of a run as TensorBoard reads them.

    Args:
      folder: made if absent; a resumed run goes on in it.

    Raises:
      ImportError: without tensorboardX, of the extra "tensorboard".

    Use it as a context: behind it everything is written.
    """

    def __init__(self, folder: Path):
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(folder))

    def __enter__(self) -> "TensorBoard":
        return self

    def __exit__(self, *exception: object) -> None:
        self._writer.close()

    def stepped(
        self, step: int, losses: dict[float, float], images_per_second: float
    ) -> None:
        """A curve of the loss for each rate, and the speed."""
        for rate, loss in losses.items():
            self._writer.add_scalar(f"loss/r{rate:g}", loss, step)
        self._writer.add_scalar("images_per_second", images_per_second, step)

    def evaluated(self, epoch: int, accuracy: dict[float, float], loss: float) -> None:
        """A curve of the accuracy for each rate, over epochs."""
        del loss
        for rate, value in accuracy.items():
            self._writer.add_scalar(f"accuracy/r{rate:g}", value, epoch)
        self._writer.flush()


def show_table(
    console: Console,
    title: str,
    accuracy: Mapping[float, float],
    profiles: Mapping[float, RateProfile],
) -> None:
    """The result: a row for each rate, the widest first."""
    table = Table(title=title, title_justify="left")
    for name in ("rate", "accuracy", "parameters", "FLOPs", "latency"):
        table.add_column(name, justify="right")
    for rate in sorted(accuracy, reverse=True):
        cost = profiles[rate]
        table.add_row(
            f"{rate:g}",
            f"{100 * accuracy[rate]:.2f} %",
            f"{cost.parameters:,}",
            "unknown" if math.isnan(cost.flops) else f"{cost.flops / 1e6:,.2f} M",
            f"{cost.latency_ms:.3f} ms",
        )
    console.print(table)


def _plain(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
