"""TrainState: all that a training step reads and writes, as one pytree."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
import optax

from ..core.rates import rate_key
from ..sliceable import Sliceable
from . import optimizer_state
from .loss_scale import LossScale


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
      carried: what is carried from batch to batch for each rate by itself, by the
        rate's name: collections of variables; None if there are none.
      loss_scale: what losses are multiplied with (float16), or None.

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
    carried: Any = None
    loss_scale: LossScale | None = None

    @property
    def eval_net(self) -> Sliceable:
        """The network to evaluate and to ship.

        With averaged weights, if there are; or with those that the optimizer has for
        it (schedule-free methods, `optax.lookahead`, `optax.contrib.sam`).
        """
        if self.averaged is not None:
            return with_variables(self.net, {"params": self.averaged})
        if not optimizer_state.has_evaluation_weights(self.opt_state):
            return self.net
        params = optimizer_state.evaluation_weights(self.opt_state, params_of(self.net))
        return with_variables(self.net, {"params": params})

    @classmethod
    def create(
        cls,
        net: Sliceable,
        optimizer: optax.GradientTransformation,
        *,
        key: jax.Array,
        average: bool = False,
        carry: Sequence[str] = (),
        loss_scale: LossScale | None = None,
    ) -> Self:
        """A run at step 0. The weights are copied, for a training step donates them.

        Args:
          net: a network at full width.
          optimizer: the one that `make_train_step` gets.
          key: of all that is random in the run.
          average: whether the state holds a moving average of the weights.
          carry: collections of `net.variables` that every rate carries from batch to
            batch for itself, such as the hidden state of a recurrent network: in
            evaluation a rate meets the states that it has made, and a prefix of a wider
            one's would be others. A rate that a step leaves out keeps its state, of a
            few batches before. Other collections (batch statistics) go through the
            rates of a step in their order. Each rate begins with what `net.variables`
            holds.
          loss_scale: from `LossScale.start`; float16 needs one.

        Raises:
          ValueError: if `net.variables` is no mapping with a collection "params", or
            has none of the collections to carry.
        """
        # The copy belongs to this run: a step gives its buffers away, and whoever
        # holds the variables that were handed to `upgrade` must not lose them.
        net, key, loss_scale = jax.tree.map(_copy, (net, key, loss_scale))
        return cls(
            step=jnp.zeros((), jnp.int32),
            net=net,
            opt_state=optimizer_state.init(optimizer, params_of(net)),
            key=key,
            averaged=jax.tree.map(_copy, params_of(net)) if average else None,
            carried=_carried(net, carry),
            loss_scale=loss_scale,
        )


def _copy(leaf: Any) -> jax.Array:
    return jnp.array(leaf, copy=True)


def _carried(net: Sliceable, names: Sequence[str]) -> Any:
    if isinstance(names, str):
        raise ValueError(f"expected carry=[{names!r}], got {names!r}.")
    unknown = [n for n in names if n not in net.variables or n == "params"]
    if unknown:
        known = [name for name in net.variables if name != "params"]
        raise ValueError(
            f"expected collections of the network to carry, of {known}; got {unknown}."
        )
    if not names:
        return None
    return {
        rate_key(rate): {n: jax.tree.map(_copy, net.variables[n]) for n in names}
        for rate in net.rates
    }


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
