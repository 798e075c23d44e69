"""The pictures of the site, made by the library itself: `python docs/pictures.py`.

Each function is a picture of the page "Gallery", which shows its source.
"""

import pathlib
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

import mslice_jax as ms
from mslice_jax import schedules
from mslice_jax.models import CifarResNet, CifarVGG

RATES = (0.25, 0.5, 0.75, 1.0)
COLOURS = ("#14506b", "#2f86a8", "#83bcd2", "#d3e6ee")  # the narrowest is the darkest


def dense(p: Any, x: jax.Array) -> jax.Array:
    """Two dense layers: columns of the first and rows of the second are one axis."""
    return jax.nn.relu(x @ p["w1"]) @ p["w2"]


def fused_qkv(p: Any, x: jax.Array) -> jax.Array:
    """Attention whose queries, keys and values are one product of 4 heads of 2."""
    b, t, _ = x.shape
    q, k, v = (
        part.reshape(b, t, -1, 2) for part in jnp.split(x @ p["qkv"], 3, axis=-1)
    )
    weights = jax.nn.softmax(jnp.einsum("bthd,bshd->bhts", q, k))
    return jnp.einsum("bhts,bshd->bthd", weights, v).reshape(b, t, -1) @ p["out"]


def branches(p: Any, x: jax.Array) -> jax.Array:
    """Two branches that are concatenated, as in an inception block."""
    a, b = jax.nn.relu(x @ p["a"]), jax.nn.relu(x @ p["b"])
    return jnp.concatenate([a, b], -1) @ p["after"]


def flattened(p: Any, x: jax.Array) -> jax.Array:
    """An image of 2 x 2 positions, flattened before a dense layer."""
    y = jax.nn.relu(jnp.einsum("bhwi,io->bhwo", x, p["conv"]))
    return y.reshape(len(y), -1) @ p["after"]


def gated(p: Any, x: jax.Array) -> jax.Array:
    """A gated layer whose two halves are one product."""
    gate, value = jnp.split(x @ p["both"], 2, axis=-1)
    return (jax.nn.silu(gate) * value) @ p["out"]


def residual(p: Any, x: jax.Array) -> jax.Array:
    """A residual sum: the stream is one axis through all layers."""
    stream = x @ p["in"]
    stream = stream + jax.nn.relu(stream @ p["up"]) @ p["down"]
    return stream @ p["out"]


NETWORKS: dict[str, tuple[Callable[..., Any], dict[str, tuple[int, ...]], Any]] = {
    "dense": (dense, {"w1": (6, 16), "w2": (16, 6)}, (2, 6)),
    "residual": (
        residual,
        {"in": (4, 12), "up": (12, 16), "down": (16, 12), "out": (12, 4)},
        (2, 4),
    ),
    "fused_qkv": (fused_qkv, {"qkv": (6, 24), "out": (8, 6)}, (2, 3, 6)),
    "branches": (branches, {"a": (6, 8), "b": (6, 16), "after": (24, 6)}, (2, 6)),
    "flattened": (flattened, {"conv": (3, 8), "after": (32, 6)}, (2, 2, 2, 3)),
    "gated": (gated, {"both": (6, 24), "out": (12, 6)}, (2, 6)),
}


def kept(name: str) -> Figure:
    """For each weight of a network the narrowest rate that keeps it."""
    function, shapes, x = NETWORKS[name]
    params = {key: jnp.ones(shape) for key, shape in shapes.items()}
    net = ms.upgrade(function, params, jnp.ones(x), rates=RATES, groups=4)
    masks = [net.plan.mask(params, rate) for rate in RATES]
    figure, axes = _figure(
        6.4, 2.6, columns=len(params), width_ratios=[s[1] + 4 for s in shapes.values()]
    )
    for key, axis in zip(params, axes, strict=True):
        wider = sum(~mask[key] for mask in masks)  # how many rates drop the entry
        axis.imshow(wider, cmap=ListedColormap(COLOURS), vmin=0, vmax=3)
        axis.set_xticks(np.arange(wider.shape[1] + 1) - 0.5, minor=True)
        axis.set_yticks(np.arange(wider.shape[0] + 1) - 0.5, minor=True)
        axis.grid(which="minor", color="white", linewidth=0.8)
        axis.tick_params(which="both", length=0, labelleft=False, labelbottom=False)
        rows, columns = wider.shape
        axis.set_title(f"{key}  ({rows}, {columns})", fontsize=9)
        for side in axis.spines.values():
            side.set_visible(False)
    _rates_legend(figure)
    return figure


def schedules_of_rates() -> Figure:
    """Which rates each schedule trains in its first 32 steps."""
    made = {
        "random": schedules.random(RATES),
        "random_min": schedules.random_min(RATES),
        "random_max": schedules.random_max(RATES),
        "random_min_max": schedules.random_min_max(RATES),
        "static": schedules.static(RATES),
        "cyclic": schedules.cyclic(RATES),
        "progressive": schedules.progressive(
            schedules.random_min_max(RATES), RATES, every=8
        ),
    }
    figure, axes = _figure(6.4, 6.0, rows=len(made), sharex=True)
    for (name, schedule), axis in zip(made.items(), axes, strict=True):
        for step in range(32):
            for rate in schedule(step):
                colour = COLOURS[RATES.index(rate)]
                axis.scatter(step, RATES.index(rate), s=26, marker="s", color=colour)
        axis.set_yticks(range(4), [f"{rate:g}" for rate in RATES], fontsize=7)
        axis.set_ylim(-0.8, 3.8)
        axis.set_title(name, fontsize=9, loc="left")
        for side in axis.spines.values():
            side.set_visible(False)
        axis.tick_params(length=0)
    axes[-1].set_xlabel("step", fontsize=9)
    return figure


