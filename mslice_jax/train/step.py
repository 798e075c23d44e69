"""The training step: gradients summed over the rates of the step, then one update.

The compiled pieces are one program per rate (`rate_step`) and one for the update
(`apply_updates`). A step over three rates runs three of the former and the latter, so
that four rates need five compilations, whichever combinations a schedule draws.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax

from mslice_jax.sliceable import slice_apply

from .state import TrainState, params_of, with_variables

Batch = tuple[Any, Any]
"""Images (b, h, w, c) and integer labels (b,)."""

Transform = Callable[[jax.Array, jax.Array], jax.Array]
"""(key, raw images) -> images that the network takes; runs inside the compiled step."""

Loss = Callable[[jax.Array, jax.Array], jax.Array]
"""(logits (b, classes), labels (b,)) -> scalar."""

Metrics = dict[float, dict[str, jax.Array]]
"""For each rate of the step: "loss" and "accuracy", scalars that may not be ready."""


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean over the batch of the softmax cross entropy, in nats."""
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return losses.mean()


def no_transform(key: jax.Array, images: jax.Array) -> jax.Array:
    """Images as they come."""
    del key
    return images


class TrainStep(Protocol):
    """What `make_train_step` returns."""

    def __call__(
        self, state: TrainState, batch: Batch, rates: tuple[float, ...]
    ) -> tuple[TrainState, Metrics]:
        """Use up `state`, return the next one and what was measured on the way."""
        ...


def make_train_step(
    optimizer: optax.GradientTransformation,
    *,
    transform: Transform = no_transform,
    loss: Loss = cross_entropy,
    call_kwargs: Mapping[str, Any] | None = None,
) -> TrainStep:
    """Build ``step(state, batch, rates) -> (state, metrics)``.

    The gradients of all `rates` are summed, not averaged, before the one update, as
    in the original (section 3.1 of the paper). All rates of a step see the same
    augmented images and the same dropout key. Batch statistics go through the rates
    in their order. Only the collection "params" is differentiated.

    The `state` that is passed is used up: its buffers become the new state's. Take
    what is needed of it before the call.

    Args:
      optimizer: Optax transformation, `TrainState.create` got the same one.
      transform: (key, images) -> images; augmentation and normalization.
      loss: (logits, labels) -> scalar.
      call_kwargs: what else the network's call takes; ``{"train": True}`` unless
        given.

    Returns:
      A function. Its metrics are arrays on the device: reading one waits for the step.
      It raises ValueError for a step without rates, and what `slice_apply` raises for
      a rate that the network does not have.

    Example:
      >>> import mslice_jax as ms, jax, jax.numpy as jnp
      >>> from flax import linen as nn
      >>> from mslice_jax.train import TrainState, make_train_step, sgd
      >>> model = nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(2)])
      >>> x, y = jnp.ones((4, 3)), jnp.array([0, 1, 0, 1])
      >>> net = ms.upgrade(model, model.init(jax.random.key(0), x), x, rates=(0.5, 1.0))
      >>> step = make_train_step(sgd(0.1), call_kwargs={})
      >>> state = TrainState.create(net, sgd(0.1), key=jax.random.key(0))
      >>> state, metrics = step(state, (x, y), (0.5, 1.0))
      >>> int(state.step), sorted(metrics)
      (1, [0.5, 1.0])
    """
    kwargs = {"train": True} if call_kwargs is None else dict(call_kwargs)

    @functools.partial(jax.jit, static_argnames="rate", donate_argnames="grads")
    def rate_step(state: TrainState, grads: Any, batch: Batch, *, rate: float):
        """Add this rate's gradients to `grads`; also new statistics, and metrics."""
        # The key depends on the step alone, so that every rate sees the same images.
        key = jax.random.fold_in(state.key, state.step)
        augment_key, dropout_key = jax.random.split(key)
        images, labels = transform(augment_key, batch[0]), batch[1]

        def loss_of(params):
            logits, updates = slice_apply(
                with_variables(state.net, {"params": params}),
                images,
                rate,
                mutable=["batch_stats"],
                rngs={"dropout": dropout_key},
                **kwargs,
            )
            return loss(logits, labels), (logits, updates)

        value_and_grad = jax.value_and_grad(loss_of, has_aux=True)
        (value, (logits, updates)), new = value_and_grad(params_of(state.net))
        accuracy = jnp.mean(jnp.argmax(logits, axis=-1) == labels)
        grads = jax.tree.map(jnp.add, grads, new)
        return grads, updates, {"loss": value, "accuracy": accuracy}

    # `grads` is not donated: the optimizer's buffers and the weights already have
    # theirs to give, and a third set would find no output of its kind.
    @functools.partial(jax.jit, donate_argnames="state")
    def apply_updates(state: TrainState, grads: Any) -> TrainState:
        params = params_of(state.net)
        updates, opt_state = optimizer.update(grads, state.opt_state, params)
        params = optax.apply_updates(params, updates)
        return TrainState(
            step=state.step + 1,
            net=with_variables(state.net, {"params": params}),
            opt_state=opt_state,
            key=state.key,
        )

    # Unused as they are, the weights stay arguments: zeros that come from constants
    # alone are placed otherwise than gradients, and would cost a second compilation.
    zeros_like = jax.jit(
        functools.partial(jax.tree.map, jnp.zeros_like), keep_unused=True
    )

    def step(state: TrainState, batch: Batch, rates: tuple[float, ...]):
        if not rates:
            raise ValueError("expected at least one rate for a training step, got ().")
        grads, metrics = zeros_like(params_of(state.net)), {}
        for rate in rates:
            grads, updates, metrics[rate] = rate_step(state, grads, batch, rate=rate)
            state = TrainState(
                step=state.step,
                net=with_variables(state.net, updates),
                opt_state=state.opt_state,
                key=state.key,
            )
        return apply_updates(state, grads), metrics

    return step
