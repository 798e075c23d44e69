"""Batch norm and slicing: three strategies for Linen modules.

The statistics of a batch norm belong to one width: a narrower input has another mean
and variance. Model Slicing (section 3.2) therefore swaps batch norms:

* ``group``: each becomes a group norm with the same scale and bias. Its groups are the
  units that narrow, and no statistics are kept (the paper's choice).
* ``switchable``: one batch norm per rate, with its own scale, bias and statistics (the
  MultiBN of the authors' code; Slimmable Networks, Yu et al., ICLR 2019).
* ``shared``: batch norms stay as they are; `calibrate` measures statistics for each
  rate after training (US-Nets, Yu and Huang, ICCV 2019).

The module itself is not changed: `group` intercepts the calls of its batch norms, the
others choose which leaves of the tree it sees.
"""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from .rates import rate_key

STRATEGIES = ("group", "switchable", "shared")

Path = tuple[str, ...]


@dataclass(frozen=True, eq=False)
class LinenFunction:
    """A Linen module as a function of its variables, with its batch norms swapped.

    Attributes:
      module: the module, unbound.
      norm: the strategy.
      groups: how many groups a group norm has.
      sites: the paths of the batch norms.
      rates: the declared rates, ascending.
      per_rate: collections in which every batch norm has one set of arrays per rate.
      measure: whether batch norms write the statistics of the batch (see `calibrate`).
    """

    module: nn.Module
    norm: str
    groups: int
    sites: tuple[Path, ...]
    rates: tuple[float, ...]
    per_rate: tuple[str, ...] = ()
    measure: bool = False

    @property
    def depends_on_rate(self) -> bool:
        """Whether the program differs between rates in more than its widths."""
        return bool(self.sites and self.per_rate)

    def __call__(self, variables: Any, *args: Any, rate: float, **kwargs: Any) -> Any:
        variables = self.select(variables, rate)
        if self.measure:
            kwargs["mutable"] = ["batch_stats"]
        with self._intercepted():
            out = self.module.apply(variables, *args, **kwargs)
        if self.updates(kwargs):
            y, updates = out
            return y, self.restore(updates, rate)
        return out

    def init(self, rngs: Any, *args: Any, **kwargs: Any) -> Any:
        """New variables in sliceable form."""
        return self.sliceable_form(self.module.init(rngs, *args, **kwargs))

    def sliceable_form(self, variables: Any) -> Any:
        """The variables of the module as this function takes them."""
        if self.norm != "group" or "batch_stats" not in variables:
            return self.spread(variables)
        stats = variables["batch_stats"]
        for site in self.sites:
            stats = _without(stats, site)
        rest = {k: v for k, v in variables.items() if k != "batch_stats"}
        return {**rest, "batch_stats": stats} if stats else rest

    def updates(self, kwargs: Mapping[str, Any]) -> bool:
        """Whether the call returns (output, updated collections), as Module.apply."""
        return self.measure or kwargs.get("mutable", False) not in (False, None)

    def set_of(self, rate: float) -> str:
        """The key of the batch norms that a rate uses."""
        known = rate if rate in self.rates else self.rates[-1]
        return rate_key(known)

    def select(self, variables: Any, rate: float) -> Any:
        """The variables with, at each batch norm, the arrays of one rate."""
        key = self.set_of(rate)
        return self._at_sites(variables, lambda sets: sets[key])

    def restore(self, variables: Any, rate: float) -> Any:
        """The inverse of `select`: each batch norm's arrays under their rate."""
        key = self.set_of(rate)
        return self._at_sites(variables, lambda arrays: {key: arrays})

    def spread(self, variables: Any) -> Any:
        """One copy of each batch norm's arrays for every rate."""
        keys = [rate_key(rate) for rate in self.rates]

        def copies(arrays: Any) -> dict[str, Any]:
            # Real copies: buffers that appear twice in a tree cannot be donated.
            return {key: jax.tree.map(_copy, arrays) for key in keys}

        return self._at_sites(variables, copies)

    def other_sets(self, collection: str, rate: float) -> dict[str, str]:
        """Prefixes of paths that a rate does not read: {prefix: the one it reads}."""
        if collection not in self.per_rate:
            return {}
        read = self.set_of(rate)
        keys = [rate_key(other) for other in self.rates]
        bases = ["/".join((collection, *site)) for site in self.sites]
        return {
            f"{b}/{key}/": f"{b}/{read}/" for b in bases for key in keys if key != read
        }

    def _at_sites(self, variables: Any, change: Any) -> Any:
        changed = dict(variables)
        for collection in self.per_rate:
            for site in self.sites if collection in changed else ():
                changed[collection] = _replace_at(changed[collection], site, change)
        return changed

    def _intercepted(self) -> Any:
        if self.measure:
            return nn.intercept_methods(_write_statistics)
        if self.norm == "group" and self.sites:
            return nn.intercept_methods(_GroupNorms(self.groups))
        return contextlib.nullcontext()


