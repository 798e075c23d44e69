"""Pictures of a trained network. Needs matplotlib, of the extra "experiments"."""

from collections.abc import Mapping
from pathlib import Path

from .rates import rate_key


def plot_accuracy_vs_flops(
    path: str | Path,
    accuracy: Mapping[float, float],
    flops: Mapping[float, float],
    *,
    title: str,
) -> None:
    """Write a PNG: a point for every rate, its cost to the right, its accuracy up.

    Args:
      path: of the PNG; its directory exists.
      accuracy: rate -> accuracy in [0, 1].
      flops: rate -> floating-point operations for one example, above 0.
      title: the line above the picture.

    Raises:
      ValueError: if the two do not have the same rates, or none.
      ImportError: without matplotlib.
    """
    if not accuracy or accuracy.keys() != flops.keys():
        raise ValueError(
            f"expected accuracy and flops of the same rates, got {sorted(accuracy)} "
            f"and {sorted(flops)}."
        )
    # Agg directly: it needs no screen, and leaves the caller's backend as it is.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rates = sorted(accuracy)
    unit, name = _unit(max(flops.values()))
    x = [flops[rate] / unit for rate in rates]
    y = [100 * accuracy[rate] for rate in rates]

    figure = Figure(figsize=(6.4, 4.0), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot(x, y, color="#2a6f97", linewidth=1.5, marker="o", markersize=7, zorder=3)
    for rate, across, up in zip(rates, x, y, strict=True):
        axes.annotate(
            f"r = {rate_key(rate)}\n{up:.1f} %",
            (across, up),
            xytext=(5, -6),
            textcoords="offset points",
            ha="left",
            va="top",
            fontsize=9,
            color="#333333",
        )
    # Labels hang to the right and below, where a curve that rises does not pass; the
    # axes leave room for them.
    spread = max(max(y) - min(y), 1.0)
    axes.set_ylim(min(y) - 0.45 * spread, max(y) + 0.15 * spread)
    axes.set_xlim(0, 1.18 * max(x))
    axes.set_xlabel(f"{name} for one image")
    axes.set_ylabel("accuracy on held-out images, %")
    axes.set_title(title, fontsize=11, loc="left")
    axes.grid(color="#e5e5e5", linewidth=0.8, zorder=0)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(path)


def _unit(largest: float) -> tuple[float, str]:
    for unit, name in ((1e9, "GFLOPs"), (1e6, "MFLOPs"), (1e3, "kFLOPs")):
        if largest >= unit:
            return unit, name
    return 1.0, "FLOPs"
