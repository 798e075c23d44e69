"""What goes with every row, in training on CPU: its gradient is a product with ones.

A bias, or a scale, is added to or multiplied with every position of every image; its
gradient is a sum over all of them. XLA's CPU backend adds up columns one after the
other, on one core; the product of a row of ones with the matrix runs twenty times as
fast (`experiments/LOG.md`).

Only programs of our own are made so (`compilation.jit`).
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ..compilation import own_cpu_program

# Smaller sums are not worth a product.
_ROWS = 64
_ENTRIES = 2**15


def spread(operands: Sequence[Any]) -> Sequence[Any]:
    """Two operands, the one with axes of size 1 at the size of the other."""
    if not own_cpu_program.value or len(operands) != 2:
        return operands
    shape = jnp.broadcast_shapes(*map(jnp.shape, operands))
    return [_spread(x, shape) if _pays(x, shape) else x for x in operands]


def _pays(x: Any, shape: tuple[int, ...]) -> bool:
    if jnp.ndim(x) != len(shape) or jnp.result_type(x) != jnp.float32:
        return False
    axes = _repeated(x, shape)
    # The axes lie side by side, and columns of numbers remain.
    return (
        bool(axes)
        and axes == list(range(axes[0], axes[-1] + 1))
        and axes[-1] < len(shape) - 1
        and math.prod(shape[i] for i in axes) >= _ROWS
        and math.prod(shape) >= _ENTRIES
    )


def _repeated(x: Any, shape: tuple[int, ...]) -> list[int]:
    return [i for i, (a, b) in enumerate(zip(x.shape, shape, strict=True)) if a != b]


def _spread(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """x (b, 1, 1, c) -> (b, h, w, c), with a tangent that is a product with ones."""
    axes = _repeated(x, shape)
    rows = math.prod(shape[i] for i in axes)
    matrices, columns = math.prod(x.shape[: axes[0]]), math.prod(x.shape[axes[-1] :])

    @jax.custom_jvp
    def repeat(x: jax.Array) -> jax.Array:
        return jnp.broadcast_to(x, shape)

    @repeat.defjvp
    def tangent(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
        (x,), (moves,) = primals, tangents
        if matrices == 1:
            moves = jnp.ones((rows, 1), moves.dtype) @ moves.reshape(1, columns)
        else:
            ones = jnp.ones((matrices, rows, 1), moves.dtype)
            moves = lax.batch_matmul(ones, moves.reshape(matrices, 1, columns))
        return repeat(x), moves.reshape(shape)

    return repeat(x)
