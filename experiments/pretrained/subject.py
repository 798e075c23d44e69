"""A network that is trained already, and data to look at it with."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Examples:
    """Inputs and labels, to train with and held out.

    Labels are (n,), or (n, t) where every example has several; -1 does not count.

    Attributes:
      train_inputs: to order, calibrate and distil with.
      train_labels: they only say which predictions count.
      test_inputs: held out.
      test_labels: held out.
    """

    train_inputs: np.ndarray
    train_labels: np.ndarray
    test_inputs: np.ndarray
    test_labels: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Subject:
    """What `experiments.upgrade_pretrained` needs of a network.

    Attributes:
      name: what it is called.
      model: a Flax Linen module of one array: inputs (n, ...) -> logits (..., classes).
      variables: of the model, trained at full width.
      examples: what it is looked at with.
      call: what else the call takes.
      batch_norms: whether statistics have to be measured for each rate.
      notes: lines to print of the data.
    """

    name: str
    model: Any
    variables: Any
    examples: Examples
    call: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    batch_norms: bool = False
    notes: tuple[str, ...] = ()


def split(
    inputs: np.ndarray, labels: np.ndarray, *, held_out: int, seed: int
) -> Examples:
    """Training and held-out examples, drawn by a seed.

    Raises:
      ValueError: if fewer than 16 would be left to train with.
    """
    if len(inputs) < held_out + 16:
        raise ValueError(
            f"{held_out} examples are to be held out, and {len(inputs)} were found; at "
            "least 16 more are needed."
        )
    order = np.random.default_rng(seed).permutation(len(inputs))
    test, train = order[:held_out], order[held_out:]
    return Examples(inputs[train], labels[train], inputs[test], labels[test])
