"""NNX models as functions of a tree of variables, by collection as Linen names them.

A model is split once, when it is upgraded. A call merges the split graph with the
variables of that call, so the model that the user holds is never changed. Norm strategy
`group` replaces the batch norms of a copy of the graph.

What the tree holds: the `nnx.Variable`s, under the name that Flax has registered for
their type ('params', 'batch_stats', ...) or for the nearest type that they inherit
from; and plain arrays of floating point, under 'constants'. What it does not hold: the
random streams, for keys and counts have no gradient and are an argument of the call
(`rngs`), and plain arrays of whole numbers (masks, positions), which stay as they are.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import flax.core
import jax
import jax.numpy as jnp
from flax import nnx

from ..norms import group_count, group_norm
from .base import ModuleFunction, Path, as_array, collections_per_rate

CONSTANTS = "constants"


@dataclass(frozen=True)
class Leaf:
    """A leaf of the state of a model.

    Attributes:
      path: where it is in the model, as NNX writes it.
      name: where it is in the tree of variables, collection first; empty for what is no
        part of the tree.
      kind: an `nnx.Variable` that holds nothing but its type and metadata; None for a
        plain array.
      value: what is no part of the tree; otherwise None.
    """

    path: tuple[Any, ...]
    name: Path
    kind: Any
    value: Any = None


@dataclass(frozen=True, eq=False, kw_only=True)
class NnxFunction(ModuleFunction):
    """An NNX model as a function of its variables, with its batch norms swapped.

    A call takes the arguments of the model, and these keywords:

    * ``mutable``: the collections to return anew, as for Linen: ``["batch_stats"]``.
    * ``rngs``: a key, or keys by stream: ``{"dropout": key}``. They reseed the streams
      of that name (`nnx.reseed`); a stream named 'default' takes the first key that is
      given. Without it every call draws the same numbers, those that the model itself
      would draw next: training passes new keys at each step.
    * ``train``: as `model.train()` or `model.eval()` before the call, unless the model
      itself takes the argument. Without it the model runs in the mode it was in.
    * ``method``: another method than ``__call__``, by name or as a function.
    """

    graphdef: Any
    leaves: tuple[Leaf, ...]

    def __call__(
        self,
        variables: Any,
        rate: Any,
        /,
        *args: Any,
        mutable: Any = False,
        rngs: Any = None,
        method: Any = None,
        **kwargs: Any,
    ) -> Any:
        model = self.model(self.select(variables, rate))
        if self.measure:
            model, mutable = with_norms(model, Measuring), ["batch_stats"]
        call, taken = _method(model, method)
        if "train" in kwargs and not taken("train"):
            model.train() if kwargs.pop("train") else model.eval()
        if rngs is not None:
            keys = _reseed(model, rngs)
            if "rngs" in inspect.signature(call).parameters:
                kwargs["rngs"] = nnx.Rngs(**keys)
        y = call(*args, **kwargs)
        if mutable in (False, None):
            return y
        tree, _ = read(model)
        wanted = {
            name: arrays
            for name, arrays in tree.items()
            if flax.core.scope.in_filter(mutable, name)
        }
        return y, self.restore(wanted, rate)

    @property
    def of(self) -> Any:
        """The class of the model."""
        return self.graphdef.nodes[0].type

    def model(self, variables: Any) -> Any:
        """The NNX model with these variables, those of one rate (see `select`)."""
        state = []
        for leaf in self.leaves:
            array = variables if leaf.name else leaf.value
            for part in leaf.name:
                array = array[part]
            if leaf.kind is not None:  # a new one, which this trace may change
                array = leaf.kind.replace(array)
            state.append((leaf.path, array))
        return nnx.merge(self.graphdef, nnx.from_flat_state(state))


def adapt(
    model: nnx.Module, *, norm: str, groups: int, rates: tuple[float, ...]
) -> tuple[NnxFunction, Any]:
    """An NNX model as a function, and its variables in sliceable form.

    Args:
      model: any NNX model; it is not changed.
      norm: one of `mslice_jax.norms.STRATEGIES`.
      groups: how many groups a group norm has.
      rates: the declared rates, ascending.

    Raises:
      ValueError: for an unknown strategy, or a batch norm that cannot be a group norm.
    """
    per_rate = collections_per_rate(norm)
    sites = tuple(
        tuple(map(str, path))
        for path, module in nnx.iter_modules(model)
        if isinstance(module, nnx.BatchNorm)
    )
    if norm == "group" and sites:
        model = with_norms(model, lambda batch_norm: GroupNorm(batch_norm, groups))
    tree, leaves = read(model)
    function = NnxFunction(
        norm=norm,
        groups=groups,
        sites=sites,
        rates=rates,
        per_rate=per_rate,
        graphdef=nnx.graphdef(model),
        leaves=leaves,
    )
    return function, function.spread(tree)


def read(model: nnx.Module) -> tuple[dict[str, Any], tuple[Leaf, ...]]:
    """The variables of a model by collection and path, and the leaves of its state."""
    tree: dict[str, Any] = {}
    leaves = []
    for path, value in nnx.to_flat_state(nnx.state(model)):
        collection = _collection(value)
        kind, array = None, value
        if isinstance(value, nnx.Variable):
            kind, array = value.replace(None), value.get_raw_value()
        if collection is None:
            leaves.append(Leaf(path, (), kind, array))
            continue
        name = (collection, *map(str, path))
        branch = tree
        for part in name[:-1]:
            branch = branch.setdefault(part, {})
        branch[name[-1]] = jax.tree.map(as_array, array)
        leaves.append(Leaf(path, name, kind))
    return tree, tuple(leaves)


def streams(model: nnx.Module) -> dict[str, nnx.RngStream]:
    """A new random stream for each name of the streams of the model."""
    found: dict[str, nnx.RngStream] = {}
    for _, node in nnx.iter_graph(model):
        if isinstance(node, nnx.RngStream) and node.tag not in found:
            key = jnp.ravel(node.key[...])[0]  # stacked layers have stacked keys
            found[node.tag] = nnx.RngStream(key, tag=node.tag)
    return found


class GroupNorm(nnx.GroupNorm):
    """A batch norm with group statistics in place of those of the batch.

    Its scale and bias are those of the batch norm. The feature axis may be any, and a
    call takes what the call of a batch norm takes.
    """

    def __init__(self, norm: nnx.BatchNorm, groups: int):
        _check_axis(norm)
        super().__init__(
            norm.num_features,
            group_count(norm.num_features, groups),
            epsilon=norm.epsilon,
            dtype=norm.dtype,
            param_dtype=norm.param_dtype,
            use_bias=norm.use_bias,
            use_scale=norm.use_scale,
            use_fast_variance=norm.use_fast_variance,
            rngs=nnx.Rngs(0),
        )
        self.axis = norm.axis
        if norm.scale is not None:
            self.scale = norm.scale
        if norm.bias is not None:
            self.bias = norm.bias

    def __call__(
        self, x: jax.Array, use_running_average: Any = None, *, mask: Any = None
    ) -> jax.Array:
        """Normalises x over groups of features and all axes but the first."""
        if mask is not None:
            raise ValueError(
                "norm='group' expects batch norms that are called without a mask; use "
                "norm='switchable' or 'shared'."
            )
        y = group_norm(
            jnp.moveaxis(x, self.axis, -1),
            None if self.scale is None else self.scale[...],
            None if self.bias is None else self.bias[...],
            groups=self.num_groups,
            epsilon=self.epsilon,
            fast_variance=self.use_fast_variance,
            dtype=self.dtype,
        )
        return jnp.moveaxis(y, -1, self.axis)


class Measuring(nnx.BatchNorm):
    """A batch norm that uses the statistics of the batch and writes them down."""

    def __init__(self, norm: nnx.BatchNorm):
        super().__init__(
            norm.num_features,
            axis=norm.axis,
            momentum=0.0,
            epsilon=norm.epsilon,
            dtype=norm.dtype,
            param_dtype=norm.param_dtype,
            use_bias=norm.use_bias,
            use_scale=norm.use_scale,
            axis_name=norm.axis_name,
            axis_index_groups=norm.axis_index_groups,
            use_fast_variance=False,
            rngs=nnx.Rngs(0),
        )
        self.mean, self.var = norm.mean, norm.var
        if norm.scale is not None:
            self.scale = norm.scale
        if norm.bias is not None:
            self.bias = norm.bias

    def __call__(
        self, x: jax.Array, use_running_average: Any = None, *, mask: Any = None
    ) -> jax.Array:
        """Normalises x by its own mean and variance, whatever it is asked for."""
        return super().__call__(x, use_running_average=False, mask=mask)


def with_norms(
    model: nnx.Module, swapped: Callable[[nnx.BatchNorm], nnx.Module]
) -> nnx.Module:
    """A copy of the model with other modules in place of its batch norms.

    The copy has the same variables; a norm used at two places is one norm still.
    """
    return nnx.recursive_map(
        lambda _, node: swapped(node) if isinstance(node, nnx.BatchNorm) else node,
        model,
    )


def _check_axis(norm: nnx.BatchNorm) -> None:
    if not isinstance(norm.axis, int):
        raise ValueError(
            "norm='group' expects batch norms over one axis; got axis="
            f"{norm.axis!r}. Use norm='switchable' or 'shared'."
        )


def _collection(value: Any) -> str | None:
    """The collection of a leaf of the state; None for what stays in the function."""
    if isinstance(value, nnx.RngState):
        return None
    if not isinstance(value, nnx.Variable):
        return CONSTANTS if jnp.issubdtype(value.dtype, jnp.inexact) else None
    for kind in type(value).__mro__:
        try:
            return nnx.variable_name_from_type(kind)
        except ValueError:  # not registered
            continue
    return type(value).__name__


def _method(model: Any, method: Any) -> tuple[Callable[..., Any], Callable[..., bool]]:
    """The method to call, and whether it takes an argument of a given name."""
    if method is None:
        call = model.__call__
    elif isinstance(method, str):
        call = getattr(model, method)
    else:
        call = method.__get__(model)
    parameters = inspect.signature(call).parameters
    # A Sequential takes any keyword, but only to hand it to its first layer.
    anything = not isinstance(model, nnx.Sequential) and any(
        p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()
    )
    return call, lambda name: anything or name in parameters


def _reseed(model: nnx.Module, rngs: Any) -> dict[str, Any]:
    """Sets the streams of the model from these keys; returns the keys by stream."""
    if isinstance(rngs, (nnx.Rngs, nnx.RngStream)):
        raise TypeError(
            "rngs is a key, or a dict from stream to key, so that a call is a function "
            f"of its arguments; got nnx.{type(rngs).__name__}. Pass "
            "rngs={'dropout': rngs.dropout()}."
        )
    keys = dict(rngs) if isinstance(rngs, Mapping) else {"default": rngs}
    if not keys:
        return {}
    keys.setdefault("default", next(iter(keys.values())))
    nodes = (node for _, node in nnx.iter_graph(model))
    names = {node.tag for node in nodes if isinstance(node, nnx.RngStream)}
    known = {name: keys[name] for name in names if name in keys}
    # A key for all streams was given as such: those without their own take it.
    if not isinstance(rngs, Mapping) or "default" in rngs:
        known |= dict.fromkeys(names - known.keys(), keys["default"])
    nnx.reseed(model, policy="match_shape", **known)
    return keys
