"""The optimizers of the recipes, and the defaults of each."""

import dataclasses
from collections.abc import Callable
from typing import Any

import optax

from mslice_jax.train import sgd


@dataclasses.dataclass(frozen=True, kw_only=True)
class Usual:
    """An optimizer and its defaults for flags that are not given.

    Attributes:
      build: Optax's function; None for `mslice_jax.train.sgd`.
      lr: learning rate; None for the recipe's own, which is for sgd.
      weight_decay: None where the optimizer has none.
    """

    build: Callable[..., Any] | None
    lr: float | None
    weight_decay: float | None


USUAL = {
    "sgd": Usual(build=None, lr=None, weight_decay=1e-4),
    "adam": Usual(build=optax.adam, lr=1e-3, weight_decay=None),
    "adamw": Usual(build=optax.adamw, lr=1e-3, weight_decay=1e-2),
    "lamb": Usual(build=optax.lamb, lr=1e-2, weight_decay=1e-2),
    "lion": Usual(build=optax.lion, lr=3e-4, weight_decay=1e-2),
}


def build(
    name: str,
    learning_rate: optax.ScalarOrSchedule,
    *,
    weight_decay: float | None,
    clip: float | None,
) -> optax.GradientTransformation:
    """The optimizer of that name.

    Args:
      name: one of `USUAL`.
      learning_rate: a number, or a schedule from steps to numbers.
      weight_decay: None for an optimizer that has none.
      clip: the largest norm of a step's gradient; a larger one is scaled down first.

    Raises:
      ValueError: for a number out of its range.

    Example:
      >>> optimizer = build("adamw", 1e-3, weight_decay=0.0, clip=None)
    """
    usual = USUAL[name]
    # Checks both numbers, for every optimizer.
    own = sgd(learning_rate, weight_decay=weight_decay or 0.0, clip=clip)
    if usual.build is None:
        return own
    decay = {} if weight_decay is None else {"weight_decay": weight_decay}
    optimizer = usual.build(learning_rate, **decay)
    if clip is None:
        return optimizer
    return optax.chain(optax.clip_by_global_norm(clip), optimizer)
