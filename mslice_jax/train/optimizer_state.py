"""What a training step asks of an Optax optimizer, whichever it is.

Optimizers of Optax differ in what their state holds (the weights themselves), in what
they ask for besides gradients (the loss, a function of the weights), and in which
weights are to be evaluated. Here each becomes three functions of one form.
"""

import dataclasses
import functools
import inspect
import re
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib


class OptimizerError(ValueError):
    """An optimizer that asks for what a training step does not have."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class WithSlow:
    """State of `optax.lookahead`, whose slow weights are no part of its own state."""

    state: Any
    slow: Any


def init(optimizer: Any, params: Any) -> Any:
    """The optimizer's state for these weights, in buffers of its own.

    States may hold the weights themselves, or one array twice; a training step gives
    every buffer away, which it can do once.
    """
    state = optimizer.init(params)
    if _parts(state, optax.LookaheadState):
        state = WithSlow(state, params)
    return jax.tree.map(_fresh, state)


def update(
    optimizer: Any, grads: Any, state: Any, params: Any, extra: dict[str, Any]
) -> tuple[Any, Any]:
    """New weights, and the optimizer's new state.

    Args:
      optimizer: an Optax transformation, or `optax.MultiSteps`.
      grads: like `params`.
      state: from `init`, or from here.
      params: the weights.
      extra: what it may ask for, by keyword; it is given what it takes.

    Raises:
      OptimizerError: if it asks for something else.
    """
    inner, given = state, params
    if isinstance(state, WithSlow):
        inner = state.state
        given = optax.LookaheadParams(fast=params, slow=state.slow)
    updates, new = _called(optimizer, grads, inner, given, extra)
    moved = optax.apply_updates(given, updates)
    if isinstance(state, WithSlow):
        assert isinstance(moved, optax.LookaheadParams)
        moved, new = moved.fast, WithSlow(new, moved.slow)
    if jax.tree.structure(new) == jax.tree.structure(state):
        # Types that change would compile the next step anew, and fit no checkpoint.
        new = jax.tree.map(_like, new, state)
    return moved, new


def evaluation_weights(state: Any, params: Any) -> Any:
    """The weights to evaluate and to ship: `params`, unless the optimizer has others.

    The average of a schedule-free method, the slow weights of `optax.lookahead`, and
    those from which `optax.contrib.sam` took its step towards a worse loss.

    Raises:
      OptimizerError: for a schedule-free method that trains only some of the weights.
    """
    if isinstance(state, WithSlow):
        return state.slow
    for found in _parts(state, optax.contrib.ScheduleFreeState):
        if jax.tree.structure(found.z) != jax.tree.structure(params):
            raise OptimizerError(
                "the optimizer is schedule-free for a part of the weights, and nobody "
                "knows which to evaluate. Make it schedule-free for all of them."
            )
        averages = optax.contrib.schedule_free_eval_params(found, params)
        return jax.tree.map(lambda x, like: x.astype(like.dtype), averages, params)
    for found in _parts(state, optax.contrib.SAMState):
        if found.cache is not None:
            choose = functools.partial(jnp.where, found.steps_since_sync == 0)
            return jax.tree.map(choose, params, found.cache)
    return params


def has_evaluation_weights(state: Any) -> bool:
    """Whether the weights to evaluate are others than those that are trained."""
    sam = _parts(state, optax.contrib.SAMState)
    return (
        isinstance(state, WithSlow)
        or bool(_parts(state, optax.contrib.ScheduleFreeState))
        or any(found.cache is not None for found in sam)
    )


def _called(optimizer: Any, grads: Any, state: Any, params: Any, extra: Any) -> Any:
    if isinstance(optimizer, optax.MultiSteps):
        optimizer = optimizer.gradient_transformation()
    call = optax.with_extra_args_support(optimizer).update
    parameters = inspect.signature(call).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        extra = {name: value for name, value in extra.items() if name in parameters}
    given = dict(extra)
    while True:
        try:
            return call(grads, state, params, **given)
        except (TypeError, ValueError) as error:
            # One within a chain may take no more than what it names (SAM).
            # So do line searches.
            unexpected = re.search("unexpected keyword argument", str(error), re.I)
            named = set(re.findall(r"'(\w+)'", str(error))) & given.keys()
            if unexpected and named:
                given = {k: v for k, v in given.items() if k not in named}
                continue
            message = " ".join(str(error).split())
            needs = "what it says"
            if "batch dimension" in message or "per-example" in message:
                needs = "the gradient of each example by itself"
            raise OptimizerError(
                f"make_train_step cannot run this optimizer, which needs {needs}; it "
                f"is given the gradient of the batch, the weights, "
                f"{', '.join(sorted(given))}. The optimizer: {message}"
            ) from error


def _parts(state: Any, kind: Any) -> list[Any]:
    """The states of a kind within a state."""
    leaves = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, kind))
    return [leaf for leaf in leaves if isinstance(leaf, kind)]


def _fresh(leaf: Any) -> jax.Array:
    """A copy, with a type of its own (not weak) as it will have after an update."""
    copied = jnp.array(leaf, copy=True)
    if jnp.issubdtype(copied.dtype, jax.dtypes.extended):
        return copied
    return jax.lax.convert_element_type(copied, copied.dtype)


def _like(new: Any, old: Any) -> Any:
    if jnp.issubdtype(old.dtype, jax.dtypes.extended):
        return new
    return jax.lax.convert_element_type(new, old.dtype)
