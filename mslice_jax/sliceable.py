"""Sliceable networks: upgrade, slice_apply, extract.

    net = upgrade(model, variables, x, rates=(0.25, 0.5, 0.75, 1.0))
    y = slice_apply(net, x, 0.5)
    small = extract(net, 0.5)

A `Sliceable` is a tree of arrays with a static part, the `Definition`: the function,
the plan, and the traces made so far. The rate is static too, so there is one XLA
program per rate and shape of input.
"""

import abc
import contextlib
import functools
import inspect
import operator
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import flax.core
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from .adapters import adapter_of, adapter_of_network
from .adapters.base import Adapter, Norms
from .core.call import Call, keywords
from .core.checks import check_keywords
from .core.counts import Asked
from .core.define import define
from .core.definition import Definition
from .core.errors import PlanError, RateError
from .core.function import as_array
from .core.groups import UNREAD, Units
from .core.patterns import Patterns, as_patterns
from .core.plan import WidthPlan
from .core.rates import Rate, SubNetwork, check_rates
from .core.run import resolve, run, slice_variables, without_wider
from .core.settings import Settings

_NONE: Any = object()  # in place of an argument that was not given


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
        # Narrow weights by rate, so that calls outside of jit cut them once.
        self._narrow: dict[SubNetwork, _Kept] = {}

    def __call__(self, r: Rate, /, *inputs: Any, **call: Any) -> Any:
        """Runs the network at a slice rate: ``net(0.5, x)``.

        As `slice_apply(net, x, r, ...)`, but the inputs may be keywords, too.
        """
        source, definition = self.part, self.definition
        part = resolve(definition, r, source)
        split, arrays = Call.split(inputs, call)
        if part != source and not definition.function.updates(call):
            kept = _kept(self, part)
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

    def slice_state(
        self,
        state: Any,
        rate: float | Mapping[str, float],
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


def upgrade(
    model: Any,
    variables: Any = _NONE,
    *inputs: Any,
    rates: Iterable[float],
    norm: str | None = None,
    # The widths that a rate gives.
    groups: int = 8,
    min_width: int = 1,
    multiple_of: int = 1,
    shards: int = 1,
    # Which axes narrow.
    include: Patterns | None = None,
    exclude: Patterns | None = None,
    inner: Patterns | None = None,
    # Numbers that are made of sizes.
    follow: Patterns | None = None,
    stay: Patterns | None = None,
    # What is an error.
    check: bool = True,
    strict: bool = False,
    # The call.
    call: Mapping[str, Any] | None = None,
    **call_kwargs: Any,
) -> Sliceable:
    """Makes a network sliceable: traces it, finds which axes narrow together.

    ``upgrade(model, variables, x, rates=(0.25, 0.5, 0.75, 1.0))`` is what most networks
    need. The other options stand in groups: the norms, the widths that a rate gives,
    which axes narrow, numbers that are made of sizes, what is an error, the call.

    Args:
      model: a Linen module, an NNX model, or a function fn(variables, *inputs,
        **call_kwargs).
      variables: its variables; the weights are kept. An NNX model holds its own, so the
        call is `upgrade(model, *inputs, rates=...)`; the model is not changed.
      *inputs: example inputs, arrays or `jax.ShapeDtypeStruct`s.
      rates: the slice rates in (0, 1] that the network will run at.

      norm: *Norms.* What becomes of the batch norms of a Flax model: 'group',
        'switchable' or 'shared', see `mslice_jax.adapters.norms`. By default 'shared'
        where their running statistics are trained, to be measured for each rate by
        `calibrate`, and 'group' where they are fresh, or no values are given; the
        report says which, and why.

      groups: *Widths.* How many units an axis has where the network itself sets none,
        and how many groups a group norm has that replaces a batch norm.
      min_width: how many entries an axis keeps at least.
      multiple_of: widths are rounded to a multiple of this many entries (8, 64 or 128
        suit the hardware); rate 1 keeps everything. Axes of whole heads or groups of
        more entries keep as many of these as make up a multiple.
      shards: how many devices an axis that narrows may be sharded over. Axes that it
        divides are partitioned into so many equal parts, of which each keeps its
        leading indices, so that slicing and putting back move nothing between devices.

      include: *Axes.* Path patterns (see `mslice_jax.core.patterns`) of the parameters,
        or their axes, that may narrow; all that is tied to another parameter stays
        whole.
      exclude: path patterns of parameters, or their axes, that keep their size.
      inner: path patterns of parameters of whose split axes the innermost factor
        narrows instead of the outermost: the head size instead of the heads, the
        channels of every group instead of the groups. Means follow; of another number
        that was made of the size, such as 1 / sqrt(head size), see `follow`.

      follow: *Numbers.* Patterns of lines as the report writes them ("net.py:12",
        "net.py:*"): numbers there that are a power of the size of an axis that narrows
        are made of the narrow size, as means are without being asked.
      stay: the same of numbers that stay what they are.

      check: *Errors.* Whether the function is traced with narrow variables, too, where
        it can be (functions that take their sizes from their arrays). Its own program
        has to be the narrow one, and decides which numbers follow.
      strict: whether rates that some axis cannot honour exactly, primitives without a
        rule, and numbers of which nobody knows whether they follow, are errors instead
        of lines in the report, or a `NumberWarning`.

      call: *The call.* What else it needs, by keyword. For a Linen module `rngs`,
        `mutable` and `method` go to `Module.apply`; an NNX model understands them too,
        and `train`, see `mslice_jax.adapters.nnx.function`.
      **call_kwargs: the same, written out: `train=False` is `call={"train": False}`. A
        keyword of the model that is also one of these arguments (`rates`, `groups`,
        `norm`, `strict`, ...) is given in `call`.

    Returns:
      The network in sliceable form.

    Raises:
      RateError: for rates that cannot be used.
      PlanError: if nothing can narrow, a pattern matches nothing, the function's own
        program at a rate is not the narrow one, or under `strict`.
      ValueError: if the variables do not fit the model.
      TypeError: for a keyword that neither this function nor the model takes.

    Example:
      >>> import jax.numpy as jnp, mslice_jax as ms
      >>> def mlp(p, x):
      ...     return jnp.tanh(x @ p["w1"]) @ p["w2"]
      >>> p = {"w1": jnp.ones((3, 16)), "w2": jnp.ones((16, 2))}
      >>> net = ms.upgrade(mlp, p, jnp.ones((1, 3)), rates=(0.25, 0.5, 1.0))
      >>> net
      Sliceable(80 numbers at rate 1, rates=(0.25, 0.5, 1.0), 1 width groups)
      >>> net.plan.widths(0.25)  # the group is named by an axis that it runs through
      {'w1:1': 4}
    """
    kwargs = keywords(call, call_kwargs)
    checked = check_rates(rates)
    counts = {
        "groups": groups,
        "min_width": min_width,
        "multiple_of": multiple_of,
        "shards": shards,
    }
    for argument, count in counts.items():
        if not isinstance(count, int) or count < 1:
            raise ValueError(f"{argument} is a positive integer; got {count!r}.")
    settings = Settings(
        checked,
        Units(groups, multiple_of, min_width, shards),
        as_patterns(include, "include"),
        as_patterns(exclude, "exclude"),
        as_patterns(inner, "inner"),
        Asked(as_patterns(follow, "follow"), as_patterns(stay, "stay")),
        strict,
        check,
    )
    adapter = adapter_of(model)
    if adapter.holds_variables:
        inputs = inputs if variables is _NONE else (variables, *inputs)
        variables = {}
    adapter.check(model, inputs)
    if variables is _NONE:
        raise TypeError("upgrade expects the variables of the model, as 2nd argument.")
    split, arrays = Call.split(inputs, kwargs)
    variables = jax.tree.map(as_array, _thawed(variables))
    with _explained(adapter, model, variables, split, arrays):
        function, sliceable = adapter.adapt(
            model, variables, split, arrays, Norms(norm, groups, checked)
        )
        definition = define(function, sliceable, split, arrays, settings)
    if any(fixed.reason.text == UNREAD for fixed in definition.plan.fixed):
        _check_fit(adapter, model, variables, split, arrays)
    return Sliceable(sliceable, definition)


_OPTIONS = tuple(
    name
    for name, parameter in inspect.signature(upgrade).parameters.items()
    if parameter.kind is inspect.Parameter.KEYWORD_ONLY
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
        no key names keep what `params` has.
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
    elif _can_be_kept(leaves := jax.tree.leaves(net.variables)):
        _check_there(leaves)
        # The arrays go to the network that is made: kept here, too, they would die with
        # whichever of the two gives its weights away.
        net._narrow.pop(part, None)
        sliced = _cut(net, part)
    else:
        cut = functools.partial(net.plan.slice, rate=part, source=net.part)
        # Types have a plan too: what is cut from them are types.
        abstract = any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)
        sliced = jax.eval_shape(cut, net.variables) if abstract else cut(net.variables)
    variables = without_wider(net.definition, sliced, part)
    return Sliceable(variables, net.definition, part)


def check_full(net: Sliceable, what: str) -> None:
    """Raises ValueError for a network that was extracted at a rate."""
    if net.part != net.plan.full:
        raise ValueError(f"{what} expects the full network; got rate {net.part}.")


@dataclass(frozen=True, slots=True)
class _Kept:
    """Narrow variables, flat, and the very arrays that they were cut from."""

    leaves: Sequence[Any]
    tree: Any
    sources: tuple[weakref.ref[jax.Array], ...]
    mesh: Any  # under which they were cut, for it is part of their type

    def is_of(self, leaves: Sequence[Any], mesh: Any) -> bool:
        """Whether they were cut from these leaves, under this mesh."""
        sources = [source() for source in self.sources]
        same = len(sources) == len(leaves) and all(map(operator.is_, sources, leaves))
        return same and self.mesh == mesh


def _kept(net: Sliceable, part: SubNetwork) -> _Kept | None:
    """The narrow variables, cut once and kept with the network; None under a trace."""
    leaves = jax.tree.leaves(net.variables)
    mesh = jax.sharding.get_abstract_mesh()
    kept = net._narrow.get(part)
    if kept is None or not kept.is_of(leaves, mesh):
        if not _can_be_kept(leaves):
            return None
        _check_there(leaves)
        sources = tuple(map(weakref.ref, leaves))
        narrow, tree = jax.tree.flatten(_cut(net, part))
        kept = net._narrow[part] = _Kept(narrow, tree, sources, mesh)
    else:
        _check_there(leaves)
    return kept


_is_deleted = operator.methodcaller("is_deleted")


def _check_there(leaves: Iterable[Any]) -> None:
    """Raises RuntimeError if an array was deleted."""
    if any(map(_is_deleted, leaves)):
        raise RuntimeError(
            "the weights of this network were deleted, or given away to a jitted "
            "function that donates them. Use the network that it returned, or copy the "
            "weights beforehand: jax.tree.map(jnp.copy, net)."
        )


def _cut(net: Sliceable, part: SubNetwork) -> Any:
    """The narrow variables of a network that holds arrays."""
    # Also while something else is being traced that holds these weights as constants:
    # what is kept must be arrays, never tracers.
    with jax.ensure_compile_time_eval():
        return slice_variables(net.definition, part, net.part, net.variables)


# -- upgrading


@contextlib.contextmanager
def _explained(
    adapter: Adapter,
    model: Any,
    variables: Any,
    call: Call,
    arrays: Sequence[Any],
) -> Iterator[None]:
    """Turns an error of the trace into one that lists what does not fit."""
    try:
        yield
    except (PlanError, RateError):
        raise
    except Exception as error:
        called = functools.partial(adapter.called, model)
        check_keywords(called, call, arrays, error, _OPTIONS)
        _check_fit(adapter, model, variables, call, arrays, error)
        raise


def _check_fit(
    adapter: Adapter,
    model: Any,
    variables: Any,
    call: Call,
    arrays: Sequence[Any],
    cause: Exception | None = None,
) -> None:
    """Raises ValueError if the variables are not those that the model initialises."""
    wrong = adapter.misfits(model, variables, call, arrays)
    if wrong:
        raise ValueError(
            "the variables do not fit the model:\n"
            + "\n".join(wrong[:8])
            + "\nPass what `module.init` of this model returned."
        ) from cause


# -- small questions


def _is_frozen(x: Any) -> bool:
    return isinstance(x, flax.core.FrozenDict)


def _thawed(tree: Any) -> Any:
    """The tree with dicts in place of FrozenDicts, at any depth."""
    return jax.tree.map(
        lambda x: _thawed(dict(x)) if _is_frozen(x) else x, tree, is_leaf=_is_frozen
    )


def _can_be_kept(leaves: Iterable[Any]) -> bool:
    """Whether what is cut from these leaves are arrays, of use in other programs."""
    # Inside of shard_map they belong to the program of one device.
    if jax.sharding.get_abstract_mesh().manual_axes:
        return False
    return all(isinstance(x, jax.Array) and not isinstance(x, Tracer) for x in leaves)
