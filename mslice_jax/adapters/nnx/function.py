"""NNX models as functions of a tree of variables, by collection as Linen names them.

A model is split once, when it is upgraded. A call merges the split graph with the
variables of that call, so the model that the user holds is never changed. Norm strategy
`group` replaces the batch norms of a copy of the graph.

The tree holds the `nnx.Variable`s, under the name that Flax has registered for
their type ('params', 'batch_stats', ...) or for the nearest type that they inherit
from; and plain arrays of floating point, under 'constants'. It does not hold the
random streams, for keys and counts have no gradient and are an argument of the call
(`rngs`), and plain arrays of whole numbers (masks, positions), which stay as they are.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import flax.core
import jax
import jax.numpy as jnp
from flax import nnx

from ...core.call import Call
from ...core.function import as_array
from ...core.paths import Path
from ..base import Norms, method_of
from ..modules import ModuleFunction, statistics
from ..norms import GroupNormError, choose
from .norms import GroupNorm, Measuring, is_batch_norm, with_norms
from .streams import reseed

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
      given. One key, or that of 'default', is for all streams that have no other; to
      draw from a stream without a key is an error. Without ``rngs`` every call draws
      the same numbers, those that the model itself would draw next: training passes new
      keys at each step. A model whose call has an argument ``rngs`` gets what was
      passed; keys by stream as an `nnx.Rngs`, and so a key where the argument is
      annotated as one.
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
            keys = reseed(model, rngs)
            takes = inspect.signature(call).parameters.get("rngs")
            if takes is not None:
                by_stream = isinstance(rngs, Mapping) or "Rngs" in str(takes.annotation)
                kwargs["rngs"] = nnx.Rngs(**keys) if by_stream else rngs
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

    def called(self, kwargs: Mapping[str, Any]) -> Any:
        """The method that runs."""
        return method_of(self.of, kwargs)

    def takes(self, keyword: str, kwargs: Mapping[str, Any]) -> bool:
        """What every NNX model understands here, or its method itself takes."""
        return keyword in ("mutable", "rngs", "train") or super().takes(keyword, kwargs)

    def streams(self) -> tuple[str, ...]:
        """The names of the random streams of the model."""
        kinds = (leaf.kind for leaf in self.leaves)
        return tuple(sorted({k.tag for k in kinds if isinstance(k, nnx.RngKey)}))

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
    model: nnx.Module,
    call: Call,
    arrays: Sequence[Any],
    norms: Norms,
) -> tuple[NnxFunction, Any]:
    """An NNX model as a function, and its variables in sliceable form.

    Args:
      model: any NNX model; it is not changed.
      call: a call of it.
      arrays: the arrays of that call, or their types.
      norms: what to do with batch norms, see `mslice_jax.adapters.norms.choose`.

    Raises:
      ValueError: for an unknown strategy, or a batch norm that cannot be a group norm.
    """
    sites = tuple(
        tuple(map(str, path))
        for path, module in nnx.iter_modules(model)
        if is_batch_norm(module)
    )
    tree, leaves = read(model)
    kept = statistics(tree)
    known = [kept.get(site, {}) for site in sites]
    strategy, why = choose(norms.strategy, known)

    def function(model: nnx.Module, leaves: tuple[Leaf, ...]) -> NnxFunction:
        return NnxFunction(
            norm=strategy,
            why=why,
            groups=norms.groups,
            sites=sites,
            left=tuple(path for path in kept if path not in sites),
            rates=norms.rates,
            graphdef=nnx.graphdef(model),
            leaves=leaves,
        )

    if strategy.forward and sites:
        try:
            swapped = with_norms(model, lambda one: GroupNorm(one, norms.groups))
            ours, its_leaves = read(swapped)
            found = function(swapped, its_leaves)
            if norms.strategy is None:  # masks show when norms are called
                _run_abstractly(found, ours, call, arrays)
            return found, ours
        except GroupNormError as error:
            if norms.strategy is not None:
                raise
            strategy, why = choose(None, known, error.why)
    found = function(model, leaves)
    return found, found.spread(tree)


def _run_abstractly(
    function: NnxFunction, variables: Any, call: Call, arrays: Sequence[Any]
) -> None:
    def run(variables: Any, arrays: Any) -> Any:
        args, kwargs = call.join(arrays)
        return function(variables, None, *args, **kwargs)

    jax.eval_shape(run, variables, list(arrays))


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
