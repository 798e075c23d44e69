"""Pictures of a trained network. Needs matplotlib, of the extra "experiments"."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .core.rates import rate_key


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
    rates = sorted(accuracy)
    unit, name = _unit(max(flops.values()))
    x = [flops[rate] / unit for rate in rates]
    y = [100 * accuracy[rate] for rate in rates]

    figure, axes = _empty()
    axes.plot(x, y, color=_BLUE, linewidth=1.5, marker="o", markersize=7, zorder=3)
    for rate, across, up, after in zip(rates, x, y, [*y[1:], y[-1]], strict=True):
        falls = after < up
        axes.annotate(
            f"r = {rate_key(rate)}\n{up:.1f} %",
            (across, up),
            xytext=(5, 6 if falls else -6),
            textcoords="offset points",
            ha="left",
            va="bottom" if falls else "top",
            fontsize=9,
            color="#333333",
        )
    # Labels are to the right, below the curve where it rises and above where it falls;
    # the axes leave room for them.
    spread = max(max(y) - min(y), 1.0)
    axes.set_ylim(min(y) - 0.45 * spread, max(y) + 0.3 * spread)
    axes.set_xlim(0, 1.18 * max(x))
    axes.set_xlabel(f"{name} for one image")
    axes.set_ylabel("accuracy on held-out images, %")
    axes.set_title(title, fontsize=11, loc="left")
    figure.savefig(path)


def plot_accuracy_over_epochs(
    path: str | Path,
    accuracy: Mapping[int, Mapping[float, float]],
    *,
    title: str,
) -> None:
    """Write a PNG: a curve for every rate, the epochs to the right, accuracy up.

    Args:
      path: of the PNG; its directory exists.
      accuracy: epoch -> rate -> accuracy in [0, 1].
      title: the line above the picture.

    Raises:
      ValueError: if there are no epochs, or two have other rates.
      ImportError: without matplotlib.
    """
    epochs = sorted(accuracy)
    rates = sorted(accuracy[epochs[0]], reverse=True) if epochs else []
    if not rates or any(accuracy[epoch].keys() != set(rates) for epoch in epochs):
        raise ValueError(
            "expected an accuracy of the same rates for each epoch, got "
            f"{ {epoch: sorted(accuracy[epoch]) for epoch in epochs} }."
        )
    figure, axes = _empty()
    for index, rate in enumerate(rates):
        shade = index / max(len(rates) - 1, 1)  # the widest is the darkest
        axes.plot(
            epochs,
            [100 * accuracy[epoch][rate] for epoch in epochs],
            color=_between(_BLUE, _PALE, shade),
            linewidth=1.5,
            marker="o" if len(epochs) <= 20 else None,
            markersize=4,
            label=f"r = {rate_key(rate)}",
            zorder=3 + len(rates) - index,
        )
    # Where the curves leave most room; white, for where they leave none.
    axes.legend(loc="best", fontsize=9, edgecolor="none", framealpha=0.8)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("epoch")
    axes.set_ylabel("accuracy on held-out images, %")
    axes.set_title(title, fontsize=11, loc="left")
    figure.savefig(path)


_BLUE, _PALE = (0.16, 0.44, 0.59), (0.66, 0.82, 0.90)


def _between(a: tuple[float, ...], b: tuple[float, ...], share: float) -> Any:
    return tuple((1 - share) * x + share * y for x, y in zip(a, b, strict=True))


def _empty() -> tuple[Any, Any]:
    """A figure and its axes."""
    # Agg directly: it needs no screen, and leaves the caller's backend as it is.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.0), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.grid(color="#e5e5e5", linewidth=0.8, zorder=0)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure, axes


def _unit(largest: float) -> tuple[float, str]:
    for unit, name in ((1e9, "GFLOPs"), (1e6, "MFLOPs"), (1e3, "kFLOPs")):
        if largest >= unit:
            return unit, name
    return 1.0, "FLOPs"
