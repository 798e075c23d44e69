"""Sliceable networks: upgrade, slice_apply, extract.

    net = upgrade(model, variables, x, rates=(0.25, 0.5, 0.75, 1.0))
    y = slice_apply(net, x, 0.5)
    small = extract(net, 0.5)

A `Sliceable` is a tree of arrays with a static part, the `Definition`: the function,
the plan, and the traces made so far. The rate is static too, so there is one XLA
program per rate and shape of input.
"""

import abc
import functools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .adapters import adapter_of_network
from .core.call import Call
from .core.definition import Definition
from .core.kept import NarrowVariables, can_be_kept, check_there, cut
from .core.plan import WidthPlan
from .core.rates import Rate, SubNetwork
from .core.run import resolve, run, without_wider


class Network(abc.ABC):
    """What `slice_apply` runs: a `Sliceable`, or the programs of a saved one."""

    __slots__ = ()

    @abc.abstractmethod
    def __call__(self, r: Any, /, *inputs: Any, **call: Any) -> Any:
        """Runs at a slice rate."""


@jax.tree_util.register_pytree_with_keys_class
class Sliceable(Network):
    """A network whose leading part at any declared rate is a network itself.

    A pytree whose only child is `variables`: jit, grad, vmap, optax, sharding and
    checkpoints treat it as any tree. Immutable.

    Attributes:
      variables: the tree of arrays, in sliceable form.
      definition: the static part.
      part: which part of the network the tree is: all of it, or less after `extract`.
    """

    __slots__ = ("_narrow", "definition", "part", "variables")

    def __init__(
        self, variables: Any, definition: Definition, part: SubNetwork | None = None
    ):
        self.variables = variables
        self.definition = definition
        self.part = definition.plan.full if part is None else part
        # So that calls outside of jit cut narrow weights once.
        self._narrow = NarrowVariables()

    def __call__(self, r: Rate, /, *inputs: Any, **call: Any) -> Any:
        """Runs the network at a slice rate: ``net(0.5, x)``.

        As `slice_apply(net, x, r, ...)`, but the inputs may be keywords, too.
        """
        source, definition = self.part, self.definition
        part = resolve(definition, r, source)
        split, arrays = Call.split(inputs, call)
        if part != source and not definition.function.updates(call):
            kept = self._narrow.get(definition, part, source, self.variables)
            if kept is not None:
                narrow, tree = kept.leaves, kept.tree
                return run(definition, part, part, split, narrow, arrays, tree=tree)
        return run(definition, part, source, split, self.variables, arrays)

    @property
    def rate(self) -> float | SubNetwork:
        """The rate that the tree is at: 1.0, or less after `extract`.

        Where no single rate gives its widths it is `part` itself.
        """
        return self.part if self.part.rate is None else self.part.rate

    @property
    def plan(self) -> WidthPlan:
        """What narrows, and to what."""
        return self.definition.plan

    @property
    def rates(self) -> tuple[float, ...]:
        """The declared rates that this network can run at, ascending."""
        return self.definition.rates(self.part)

    @property
    def module(self) -> Any:
        """A Flax module with a static rate, for those who compose modules.

        Linen: `net.module.apply(net.variables, x, rate=0.5)`. A network that came from
        NNX gives an NNX model, which holds the variables: `net.module(x, rate=0.5)`.
        """
        return adapter_of_network(self).module(self)

    def to_nnx(self, rate: Rate) -> Any:
        """The narrow network as an NNX model of the class that `upgrade` was given.

        See `mslice_jax.adapters.nnx.module.to_nnx`.
        """
        return adapter_of_network(self).rebuilt(extract(self, rate))

    def replace(self, variables: Any) -> "Sliceable":
        """The same network with other variables of the same shapes."""
        # NumPy arrays can change under us, so weights cut from them could not be kept.
        variables = jax.tree.map(
            lambda x: jnp.asarray(x) if isinstance(x, np.ndarray) else x, variables
        )
        return Sliceable(variables, self.definition, self.part)

    def named(self, names: Mapping[str, Rate]) -> "Sliceable":
        """The same network with sub-networks declared under names.

        A name is taken where a rate is, and `save` keeps it. Programs that were
        compiled are not taken along, so names are given first.

        Args:
          names: for each name a rate, or a mapping from width groups to rates; names
            that are there already and are not given stay.

        Raises:
          ValueError: for a name that is no string, or empty.
          RateError, PlanError: as `extract`.

        Example:
          >>> import jax.numpy as jnp, mslice_jax as ms
          >>> def mlp(p, x):
          ...     return jnp.tanh(x @ p["w1"]) @ p["w2"]
          >>> p = {"w1": jnp.ones((3, 16)), "w2": jnp.ones((16, 2))}
          >>> x = jnp.ones((5, 3))
          >>> net = ms.upgrade(mlp, p, x, rates=(0.5, 1.0)).named({"phone": 0.5})
          >>> ms.slice_apply(net, x, "phone").shape, ms.extract(net, "phone").rate
          ((5, 2), 0.5)
        """
        parts = dict(self.plan.names)
        for name, rate in names.items():
            if not isinstance(name, str) or not name:
                raise ValueError(f"a sub-network is named by a string; got {name!r}.")
            parts[name] = resolve(self.definition, rate, self.part)
        plan = replace(self.plan, names=parts)
        return Sliceable(self.variables, replace(self.definition, plan=plan), self.part)

    def slice_state(
        self,
        state: Any,
        rate: Rate,
        *,
        collection: str = "params",
    ) -> Any:
        """The optimizer's state of the narrow network, with which that trains on.

        Args:
          state: an Optax state (or any tree) of the weights of this network.
          rate: as `extract` takes it.
          collection: of the variables, the one that the optimizer trains.

        Returns:
          The state with what it keeps for each weight sliced as the weight is, and the
          rest (counts, hyperparameters) as it was.

        Raises:
          RateError: for a rate that was not declared, or is wider than the network.
          PlanError: for what cannot be sliced, as a factored second moment.

        Example:
          ``small = ms.extract(net, 0.5)`` trains on with
          ``net.slice_state(optimizer_state, 0.5)``
        """
        part = resolve(self.definition, rate, self.part)
        branch = {collection: self.variables[collection]}
        return self.plan.slice_state(state, branch, part, source=self.part)

    def permute(self, orders: Mapping[str, np.ndarray]) -> "Sliceable":
        """The network with the units of width groups in another order.

        At full width it computes the same up to rounding: variables, and constants that
        the function captured, are permuted alike. Random draws are not.

        Args:
          orders: for each group to be moved a permutation of its indices; what stands
            at `orders[group][i]` goes to i.

        Raises:
          ValueError: for an extracted network.
          PlanError: for an unknown group, or something that is no permutation.
        """
        check_full(self, "permute")
        variables = self.plan.permute(self.variables, orders)
        before = self.definition.orders
        moved = {
            name: before[name][order] if name in before else np.asarray(order)
            for name, order in orders.items()
        }
        after = {**before, **moved}
        return Sliceable(variables, replace(self.definition, orders=after))

    def tree_flatten_with_keys(self) -> Any:
        """Children with keys, and the static part, as JAX asks of a pytree."""
        key = jax.tree_util.GetAttrKey("variables")
        return ((key, self.variables),), (self.definition, self.part)

    @classmethod
    def tree_unflatten(cls, static: Any, children: Any) -> "Sliceable":
        """The inverse of flattening."""
        return cls(children[0], *static)

    def __reduce__(self) -> Any:
        return Sliceable, (self.variables, self.definition, self.part)

    def __repr__(self) -> str:
        leaves = jax.tree.leaves(self.variables)
        count = sum(int(np.prod(np.shape(leaf))) for leaf in leaves)
        return (
            f"Sliceable({count:,} numbers at rate {self.rate:g}, rates={self.rates}, "
            f"{len(self.plan.groups)} width groups)"
        )


