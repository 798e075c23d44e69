"""Sliceable networks: upgrade, slice_apply, extract.

    net = upgrade(model, variables, x, rates=(0.25, 0.5, 0.75, 1.0))
    y = slice_apply(net, x, 0.5)
    small = extract(net, 0.5)

A `Sliceable` is a tree of arrays with a static part, the `Definition`: the function,
the plan, and the traces made so far. The rate is static too, so there is one XLA
program per rate and shape of input.
"""

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import flax.core
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from .analysis import UNREAD, Parameter, PlanError, discover
from .checks import (
    check_fit,
    check_rules,
    explained,
    nothing_narrows,
)
from .norms import LinenFunction, PlainFunction, adapt
from .plan import LeafAxes, WidthPlan, check_exact, path_name
from .program import Call, Definition, Function, trace, type_of
from .rates import RateError, check_rate, check_rates, rate_key
from .run import run, slice_variables


@jax.tree_util.register_pytree_with_keys_class
class Sliceable:
    """A network whose leading part at any declared rate is a network itself.

    A pytree whose only child is `variables`: jit, grad, vmap, optax, sharding and
    checkpoints treat it as any tree. Immutable.

    Attributes:
      variables: the tree of arrays, in sliceable form.
      rate: the rate that the tree is at: 1.0, or less after `extract`.
      definition: the static part.
    """

    __slots__ = ("_narrow", "definition", "rate", "variables")

    def __init__(self, variables: Any, definition: Definition, rate: float = 1.0):
        self.variables = variables
        self.definition = definition
        self.rate = rate
        # Narrow weights by rate, so that calls outside of jit cut them once.
        self._narrow: dict[float, Any] = {}

    @property
    def plan(self) -> WidthPlan:
        """What narrows, and to what."""
        return self.definition.plan

    @property
    def rates(self) -> tuple[float, ...]:
        """The declared rates that this network can run at, ascending."""
        return tuple(rate for rate in self.plan.rates if rate <= self.rate)

    @property
    def module(self) -> Any:
        """A Flax module with a static rate, for those who compose modules.

        `net.module.apply(net.variables, x, rate=0.5)`.
        """
        from .module import SliceableModule

        return SliceableModule(self.definition)

    def replace(self, variables: Any) -> "Sliceable":
        """The same network with other variables of the same shapes."""
        # NumPy arrays can change under us, so weights cut from them could not be kept.
        variables = jax.tree.map(
            lambda x: jnp.asarray(x) if isinstance(x, np.ndarray) else x, variables
        )
        return Sliceable(variables, self.definition, self.rate)

    def tree_flatten_with_keys(self) -> Any:
        """Children with keys, and the static part, as JAX asks of a pytree."""
        key = jax.tree_util.GetAttrKey("variables")
        return ((key, self.variables),), (self.definition, self.rate)

    @classmethod
    def tree_unflatten(cls, static: Any, children: Any) -> "Sliceable":
        """The inverse of flattening."""
        return cls(children[0], *static)

    def __repr__(self) -> str:
        shapes = jax.tree.leaves(
            jax.tree.map(np.shape, self.variables), is_leaf=_is_shape
        )
        count = sum(int(np.prod(shape)) for shape in shapes if _is_shape(shape))
        return (
            f"Sliceable({count:,} numbers at rate {self.rate:g}, rates={self.rates}, "
            f"{len(self.plan.groups)} width groups)"
        )


