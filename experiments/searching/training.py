"""Training at mixed widths: a rate of its own for each layer, as AutoSlim trains."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import mslice_jax as ms

from .images import Split


def trained(
    net: ms.Sliceable,
    images: Split,
    *,
    epochs: int,
    batch_size: int,
    lr: float,
    mixed: int,
    seed: int,
) -> ms.Sliceable:
    """The network, trained at the widest, the narrowest, and some mixed widths.

    The mixed ones are drawn anew in every step (Yu and Huang 2019, AutoSlim, section
    3.2). They are masks of the full network, so that there is one program.

    Args:
      net: with its initial weights.
      images: whose training part is learned.
      epochs: passes over it.
      batch_size: images of a step, the same ones for all widths.
      lr: learning rate of Adam, at its highest; it falls as a cosine.
      mixed: how many mixed widths a step trains.
      seed: of order, noise and widths.
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

    rng, groups = np.random.default_rng(seed), list(net.plan.groups)
    variables, state = net.variables, optimizer.init(net.variables)
    for at in range(steps):
        if at % per_epoch == 0:
            order = rng.permutation(len(x))
        here = order[at % per_epoch * batch_size :][:batch_size]
        masks = [
            net.plan.mask(net.variables, dict(zip(groups, rates, strict=True)))
            for rates in rng.choice(net.rates, size=(mixed, len(groups))).tolist()
        ]
        key = jax.random.fold_in(jax.random.key(seed), at)
        variables, state = step(variables, state, masks, key, x[here], y[here])
    return net.replace(variables)