def cost() -> Figure:
    """Parameters and FLOPs of two networks over the rate, from their reports."""
    figure, axes = _figure(6.4, 3.2, columns=2, sharey=True)
    rates = tuple(i / 8 for i in range(1, 9))
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    models = {"ResNet-20": CifarResNet(depth=20), "VGG-11": CifarVGG(depth=11)}
    for index, (name, model) in enumerate(models.items()):
        variables = jax.eval_shape(model.init, jax.random.key(0), images)
        net = ms.upgrade(model, variables, images, rates=rates)
        report = ms.report(net).to_dict()
        for axis, key in zip(axes, ("parameters", "flops"), strict=True):
            values = list(report[key].values())
            share = [value / values[-1] for value in values]
            axis.plot(rates, share, marker="o", color=COLOURS[index], label=name)
    for axis, title in zip(axes, ("parameters", "FLOPs"), strict=True):
        squares = [rate**2 for rate in rates]
        axis.plot(rates, squares, color="#999999", linewidth=1, label="r²", zorder=0)
        axis.set_title(f"{title}, share of the full width", fontsize=9, loc="left")
        axis.set_xlabel("slice rate r", fontsize=9)
        axis.grid(color="#eeeeee")
        axis.tick_params(labelsize=8)
    axes[0].legend(frameon=False, fontsize=8)
    return figure


def schemes() -> Figure:
    """Accuracy over the rate by scheme of training: each run, and the means."""
    from tables import read

    figure, (axis,) = _figure(6.4, 3.6)
    rows = read("schemes")["rows"]
    names = list(dict.fromkeys(row[0] for row in rows))
    colours = ("#14506b", "#999999", "#c98a2b", "#a23b4a")
    rates = (1.0, 0.75, 0.5, 0.25)
    for name, colour in zip(names, colours, strict=True):
        runs = np.array([row[2:] for row in rows if row[0] == name])
        for run in runs:
            axis.scatter(rates, run, color=colour, s=14, alpha=0.6)
        axis.plot(rates, runs.mean(0), color=colour, label=name)
    axis.set_xticks(rates)
    axis.set_xlabel("slice rate r", fontsize=9)
    axis.set_ylabel("accuracy, %", fontsize=9)
    axis.grid(color="#eeeeee")
    axis.legend(frameon=False, fontsize=8)
    axis.tick_params(labelsize=8)
    return figure


def speed() -> Figure:
    """How many times as fast as the full width a narrow network runs, by batch."""
    from tables import read

    figure, (axis,) = _figure(6.4, 3.2)
    rows = read("narrow_vs_hand")["rows"]
    lines = dict.fromkeys((row[0], row[1]) for row in rows)
    for index, (name, batch) in enumerate(lines):
        points = [(r[2], r[6]) for r in rows if (r[0], r[1]) == (name, batch)]
        axis.plot(
            *zip(*points, (1.0, 1.0), strict=True),
            marker="o",
            color=COLOURS[index // 2 * 2],
            linestyle="--" if batch == 1 else "-",
            label=f"{name}, batch {batch}",
        )
    rates = np.linspace(0.25, 1, 20)
    axis.plot(rates, 1 / rates**2, color="#999999", linewidth=1, label="1 / r²")
    axis.set_xticks(RATES)
    axis.set_xlabel("slice rate r", fontsize=9)
    axis.set_ylabel("times as fast as r = 1", fontsize=9)
    axis.grid(color="#eeeeee")
    axis.legend(frameon=False, fontsize=8)
    axis.tick_params(labelsize=8)
    return figure


def make(folder: pathlib.Path) -> None:
    """Writes all pictures."""
    folder.mkdir(exist_ok=True)
    pictures: dict[str, Callable[[], Figure]] = {
        f"kept_{name}": lambda name=name: kept(name) for name in NETWORKS
    }
    pictures |= {
        "schedules": schedules_of_rates,
        "cost": cost,
        "schemes": schemes,
        "speed": speed,
    }
    for name, picture in pictures.items():
        picture().savefig(folder / f"{name}.svg", metadata={"Date": None})


def _figure(
    width: float, height: float, rows: int = 1, columns: int = 1, **options: Any
) -> tuple[Figure, list[Any]]:
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    ratios = options.pop("width_ratios", None)
    axes = figure.subplots(rows, columns, squeeze=False, width_ratios=ratios, **options)
    return figure, list(axes.flat)


def _rates_legend(figure: Figure) -> None:
    from matplotlib.patches import Patch

    patches = [
        Patch(facecolor=colour, label=f"kept from r = {rate:g} on")
        for rate, colour in zip(RATES, COLOURS, strict=True)
    ]
    figure.legend(
        handles=patches,
        loc="outside lower center",
        ncols=4,
        frameon=False,
        fontsize=7,
        handlelength=1,
    )


if __name__ == "__main__":
    here = pathlib.Path(__file__).resolve().parent
    sys.path.insert(0, str(here))
    make(here / "made")
