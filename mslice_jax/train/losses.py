"""What a training step minimizes: labels, and a wider network as teacher."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Shaped

Loss = Callable[[Any, Any], jax.Array]
"""(outputs, targets) -> scalar; of images (logits (b, classes), labels (b,))."""


def cross_entropy(
    logits: Float[Array, "*b classes"],
    labels: Int[Array, "*b"],
    *,
    smoothing: float = 0.0,
) -> Float[Array, ""]:
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


def token_cross_entropy(
    logits: Float[Array, "b t vocab"],
    targets: Int[Array, "b t"],
    mask: Shaped[Array, "b t"] | None = None,
    *,
    smoothing: float = 0.0,
) -> Float[Array, ""]:
    """Mean of the softmax cross entropy over the tokens that count, in nats.

    Args:
      logits: (b, t, vocab).
      targets: (b, t), integers; where the mask is 0 they may be anything.
      mask: (b, t): how much each token counts; None: each of them. Where nothing
        counts the mean is 0.
      smoothing: share of each target that is spread evenly over the vocabulary.

    Raises:
      ValueError: for a smoothing out of its range, or shapes that do not fit.
    """
    if not 0 <= smoothing < 1:
        raise ValueError(f"expected a label smoothing in [0, 1), got {smoothing}.")
    if logits.shape[:-1] != targets.shape:
        raise ValueError(
            "expected logits (b, t, vocab) for targets (b, t); got "
            f"{logits.shape} and {targets.shape}."
        )
    weights = token_weights((targets, mask)).astype(logits.dtype)
    # A masked target may be -1, and its loss NaN.
    targets = jnp.where(weights > 0, targets, jnp.zeros_like(targets))
    log_p = jax.nn.log_softmax(logits)
    losses = -jnp.take_along_axis(log_p, targets[..., None], axis=-1)[..., 0]
    if smoothing:
        losses = (1 - smoothing) * losses - smoothing * log_p.mean(axis=-1)
    return weighted_mean(losses, weights)


def token_weights(targets: Any) -> jax.Array:
    """How much each token counts, float32: of ``(targets, mask or None)``."""
    labels, mask = targets
    if mask is None:
        return jnp.ones(labels.shape, jnp.float32)
    if mask.shape != labels.shape:
        raise ValueError(
            f"expected a mask of the targets' shape {labels.shape}, got {mask.shape}."
        )
    return mask.astype(jnp.float32)


def weighted_mean(
    values: Float[Array, "*b"], weights: Shaped[Array, "*b"] | None
) -> Float[Array, ""]:
    """The mean; 0 where everything is masked. Masked entries may be any number."""
    if weights is None:
        return values.mean()
    weights = weights.astype(values.dtype)
    total = jnp.sum(weights)
    counted = jnp.where(weights > 0, values, jnp.zeros_like(values))
    return jnp.sum(weights * counted) / jnp.where(
        total > 0, total, jnp.ones_like(total)
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distillation:
    """The widest rate of a step teaches the others what it predicts.

    In-place distillation of US-Nets (Yu and Huang, ICCV 2019, section 3.2): the others
    minimize the cross entropy to the softened prediction of the widest, through which
    no gradient flows, instead of that to the labels. With `teacher` all rates, the
    widest too, learn from a network outside.

    Attributes:
      weight: share of the loss that comes from the teacher, in [0, 1]; the rest comes
        from the labels. Or a schedule, step -> share, as Optax has them: a teacher
        that is trained at the same time knows nothing at first.
      temperature: both predictions are softened by it; the loss is multiplied by its
        square, so that gradients stay as large (Hinton et al., 2015).
      teacher: images as the network takes them -> logits (b, classes).

    Raises:
      ValueError: for a weight or a temperature out of its range.

    Example:
      >>> late = Distillation(weight=lambda step: 0.3 * (step >= 500))
      >>> float(late.share(499)), float(late.share(500))
      (0.0, 0.3)
    """

    weight: float | optax.Schedule = 1.0
    temperature: float = 1.0
    teacher: Callable[[Any], jax.Array] | None = None

    def __post_init__(self) -> None:
        if not callable(self.weight) and not 0 <= self.weight <= 1:
            raise ValueError(f"expected a weight in [0, 1], got {self.weight}.")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"expected a temperature above 0, got {self.temperature}.")

    def share(self, step: Any) -> Any:
        """The weight in a step; 0 is the first."""
        return self.weight(step) if callable(self.weight) else self.weight

    def loss(
        self,
        logits: Float[Array, "*b classes"],
        taught: Float[Array, "*b classes"],
        weights: Shaped[Array, "*b"] | None = None,
    ) -> Float[Array, ""]:
        """Mean cross entropy of `logits` (..., classes) to the teacher's, times T².

        Args:
          logits, taught: of the same shape.
          weights: (...), how much each prediction counts; all alike unless given.
        """
        targets = jax.nn.softmax(jax.lax.stop_gradient(taught) / self.temperature)
        losses = optax.softmax_cross_entropy(logits / self.temperature, targets)
        return weighted_mean(losses, weights) * self.temperature**2
