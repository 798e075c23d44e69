"""Max pooling in training on CPU: its gradient entry by entry.

XLA's CPU backend makes the gradient from the index of every entry, scattered one by
one. Here the array is divided into blocks as large as a stride. A window begins with a
block and reaches into the next ones, if it is larger; so each entry of a block sees the
maxima of as many windows, and takes the gradient of those of which it is the first
entry that equals the maximum: the same result, computed for all entries at once.
"""

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .barriers import barrier

_PLACES = 64  # of a window; with more of them the program takes long to compile


def applies(x: Any, params: dict[str, Any]) -> bool:
    """Whether the form below computes the gradient of this pooling."""
    return (
        1 < math.prod(params["window_dimensions"]) <= _PLACES
        and all(low >= 0 and high >= 0 for low, high in params["padding"])
        and all(d == 1 for d in (*params["base_dilation"], *params["window_dilation"]))
        and all(isinstance(size, int) for size in x.shape)
        and jnp.issubdtype(x.dtype, jnp.floating)
    )


def with_cpu_gradient(run: Any, x: jax.Array, params: dict[str, Any]) -> jax.Array:
    """run(x), the maximum of each window, with a tangent that is a masked sum.

    Args:
      run: x -> the maxima.
      x: what is pooled.
      params: of `reduce_window_max`.
    """
    window, steps = params["window_dimensions"], params["window_strides"]
    reach = [-(-k // s) for k, s in zip(window, steps, strict=True)]  # in blocks

    def blocks(x: jax.Array, value: float, counts: tuple[int, ...]) -> jax.Array:
        """(..., n, ...) -> (..., blocks, s, ...), with the padding."""
        config, split = [], []
        for n, s, r, count, (low, _) in zip(
            x.shape, steps, reach, counts, params["padding"], strict=True
        ):
            split += [count + r - 1, s]
            config.append((low, math.prod(split[-2:]) - n - low, 0))
        if any(map(any, config)):
            x = lax.pad(x, jnp.asarray(value, x.dtype), config)
        return x.reshape(split)

    def from_block(x: jax.Array, block: Any, counts: tuple[int, ...]) -> jax.Array:
        """Of each window the block of that number."""
        starts = [n for at in block for n in (at, 0)]
        limits = [
            n
            for at, count, s in zip(block, counts, steps, strict=True)
            for n in (at + count, s)
        ]
        return lax.slice(x, starts, limits)

    @jax.custom_jvp
    def pool(x: jax.Array) -> jax.Array:
        return run(x)

    @pool.defjvp
    def tangent(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
        (x,), (moves,) = primals, tangents
        # Transposed, this is where the gradient comes out. It is read several times, by
        # a norm, say, and XLA would find the maxima anew for each.
        moves = barrier(moves)
        out = run(x)
        places = list(itertools.product(*map(range, window)))
        entries = blocks(x, -math.inf, out.shape)
        # From the last place to the first, so that the first maximum is what remains.
        first = jnp.full(out.shape, len(places) - 1)
        for number, place in reversed(list(enumerate(places))):
            block, within = zip(*map(divmod, place, steps), strict=True)
            at = tuple(i for axis in within for i in (slice(None), axis))
            same = from_block(entries, block, out.shape)[at] == out
            first = jnp.where(same, number, first)
        inner = tuple(range(1, 2 * x.ndim, 2))
        first, moves = jnp.expand_dims(first, inner), blocks(moves, 0, out.shape)
        terms = []
        for block in itertools.product(*map(range, reach)):
            mask = first == _numbers(block, window, steps)
            part = jnp.where(mask, from_block(moves, block, out.shape), 0)
            terms.append(part.sum(inner))
        return out, sum(terms[1:], terms[0])

    return pool(x)


def _numbers(block: Any, window: Any, steps: Any) -> np.ndarray:
    """The numbers of the places in a block of a window, -1 where it has ended."""
    numbers = np.arange(math.prod(window)).reshape(window)
    beyond = [(0, -k % s) for k, s in zip(window, steps, strict=True)]
    numbers = np.pad(numbers, beyond, constant_values=-1)
    here = tuple(
        slice(at * s, (at + 1) * s) for at, s in zip(block, steps, strict=True)
    )
    numbers = numbers[here]
    return numbers.reshape([n for s in steps for n in (1, s)])
