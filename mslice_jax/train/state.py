"""TrainState: all that a training step reads and writes, as one pytree."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp
import optax

from ..sliceable import Sliceable


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainState:
    """Weights, optimizer, position and randomness of a run, between two steps.

    It is a pytree, so jit, sharding and checkpoints take it as it is. Whatever is
    random in step `n` derives from ``fold_in(key, n)``: the key never changes, and a
    run that was restored at step `n` draws what the run that was never stopped draws.

    Attributes:
      step: int32 scalar, the number of optimizer updates made.
      net: the network at full width; its "params" are trained, other collections
        (batch statistics) are carried along.
      opt_state: Optax's state for "params".
      key: typed PRNG key of the run.
      averaged: the moving average of "params", or None.

    Example:
      >>> import mslice_jax as ms, jax, jax.numpy as jnp
      >>> from flax import linen as nn
      >>> from mslice_jax.train import TrainState, sgd
      >>> model = nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(2)])
      >>> x = jnp.ones((4, 3))
      >>> net = ms.upgrade(model, model.init(jax.random.key(0), x), x, rates=(0.5, 1.0))
      >>> state = TrainState.create(net, sgd(0.1), key=jax.random.key(0))
      >>> int(state.step)
      0
    """

    step: jax.Array
    net: Sliceable
    opt_state: optax.OptState
    key: jax.Array
    averaged: Any = None

    @property
    def eval_net(self) -> Sliceable:
        """The network to evaluate and to ship: with averaged weights, if there are."""
        if self.averaged is None:
            return self.net
        return with_variables(self.net, {"params": self.averaged})

    @classmethod
    def create(
        cls,
        net: Sliceable,
        optimizer: optax.GradientTransformation,
        *,
        key: jax.Array,
        average: bool = False,
    ) -> Self:
        """A run at step 0. The weights are copied, for a training step donates them.

        Args:
          net: a network at full width.
          optimizer: the one that `make_train_step` gets.
          key: of all that is random in the run.
          average: whether the state holds a moving average of the weights.

        Raises:
          ValueError: if `net.variables` is no mapping with a collection "params".
        """
        # The copy belongs to this run: a step gives its buffers away, and whoever
        # holds the variables that were handed to `upgrade` must not lose them.
        net, key = jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), (net, key))
        return cls(
            step=jnp.zeros((), jnp.int32),
            net=net,
            opt_state=optimizer.init(params_of(net)),
            key=key,
            averaged=jax.tree.map(jnp.copy, params_of(net)) if average else None,
        )


def params_of(net: Sliceable) -> Any:
    """The tree that is trained: the collection "params" of the network."""
    variables = net.variables
    if not isinstance(variables, Mapping) or "params" not in variables:
        found = sorted(variables) if isinstance(variables, Mapping) else type(variables)
        raise ValueError(
            'expected variables with a collection "params", the one to train; got '
            f"{found}. Put a function's weights into {{'params': weights}}."
        )
    return variables["params"]


def with_variables(net: Sliceable, collections: Mapping[str, Any]) -> Sliceable:
    """The network with these collections in place of its own of the same name."""
    return net.replace(variables={**net.variables, **collections})
