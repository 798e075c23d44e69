"""What a training step minimizes: labels, and a wider network as teacher."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import optax

Loss = Callable[[jax.Array, jax.Array], jax.Array]
"""(logits (b, classes), labels (b,)) -> scalar."""


def cross_entropy(
    logits: jax.Array, labels: jax.Array, *, smoothing: float = 0.0
) -> jax.Array:
    """Mean over the batch of the softmax cross entropy, in nats.

    Args:
      logits: (b, classes).
      labels: (b,), integers.
      smoothing: share of each label that is spread evenly over all classes, in [0, 1)
        (Szegedy et al., CVPR 2016); use `functools.partial` to set it.

    Raises:
      ValueError: for a smoothing out of its range.
    """
    if not 0 <= smoothing < 1:
        raise ValueError(f"expected a label smoothing in [0, 1), got {smoothing}.")
    if smoothing == 0.0:
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean()
    targets = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    targets = optax.smooth_labels(targets, smoothing)
    return optax.softmax_cross_entropy(logits, targets).mean()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distillation:
    """The widest rate of a step teaches the others what it predicts.

    In-place distillation of US-Nets (Yu and Huang, ICCV 2019, section 3.2): the others
    minimize the cross entropy to the softened prediction of the widest, through which
    no gradient flows, instead of that to the labels. With `teacher` all rates, the
    widest too, learn from a network outside.

    Attributes:
      weight: share of the loss that comes from the teacher, in [0, 1]; the rest comes
        from the labels.
      temperature: both predictions are softened by it; the loss is multiplied by its
        square, so that gradients stay as large (Hinton et al., 2015).
      teacher: images as the network takes them -> logits (b, classes).
    """

    weight: float = 1.0
    temperature: float = 1.0
    teacher: Callable[[Any], jax.Array] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= 1:
            raise ValueError(f"expected a weight in [0, 1], got {self.weight}.")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"expected a temperature above 0, got {self.temperature}.")

    def loss(self, logits: jax.Array, taught: jax.Array) -> jax.Array:
        """Mean cross entropy of `logits` (b, classes) to the teacher's, times T²."""
        targets = jax.nn.softmax(jax.lax.stop_gradient(taught) / self.temperature)
        losses = optax.softmax_cross_entropy(logits / self.temperature, targets)
        return losses.mean() * self.temperature**2
