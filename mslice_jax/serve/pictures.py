"""Pictures of what a policy did. Needs matplotlib, of the extra "experiments"."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .simulator import Simulation

_BLUE, _PALE, _RED, _GREY = "#2970a3", "#a8d1e6", "#b5403a", "#8c8c8c"


def plot_serving(
    path: str | Path, done: Simulation, *, title: str, bins: int = 120
) -> None:
    """Write a PNG: arrivals, rate, latency and misses, one above the other over time.

    Args:
      path: of the PNG; its directory exists.
      done: of a simulation, or of requests that were measured.
      title: the line above the picture.
      bins: into how many parts the time is cut; a request counts where it came.

    Raises:
      ImportError: without matplotlib.
    """
    figure, (came, rate, latency, missed) = _empty(4, (7.2, 7.2))
    edges = np.linspace(done.arrived[0], max(done.arrived[-1], 1e-9), bins + 1)
    width, middle = edges[1] - edges[0], (edges[1:] + edges[:-1]) / 2
    at = np.clip(np.digitize(done.arrived, edges) - 1, 0, bins - 1)

    def level(axes: Any, values: np.ndarray, **how: Any) -> None:
        axes.stairs(values, edges, zorder=3, **how)

    counts = np.bincount(at, minlength=bins)
    level(came, counts / width, fill=True, color=_PALE)
    came.set_ylabel("arrivals\nper second")

    served = ~done.shed
    number = np.bincount(at[served], minlength=bins)
    total = np.bincount(at[served], done.rate[served], minlength=bins)
    mean = np.divide(total, number, out=np.full(bins, np.nan), where=number > 0)
    level(rate, mean, color=_BLUE, linewidth=1.5, baseline=None)
    rate.set_ylabel("mean rate")
    rate.set_ylim(0, 1.08 * np.nanmax(done.rate) if served.any() else 1)

    spans = [done.latency_s[served & (at == bin)] * 1e3 for bin in range(bins)]
    for share, color, name in ((50, _BLUE, "median"), (99, _PALE, "p99")):
        line = [np.percentile(it, share) if len(it) else np.nan for it in spans]
        latency.plot(middle, line, color=color, linewidth=1.5, label=name, zorder=3)
    limits = np.unique(np.round((done.deadline - done.arrived) * 1e3, 6))
    if len(limits) == 1:  # else every request has a T of its own
        latency.axhline(limits[0], color=_RED, linewidth=1, linestyle="--", label="T")
    # Above the axes: there is no place within that no line may come to.
    latency.legend(
        loc="lower right",
        bbox_to_anchor=(1, 1),
        borderaxespad=0,
        ncols=3,
        fontsize=8,
        frameon=False,
    )
    latency.set_ylabel("latency, ms")
    latency.set_ylim(0)

    late = np.bincount(at[~done.in_time], minlength=bins)
    level(missed, 100 * late / np.maximum(counts, 1), fill=True, color=_RED)
    missed.set_ylabel("missed, %")
    missed.set_ylim(0, max(1.0, 105 * float((late / np.maximum(counts, 1)).max())))
    missed.set_xlabel("seconds")
    missed.set_xlim(edges[0], edges[-1])
    came.set_title(title, fontsize=11, loc="left")
    figure.savefig(path)


def plot_attainment(
    path: str | Path, policies: Mapping[str, tuple[float, float]], *, title: str
) -> None:
    """Write a PNG: a point for every policy, its accuracy to the right, its share up.

    Policies whose name begins with "fixed" are joined by a line: what the choice of one
    width can reach. Of the others the first is set off.

    Args:
      path: of the PNG; its directory exists.
      policies: name -> (share of the requests in time, mean accuracy over those), both
        in [0, 1].
      title: the line above the picture.

    Raises:
      ValueError: without policies.
      ImportError: without matplotlib.
    """
    if not policies:
        raise ValueError("expected at least one policy, got none.")
    figure, (axes,) = _empty(1, (6.4, 4.0))
    fixed = sorted(
        (accuracy, share, name)
        for name, (share, accuracy) in policies.items()
        if name.startswith("fixed")
    )
    if fixed:
        x, y = ([100 * it[i] for it in fixed] for i in (0, 1))
        axes.plot(x, y, "o-", color=_GREY, linewidth=1, markersize=6, zorder=3)
    for accuracy, share, name in fixed:
        axes.annotate(
            name,
            (100 * accuracy, 100 * share),
            xytext=(-7, -5),
            textcoords="offset points",
            ha="right",
            va="top",
            fontsize=9,
            color="#333333",
        )
    # The others are close to each other, as they are all good: a mark for each.
    others = [name for name in policies if not name.startswith("fixed")]
    for number, name in enumerate(others):
        share, accuracy = policies[name]
        axes.plot(
            100 * accuracy,
            100 * share,
            "osD^v<>"[number % 7],
            color=_BLUE if number == 0 else _PALE,
            markeredgecolor="#333333",
            markeredgewidth=0.6,
            markersize=8,
            label=name,
            zorder=4,
            linestyle="none",
        )
    if others:
        axes.legend(loc="lower left", fontsize=9, edgecolor="none", framealpha=0.8)
    right = max(accuracy for _, accuracy in policies.values())
    left = min(accuracy for _, accuracy in policies.values())
    spread = max(right - left, 0.01)
    axes.set_xlim(100 * (left - spread / 4), 100 * (right + spread / 10))
    axes.set_ylim(0, 106)
    axes.set_xlabel("mean accuracy of those in time, %")
    axes.set_ylabel("requests in time, %")
    axes.set_title(title, fontsize=11, loc="left")
    figure.savefig(path)


def _empty(rows: int, size: tuple[float, float]) -> tuple[Any, Any]:
    """A figure, and its axes from top to bottom, which share the horizontal one."""
    # Agg directly: it needs no screen, and leaves the caller's backend as it is.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    all_axes = figure.subplots(rows, sharex=True, squeeze=False)[:, 0]
    for axes in all_axes:
        axes.grid(color="#e5e5e5", linewidth=0.8, zorder=0)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    return figure, all_axes
