"""What widths gain over others on the same images; of all seeds, as a table."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console
from rich.table import Table

import mslice_jax as ms

from .images import Images

UNIFORM, GREEDY, EVOLUTION = "uniform", "greedy", "evolution"
SEARCHED, ANEW = "searched", "anew"
TITLES = {
    SEARCHED: "The network that was searched, trained at mixed widths",
    ANEW: "Trained anew, at the widths of these budgets",
}
_BATCH = 1000


def outcomes(net: ms.Sliceable, rate: Any, images: Images) -> tuple[Any, Any]:
    """The cross-entropy of every image (n,), and whether its class is told (n,)."""
    found = []
    for start in range(0, len(images.x), _BATCH):
        here = images.x[start : start + _BATCH]
        # Filled up, so that all batches are of one size.
        missing = min(_BATCH, len(images.x)) - len(here)
        filled = np.concatenate([here, images.x[:missing]])
        logits = ms.slice_apply(net, jnp.asarray(filled), rate)
        found.append(np.asarray(logits)[: len(here)])
    logits = np.concatenate(found)
    losses = optax.losses.softmax_cross_entropy_with_integer_labels(logits, images.y)
    return np.asarray(losses), logits.argmax(-1) == images.y


def compared(
    found: tuple[Any, Any], uniform: tuple[Any, Any], draws: int
) -> dict[str, Any]:
    """Loss and accuracy of widths, and what they are above those of uniform widths.

    Both looked at the same images, so the standard error is that of the differences
    image by image; all draws of an image are one. The square of an accuracy's
    difference over its error is, but for a factor next to 1, McNemar's statistic.

    Args:
      found, uniform: from `outcomes`.
      draws: how many times each image is there.

    Example:
      >>> uniform = np.array([0.5, 0.5, 0.5, 0.5]), np.array([True, False, True, True])
      >>> found = np.array([0.4, 0.3, 0.4, 0.3]), np.array([True, True, True, True])
      >>> compared(found, uniform, 1)["accuracy"]
      {'mean': 1.0, 'difference': 0.25, 'error': 0.25}
    """
    about = {}
    for name, one, other in zip(("loss", "accuracy"), found, uniform, strict=True):
        one, other = one.astype(np.float64), other.astype(np.float64)
        each = (one - other).reshape(draws, -1).mean(axis=0)
        about[name] = {
            "mean": float(one.mean()),
            "difference": float(each.mean()),
            "error": float(each.std(ddof=1) / math.sqrt(len(each))),
        }
    return about


def over_seeds(seeds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means over the seeds, and two standard errors of the difference.

    Args:
      seeds: of each what `compared` gives.

    Returns:
      For the loss and the accuracy: the means of "mean" and "difference"; "error",
      which comes from the images, for these networks; "error_of_seeds", from how far
      the seeds differ, which holds what comes from training and search, too (None for
      one seed); and "better", in how many seeds the widths are.
    """
    found = {}
    for name, sign in (("loss", -1), ("accuracy", 1)):
        each = [seed[name] for seed in seeds]
        differences = np.array([one["difference"] for one in each])
        root = math.sqrt(len(each))
        spread = float(differences.std(ddof=1) / root) if len(each) > 1 else None
        found[name] = {
            "mean": float(np.mean([one["mean"] for one in each])),
            "difference": float(differences.mean()),
            "error": float(np.linalg.norm([one["error"] for one in each]) / len(each)),
            "error_of_seeds": spread,
            "better": int((sign * differences > 0).sum()),
        }
    return found


def summary(held_out: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """`over_seeds` for each training, budget and way.

    Args:
      held_out: of each seed: training -> budget -> way -> what `compared` gives.
    """
    return {
        training: {
            rate: {
                way: over_seeds([seed[training][rate][way] for seed in held_out])
                for way in ways
            }
            for rate, ways in rates.items()
        }
        for training, rates in held_out[0].items()
    }


def show(console: Console, results: Mapping[str, Any]) -> None:
    """A table for each training; a row for each budget and way to choose widths."""
    for training, rates in results["over_seeds"].items():
        table = Table(title=TITLES[training], title_justify="left")
        for column in ("FLOPs of r", "widths"):
            table.add_column(column)
        for column in ("loss", "- uniform", "accuracy/%", "- uniform"):
            table.add_column(column, justify="right")
        for rate, ways in rates.items():
            for way, found in ways.items():
                table.add_row(rate if way == UNIFORM else "", way, *_cells(way, found))
            table.add_section()
        console.print(table)
    console.print(
        f"Held-out images, at no more FLOPs; means of seeds {results['seeds']}. The "
        "standard error of a difference is that from images / that from seeds; then in "
        "how many seeds it is better.",
        highlight=False,
    )


def _cells(way: str, found: Mapping[str, Any]) -> list[str]:
    cells = []
    for name, scale, digits in (("loss", 1, 3), ("accuracy", 100, 1)):
        one = found[name]
        errors = [one["error"], one["error_of_seeds"]]
        errors = [f"{scale * x:.{digits}f}" for x in errors if x is not None]
        gain = f"{scale * one['difference']:+.{digits}f} ± {' / '.join(errors)}"
        cells.append(f"{scale * one['mean']:.{digits}f}")
        cells.append("" if way == UNIFORM else f"{gain} ({one['better']})")
    return cells
