"""The original's optimizer and its learning rates, as Optax builds them."""

import math
from collections.abc import Sequence

import jax.numpy as jnp
import optax


def sgd(
    learning_rate: optax.ScalarOrSchedule,
    *,
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
    clip: float | None = None,
) -> optax.GradientTransformation:
    """SGD with Nesterov momentum; weight decay is added to the gradient, as PyTorch's.

    With g the summed gradient, w the weight and b the momentum buffer, a step is
    g' = g + decay·w, then b = momentum·b + g', then w -= lr·(g' + momentum·b).
    Every parameter decays, norms and biases too.

    Args:
      learning_rate: a number, or a schedule from steps to numbers.
      momentum: factor on the buffer.
      weight_decay: decay per unit of learning rate.
      clip: the largest norm of the summed gradient; a larger one is scaled down before
        anything else happens to it.

    Raises:
      ValueError: for a momentum outside [0, 1), a negative decay, or no room to clip.
    """
    if not 0 <= momentum < 1:
        raise ValueError(f"expected a momentum in [0, 1), got {momentum}.")
    if not 0 <= weight_decay < math.inf:
        raise ValueError(f"expected a weight decay of at least 0, got {weight_decay}.")
    if clip is not None and not 0 < clip < math.inf:
        raise ValueError(f"expected a norm above 0 to clip at, got {clip}.")
    return optax.chain(
        optax.identity() if clip is None else optax.clip_by_global_norm(clip),
        optax.add_decayed_weights(weight_decay),
        optax.sgd(learning_rate, momentum=momentum, nesterov=True),
    )


def multi_step(
    peak: float,
    *,
    epochs: int,
    steps_per_epoch: int,
    warmup_epochs: int = 0,
    drops: Sequence[float] = (0.5, 0.75),
    factor: float = 0.1,
) -> optax.Schedule:
    """Constant, and multiplied with `factor` at each share of the epochs in `drops`.

    Drops happen between epochs, at ``int(epochs * share)`` as in the original; not
    before the first step.

    Args:
      peak: the learning rate after warm-up.
      epochs: length of the run, in epochs.
      steps_per_epoch: optimizer updates in an epoch.
      warmup_epochs: epochs in which the rate climbs to `peak` in a straight line, from
        a tenth of it (the original's multiplier is ten).
      drops: shares of `epochs`, in (0, 1].
      factor: what each drop multiplies with.

    Returns:
      A schedule from the step (0 is the first) to the learning rate.

    Raises:
      ValueError: if a number is out of its range.

    Example:
      >>> rate = multi_step(0.1, epochs=4, steps_per_epoch=10)
      >>> [round(float(rate(step)), 4) for step in (0, 19, 20, 30)]
      [0.1, 0.1, 0.01, 0.001]
    """
    _check(peak, epochs, steps_per_epoch, warmup_epochs)
    scales: dict[int, float] = {}
    for share in drops:  # a short run may drop twice between the same two epochs
        boundary = int(epochs * share) * steps_per_epoch
        scales[boundary] = scales.get(boundary, 1.0) * factor
    # Of a single epoch, the drops would come before the first step.
    scales.pop(0, None)
    main = optax.piecewise_constant_schedule(peak, scales)
    return _warmed_up(main, peak, warmup_epochs * steps_per_epoch)


def cosine(
    peak: float, *, epochs: int, steps_per_epoch: int, warmup_epochs: int = 0
) -> optax.Schedule:
    """Half a cosine from `peak` to zero, over the epochs that follow the warm-up.

    It falls with every step; the original's falls once an epoch.

    Args, errors: as `multi_step`.

    Example:
      >>> rate = cosine(0.1, epochs=2, steps_per_epoch=10)
      >>> [round(float(rate(step)), 4) for step in (0, 10, 20)]
      [0.1, 0.05, 0.0]
    """
    _check(peak, epochs, steps_per_epoch, warmup_epochs)
    warmup = warmup_epochs * steps_per_epoch
    main = optax.cosine_decay_schedule(peak, epochs * steps_per_epoch - warmup)
    shifted = optax.join_schedules([optax.constant_schedule(peak), main], [warmup])
    return _warmed_up(shifted, peak, warmup)


def _warmed_up(main: optax.Schedule, peak: float, steps: int) -> optax.Schedule:
    """`main`, but a straight line from a tenth of `peak` in the first `steps` steps."""
    if steps == 0:
        return main
    climb = optax.linear_schedule(peak / 10, peak, steps)
    # join_schedules would count the main schedule from the end of the warm-up on,
    # which would shift the drops.
    return lambda count: jnp.where(
        jnp.asarray(count) < steps, climb(count), main(count)
    )


def _check(peak: float, epochs: int, steps_per_epoch: int, warmup_epochs: int) -> None:
    if not 0 < peak < math.inf:
        raise ValueError(f"expected a learning rate above 0, got {peak}.")
    if epochs < 1 or steps_per_epoch < 1:
        raise ValueError(
            "expected at least one epoch of at least one step, got "
            f"{epochs} epochs of {steps_per_epoch} steps."
        )
    if not 0 <= warmup_epochs < epochs:
        raise ValueError(
            f"expected fewer warm-up epochs than epochs ({epochs}) and at least 0, "
            f"got {warmup_epochs}."
        )
