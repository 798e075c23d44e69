"""The picture of a comparison of cascades."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .outcome import APART, SLICED

_COLOURS = {SLICED: "#2a7097", APART: "#c2571a"}
_PANELS = (
    ("filter", "recall", "filter: aggregate recall, %"),
    ("filter", "precision", "filter: precision, %"),
    ("rank", "recall", "ranking: aggregate recall, %"),
    ("agreement", None, "same category as the stage before, %"),
)


def plot(
    path: Path, found: Mapping[str, Any], rates: Sequence[float], *, title: str
) -> None:
    """Write a PNG: aggregate recall, precision and agreement after each stage.

    Args:
      path: of the PNG.
      found: from `summary`.
      rates: of the stages.
      title: the line above.
    """
    # Agg directly: it needs no screen.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.5, 3.2), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (way, what, name) in zip(
        figure.subplots(1, len(_PANELS)), _PANELS, strict=True
    ):
        for who, colour in _COLOURS.items():
            values = found[way][who] if what is None else found[way][who][what]
            at = rates[len(rates) - len(values["mean"]) :]
            mean = [100 * value for value in values["mean"]]
            error = [100 * value for value in values["sd"]]
            axes.errorbar(
                at,
                mean,
                error,
                color=colour,
                linewidth=1.5,
                marker="o",
                markersize=4,
                capsize=3,
                label=who,
            )
        axes.set_title(name, fontsize=9, loc="left", color="#333333")
        axes.set_xlabel("rate of the stage", fontsize=8, color="#333333")
        axes.set_xticks(list(rates), [f"{rate:g}" for rate in rates])
        axes.tick_params(labelsize=8, length=0)
        axes.grid(color="#e6e6e6", linewidth=0.7)
        axes.set_axisbelow(True)
        for spine in axes.spines.values():
            spine.set_visible(False)
    figure.axes[0].legend(fontsize=8, frameon=False)
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    figure.savefig(path)
