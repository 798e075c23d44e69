"""Batch norms of NNX models, and the modules that are put in their place."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from ..norms import GroupNormError, group_count, group_norm


def is_batch_norm(module: Any) -> bool:
    """Whether it is a batch norm of Flax, or inherits the call of one."""
    return (
        isinstance(module, nnx.BatchNorm)
        and type(module).__call__ is nnx.BatchNorm.__call__
    )


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
        self.use_running_average = norm.use_running_average  # `train` and `eval` set it
        _take_parameters(self, norm)

    def __call__(
        self, x: jax.Array, use_running_average: Any = None, *, mask: Any = None
    ) -> jax.Array:
        """Normalises x over groups of features and all axes but the first."""
        if mask is not None:
            features = x.shape[self.axis]
            raise GroupNormError(f"one of {features} features takes a mask")
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
            use_fast_variance=False,  # and without axis_name: batches come whole
            rngs=nnx.Rngs(0),
        )
        self.mean, self.var = norm.mean, norm.var
        _take_parameters(self, norm)

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
        lambda _, node: swapped(node) if is_batch_norm(node) else node,
        model,
    )


def _take_parameters(new: Any, norm: nnx.BatchNorm) -> None:
    """Gives a new norm the very scale and bias of a batch norm, where it has them."""
    for name in ("scale", "bias"):
        if (parameter := getattr(norm, name)) is not None:
            setattr(new, name, parameter)


def _check_axis(norm: nnx.BatchNorm) -> None:
    if not isinstance(norm.axis, int):
        raise GroupNormError(
            f"one of {norm.num_features} features is over the axes {norm.axis!r}"
        )