def upgrade(
    model: Any,
    variables: Any,
    *inputs: Any,
    rates: Iterable[float],
    groups: int = 8,
    norm: str = "group",
    strict: bool = False,
    **call_kwargs: Any,
) -> Sliceable:
    """Makes a network sliceable: traces it, finds which axes narrow together.

    Args:
      model: a Linen module, or a function fn(variables, *inputs, **call_kwargs).
      variables: its variables; the weights are kept.
      *inputs: example inputs, arrays or `jax.ShapeDtypeStruct`s.
      rates: the slice rates in (0, 1] that the network will run at.
      groups: how many units an axis has where the network itself sets none, and how
        many groups a group norm has that replaces a batch norm.
      norm: what becomes of the batch norms of a Linen module: 'group', 'switchable' or
        'shared', see `mslice_jax.norms`.
      strict: whether rates that some axis cannot honour exactly, and primitives without
        a rule, are errors instead of lines in the report.
      **call_kwargs: what else the call needs. For a Linen module `rngs`, `mutable` and
        `method` go to `Module.apply`.

    Returns:
      The network in sliceable form.

    Raises:
      RateError: for rates that cannot be used.
      PlanError: if nothing can narrow, or under `strict`.
      ValueError: if the variables do not fit the model.
    """
    checked = check_rates(rates)
    if not isinstance(groups, int) or groups < 1:
        raise ValueError(f"groups is a positive integer; got {groups!r}.")
    call, arrays = Call.split(inputs, call_kwargs)
    variables = flax.core.unfreeze(variables) if _is_frozen(variables) else variables
    variables = jax.tree.map(_as_array, variables)
    with explained(model, variables, call, arrays):
        function, variables = _as_function(
            model, variables, call, arrays, norm=norm, groups=groups, rates=checked
        )
        net = define(function, variables, call, arrays, checked, groups, strict)
    if any(fixed.reason.text == UNREAD for fixed in net.plan.fixed):
        check_fit(model, variables, call, arrays)
    return net


def define(
    function: Function,
    variables: Any,
    call: Call,
    arrays: Sequence[Any],
    rates: tuple[float, ...],
    groups: int,
    strict: bool = False,
) -> Sliceable:
    """Reads the function, makes the plan, and puts the two together."""
    traced = trace(function, rates[-1], call, variables, arrays)
    paths = [path_name(p) for p, _ in jax.tree_util.tree_leaves_with_path(variables)]
    index = {path: i for i, path in enumerate(paths)}
    collections = variables if isinstance(variables, Mapping) else ()
    others = {
        prefix: read
        for collection in collections
        for prefix, read in function.other_sets(str(collection), rates[-1]).items()
    }
    kinds: list[Parameter | str] = []
    for path in paths:
        # '<norm>/<rate>/<leaf>': the prefix ends two parts before the leaf's name.
        base = path.rpartition("/")[0] + "/"
        twin = others.get(base)
        same_as = index[twin + path.rpartition("/")[2]] if twin else None
        kinds.append(Parameter(path, same_as))
    kinds += ["input of the function"] * len(arrays)
    analysis, axes, fixed = discover(
        traced.closed, kinds, traced.returns(paths), groups
    )
    leaves = [LeafAxes(a) for a in axes[: len(paths)]]
    plan = WidthPlan(
        jax.tree.unflatten(jax.tree.structure(variables), leaves),
        analysis.groups,
        rates,
        tuple(fixed),
    )
    if not plan.groups:
        raise PlanError(nothing_narrows(plan))
    if strict:
        check_exact(plan)
        check_rules(plan)
    definition = Definition(
        function, plan, call, tuple(type_of(x) for x in arrays), groups
    )
    return Sliceable(variables, definition)


def slice_apply(
    params: Sliceable, x: Any, r: float, *more_inputs: Any, **call_kwargs: Any
) -> Any:
    """Runs the network at a slice rate.

    The rate is static: XLA compiles one program per rate. Under jit (and grad, vmap)
    the weights are sliced inside of the program and gradients reach the full tree;
    outside, the narrow weights are made once and kept with `params`.

    Args:
      params: from `upgrade` or `extract`.
      x: the first input, at its full size.
      r: one of the declared rates, up to the rate that `params` is at.
      *more_inputs: further inputs. Arrays are traced; numbers, booleans and strings are
        static.
      **call_kwargs: what else the call takes. For Linen modules `rngs`, `mutable` and
        `method` go to `Module.apply`.

    Returns:
      What the model returns. With `mutable`, a pair: the output, and the updated
      collections at the shapes of `params.variables`, the narrow part put back.

    Raises:
      RateError: for a rate that was not declared, or is wider than `params`.
      PlanError: if this call asks for other widths than the plan.
      ValueError: if an input has another rank than the one that `upgrade` saw.
    """
    if not isinstance(params, Sliceable):
        raise TypeError(
            "slice_apply expects the Sliceable that `upgrade` returns; got "
            f"{type(params).__name__}. If it went through a function that rebuilds "
            "trees by hand, use `net.replace(variables)`."
        )
    rate = _declared(params, r)
    call, arrays = Call.split((x, *more_inputs), call_kwargs)
    definition, source = params.definition, params.rate
    updates = definition.function.updates(call_kwargs)
    narrow = None if updates else _kept_variables(params, rate)
    if narrow is None:
        return run(definition, rate, source, call, params.variables, arrays)
    return run(definition, rate, rate, call, narrow, arrays)


