"""A network that is trained already, and data to look at it with."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class Subject:
    """What `experiments.upgrade_pretrained` needs of a network.

    Labels are (n,), or (n, t) where every example has several; -1 does not count.

    Attributes:
      name: what it is called.
      model: a Flax Linen module of one array: inputs (n, ...) -> logits (..., classes).
      variables: of the model, trained at full width.
      train_inputs: to order, calibrate and distil with.
      train_labels: they only say which predictions count.
      test_inputs, test_labels: held out.
      call: what else the call takes.
      batch_norms: whether statistics have to be measured for each rate.
      notes: lines to print of the data.
    """

    name: str
    model: Any
    variables: Any
    train_inputs: np.ndarray
    train_labels: np.ndarray
    test_inputs: np.ndarray
    test_labels: np.ndarray
    call: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    batch_norms: bool = False
    notes: tuple[str, ...] = ()


def split(
    inputs: np.ndarray, labels: np.ndarray, *, held_out: int, seed: int
) -> dict[str, np.ndarray]:
    """Training and held-out examples as a `Subject` has them, drawn by a seed.

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
    return {
        "train_inputs": inputs[train],
        "train_labels": labels[train],
        "test_inputs": inputs[test],
        "test_labels": labels[test],
    }