@dataclass(frozen=True, eq=False)
class PlainFunction:
    """A function fn(variables, *inputs) with the interface of `LinenFunction`."""

    function: Any
    depends_on_rate: bool = False

    def __call__(self, variables: Any, *args: Any, rate: float, **kwargs: Any) -> Any:
        return self.function(variables, *args, **kwargs)

    def updates(self, kwargs: Mapping[str, Any]) -> bool:
        """A plain function has outputs only."""
        return False

    def other_sets(self, collection: str, rate: float) -> dict[str, str]:
        """A plain function reads the same leaves at every rate."""
        return {}


def adapt(
    module: nn.Module,
    variables: Any,
    call: Any,
    *,
    norm: str,
    groups: int,
    rates: tuple[float, ...],
) -> tuple[LinenFunction, Any]:
    """A Linen module as a function, and its variables in sliceable form.

    Args:
      module: any Linen module.
      variables: its variables.
      call: a function that calls `module.apply` with given variables on example inputs
        (abstractly): it tells where the batch norms are.
      norm: one of `STRATEGIES`.
      groups: how many groups a group norm has.
      rates: the declared rates, ascending.
    """
    if norm not in STRATEGIES:
        raise ValueError(f"norm is one of {', '.join(STRATEGIES)}; got {norm!r}.")
    sites: dict[Path, Any] = {}

    def record(call_next: Any, args: Any, kwargs: Any, context: Any) -> Any:
        if _is_batch_norm(context):
            sites[context.module.path] = context.module
        return call_next(*args, **kwargs)

    with nn.intercept_methods(record):
        call(variables)
    per_rate = ("params", "batch_stats") if norm == "switchable" else ()
    function = LinenFunction(module, norm, groups, tuple(sites), rates, per_rate)
    return function, function.sliceable_form(variables)


def _is_batch_norm(context: Any) -> bool:
    return (
        isinstance(context.module, nn.BatchNorm) and context.method_name == "__call__"
    )


@dataclass(frozen=True)
class _GroupNorms:
    """Interceptor: every batch norm runs as a group norm with its scale and bias."""

    groups: int

    def __call__(self, call_next: Any, args: Any, kwargs: Any, context: Any) -> Any:
        if not _is_batch_norm(context):
            return call_next(*args, **kwargs)
        module: nn.BatchNorm = context.module
        x = args[0]
        if kwargs.get("mask") is not None or not isinstance(module.axis, int):
            raise ValueError(
                f"norm='group' expects a batch norm over one axis without a mask at "
                f"{'/'.join(module.path)}; use norm='switchable' or 'shared'."
            )
        groups = group_count(x.shape[module.axis], self.groups)
        norm = nn.GroupNorm(
            num_groups=groups,
            epsilon=module.epsilon,
            dtype=module.dtype,
            param_dtype=module.param_dtype,
            use_bias=module.use_bias,
            use_scale=module.use_scale,
            use_fast_variance=module.use_fast_variance,
            parent=None,
        )
        arrays = dict(module.variables.get("params", {}))
        y: Any = norm.apply({"params": arrays}, jnp.moveaxis(x, module.axis, -1))
        return jnp.moveaxis(y, -1, module.axis)


def group_count(features: int, groups: int) -> int:
    """The largest divisor of the features up to `groups`: how many a group norm has.

    >>> group_count(64, 8), group_count(12, 8), group_count(4, 8)
    (8, 6, 4)
    """
    return next(g for g in range(min(groups, features), 0, -1) if features % g == 0)


def _write_statistics(call_next: Any, args: Any, kwargs: Any, context: Any) -> Any:
    """Interceptor: normalise by the batch, and write its mean and variance."""
    if not _is_batch_norm(context):
        return call_next(*args, **kwargs)
    module: nn.BatchNorm = context.module
    x = args[0]
    axis = module.axis % x.ndim
    over = tuple(i for i in range(x.ndim) if i != axis)
    x32 = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean, var = jnp.mean(x32, over), jnp.var(x32, over)
    module.put_variable("batch_stats", "mean", mean)
    module.put_variable("batch_stats", "var", var)
    params = module.variables.get("params", {})
    spread = tuple(1 if i != axis else -1 for i in range(x.ndim))
    y = (x32 - mean.reshape(spread)) * jax.lax.rsqrt(var + module.epsilon).reshape(
        spread
    )
    if "scale" in params:
        y = y * params["scale"].reshape(spread)
    if "bias" in params:
        y = y + params["bias"].reshape(spread)
    return y.astype(module.dtype or x.dtype)


def _copy(x: Any) -> Any:
    return x if isinstance(x, jax.ShapeDtypeStruct) else jnp.array(x, copy=True)


def _replace_at(tree: Mapping[str, Any], path: Sequence[str], change: Any) -> Any:
    if not path:
        return change(tree)
    if path[0] not in tree:  # this norm has no arrays in this collection
        return tree
    return {**tree, path[0]: _replace_at(tree[path[0]], path[1:], change)}


def _without(tree: Mapping[str, Any], path: Sequence[str]) -> Any:
    """The tree without a branch, and without branches that this leaves empty."""
    if path[0] not in tree:
        return tree
    rest = {k: v for k, v in tree.items() if k != path[0]}
    inner = _without(tree[path[0]], path[1:]) if len(path) > 1 else {}
    return {**rest, path[0]: inner} if inner else rest