def extract(net: Sliceable, rate: float) -> Sliceable:
    """The narrow network alone, to ship or to serve.

    Of switchable norms it keeps those of the rates up to `rate`.

    Args:
      net: from `upgrade` or `extract`.
      rate: one of the declared rates, up to the rate that `net` is at.

    Returns:
      A Sliceable whose variables are the narrow tree, and whose rate is `rate`. It runs
      at that rate, and at narrower ones.
    """
    rate = _declared(net, rate)
    sliced = _kept_variables(net, rate)
    if sliced is None:
        cut = functools.partial(net.plan.slice, rate=rate, source=net.rate)
        # Types have a plan too: what is cut from them are types.
        leaves = jax.tree.leaves(net.variables)
        abstract = any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)
        sliced = jax.eval_shape(cut, net.variables) if abstract else cut(net.variables)
    return Sliceable(_without_wider(net, sliced, rate), net.definition, rate)


def _kept_variables(net: Sliceable, rate: float) -> Any:
    """The narrow variables, cut once and kept with the network; None under a trace."""
    if rate not in net._narrow:
        if not _is_concrete(net.variables):
            return None
        narrow = net.variables
        if rate != net.rate:
            # Also while something else is being traced that holds these weights as
            # constants: what is kept must be arrays, never tracers.
            with jax.ensure_compile_time_eval():
                narrow = slice_variables(net.definition, rate, net.rate, net.variables)
        net._narrow[rate] = narrow
    return net._narrow[rate]


def _declared(net: Sliceable, rate: object) -> float:
    """The rate, if the network can run at it."""
    value = check_rate(rate)
    if value not in net.plan.rates:
        raise RateError(
            f"rate {value:g} was not declared; `upgrade` was given rates="
            f"{net.plan.rates}. Use one of these, or declare it there."
        )
    if value > net.rate:
        raise RateError(
            f"rate {value:g} is wider than this network, which was extracted at rate "
            f"{net.rate:g}; extract a wider one."
        )
    return value


# -- upgrading


def _as_function(
    model: Any, variables: Any, call: Call, arrays: Sequence[Any], **settings: Any
) -> tuple[Function, Any]:
    if isinstance(model, nn.Module):
        if not isinstance(variables, Mapping) or "params" not in variables:
            kind = (
                list(variables) if isinstance(variables, Mapping) else type(variables)
            )
            raise ValueError(
                "variables of a Linen module are what `module.init` returns, a dict "
                f"with 'params'; got {kind}."
            )

        def abstractly(variables: Any) -> None:
            jax.eval_shape(
                lambda v, a: _apply(model, v, call, a), variables, list(arrays)
            )

        return adapt(model, variables, abstractly, **settings)
    if not callable(model):
        raise TypeError(
            "upgrade expects a Linen module or a function fn(variables, *inputs); got "
            f"{type(model).__name__}."
        )
    return PlainFunction(model), variables


def _apply(module: nn.Module, variables: Any, call: Call, arrays: Sequence[Any]) -> Any:
    args, kwargs = call.join(arrays)
    return module.apply(variables, *args, **kwargs)


def _without_wider(net: Sliceable, variables: Any, rate: float) -> Any:
    """Leaves out the norms of rates wider than `rate`."""
    function = net.definition.function
    if not isinstance(function, LinenFunction):
        return variables
    kept = {rate_key(r) for r in net.plan.rates if r <= rate}
    return function._at_sites(
        variables, lambda sets: {key: sets[key] for key in sets if key in kept}
    )


# -- small questions


def _is_shape(x: Any) -> bool:
    return isinstance(x, tuple)


def _is_frozen(x: Any) -> bool:
    return isinstance(x, flax.core.FrozenDict)


def _is_concrete(tree: Any) -> bool:
    leaves = jax.tree.leaves(tree)
    return all(isinstance(x, jax.Array) and not isinstance(x, Tracer) for x in leaves)


def _as_array(x: Any) -> Any:
    return x if isinstance(x, (jax.Array, jax.ShapeDtypeStruct)) else jnp.asarray(x)