def slice_apply(
    params: Sliceable,
    x: Any,
    r: Rate,
    /,
    *more_inputs: Any,
    **call: Any,
) -> Any:
    """Runs the network at a slice rate; also `params(r, x, *more_inputs, **call)`.

    The rate is static: XLA compiles one program per rate. Under jit (and grad, vmap)
    the weights are sliced inside of the program and gradients reach the full tree;
    outside, the narrow weights are made once and kept with `params`.

    Args:
      params: from `upgrade` or `extract`.
      x: the first input, at its full size.
      r: one of the declared rates, up to the rate that `params` is at. Or a mapping
        from width groups to such rates, for widths that are not uniform: the names are
        those of the report, or patterns of which the last that fits counts; groups that
        no key names keep what `params` has. Or a name that `net.named` gave.
      *more_inputs: further inputs. Arrays are traced; numbers, booleans and strings are
        static.
      **call: what else the call takes, under any name. For Linen modules `rngs`,
        `mutable` and `method` go to `Module.apply`.

    Returns:
      What the model returns. With `mutable`, a pair: the output, and the updated
      collections at the shapes of `params.variables`, the narrow part put back.

    Raises:
      RateError: for a rate that was not declared, or is wider than `params`.
      PlanError: if this call asks for other widths than the plan.
      ValueError: if an input has another rank than the one that `upgrade` saw.

    Example:
      >>> import jax, jax.numpy as jnp, mslice_jax as ms
      >>> def mlp(p, x):
      ...     return jnp.tanh(x @ p["w1"]) @ p["w2"]
      >>> p = {"w1": jnp.ones((3, 16)), "w2": jnp.ones((16, 2))}
      >>> x = jnp.ones((5, 3))
      >>> net = ms.upgrade(mlp, p, x, rates=(0.5, 1.0))
      >>> ms.slice_apply(net, x, 0.5).shape
      (5, 2)
      >>> grads = jax.grad(lambda net: ms.slice_apply(net, x, 0.5).sum())(net)
      >>> [int((g != 0).sum()) for g in jax.tree.leaves(grads)]  # half of 48 and of 32
      [24, 16]
    """
    if not isinstance(params, Network):
        raise TypeError(
            "slice_apply expects the Sliceable that `upgrade` returns; got "
            f"{type(params).__name__}. If it went through a function that rebuilds "
            "trees by hand, use `net.replace(variables)`."
        )
    return params(r, x, *more_inputs, **call)


