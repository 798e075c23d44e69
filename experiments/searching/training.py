"""Training at many widths: of all kinds, or at some that are given."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import mslice_jax as ms

from .images import Split

Draw = Callable[[np.random.Generator, int], Sequence[Mapping[str, float]]]
"""(generator, how many) -> a rate for each width group, so many times."""


def mixed(net: ms.Sliceable) -> Draw:
    """Each group has a rate of its own (Yu and Huang 2019, AutoSlim, section 3.2)."""
    groups = list(net.plan.groups)

    def draw(rng: np.random.Generator, count: int) -> list[dict[str, float]]:
        found = rng.choice(net.rates, size=(count, len(groups))).tolist()
        return [dict(zip(groups, rates, strict=True)) for rates in found]

    return draw


def among(widths: Sequence[Mapping[str, float]]) -> Draw:
    """Some of those that are given."""
    return lambda rng, count: [widths[i] for i in rng.integers(len(widths), size=count)]


def trainer(
    net: ms.Sliceable,
    images: Split,
    *,
    epochs: int,
    batch_size: int,
    lr: float,
    drawn: int,
    seed: int,
) -> Callable[[Draw], ms.Sliceable]:
    """Trains the network at the widest, the narrowest, and some drawn widths.

    Those are masks of the full network, so that there is one program.

    Args:
      net: with its initial weights.
      images: whose training part is learned.
      epochs: passes over the images.
      batch_size: images of a step, the same ones for all widths.
      lr: learning rate of Adam, at its highest; it falls as a cosine.
      drawn: how many widths a step draws.
      seed: of order, noise and widths.

    Returns:
      A function that trains from the initial weights at widths so drawn.
    """
    x, y = images.x_train, images.y_train
    per_epoch = len(x) // batch_size
    steps = epochs * per_epoch
    optimizer = optax.adam(optax.cosine_decay_schedule(lr, steps))
    narrowest = min(net.rates)

    @ms.jit
    def step(variables: Any, state: Any, masks: Any, key: Any, raw: Any, y: Any) -> Any:
        seen = images.vary(key, raw)

        def loss(variables: Any, mask: Any, rate: float) -> jax.Array:
            if mask is not None:
                variables = jax.tree.map(jnp.multiply, variables, mask)
            logits = ms.slice_apply(net.replace(variables), seen, rate)
            losses = optax.losses.softmax_cross_entropy_with_integer_labels(logits, y)
            return losses.mean()

        networks = [(None, 1.0), (None, narrowest), *((mask, 1.0) for mask in masks)]
        each = [jax.grad(loss)(variables, *network) for network in networks]
        slopes = jax.tree.map(lambda *slope: sum(slope), *each)
        updates, state = optimizer.update(slopes, state, variables)
        return optax.apply_updates(variables, updates), state

    def trained(draw: Draw) -> ms.Sliceable:
        rng = np.random.default_rng(seed)
        variables, state = net.variables, optimizer.init(net.variables)
        for at in range(steps):
            if at % per_epoch == 0:
                order = rng.permutation(len(x))
            here = order[at % per_epoch * batch_size :][:batch_size]
            masks = [net.plan.mask(net.variables, rate) for rate in draw(rng, drawn)]
            key = jax.random.fold_in(jax.random.key(seed), at)
            variables, state = step(variables, state, masks, key, x[here], y[here])
        return net.replace(variables)

    return trained
