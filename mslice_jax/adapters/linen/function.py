"""Linen modules as functions; the module is not changed, its calls are intercepted.

Norm strategy `group` intercepts the calls of batch norms and runs group norms in their
place; the other strategies choose which leaves of the tree the module sees.
"""

import contextlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from ...core.call import Call
from ...core.paths import Path
from ..base import Norms, method_of
from ..modules import ModuleFunction, statistics
from ..norms import GroupNormError, choose, group_count


@dataclass(frozen=True, eq=False, kw_only=True)
class LinenFunction(ModuleFunction):
    """A Linen module as a function of its variables, with its batch norms swapped."""

    takes_rngs: ClassVar[bool] = True
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

    def called(self, kwargs: Mapping[str, Any]) -> Any:
        """The method that runs."""
        return method_of(type(self.module), kwargs)

    def takes(self, keyword: str, kwargs: Mapping[str, Any]) -> bool:
        """What `Module.apply` understands, or the method itself takes."""
        return keyword in ("mutable", "rngs") or super().takes(keyword, kwargs)

    def check_values(self, call: Call, arrays: Sequence[Any]) -> None:
        """What the module's own `__check_call__` says, if it has one."""
        check = getattr(type(self.module), "__check_call__", None)
        if check is not None:
            args, kwargs = call.join(arrays)
            if "method" not in kwargs:
                check(self.module, *args, **kwargs)

    def init(self, rngs: Any, *args: Any, **kwargs: Any) -> Any:
        """New variables in sliceable form."""
        return self.sliceable_form(self.module.init(rngs, *args, **kwargs))

    def sliceable_form(self, variables: Any) -> Any:
        """The variables of the module as this function takes them."""
        if not self.norm.forward or "batch_stats" not in variables:
            return self.spread(variables)
        stats = variables["batch_stats"]
        for site in self.sites:
            for name in ("mean", "var"):
                stats = _without(stats, (*site, name))
        rest = {k: v for k, v in variables.items() if k != "batch_stats"}
        return {**rest, "batch_stats": stats} if stats else rest

    def _intercepted(self) -> Any:
        if self.measure:
            return nn.intercept_methods(_write_statistics)
        if self.norm.forward:  # also in place of those that only other calls reach
            return nn.intercept_methods(_InPlace(self.norm.forward, self.groups))
        return contextlib.nullcontext()


def adapt(
    module: nn.Module,
    variables: Any,
    call: Call,
    arrays: Sequence[Any],
    norms: Norms,
) -> tuple[LinenFunction, Any]:
    """A Linen module as a function, and its variables in sliceable form.

    Args:
      module: any Linen module.
      variables: its variables.
      call: a call of it, which is run abstractly: it tells where the batch norms are.
      arrays: the arrays of that call, or their types.
      norms: what to do with them, see `mslice_jax.adapters.norms.choose`.

    Raises:
      ValueError: if these are no variables of a module, or for an unknown strategy.
    """
    if not isinstance(variables, Mapping) or "params" not in variables:
        is_mapping = isinstance(variables, Mapping)
        kind = list(variables) if is_mapping else type(variables).__name__
        raise ValueError(
            "variables of a Linen module are what `module.init` returns, a dict with "
            f"'params'; got {kind}. Call upgrade(model, variables, *inputs, rates=...)."
        )
    sites: dict[Path, None] = {}
    unfit: list[str] = []

    def record(call_next: Any, args: Any, kwargs: Any, context: Any) -> Any:
        if not _is_batch_norm(context):
            return call_next(*args, **kwargs)
        # The norm itself does not run: in training mode it would write statistics,
        # which the call allows only where they will be kept.
        module, x, mask = _norm_call(args, kwargs, context)
        sites[module.path] = None
        if why := _no_group_norm(module, mask):
            unfit.append(why)
        given = jax.tree.leaves(_scale_and_bias(module))
        return jnp.zeros(x.shape, module.dtype or jnp.result_type(x, *given, float))

    def run(variables: Any, arrays: Any) -> Any:
        args, kwargs = call.join(arrays)
        return module.apply(variables, *args, **kwargs)

    with nn.intercept_methods(record):
        jax.eval_shape(run, variables, list(arrays))
    kept = statistics(variables)
    known = [kept.get(site, {}) for site in sites]
    strategy, why = choose(norms.strategy, known, next(iter(unfit), None))
    function = LinenFunction(
        module=module,
        norm=strategy,
        why=why,
        groups=norms.groups,
        sites=tuple(sites),
        left=tuple(path for path in kept if path not in sites),
        rates=norms.rates,
    )
    return function, function.sliceable_form(variables)


_BATCH_NORM = inspect.unwrap(nn.BatchNorm.__call__)


def _is_batch_norm(context: Any) -> bool:
    """Whether the method is the call of Flax's batch norm itself.

    A class that inherits from it may have a call of its own, which adds to that of
    Flax (`super().__call__`) or takes its place. Its additions have to run.
    """
    method = getattr(context.orig_method, "func", None)
    return method is not None and inspect.unwrap(method) is _BATCH_NORM


def _norm_call(args: Any, kwargs: Any, context: Any) -> tuple[nn.BatchNorm, Any, Any]:
    """The batch norm, its input, and the mask or None."""
    return context.module, args[0] if args else kwargs["x"], kwargs.get("mask")


def _no_group_norm(module: nn.BatchNorm, mask: Any) -> str | None:
    """Why a batch norm cannot be a group norm."""
    if not isinstance(module.axis, int):
        return f"{'/'.join(module.path)} is over the axes {tuple(module.axis)}"
    return f"{'/'.join(module.path)} takes a mask" if mask is not None else None


def _scale_and_bias(module: nn.BatchNorm) -> dict[str, Any]:
    """Its scale and bias, those of the two that it uses."""
    params = module.variables.get("params", {})
    names = ["scale"] * module.use_scale + ["bias"] * module.use_bias
    for name in names:
        if name not in params:
            path = "/".join((*module.path, name))
            raise ValueError(f"expected the variables to have params/{path}.")
    return {name: params[name] for name in names}


@dataclass(frozen=True)
class _InPlace:
    """Interceptor: another norm in place of each batch norm, with its parameters."""

    forward: Callable[..., jax.Array]
    groups: int

    def __call__(self, call_next: Any, args: Any, kwargs: Any, context: Any) -> Any:
        if not _is_batch_norm(context):
            return call_next(*args, **kwargs)
        module, x, mask = _norm_call(args, kwargs, context)
        if why := _no_group_norm(module, mask):
            raise GroupNormError(why)
        params = _scale_and_bias(module)
        y = self.forward(
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
    module, x, mask = _norm_call(args, kwargs, context)
    axes = module.axis if isinstance(module.axis, Sequence) else (module.axis,)
    kept = {axis % x.ndim for axis in axes}
    over = tuple(i for i in range(x.ndim) if i not in kept)
    x32 = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean, var = jnp.mean(x32, over, where=mask), jnp.var(x32, over, where=mask)
    module.put_variable("batch_stats", "mean", mean)
    module.put_variable("batch_stats", "var", var)
    params = _scale_and_bias(module)
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
