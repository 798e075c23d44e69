"""Blocks: how weights lie on disk, so that a sub-network can be read without the rest.

An axis of ``n`` entries is written as two, ``n / b`` blocks of ``b`` entries: a kernel
(64, 128) in blocks of (16, 32) as (4, 16, 4, 32). That is a reshape, nothing moves.
Orbax stores the blocks one by one (chunks of (1, 16, 1, 32)), and whoever wants rate
0.25 reads the block at (0, :, 0, :) and no other. Blocks end where what a rate keeps
ends; of a flattened image or a fused QKV, where several runs are kept, there are more.
"""

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from ..core.axes import Axis, groups_in, indices
from ..core.paths import path_name
from ..core.plan import WidthPlan

Blocks: TypeAlias = Mapping[str, Sequence[int]]
"""Path of a leaf that is written in blocks -> entries of a block along each axis."""

# Orbax puts smaller arrays into the index, which is read in any case.
_IN_INDEX = 1024
# The cost of a block besides its own bytes: an entry in the index, and one more read.
_PER_BLOCK = 64


def choose_blocks(plan: WidthPlan, tree: Any) -> dict[str, list[int]]:
    """The blocks of those leaves of which some declared rate keeps a part.

    Args:
      plan: of the network.
      tree: arrays, or types with a sharding, like the variables, or with some of their
        branches left out. Where an axis is sharded, no block lies on two devices.

    Returns:
      A mapping that JSON can hold.
    """
    chosen = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = path_name(path)
        known, parts = plan.leaf(path), _parts(leaf)
        axes = known.axes if known else ()
        groups = {group for axis in axes for group in groups_in(axis)}
        if not groups or parts is None:
            continue
        kept = tuple(
            frozenset((group, plan.groups[group].width(rate)) for group in groups)
            for rate in plan.rates
        )
        blocks = _cheapest(axes, leaf.shape, leaf.dtype.itemsize, kept, parts)
        if blocks != leaf.shape:
            chosen[name] = list(blocks)
    return chosen


def split_types(tree: Any, blocks: Blocks) -> Any:
    """Shapes and shardings of the tree when the named leaves are split into blocks."""

    def split(path: Any, leaf: Any) -> jax.ShapeDtypeStruct:
        sizes, sharding = blocks.get(path_name(path)), leaf.sharding
        if sizes is None:
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
        pairs = [(n // b, b) for n, b in zip(leaf.shape, sizes, strict=True)]
        if isinstance(sharding, NamedSharding):
            spec: list[Any] = []
            for (count, _), entry in zip(pairs, _entries(leaf), strict=True):
                # Of a checkpoint made on fewer devices the blocks may not divide.
                divides = count % _size(sharding, entry) == 0
                spec += [entry if divides else None, None]
            sharding = NamedSharding(
                sharding.mesh, PartitionSpec(*spec), memory_kind=sharding.memory_kind
            )
        shape = tuple(itertools.chain.from_iterable(pairs))
        return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=sharding)

    return jax.tree_util.tree_map_with_path(split, tree)


def reshape(tree: Any, types: Any) -> Any:
    """The arrays of a tree with the shapes of `types`, and where those are."""
    leaves, structure = jax.tree.flatten(tree)
    wanted = jax.tree.leaves(types)
    moved = [
        i
        for i, (x, t) in enumerate(zip(leaves, wanted, strict=True))
        if x.shape != t.shape
    ]
    if moved:
        shapes = tuple(wanted[i].shape for i in moved)
        shardings = tuple(wanted[i].sharding for i in moved)
        results = _reshaper(shapes, shardings)([leaves[i] for i in moved])
        for i, result in zip(moved, results, strict=True):
            leaves[i] = result
    return jax.tree.unflatten(structure, leaves)


@functools.lru_cache(maxsize=16)
def _reshaper(shapes: tuple[Any, ...], shardings: tuple[Any, ...]) -> Any:
    """One program for all leaves: compiled once for a run."""

    def reshape_all(leaves: list[jax.Array]) -> list[jax.Array]:
        return [x.reshape(shape) for x, shape in zip(leaves, shapes, strict=True)]

    return jax.jit(reshape_all, out_shardings=list(shardings))


@functools.lru_cache(maxsize=4096)
def _cheapest(
    axes: tuple[Axis, ...],
    shape: tuple[int, ...],
    itemsize: int,
    kept: tuple[frozenset[tuple[str, int]], ...],
    parts: tuple[int, ...],
) -> tuple[int, ...]:
    """The block with which the rate that pays most for what it keeps pays least."""
    prefixes = [{group: np.arange(n) for group, n in widths} for widths in kept]
    runs = [[indices(axis, prefix) for prefix in prefixes] for axis in axes]
    needed = np.prod([[len(run) for run in axis] for axis in runs], axis=0) * itemsize

    def price(choice: Sequence[tuple[int, np.ndarray]]) -> float:
        size = math.prod(block for block, _ in choice) * itemsize
        total = math.prod(
            n // block for n, (block, _) in zip(shape, choice, strict=True)
        )
        read = np.prod([touched for _, touched in choice], axis=0)
        if size <= _IN_INDEX:
            read = total
        return float(np.max((read * size + total * _PER_BLOCK) / needed))

    candidates = [
        _candidates(n // pieces, axis)
        for n, pieces, axis in zip(shape, parts, runs, strict=True)
    ]
    best = min(itertools.product(*candidates), key=price)
    return tuple(block for block, _ in best)


def _candidates(local: int, runs: Sequence[np.ndarray]) -> list[tuple[int, np.ndarray]]:
    """Blocks along one axis, from the longest, with how many of them each rate needs.

    A block is left out if a longer one makes no rate read more.
    """
    found: list[tuple[int, np.ndarray]] = []
    least = math.inf
    for block in (b for b in range(local, 0, -1) if local % b == 0):
        touched = np.array([1 + np.count_nonzero(np.diff(r // block)) for r in runs])
        excess = max(touched * block / [len(r) for r in runs])
        if excess < least or not found:
            least = excess
            found.append((block, touched))
    return found


def _parts(leaf: Any) -> tuple[int, ...] | None:
    """Over how many devices each axis is sharded; None if that is not known."""
    sharding = getattr(leaf, "sharding", None)
    if isinstance(sharding, NamedSharding):
        return tuple(_size(sharding, entry) for entry in _entries(leaf))
    if sharding is None or sharding.is_fully_replicated:
        return (1,) * len(leaf.shape)
    return None


def _entries(leaf: Any) -> tuple[Any, ...]:
    """The mesh axes of each axis: the partition spec, filled up."""
    spec = tuple(leaf.sharding.spec)
    return spec + (None,) * (len(leaf.shape) - len(spec))


def _size(sharding: NamedSharding, entry: Any) -> int:
    names = entry if isinstance(entry, tuple) else (entry,)
    return math.prod(sharding.mesh.shape[name] for name in names if name is not None)
