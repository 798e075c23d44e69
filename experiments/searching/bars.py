"""How far a search is, on the screen."""

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from mslice_jax.search import Round


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
