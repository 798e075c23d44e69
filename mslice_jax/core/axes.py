"""An axis of an array, and what a rate keeps of it.

An axis is an expression over units::

    Unit(64, "stem")               64 indices that narrow to a prefix
    Whole(10, "output")            10 indices that never narrow
    Product((h, w, c))             what reshape merges: heads x head size, flatten
    Concat((q, k, v))              concatenated parts: LSTM gates

The indices that survive are a prefix of every `Unit`; of a product every combination of
what survives in its factors; of a concatenation what survives in each segment, side by
side. So the kept set of a flattened image is strided and that of a fused QKV
projection is three prefixes.

Arrays are cut by reshape, slice and concatenate, never by a gather: gathers are slow on
TPU, and so are their transposes (scatters).
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import numpy as np
from jax import lax
from jax.core import Tracer

Widths: TypeAlias = Mapping[str, int]
"""How many indices each group of units keeps; a group that is not named keeps all."""

FULL: Widths = {}


@dataclass(frozen=True, slots=True)
class Unit:
    """Indices that narrow to a prefix, together with all units of the same group."""

    size: int
    group: str

    def __str__(self) -> str:
        return f"{self.size}*"


@dataclass(frozen=True, slots=True)
class Whole:
    """Indices that never narrow. The size may be symbolic (a free batch size)."""

    size: Any
    reason: Any = None

    def __str__(self) -> str:
        return str(self.size)

    # Two whole axes of one size are the same axis, whatever keeps them whole.
    def __eq__(self, other: object) -> bool:
        return isinstance(other, Whole) and self.size == other.size

    def __hash__(self) -> int:
        return hash((Whole, self.size))


@dataclass(frozen=True, slots=True)
class Product:
    """Factors from the outermost to the innermost, merged into one axis."""

    factors: tuple["Axis", ...]

    def __str__(self) -> str:
        return "(" + " x ".join(map(str, self.factors)) + ")"


@dataclass(frozen=True, slots=True)
class Concat:
    """Segments concatenated in one axis."""

    segments: tuple["Axis", ...]

    def __str__(self) -> str:
        return "(" + " + ".join(map(str, self.segments)) + ")"


Axis: TypeAlias = Unit | Whole | Product | Concat


def split_over(axis: Axis, shards: int) -> set[str]:
    """The groups of an axis that come in so many parts, of which each narrows.

    >>> sorted(split_over(Product((Whole(4), Unit(2, "a"), Whole(8))), 4))
    ['a']
    """
    match axis:
        case Product(parts):
            found = {
                inner.group
                for outer, inner in itertools.pairwise(parts)
                if outer == Whole(shards) and isinstance(inner, Unit)
            }
        case Concat(parts):
            found = set()
        case _:
            return set()
    return found.union(*(split_over(part, shards) for part in parts))


def width(axis: Axis, widths: Widths = FULL) -> Any:
    """The size of the axis when every group keeps its `widths`."""
    match axis:
        case Unit(size, group):
            return widths.get(group, size)
        case Whole(size):
            return size
        case Product(factors):
            return math.prod(width(factor, widths) for factor in factors)
        case Concat(segments):
            return sum(width(segment, widths) for segment in segments)


def shape(axes: Sequence[Axis], widths: Widths = FULL) -> tuple[Any, ...]:
    """The shape of an array with these axes."""
    return tuple(width(axis, widths) for axis in axes)


def groups_in(axis: Axis) -> tuple[str, ...]:
    """The groups of the units in the expression, in the order they are written."""
    match axis:
        case Unit(_, group):
            return (group,)
        case Whole():
            return ()
        case Product(parts) | Concat(parts):
            return tuple(group for part in parts for group in groups_in(part))


def indices(axis: Axis, of_unit: Mapping[str, np.ndarray]) -> np.ndarray:
    """Indices of the full axis, in order, when each group takes `of_unit[group]`.

    A prefix gives the kept indices of a rate, a permutation permutes the axis. Groups
    that are not named take all their indices.
    """
    match axis:
        case Unit(size, group):
            return np.asarray(of_unit.get(group, np.arange(size)))
        case Whole(size):
            return np.arange(size)
        case Product(factors):
            taken = np.zeros(1, int)
            for factor in factors:
                inner = indices(factor, of_unit)
                taken = (taken[:, None] * width(factor) + inner[None, :]).reshape(-1)
            return taken
        case Concat(segments):
            offsets = np.cumsum([0] + [width(segment) for segment in segments])
            parts = [indices(segment, of_unit) for segment in segments]
            return np.concatenate(
                [p + o for p, o in zip(parts, offsets[:-1], strict=True)]
            )


def owners(axis: Axis, group: str) -> np.ndarray:
    """For each entry along the full axis the index of the group it belongs to, or -1.

    >>> owners(Product((Unit(2, "heads"), Whole(3))), "heads").tolist()
    [0, 0, 0, 1, 1, 1]
    """
    match axis:
        case Unit(size, name) if name == group:
            return np.arange(size)
        case Unit(size) | Whole(size):
            return np.full(size, -1)
        case Product(factors):
            owner = np.full(1, -1)
            for factor in factors:
                inner = owners(factor, group)
                owner = np.maximum(owner[:, None], inner[None, :]).reshape(-1)
            return owner
        case Concat(segments):
            return np.concatenate([owners(segment, group) for segment in segments])


def slice_array(
    x: Any, axes: Sequence[Axis], widths: Widths, source: Widths = FULL
) -> Any:
    """Cuts an array whose axes have their `source` widths down to `widths`."""
    _check_shape(x, axes, source)
    if all(isinstance(axis, (Unit, Whole)) for axis in axes):
        limits = shape(axes, widths)
        if limits == tuple(x.shape):
            return x
        return lax.slice(x, (0,) * len(limits), limits)
    for dim, axis in enumerate(axes):
        if shape([axis], widths) == shape([axis], source):
            continue
        outer, inner = x.shape[:dim], x.shape[dim + 1 :]
        rest = [Whole(size) for size in outer], [Whole(size) for size in inner]
        if isinstance(axis, Product):
            split = x.reshape(*outer, *shape(axis.factors, source), *inner)
            split = slice_array(
                split, [*rest[0], *axis.factors, *rest[1]], widths, source
            )
            x = split.reshape(*outer, width(axis, widths), *inner)
        elif isinstance(axis, Concat):
            parts = _segments(x, dim, axis, source)
            parts = [
                slice_array(part, [*rest[0], segment, *rest[1]], widths, source)
                for part, segment in zip(parts, axis.segments, strict=True)
            ]
            x = lax.concatenate(parts, dim)
        else:
            x = lax.slice_in_dim(x, 0, width(axis, widths), axis=dim)
    return x


def put_back(
    full: Any,
    narrow: Any,
    axes: Sequence[Axis],
    widths: Widths,
    source: Widths = FULL,
) -> Any:
    """An array at `source` widths with the part that `widths` keeps replaced."""
    _check_shape(full, axes, source)
    _check_shape(narrow, axes, widths)
    if full.shape == narrow.shape:
        return narrow
    if all(isinstance(axis, (Unit, Whole)) for axis in axes):
        return lax.dynamic_update_slice(full, narrow, (0,) * full.ndim)
    for dim, axis in enumerate(axes):
        # Axes before `dim` are already wide in `narrow`, those after it still narrow.
        before = [Whole(size) for size in full.shape[:dim]]
        after = [Whole(size) for size in narrow.shape[dim + 1 :]]
        target = slice_array(
            full, [*before, Whole(full.shape[dim]), *axes[dim + 1 :]], widths, source
        )
        if target.shape == narrow.shape:
            continue
        if isinstance(axis, Product):
            pre, post = target.shape[:dim], target.shape[dim + 1 :]
            narrow = put_back(
                target.reshape(*pre, *shape(axis.factors, source), *post),
                narrow.reshape(*pre, *shape(axis.factors, widths), *post),
                [*before, *axis.factors, *after],
                widths,
                source,
            ).reshape(target.shape)
        elif isinstance(axis, Concat):
            parts = [
                put_back(t, n, [*before, segment, *after], widths, source)
                for segment, t, n in zip(
                    axis.segments,
                    _segments(target, dim, axis, source),
                    _segments(narrow, dim, axis, widths),
                    strict=True,
                )
            ]
            narrow = lax.concatenate(parts, dim)
        else:
            narrow = put_back(target, narrow, [*before, axis, *after], widths, source)
    return narrow


def take(x: Any, axes: Sequence[Axis], of_unit: Mapping[str, np.ndarray]) -> Any:
    """The array with each axis reordered by `indices(axis, of_unit)` (a gather)."""
    moved = {
        dim: indices(axis, of_unit)
        for dim, axis in enumerate(axes)
        if any(group in of_unit for group in groups_in(axis))
    }
    concrete = isinstance(x, jax.Array) and not isinstance(x, Tracer)
    if concrete and moved and x.is_fully_addressable:  # NumPy compiles nothing
        return jax.device_put(take(np.asarray(x), axes, of_unit), x.sharding)
    for dim, order in moved.items():
        x = x.take(order, axis=dim)
    return x


def _segments(x: Any, dim: int, axis: Concat, widths: Widths) -> list[Any]:
    bounds = np.cumsum([0] + [width(segment, widths) for segment in axis.segments])
    return [
        lax.slice_in_dim(x, int(start), int(stop), axis=dim)
        for start, stop in zip(bounds[:-1], bounds[1:], strict=True)
    ]


def _check_shape(x: Any, axes: Sequence[Axis], widths: Widths) -> None:
    expected = shape(axes, widths)
    if tuple(x.shape) != expected:
        raise ValueError(
            f"expected an array of shape {expected} for the axes "
            f"[{', '.join(map(str, axes))}] (* narrows); got {tuple(x.shape)}."
        )
