"""Narrow weights that are kept between calls.

Outside of jit the narrow variables are cut once per sub-network, and belong to the very
arrays that they were cut from: a leaf that was exchanged is noticed, and one that was
deleted is an error.
"""

import operator
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax.core import Tracer

from .definition import Definition
from .rates import SubNetwork
from .run import slice_variables


@dataclass(frozen=True, slots=True)
class Kept:
    """Narrow variables, flat, and the very arrays that they were cut from."""

    leaves: Sequence[Any]
    tree: Any
    sources: tuple[weakref.ref[jax.Array], ...]
    mesh: Any  # under which they were cut, for it is part of their type

    def is_of(self, leaves: Sequence[Any], mesh: Any) -> bool:
        """Whether they were cut from these leaves, under this mesh."""
        sources = [source() for source in self.sources]
        same = len(sources) == len(leaves) and all(map(operator.is_, sources, leaves))
        return same and self.mesh == mesh


class NarrowVariables:
    """The narrow variables of one network, by sub-network."""

    def __init__(self) -> None:
        self._kept: dict[SubNetwork, Kept] = {}

    def get(
        self,
        definition: Definition,
        part: SubNetwork,
        source: SubNetwork,
        variables: Any,
    ) -> Kept | None:
        """The variables, which are at `source`, at `part`; None under a trace."""
        leaves = jax.tree.leaves(variables)
        mesh = jax.sharding.get_abstract_mesh()
        kept = self._kept.get(part)
        if kept is None or not kept.is_of(leaves, mesh):
            if not can_be_kept(leaves):
                return None
            check_there(leaves)
            sources = tuple(map(weakref.ref, leaves))
            narrow = cut(definition, part, source, variables)
            leaves, tree = jax.tree.flatten(narrow)
            kept = self._kept[part] = Kept(leaves, tree, sources, mesh)
        else:
            check_there(leaves)
        return kept

    def forget(self, part: SubNetwork) -> None:
        """Keeps no variables of a sub-network any longer."""
        self._kept.pop(part, None)


_is_deleted = operator.methodcaller("is_deleted")


def check_there(leaves: Iterable[Any]) -> None:
    """Raises RuntimeError if an array was deleted."""
    if any(map(_is_deleted, leaves)):
        raise RuntimeError(
            "the weights of this network were deleted, or given away to a jitted "
            "function that donates them. Use the network that it returned, or copy the "
            "weights beforehand: jax.tree.map(jnp.copy, net)."
        )


def cut(
    definition: Definition, part: SubNetwork, source: SubNetwork, variables: Any
) -> Any:
    """The narrow variables of a network that holds arrays."""
    # Also while something else is being traced that holds these weights as constants:
    # what is kept must be arrays, never tracers.
    with jax.ensure_compile_time_eval():
        return slice_variables(definition, part, source, variables)


def can_be_kept(leaves: Iterable[Any]) -> bool:
    """Whether what is cut from these leaves are arrays, of use in other programs."""
    # Inside of shard_map they belong to the program of one device.
    if jax.sharding.get_abstract_mesh().manual_axes:
        return False
    return all(isinstance(x, jax.Array) and not isinstance(x, Tracer) for x in leaves)
