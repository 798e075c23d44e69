"""Linen modules as functions; the module is not changed, its calls are intercepted.

Norm strategy `group` intercepts the calls of batch norms and runs group norms in their
place; the other strategies choose which leaves of the tree the module sees.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ..norms import group_count, group_norm
from .base import ModuleFunction, Path, collections_per_rate


@dataclass(frozen=True, eq=False, kw_only=True)
class LinenFunction(ModuleFunction):
    """A Linen module as a function of its variables, with its batch norms swapped."""

    module: nn.Module

    def __call__(self, variables: Any, rate: Any, /, *args: Any, **kwargs: Any) -> Any:
        variables = self.select(variables, rate)
        if self.measure:
            kwargs["mutable"] = ["batch_stats"]
        with self._intercepted():
            out = self.module.apply(variables, *args, **kwargs)
        if self.updates(kwargs):
            y, updates = out
            return y, self.restore(updates, rate)
        return out

    @property
    def of(self) -> Any:
        """The module."""
        return self.module

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

    def _intercepted(self) -> Any:
        if self.measure:
            return nn.intercept_methods(_write_statistics)
        if self.norm == "group" and self.sites:
            return nn.intercept_methods(_GroupNorms(self.groups))
        return contextlib.nullcontext()


def adapt(
    module: nn.Module,
    variables: Any,
    join: Callable[..., tuple[Sequence[Any], Mapping[str, Any]]],
    arrays: Sequence[Any],
    *,
    norm: str,
    groups: int,
    rates: tuple[float, ...],
) -> tuple[LinenFunction, Any]:
    """A Linen module as a function, and its variables in sliceable form.

    Args:
      module: any Linen module.
      variables: its variables.
      join: arrays -> positional and keyword arguments of a call; an abstract call tells
        where the batch norms are.
      arrays: the arrays of that call, or their types.
      norm: one of `mslice_jax.norms.STRATEGIES`.
      groups: how many groups a group norm has.
      rates: the declared rates, ascending.

    Raises:
      ValueError: if these are no variables of a module, or for an unknown strategy.
    """
    per_rate = collections_per_rate(norm)
    if not isinstance(variables, Mapping) or "params" not in variables:
        is_mapping = isinstance(variables, Mapping)
        kind = list(variables) if is_mapping else type(variables).__name__
        raise ValueError(
            "variables of a Linen module are what `module.init` returns, a dict with "
            f"'params'; got {kind}. Call upgrade(model, variables, *inputs, rates=...)."
        )
    sites: dict[Path, None] = {}

    def record(call_next: Any, args: Any, kwargs: Any, context: Any) -> Any:
        if _is_batch_norm(context):
            sites[context.module.path] = None
        return call_next(*args, **kwargs)

    def call(variables: Any, arrays: Any) -> Any:
        args, kwargs = join(arrays)
        return module.apply(variables, *args, **kwargs)

    with nn.intercept_methods(record):
        jax.eval_shape(call, variables, list(arrays))
    function = LinenFunction(
        module=module,
        norm=norm,
        groups=groups,
        sites=tuple(sites),
        rates=rates,
        per_rate=per_rate,
    )
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
        x = args[0] if args else kwargs["x"]
        if kwargs.get("mask") is not None or not isinstance(module.axis, int):
            raise ValueError(
                f"norm='group' expects a batch norm over one axis without a mask at "
                f"{'/'.join(module.path)}; use norm='switchable' or 'shared'."
            )
        params = module.variables.get("params", {})
        y = group_norm(
            jnp.moveaxis(x, module.axis, -1),
            params.get("scale"),
            params.get("bias"),
            groups=group_count(x.shape[module.axis], self.groups),
            epsilon=module.epsilon,
            fast_variance=module.use_fast_variance,
            dtype=module.dtype,
        )
        return jnp.moveaxis(y, -1, module.axis)


def _write_statistics(call_next: Any, args: Any, kwargs: Any, context: Any) -> Any:
    """Interceptor: normalise by the batch, and write its mean and variance."""
    if not _is_batch_norm(context):
        return call_next(*args, **kwargs)
    module: nn.BatchNorm = context.module
    x, mask = args[0] if args else kwargs["x"], kwargs.get("mask")
    axes = module.axis if isinstance(module.axis, Sequence) else (module.axis,)
    kept = {axis % x.ndim for axis in axes}
    over = tuple(i for i in range(x.ndim) if i not in kept)
    x32 = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean, var = jnp.mean(x32, over, where=mask), jnp.var(x32, over, where=mask)
    module.put_variable("batch_stats", "mean", mean)
    module.put_variable("batch_stats", "var", var)
    params = module.variables.get("params", {})
    spread = tuple(n if i in kept else 1 for i, n in enumerate(x.shape))
    y = (x32 - mean.reshape(spread)) * jax.lax.rsqrt(var + module.epsilon).reshape(
        spread
    )
    if "scale" in params:
        y = y * params["scale"].reshape(spread)
    if "bias" in params:
        y = y + params["bias"].reshape(spread)
    return y.astype(module.dtype or x.dtype)


def _without(tree: Mapping[str, Any], path: Sequence[str]) -> Any:
    """The tree without a branch, and without branches that this leaves empty."""
    if path[0] not in tree:
        return tree
    rest = {k: v for k, v in tree.items() if k != path[0]}
    inner = _without(tree[path[0]], path[1:]) if len(path) > 1 else {}
    return {**rest, path[0]: inner} if inner else rest
