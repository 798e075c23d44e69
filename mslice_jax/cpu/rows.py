"""Sums over rows, in training on CPU: products with ones.

Norms sum over every position of an image; and a bias, or a scale, goes with every
position of every image, so that its gradient is a sum over all of them. XLA's CPU
backend adds up columns one after the other, on one core; the product of a row of ones
with the matrix runs ten to twenty times as fast (`experiments/LOG.md`).
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

# Smaller sums are not worth a product.
_ROWS = 64
_ENTRIES = 2**15
# A product of fewer columns is slow: then several rows are put into one.
_COLUMNS = 16


def sums_rows(x: Any, axes: Sequence[int]) -> bool:
    """Whether a sum over the axes is worth a product."""
    return _are_rows(sorted(axes), x.shape, x.dtype)


def total(run: Callable[[Any], Any], x: Any, axes: Sequence[int]) -> Any:
    """run(x), the sum over the axes."""
    axes = sorted(axes)
    matrices, rows, abreast, columns = _matrices(axes, x.shape)
    kept = [n for i, n in enumerate(x.shape) if i not in axes]

    @jax.custom_jvp
    def add_up(x: jax.Array) -> jax.Array:
        ones = jnp.ones((matrices, 1, rows), x.dtype)
        sums = lax.batch_matmul(ones, x.reshape(matrices, rows, abreast * columns))
        return sums.reshape(matrices, abreast, columns).sum(1).reshape(kept)

    @add_up.defjvp
    def tangent(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
        # Transposed, that is a broadcast, which XLA fuses with what comes next.
        return add_up(*primals), run(*tangents)

    return add_up(x)


def repeats_rows(*operands: Any) -> bool:
    """Whether one of two operands goes with every row of the other."""
    shape = jnp.broadcast_shapes(*map(jnp.shape, operands))
    return any(_pays(x, shape) for x in operands)


def spread(*operands: Any) -> Sequence[Any]:
    """Two operands, the one with axes of size 1 at the size of the other."""
    shape = jnp.broadcast_shapes(*map(jnp.shape, operands))
    return [_spread(x, shape) if _pays(x, shape) else x for x in operands]


def subtract(x: Any, y: Any) -> Any:
    """x - y, where one goes with every row of the other."""
    spread_x, spread_y = spread(x, y)
    if spread_y is y:
        return lax.sub(spread_x, y)
    # The gradient of y is then minus a sum, not the sum of an array of negatives.
    return lax.add(x, spread(x, -y)[1])


def _pays(x: Any, shape: tuple[int, ...]) -> bool:
    same_rank = jnp.ndim(x) == len(shape)
    return same_rank and _are_rows(_repeated(x, shape), shape, jnp.result_type(x))


def _are_rows(axes: Sequence[int], shape: Sequence[Any], dtype: Any) -> bool:
    """Whether these axes are rows, of a matrix worth a product."""
    # They are adjacent, and columns of numbers remain.
    return (
        bool(axes)
        and list(axes) == list(range(axes[0], axes[-1] + 1))
        and axes[-1] < len(shape) - 1
        and dtype == jnp.float32
        and all(isinstance(n, int) for n in shape)
        and math.prod(shape[i] for i in axes) >= _ROWS
        and math.prod(shape) >= _ENTRIES
    )


def _matrices(axes: Sequence[int], shape: Sequence[int]) -> tuple[int, int, int, int]:
    """How many matrices, of how many rows, with how many of x abreast, and columns."""
    first, last = axes[0], axes[-1] + 1
    before, inside, after = shape[:first], shape[first:last], shape[last:]
    matrices, rows, columns = math.prod(before), math.prod(inside), math.prod(after)
    abreast = 1
    while rows % 2 == 0 and 2 * abreast * columns <= _COLUMNS:
        abreast, rows = 2 * abreast, rows // 2
    return matrices, rows, abreast, columns


def _repeated(x: Any, shape: tuple[int, ...]) -> list[int]:
    return [
        i for i, (a, b) in enumerate(zip(jnp.shape(x), shape, strict=True)) if a != b
    ]


def _spread(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """x (b, 1, 1, c) -> (b, h, w, c), with a tangent that is a product with ones."""
    matrices, rows, abreast, columns = _matrices(_repeated(x, shape), shape)

    @jax.custom_jvp
    def repeat(x: jax.Array) -> jax.Array:
        return jnp.broadcast_to(x, shape)

    @repeat.defjvp
    def tangent(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
        (x,), (moves,) = primals, tangents
        moves = jnp.tile(moves.reshape(matrices, 1, columns), abreast)
        if matrices == 1:
            moves = jnp.ones((rows, 1), moves.dtype) @ moves[0]
        else:
            ones = jnp.ones((matrices, rows, 1), moves.dtype)
            moves = lax.batch_matmul(ones, moves)
        return repeat(x), moves.reshape(shape)

    return repeat(x)