def extract(net: Sliceable, rate: Rate) -> Sliceable:
    """The narrow network alone, to ship or to serve.

    Of switchable norms it keeps those of the rates up to `rate`.

    Args:
      net: from `upgrade` or `extract`.
      rate: one of the declared rates, up to the rate that `net` is at, or a mapping
        from width groups to rates, see `slice_apply`.

    Returns:
      A Sliceable whose variables are the narrow tree, and whose rate is `rate`. It runs
      at that rate, and at narrower ones.

    Raises:
      RateError: for a rate that was not declared, or is wider than the network.
      PlanError: for a pattern that names no group.

    Example:
      >>> import jax.numpy as jnp, mslice_jax as ms
      >>> def mlp(p, x):
      ...     return jnp.tanh(x @ p["w1"]) @ p["w2"]
      >>> p = {"w1": jnp.ones((3, 16)), "w2": jnp.ones((16, 2))}
      >>> net = ms.upgrade(mlp, p, jnp.ones((5, 3)), rates=(0.5, 1.0))
      >>> small = ms.extract(net, 0.5)
      >>> small.variables["w1"].shape, small.rates
      ((3, 8), (0.5,))
    """
    part = resolve(net.definition, rate, net.part)
    if part == net.part:
        sliced = net.variables
    elif can_be_kept(leaves := jax.tree.leaves(net.variables)):
        check_there(leaves)
        # The arrays go to the network that is made: kept here, too, they would die with
        # whichever of the two gives its weights away.
        net._narrow.forget(part)
        sliced = cut(net.definition, part, net.part, net.variables)
    else:
        narrow = functools.partial(net.plan.slice, rate=part, source=net.part)
        # Types have a plan too: what is cut from them are types.
        abstract = any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)
        sliced = (
            jax.eval_shape(narrow, net.variables) if abstract else narrow(net.variables)
        )
    variables = without_wider(net.definition, sliced, part)
    return Sliceable(variables, net.definition, part)


def check_full(net: Sliceable, what: str) -> None:
    """Raises ValueError for a network that was extracted at a rate."""
    if net.part != net.plan.full:
        raise ValueError(f"{what} expects the full network; got rate {net.part}.")
