"""The programs of a cascade: one for each stage, number of queries and size."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..cpu.compilation import jit
from .stage_networks import StageNetworks
from .stages import Keep, sizes

Key = tuple[int, int, int, int]
"""Stage, queries, size of the first stage, size of this one."""


def keys(
    keeps: Sequence[Keep], queries: Sequence[int], candidates: Sequence[int]
) -> list[Key]:
    """All programs that a query may ask for."""
    return [
        (stage, number, first, size)
        for number in queries
        for first in candidates
        for stage, each in enumerate(sizes(keeps, first))
        for size in each
    ]


def lowered(
    networks: StageNetworks,
    score: Callable[[Any], Any],
    stage: int,
    queries: int,
    first: int,
    size: int,
) -> jax.stages.Lowered:
    """The program of a stage: weights, all candidates, who is left -> scores."""
    narrow, call = networks.narrow[stage], networks.signature.call
    tree = jax.tree.structure(narrow.variables)

    def scores(leaves: Sequence[Any], arrays: Sequence[Any], left: Any) -> Any:
        if left is not None:
            arrays = [jax.vmap(_taken)(x, left) for x in arrays]
        rows = [x.reshape(-1, *x.shape[2:]) for x in arrays]
        args, kwargs = call.join(rows)
        net = narrow.replace(jax.tree.unflatten(tree, leaves))
        return score(net(narrow.part, *args, **kwargs)).reshape(queries, size)

    at = jax.sharding.SingleDeviceSharding(networks.device)

    def placed_type(x: Any, *axes: int) -> Any:
        shape = (*axes, *x.shape[1:]) if axes else x.shape
        return jax.ShapeDtypeStruct(shape, x.dtype, sharding=at)

    leaves = [placed_type(x) for x in jax.tree.leaves(narrow.variables)]
    types = networks.signature.types(1, None)
    arrays = [placed_type(x, queries, first) for x in types]
    left = jax.ShapeDtypeStruct((queries, size), np.int32, sharding=at)
    return jit(scores).lower(leaves, arrays, left if stage else None)


def _taken(x: jax.Array, left: jax.Array) -> jax.Array:
    return jnp.take(x, left, axis=0, mode="clip")
