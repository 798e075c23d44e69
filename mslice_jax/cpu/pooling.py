"""Max pooling in training on CPU: its gradient entry by entry.

XLA's CPU backend makes the gradient from the index of every entry, scattered one by
one. Where windows do not overlap, each entry sees one maximum, and takes its gradient
if it is the first that equals it: the same result, computed for all entries at once.
"""

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

_PLACES = 64  # of a window; with more of them the program takes long to compile


def applies(x: Any, params: dict[str, Any]) -> bool:
    """Whether windows do not overlap, and cover the array."""
    window = params["window_dimensions"]
    return (
        math.prod(window) <= _PLACES
        and tuple(params["window_strides"]) == tuple(window)
        and all(pads == (0, 0) for pads in params["padding"])
        and all(d == 1 for d in (*params["base_dilation"], *params["window_dilation"]))
        and all(size % n == 0 for size, n in zip(x.shape, window, strict=True))
    )


def with_cpu_gradient(run: Any, x: jax.Array, window: tuple[int, ...]) -> jax.Array:
    """run(x), the maximum of each window, with a tangent that is a masked sum."""
    split = [n for size, k in zip(x.shape, window, strict=True) for n in (size // k, k)]
    inner = tuple(range(1, len(split), 2))

    @jax.custom_jvp
    def pool(x: jax.Array) -> jax.Array:
        return run(x)

    @pool.defjvp
    def tangent(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
        (x,), (moves,) = primals, tangents
        # Transposed, this is where the gradient comes out. It is read several times, by
        # a norm, say, and XLA would find the maxima anew for each.
        moves = lax.optimization_barrier(moves)
        out = run(x)
        windows = x.reshape(split)
        places = list(itertools.product(*map(range, window)))
        # From the last place to the first, so that the first maximum is what remains.
        first = jnp.full(out.shape, len(places) - 1)
        for number, place in reversed(list(enumerate(places))):
            at = tuple(i for axis in place for i in (slice(None), axis))
            first = jnp.where(windows[at] == out, number, first)
        numbers = jnp.arange(len(places)).reshape([n for k in window for n in (1, k)])
        mask = jnp.expand_dims(first, inner) == numbers
        return out, jnp.where(mask, moves.reshape(split), 0).sum(inner)

    return pool(x)
