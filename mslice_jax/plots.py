"""Pictures of a trained network. Needs matplotlib, of the extra "experiments"."""

import dataclasses
from collections.abc import Mapping, Sequence
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
    _vs_flops(path, accuracy, flops, title, _ACCURACY)


def plot_perplexity_vs_flops(
    path: str | Path,
    perplexity: Mapping[float, float],
    flops: Mapping[float, float],
    *,
    title: str,
) -> None:
    """As `plot_accuracy_vs_flops`, for the perplexity of text: lower is better."""
    _vs_flops(path, perplexity, flops, title, _PERPLEXITY)


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
    _over_epochs(path, accuracy, title, _ACCURACY)


def plot_perplexity_over_epochs(
    path: str | Path,
    perplexity: Mapping[int, Mapping[float, float]],
    *,
    title: str,
) -> None:
    """As `plot_accuracy_over_epochs`, for the perplexity of text: lower is better."""
    _over_epochs(path, perplexity, title, _PERPLEXITY)


def plot_costs(
    path: str | Path, costs: Mapping[str, Mapping[float, float]], *, title: str
) -> None:
    """Write a PNG: a line for every cost, as a share of that at the widest rate.

    Both axes are logarithmic, so that a power of the rate is a straight line; that of
    r² is there to compare with.

    Args:
      path: of the PNG; its directory exists.
      costs: name -> rate -> cost, above 0.
      title: the line above the picture.

    Raises:
      ValueError: if there are no costs, two have other rates, or one is not above 0.
      ImportError: without matplotlib.
    """
    rates = sorted(next(iter(costs.values()), {}))
    if not rates or any(values.keys() != set(rates) for values in costs.values()):
        raise ValueError(
            "expected costs of the same rates, got "
            f"{ {name: sorted(values) for name, values in costs.items()} }."
        )
    for name, values in costs.items():
        if not all(value > 0 for value in values.values()):
            raise ValueError(f"expected costs above 0, got {name} of {dict(values)}.")
    figure, axes = _empty()
    for index, (name, values) in enumerate(costs.items()):
        axes.plot(
            rates,
            [values[rate] / values[rates[-1]] for rate in rates],
            color=_COLORS[index % len(_COLORS)],
            linewidth=1.5,
            marker="o",
            markersize=5,
            label=name,
            zorder=3,
        )
    square = [(rate / rates[-1]) ** 2 for rate in rates]
    axes.plot(rates, square, color="#888888", linestyle="--", label="r²", zorder=2)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(rates, [rate_key(rate) for rate in rates])
    axes.xaxis.minorticks_off()
    axes.legend(loc="best", fontsize=9, edgecolor="none", framealpha=0.8)
    axes.set_xlabel("slice rate r")
    axes.set_ylabel(f"cost, of that at r = {rate_key(rates[-1])}")
    axes.set_title(title, fontsize=11, loc="left")
    figure.savefig(path)


def plot_search(
    path: str | Path,
    frontier: Sequence[tuple[float, float]],
    uniform: Mapping[float, tuple[float, float]],
    *,
    title: str,
    cost: str = "FLOPs of contractions",
    score: str = "score on validation data",
) -> None:
    """Write a PNG: what a search found beside the uniform widths.

    Args:
      path: of the PNG; its directory exists.
      frontier: (cost, score) of each network that no other beats.
      uniform: rate -> (cost, score) of the uniform widths.
      title: the line above the picture.
      cost: what the axis of costs is called.
      score: what the axis of scores is called.

    Raises:
      ValueError: if one of the two is empty.
      ImportError: without matplotlib.

    Example:
      ``plot_search("frontier.png", [(p.cost, p.score) for p in found.frontier],
      {r: (p.cost, p.score) for r, p in found.uniform.items()}, title="...")``
    """
    if not frontier or not uniform:
        raise ValueError(
            f"expected networks of a search and of uniform widths; got {len(frontier)} "
            f"and {len(uniform)}."
        )
    unit, prefix = _thousands(max(x for x, _ in (*frontier, *uniform.values())))
    figure, axes = _empty()
    found = sorted(frontier)
    axes.plot(
        [x / unit for x, _ in found],
        [y for _, y in found],
        color=_BLUE,
        linewidth=1.5,
        marker="o",
        markersize=4,
        label="found",
        zorder=4,
    )
    rates = sorted(uniform)
    axes.plot(
        [uniform[rate][0] / unit for rate in rates],
        [uniform[rate][1] for rate in rates],
        color=_COLORS[1],
        linewidth=1.0,
        linestyle="--",
        marker="s",
        markersize=5,
        label="uniform widths",
        zorder=3,
    )
    for rate in rates:
        x, y = uniform[rate]
        axes.annotate(
            f"r = {rate_key(rate)}",
            (x / unit, y),
            xytext=(5, 5),
            textcoords="offset points",
            fontsize=8,
            color="#333333",
        )
    axes.legend(loc="best", fontsize=9, edgecolor="none", framealpha=0.8)
    axes.margins(y=0.12)  # for the labels
    axes.set_xlim(0, 1.1 * axes.get_xlim()[1])
    axes.set_xlabel(f"{cost}{prefix}")
    axes.set_ylabel(score)
    axes.set_title(title, fontsize=11, loc="left")
    figure.savefig(path)


