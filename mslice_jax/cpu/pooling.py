"""Poolings, in programs of our own on CPU: of all windows at once, place by place.

XLA's CPU backend goes through the entries of a window in a loop of its own for every
window, and makes the gradient of a maximum from the index of every entry, scattered one
by one. Here the entries that stand at one place of all windows are one array, a slice
of what is pooled, and the result is the maximum, or the sum, of as many arrays as a
window has places. Large windows are pooled along one axis after the other.

A maximum's gradient goes to the first entry that equals it: the place of this entry is
kept for each window. What is pooled is divided into blocks as large as a stride. A
window begins with a block and reaches into the next ones, if it is larger; so an entry
takes the gradients of those windows that reach its block and have their first maximum
where it stands. That is fifteen times as fast for windows of 3 x 3 that move on by two
(`experiments/LOG.md`).
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .barriers import barrier

_PLACES = 64  # of a window; with more of them the program takes long to compile
_AT_ONCE = 9  # with more, one axis after the other reads fewer entries

Sizes = tuple[int, ...]
Pads = tuple[tuple[int, int], ...]
Pairwise = Callable[[jax.Array, jax.Array], jax.Array]


def applies(x: Any, params: dict[str, Any]) -> bool:
    """Whether the forms below compute this pooling."""
    window, padding = params["window_dimensions"], params["padding"]
    return (
        1 < math.prod(window) <= _PLACES
        and all(low >= 0 and high >= 0 for low, high in padding)
        and all(d == 1 for d in (*params["base_dilation"], *params["window_dilation"]))
        and all(isinstance(size, int) for size in x.shape)
        and jnp.issubdtype(x.dtype, jnp.floating)
        and all(
            0 < k <= n + low + high
            for k, n, (low, high) in zip(window, x.shape, padding, strict=True)
        )
    )


def maximum(x: jax.Array, params: dict[str, Any]) -> jax.Array:
    """The maximum of each window.

    Args:
      x: what is pooled.
      params: of `reduce_window_max`.
    """
    return _pool(_Windows.of(x, params), x, jnp.maximum, -math.inf, _Windows.first)


def total(x: jax.Array, params: dict[str, Any]) -> jax.Array:
    """The sum of each window.

    Args:
      x: what is pooled.
      params: of `reduce_window_sum`.
    """
    return _pool(_Windows.of(x, params), x, jnp.add, 0, lambda *_: None)


def _pool(
    windows: "_Windows",
    x: jax.Array,
    pairwise: Pairwise,
    start: float,
    first: Callable[..., jax.Array | None],
) -> jax.Array:
    """The pooling, with its derivatives.

    Args:
      windows: of what is pooled.
      x: that.
      pairwise, start: how a window's entries are reduced, and from what.
      first: (windows, x, pooled) -> see `from_entries`.
    """

    @jax.custom_jvp
    def pool(x: jax.Array) -> jax.Array:
        return windows.reduce(x, pairwise, start)

    @pool.defjvp
    def tangent(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
        (x,), (moves,) = primals, tangents
        out = pool(x)
        return out, windows.from_entries(first(windows, x, out), moves)

    return pool(x)


@dataclasses.dataclass(frozen=True, slots=True)
class _Windows:
    """The windows of a pooling.

    Attributes:
      size: entries along each axis of what is pooled.
      window: of a window.
      steps: from a window to the next.
      padding: before and behind the entries.
      counts: how many windows there are.
    """

    size: Sizes
    window: Sizes
    steps: Sizes
    padding: Pads
    counts: Sizes

    @classmethod
    def of(cls, x: Any, params: dict[str, Any]) -> "_Windows":
        window, steps = params["window_dimensions"], params["window_strides"]
        counts = tuple(
            (n + low + high - k) // s + 1
            for n, k, s, (low, high) in zip(
                x.shape, window, steps, params["padding"], strict=True
            )
        )
        # A window that stands alone reaches no block but its own.
        steps = tuple(
            k if count == 1 else s
            for k, s, count in zip(window, steps, counts, strict=True)
        )
        return cls(x.shape, window, steps, params["padding"], counts)

    def reduce(self, x: jax.Array, pairwise: Pairwise, start: float) -> jax.Array:
        """Of each window's entries; `start` is what padding stands for."""
        if math.prod(self.window) <= _AT_ONCE:
            return functools.reduce(pairwise, self._places(x, start))
        for axis, k in enumerate(self.window):
            if k > 1 or self.steps[axis] > 1 or any(self.padding[axis]):
                along = self._along(axis, x.shape)
                x = functools.reduce(pairwise, along._places(x, start))
        return x

    def first(self, x: jax.Array, out: jax.Array) -> jax.Array:
        """The number of the place of each window's first maximum."""
        last = math.prod(self.window) - 1
        # From the last place to the first, so that the first maximum is what remains.
        first = jnp.full(out.shape, last, np.int32)
        for entries in reversed(list(self._places(x, -math.inf))):
            first, last = jnp.where(entries == out, last, first), last - 1
        return first

    def from_entries(self, first: jax.Array | None, moves: jax.Array) -> jax.Array:
        """Of each window the entry of its first maximum, or the sum; `to_entries` back.

        JAX transposes the transpose to what is fast.
        """
        # Transposed, this is where the gradient comes out. It is read several times, by
        # a norm, say, and XLA would compute it anew for each.
        moves = barrier(moves)
        out = jax.ShapeDtypeStruct(self.counts, moves.dtype)
        back = functools.partial(self.to_entries, first)
        return jax.linear_transpose(back, out)(moves)[0]

    def to_entries(self, first: jax.Array | None, gradient: jax.Array) -> jax.Array:
        """The gradient of each window, at the entry of its first maximum, or at all.

        Args:
          first: the number of this entry's place, of each window; None for all entries.
          gradient: of each window.
        """
        reach = [-(-k // s) for k, s in zip(self.window, self.steps, strict=True)]
        blocks = [
            -(-(n + low) // s)
            for n, s, (low, _) in zip(self.size, self.steps, self.padding, strict=True)
        ]
        config = [
            (r - 1, max(0, count - n), 0)
            for r, count, n in zip(reach, blocks, self.counts, strict=True)
        ]
        in_blocks = [n for count in blocks for n in (count, 1)]
        padded = {
            beyond: barrier(lax.pad(each, jnp.asarray(beyond, each.dtype), config))
            for beyond, each in ((0, gradient), (-1, first))
            if each is not None
        }
        terms = []
        for block in itertools.product(*map(range, reach)):
            start = [r - 1 - at for r, at in zip(reach, block, strict=True)]
            limit = [at + count for at, count in zip(start, blocks, strict=True)]
            moves, *place = (
                lax.slice(each, start, limit).reshape(in_blocks)
                for each in padded.values()
            )
            numbers = self._numbers(block)
            here = place[0] == numbers if place else numbers >= 0
            terms.append(jnp.where(here, moves, 0))
        entries = functools.reduce(jnp.add, terms)
        whole = [n * s for n, s in zip(blocks, self.steps, strict=True)]
        lows = [low for low, _ in self.padding]
        ends = [low + n for low, n in zip(lows, self.size, strict=True)]
        return lax.slice(entries.reshape(whole), lows, ends)

    def _places(self, x: jax.Array, beyond: float) -> Iterator[jax.Array]:
        """For each place of a window what stands there, of all windows."""
        config, ends = [], []
        for n, k, s, count, (low, _) in zip(
            x.shape, self.window, self.steps, self.counts, self.padding, strict=True
        ):
            ends.append((count - 1) * s + 1)
            config.append((low, max(0, ends[-1] + k - 1 - n - low), 0))
        if any(map(any, config)):
            x = lax.pad(x, jnp.asarray(beyond, x.dtype), config)
        # Read once for each place: XLA would compute anew what stands before it.
        x = barrier(x)
        for place in itertools.product(*map(range, self.window)):
            limit = [at + end for at, end in zip(place, ends, strict=True)]
            yield lax.slice(x, place, limit, self.steps)

    def _along(self, axis: int, size: Sizes) -> "_Windows":
        """The windows along one axis, of one entry along each other one."""

        def one(values: Any, other: Any) -> Any:
            return tuple(v if i == axis else other for i, v in enumerate(values))

        return _Windows(
            size,
            one(self.window, 1),
            one(self.steps, 1),
            one(self.padding, (0, 0)),
            tuple(self.counts[i] if i == axis else n for i, n in enumerate(size)),
        )

    def _numbers(self, block: Sizes) -> np.ndarray:
        """The numbers of the places in a block of a window, -1 where it has ended."""
        numbers = np.arange(math.prod(self.window), dtype=np.int32)
        numbers = numbers.reshape(self.window)
        beyond = [(0, -k % s) for k, s in zip(self.window, self.steps, strict=True)]
        numbers = np.pad(numbers, beyond, constant_values=-1)
        here = tuple(
            slice(at * s, (at + 1) * s) for at, s in zip(block, self.steps, strict=True)
        )
        return numbers[here].reshape([n for s in self.steps for n in (1, s)])
