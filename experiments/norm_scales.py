"""The scales of norms over the training of a recipe.

The paper shows the learned scales of the group norms, group by group: those of the
leading groups, which every rate trains, are the larger ones. A run of a recipe keeps
the mean |scale| of each group after each epoch in norm_scales.jsonl, and draws
norm_scales.png in the end::

    python -m experiments.cifar_resnet

A group is what a rate keeps or drops together: of a group norm its groups, of another
norm the units that its channels belong to.
"""

import itertools
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

import mslice_jax as ms
from mslice_jax.core.axes import Product, Unit
from mslice_jax.core.paths import path_name
from mslice_jax.train import MetricsFile

FILE, PICTURE = "norm_scales.jsonl", "norm_scales.png"

Scales = dict[str, list[float]]
"""norm -> mean |scale| of each of its groups, the leading group first."""


def scales(
    net: ms.Sliceable, local: Callable[[Any], Any] = lambda tree: tree
) -> Scales:
    """The scales of all norms whose channels narrow.

    Names are those of the variables, "layer1_0/bn1", in natural order.

    Args:
      net: the network.
      local: takes arrays off a mesh of several devices; all hosts call it together.

    Example:
      >>> from flax import linen as nn
      >>> import jax.numpy as jnp
      >>> model = nn.Sequential([nn.Dense(8), nn.LayerNorm(), nn.Dense(2)])
      >>> x = jnp.ones((4, 3))
      >>> net = ms.upgrade(
      ...     model, model.init(jax.random.key(0), x), x, rates=(0.5, 1), groups=2
      ... )
      >>> scales(net)
      {'layers_1': [1.0, 1.0]}
    """
    leaves, groups = {}, {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(net.variables):
        name = path_name(path).removeprefix("params/")
        count = _groups(net, path) if name.endswith("/scale") else 0
        if count > 1:
            name = name.removesuffix("/scale")
            leaves[name], groups[name] = leaf, count
    leaves = jax.device_get(local(leaves))
    return {
        name: [
            float(f"{np.abs(part).mean():.5g}")
            for part in np.split(np.asarray(leaves[name], np.float64), groups[name])
        ]
        for name in sorted(leaves, key=_natural)
    }


def _groups(net: ms.Sliceable, path: Any) -> int:
    """The number of groups in a vector; 0 for other arrays, and where none narrow."""
    leaf = net.plan.leaf(path)
    if leaf is None or len(leaf.axes) != 1:
        return 0
    (axis,) = leaf.axes
    if isinstance(axis, Product):  # groups of channels narrow
        axis = axis.factors[0]
    if not isinstance(axis, Unit):
        return 0
    group = net.plan.groups[axis.group]
    return group.size // group.unit


def _natural(name: str) -> list[Any]:
    """A key that sorts layer2 before layer10, and what has no folder last."""
    parts = [int(x) if x.isdigit() else x for x in re.split(r"(\d+)", name)]
    return ["/" not in name, *parts]


class ScalesFile:
    """A line of scales for each epoch; no file for a network without norms.

    Args:
      path: of the file.
      local: as in `scales`.
    """

    def __init__(self, path: Path, local: Callable[[Any], Any] = lambda tree: tree):
        self._path = path
        self._file = MetricsFile(path)
        self._local = local
        self._last: Scales = {}

    def measure(self, net: ms.Sliceable) -> None:
        """Keep the scales for the next line."""
        self._last = scales(net, self._local)

    def write(self, *, step: int, epoch: int) -> None:
        """Append the line of an epoch."""
        if self._last:
            self._file.write(step=step, epoch=epoch, scales=self._last)

    def rewind(self, step: int) -> None:
        """Drop the lines after `step`."""
        self._file.rewind(step)


def read(path: Path) -> dict[int, Scales]:
    """Epoch -> the scales after it."""
    lines = map(json.loads, path.read_text().splitlines())
    return {line["epoch"]: line["scales"] for line in lines}


def panels(
    found: Mapping[int, Scales], *, at_most: int = 12
) -> list[tuple[str, list[int], np.ndarray]]:
    """Title, epochs and scales (epochs, groups) of each panel of the picture.

    A panel is a norm; of more than `at_most` norms it is the mean of neighbours with
    the same number of groups.

    Example:
      >>> found = {1: {"a": [1.0, 2.0], "b": [3.0, 4.0]}}
      >>> [(title, values.tolist()) for title, _, values in panels(found, at_most=1)]
      [('a to b', [[2.0, 3.0]])]
    """
    epochs = sorted(found)
    names = list(found[epochs[0]])
    size = -(-len(names) // at_most)
    parts: list[list[str]] = []
    for _, same in itertools.groupby(names, lambda name: len(found[epochs[0]][name])):
        alike = list(same)
        parts += [alike[at : at + size] for at in range(0, len(alike), size)]
    return [
        (
            part[0] if len(part) == 1 else f"{part[0]} to {part[-1]}",
            epochs,
            np.array(
                [np.mean([found[e][name] for name in part], axis=0) for e in epochs]
            ),
        )
        for part in parts
    ]


def draw(workdir: Path, title: str) -> None:
    """Write the picture of a run, if the run has a file of scales."""
    if (workdir / FILE).exists():
        plot(workdir / PICTURE, read(workdir / FILE), title=title)


def plot(path: Path, found: Mapping[int, Scales], *, title: str) -> None:
    """Write a PNG: a panel for each norm, a curve for each group, the leading one dark.

    Args:
      path: of the PNG.
      found: epoch -> scales, at least one epoch.
      title: the line above.
    """
    # Agg directly: it needs no screen.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import BoundaryNorm, LinearSegmentedColormap
    from matplotlib.figure import Figure

    shown = panels(found)
    most = max(values.shape[1] for _, _, values in shown)
    colours = LinearSegmentedColormap.from_list(
        "groups", ["#12384a", "#2a7097", "#7db4d0", "#cfe3ec"]
    )
    across = min(len(shown), 3 if len(shown) <= 9 else 4)
    down = -(-len(shown) // across)
    figure = Figure(
        figsize=(1.3 + 2.1 * across, 1.0 + 1.55 * down), dpi=160, layout="constrained"
    )
    FigureCanvasAgg(figure)
    grid = figure.subplots(down, across, sharex=True, squeeze=False)
    for at, axes in enumerate(grid.flat):
        if at >= len(shown):
            axes.remove()
            continue
        name, epochs, values = shown[at]
        count = values.shape[1]
        for group in reversed(range(count)):
            axes.plot(
                epochs,
                values[:, group],
                color=colours(group / max(count - 1, 1)),
                linewidth=1.4,
                marker="o" if len(epochs) == 1 else None,
                markersize=3,
            )
        axes.set_title(name, fontsize=8, loc="left", color="#333333")
        axes.grid(color="#e5e5e5", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(labelsize=7)
        axes.locator_params(axis="y", nbins=4)
        if len(epochs) <= 5:
            axes.set_xticks(epochs)
        else:
            axes.xaxis.get_major_locator().set_params(integer=True, nbins=5)
        if at + across >= len(shown):  # the lowest of its column
            axes.tick_params(labelbottom=True)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    edges = np.arange(most + 1) + 0.5
    bar = figure.colorbar(
        ScalarMappable(BoundaryNorm(edges, colours.N), colours),
        ax=list(grid.flat)[: len(shown)],
        ticks=sorted({1, *range(2, most, max(1, most // 8)), most}),
        aspect=30,
        fraction=0.04,
        pad=0.015,
    )
    bar.set_label("group, the first is in every rate", fontsize=8)
    bar.ax.tick_params(labelsize=7, length=0)
    bar.minorticks_off()
    bar.outline.set_visible(False)
    bar.ax.invert_yaxis()
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    figure.supxlabel("epoch", fontsize=8)
    figure.supylabel("mean |scale| of a group", fontsize=8)
    figure.savefig(path)
