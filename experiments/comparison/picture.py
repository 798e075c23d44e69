"""The picture of a comparison: a panel for each rate, a line for each scheme."""

import textwrap
from collections.abc import Mapping
from pathlib import Path

from .outcome import Cell
from .schemes import INDEPENDENT

_INK, _BLUE, _GREY, _BAND = "#333333", "#2a7097", "#8a8a8a", "#e3ecf1"


def plot(
    path: Path,
    found: Mapping[str, Mapping[float, Cell]],
    *,
    title: str,
    axis: str,
    scale: float = 1.0,
) -> None:
    """Write a PNG: mean and standard deviation, and a dot for each seed.

    The band behind is the separately trained networks, mean and deviation.

    Args:
      path: of the PNG.
      found: from `outcome.cells`.
      title: the line above.
      axis: the name of the values, with their unit.
      scale: what values are multiplied with, 100 for per cent.
    """
    # Agg directly: it needs no screen.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    schemes = list(found)
    rates = sorted(next(iter(found.values())), reverse=True)
    size = (1.9 + 2.0 * len(rates), 1.5 + 0.33 * len(schemes))
    figure = Figure(figsize=size, dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(rates), sharey=True, squeeze=False)[0]
    for axes, rate in zip(panels, rates, strict=True):
        if INDEPENDENT in found:
            base = found[INDEPENDENT][rate]
            middle, half = scale * base.mean, scale * (base.deviation or 0.0)
            axes.axvspan(middle - half, middle + half, color=_BAND, linewidth=0)
            axes.axvline(middle, color=_BLUE, linewidth=0.8, linestyle=(0, (4, 3)))
        for at, scheme in enumerate(schemes):
            cell, alone = found[scheme][rate], scheme == INDEPENDENT
            colour = _BLUE if alone else _INK
            seeds = [scale * value for value in cell.values]
            axes.plot(
                seeds, [at] * len(seeds), "o", color=_GREY, alpha=0.55, markersize=3.5
            )
            axes.errorbar(
                scale * cell.mean,
                at,
                xerr=None if cell.deviation is None else scale * cell.deviation,
                fmt="D" if alone else "o",
                color=colour,
                markersize=6,
                linewidth=1.5,
                capsize=2.5,
                zorder=3,
            )
        axes.set_title(f"r = {rate:g}", fontsize=10, color=_INK)
        axes.grid(axis="x", color="#e5e5e5", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.margins(x=0.12)
        axes.locator_params(axis="x", nbins=4)
        axes.tick_params(axis="x", labelsize=8)
        axes.tick_params(axis="y", length=0, labelsize=9)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
    names = [textwrap.fill(name.replace("_", " "), 30) for name in schemes]
    panels[0].set_yticks(range(len(schemes)), names)
    panels[0].set_ylim(len(schemes) - 0.4, -0.6)
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    key = "dots: seeds, bars: standard deviation"
    figure.supxlabel(f"{axis} ({key})", fontsize=9)
    figure.savefig(path)