@dataclasses.dataclass(frozen=True)
class _Shown:
    """A quantity in a picture.

    Attributes:
      name: of it.
      axis: what the axis is called.
      scale: what values are multiplied with.
      unit: behind a value.
      example: what FLOPs are counted for.
    """

    name: str
    axis: str
    scale: float
    unit: str
    example: str


_ACCURACY = _Shown("accuracy", "accuracy on held-out images, %", 100, " %", "image")
_PERPLEXITY = _Shown("perplexity", "perplexity of held-out text", 1, "", "row of text")


def _vs_flops(
    path: str | Path,
    values: Mapping[float, float],
    flops: Mapping[float, float],
    title: str,
    shown: _Shown,
) -> None:
    if not values or values.keys() != flops.keys():
        raise ValueError(
            f"expected {shown.name} and flops of the same rates, got {sorted(values)} "
            f"and {sorted(flops)}."
        )
    rates = sorted(values)
    unit, name = _unit(max(flops.values()))
    x = [flops[rate] / unit for rate in rates]
    y = [shown.scale * values[rate] for rate in rates]

    figure, axes = _empty()
    axes.plot(x, y, color=_BLUE, linewidth=1.5, marker="o", markersize=7, zorder=3)
    for rate, across, up, after in zip(rates, x, y, [*y[1:], y[-1]], strict=True):
        falls = after < up
        axes.annotate(
            f"r = {rate_key(rate)}\n{up:.{1 if up >= 10 else 2}f}{shown.unit}",
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
    spread = max(max(y) - min(y), 1.0 if shown is _ACCURACY else 0.05 * max(y))
    axes.set_ylim(min(y) - 0.45 * spread, max(y) + 0.3 * spread)
    axes.set_xlim(0, 1.18 * max(x))
    axes.set_xlabel(f"{name} for one {shown.example}")
    axes.set_ylabel(shown.axis)
    axes.set_title(title, fontsize=11, loc="left")
    figure.savefig(path)


def _over_epochs(
    path: str | Path,
    values: Mapping[int, Mapping[float, float]],
    title: str,
    shown: _Shown,
) -> None:
    epochs = sorted(values)
    rates = sorted(values[epochs[0]], reverse=True) if epochs else []
    if not rates or any(values[epoch].keys() != set(rates) for epoch in epochs):
        raise ValueError(
            f"expected an {shown.name} of the same rates for each epoch, got "
            f"{ {epoch: sorted(values[epoch]) for epoch in epochs} }."
        )
    figure, axes = _empty()
    for index, rate in enumerate(rates):
        shade = index / max(len(rates) - 1, 1)  # the widest is the darkest
        axes.plot(
            epochs,
            [shown.scale * values[epoch][rate] for epoch in epochs],
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
    axes.set_ylabel(shown.axis)
    axes.set_title(title, fontsize=11, loc="left")
    figure.savefig(path)


_COLORS = ("#2970a0", "#c1592a", "#4a8c4a", "#8a5aa8")
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


def _thousands(largest: float) -> tuple[float, str]:
    for unit, name in ((1e9, ", 10⁹"), (1e6, ", millions"), (1e3, ", thousands")):
        if largest >= unit:
            return unit, name
    return 1.0, ""
