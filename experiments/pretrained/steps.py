"""What is done to a network that is trained already, and what it predicts then."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import optax

import mslice_jax as ms
from mslice_jax import schedules
from mslice_jax.train import Distillation, Task, TrainState, make_train_step

from .subject import Subject


class Predictions:
    """What a network predicts, in batches of one size."""

    def __init__(self, call: Mapping[str, Any], batch_size: int = 64):
        self._batch_size = batch_size
        self._run = ms.jit(
            lambda net, x, rate: ms.slice_apply(net, x, rate, **call), static_argnums=2
        )

    def logits(self, net: ms.Sliceable, inputs: np.ndarray, rate: float) -> np.ndarray:
        """The logits of all examples."""
        size, found = self._batch_size, []
        for start in range(0, len(inputs), size):
            part = inputs[start : start + size]
            padded = np.concatenate([part, np.repeat(part[:1], size - len(part), 0)])
            found.append(np.asarray(self._run(net, padded, rate))[: len(part)])
        return np.concatenate(found)

    def __call__(
        self, net: ms.Sliceable, inputs: np.ndarray, rate: float
    ) -> np.ndarray:
        """The likeliest class of each prediction."""
        return self.logits(net, inputs, rate).argmax(-1)


def hits(predicted: np.ndarray, labels: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """For each example the share of its predictions that are right, (n,)."""
    right = (predicted == labels) & counts
    axes = tuple(range(1, right.ndim))
    return right.sum(axes) / counts.sum(axes)


def ordered(
    net: ms.Sliceable,
    subject: Subject,
    by: str,
    taught: np.ndarray,
    *,
    examples: int,
    batch_size: int,
) -> ms.Sliceable:
    """The network with its units in the order of a criterion; none needs labels.

    Args:
      net: the network.
      subject: what it is.
      by: a criterion of `mslice_jax.importance`, or "none".
      taught: logits of the original for the first training inputs.
      examples: how many of these are looked at.
      batch_size: in batches of so many.
    """
    x = subject.examples.train_inputs[:examples]
    parts = range(0, len(x), batch_size)
    if by == "none":
        return net
    if by.startswith("activations"):
        batches = [x[i : i + batch_size] for i in parts]
        return ms.reorder(net, by, batches=batches, **subject.call)
    if by != "taylor":
        return ms.reorder(net, by)

    def loss(net: ms.Sliceable, batch: Any) -> jax.Array:
        logits = ms.slice_apply(net, batch[0], 1.0, **subject.call)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch[1])
        return losses.mean()

    said = taught[: len(x)].argmax(-1)  # the original's own answers
    batches = [(x[i : i + batch_size], said[i : i + batch_size]) for i in parts]
    return ms.reorder(net, by, loss=loss, batches=batches)


def distilled(
    net: ms.Sliceable,
    subject: Subject,
    taught: np.ndarray,
    *,
    steps: int,
    batch_size: int,
    lr: float,
    seed: int,
) -> ms.Sliceable:
    """Trains all rates on what the original said of unlabelled examples.

    Args:
      net: the network.
      subject: what it is.
      taught: logits of the original for all training inputs.
      steps: how many updates, each of the widest, the narrowest and a drawn rate.
      batch_size: examples of an update.
      lr: learning rate of Adam, at its highest.
      seed: of the order of examples and rates.
    """
    optimizer = optax.adam(
        optax.warmup_cosine_decay_schedule(0.0, lr, max(1, steps // 10), steps + 1)
    )
    soft = Distillation()
    task = Task(loss=lambda y, t: soft.loss(y, *t), metrics={}, weights=lambda t: t[1])
    state = TrainState.create(net, optimizer, key=jax.random.key(seed))
    step = make_train_step(optimizer, task=task)
    drawn = min(1, len(net.rates) - 2)
    schedule = schedules.random_min_max(net.rates, k=drawn, seed=seed)
    rng, n = np.random.default_rng(seed), len(subject.examples.train_inputs)
    counts = (subject.examples.train_labels >= 0).astype(np.float32)
    order = np.concatenate(
        [rng.permutation(n) for _ in range(steps * batch_size // n + 1)]
    )
    for number in range(steps):
        i = order[number * batch_size :][:batch_size]
        batch = subject.examples.train_inputs[i], (taught[i], counts[i])
        state, _ = step(state, batch, schedule(number))
    return state.net
