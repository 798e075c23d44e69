"""Who teaches in a run: the widest rate of a step, or the network of another run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import mslice_jax as ms
from mslice_jax.train import Distillation


def distillation(
    settings: Any, steps_per_epoch: int, example: Any, classes: int
) -> Distillation | None:
    """What resolved flags say; None without --distill.

    Args:
      settings: flags of a recipe.
      steps_per_epoch: batches in an epoch.
      example: one input, as the network takes it.
      classes: length of the logits, of words that of the vocabulary.

    Raises:
      ValueError, OSError: for a --teacher that is none; the message says why.
    """
    if not settings.distill:
        return None
    begins = settings.distill_from * steps_per_epoch

    def late(step: Any) -> jax.Array:
        return jnp.where(step < begins, 0.0, settings.distill)

    teacher = None
    if settings.teacher is not None:
        teacher = _teacher(settings.teacher, example, classes)
    return Distillation(
        weight=late if begins else settings.distill,
        temperature=settings.temperature,
        teacher=teacher,
    )


def _teacher(workdir: Path, example: Any, classes: int) -> Callable[[Any], jax.Array]:
    """The widest rate of the network in a workdir.

    It is called as in use: norms have the statistics of its own training, nothing is
    dropped, and a recurrent network begins each row of text with a state of zeros.
    """
    try:
        net = ms.load(workdir)
    except OSError as error:
        raise OSError(f"--teacher: {error}") from error
    widest = max(net.rates)

    def teach(inputs: Any) -> jax.Array:
        return ms.slice_apply(net, inputs, widest)

    try:
        found = jax.eval_shape(teach, example).shape[-1]
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"the network in {workdir} (--teacher) does not take what is trained on: "
            f"{error}"
        ) from error
    if found != classes:
        raise ValueError(
            f"the network in {workdir} (--teacher) tells {found} classes or words "
            f"apart, and the data has {classes}. Give one that was trained on the same."
        )
    return teach
