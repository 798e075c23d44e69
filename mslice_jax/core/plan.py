"""The plan: for every axis of every array of a tree, what a rate keeps of it.

A plan belongs to the parameters. It turns the full tree into a narrow one and puts a
narrow tree back; both are pure functions of trees, so the gradient of a sliced tree
lands in the leading part of the full one.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from . import axes as axes_lib
from .axes import Axis
from .errors import PlanError, RateError
from .groups import FixedAxis, WidthGroup
from .paths import Path, path_name, path_names, path_parts
from .patterns import names_group, no_match
from .rates import Rate, SubNetwork, check_rate


@dataclass(frozen=True, slots=True)
class LeafAxes:
    """The axes of one array: a leaf of `WidthPlan.axes`."""

    axes: tuple[Axis, ...]

    def __str__(self) -> str:
        return f"({', '.join(map(str, self.axes))})"


@dataclass(frozen=True, eq=False)
class WidthPlan:
    """What narrows, and to what; equal to a plan that says the same.

    Attributes:
      axes: a tree like the variables with a `LeafAxes` for each array.
      groups: the groups of axes that narrow together, by name.
      rates: the slice rates that were declared, ascending.
      fixed: the axes of parameters that keep their size, and why.
      names: sub-networks that were declared under a name, see `Sliceable.named`.
    """

    axes: Any
    groups: Mapping[str, WidthGroup]
    rates: tuple[float, ...]
    fixed: tuple[FixedAxis, ...] = ()
    names: Mapping[str, SubNetwork] = field(default_factory=dict)

    @functools.cached_property
    def _by_path(self) -> dict[Path, LeafAxes]:
        leaves = jax.tree_util.tree_leaves_with_path(self.axes)
        return {path_parts(path): axes for path, axes in leaves}

    @functools.cached_property
    def _by_name(self) -> dict[str, LeafAxes]:
        names = path_names(self._by_path)
        return dict(zip(names, self._by_path.values(), strict=True))

    @functools.cached_property
    def _key(self) -> Any:
        """All that slicing depends on."""
        return (
            tuple(self._by_path.items()),
            tuple(self.groups.items()),
            self.rates,
            tuple((fixed.path, fixed.axis, fixed.size) for fixed in self.fixed),
            tuple(sorted(self.names.items(), key=lambda named: named[0])),
        )

    @functools.cached_property
    def _hash(self) -> int:
        return hash((tuple(self.groups.items()), self.rates))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, WidthPlan):
            return False
        return self is other or (self._hash == other._hash and self._key == other._key)

    def __hash__(self) -> int:
        return self._hash

    def leaf(self, path: str | Sequence[Any]) -> LeafAxes | None:
        """The axes of an array.

        Args:
          path: its name, as the report writes it ('params/Dense_0/kernel'), or its path
            as `jax.tree_util.tree_leaves_with_path` gives it.
        """
        if isinstance(path, str):
            return self._by_name.get(path)
        return self._by_path.get(path_parts(path))

    @functools.cached_property
    def full(self) -> SubNetwork:
        """All of the network."""
        return self._of(1.0)

    def widths(self, rate: Rate) -> dict[str, int]:
        """How many indices each group keeps at a rate, declared or not."""
        return dict(self._part(rate).widths)

    def _of(self, rate: float) -> SubNetwork:
        known = self._parts.get(rate)
        if known is None:
            widths = ((name, group.width(rate)) for name, group in self.groups.items())
            known = self._parts[rate] = SubNetwork(rate, tuple(widths))
        return known

    @functools.cached_property
    def _parts(self) -> dict[float, SubNetwork]:
        return {}

    def _part(self, rate: Rate) -> SubNetwork:
        """The sub-network; a single rate need not be a declared one."""
        if isinstance(rate, SubNetwork):
            return rate
        several = isinstance(rate, (Mapping, str))
        return self.resolve(rate) if several else self._of(rate)

    def resolve(self, rate: object, source: SubNetwork | None = None) -> SubNetwork:
        """The sub-network that a user asks for.

        Args:
          rate: a declared rate; or a mapping from width groups (names or patterns, of
            several that fit the last counts) to declared rates or 1; or the name of a
            sub-network; or what this method returned.
          source: gives the widths of groups that a mapping does not name; by default
            the full network.

        Returns:
          The sub-network. It has a rate if one rate was given for all groups, or else
          if a declared rate (the lowest, if several do) or 1 has the same widths.

        Raises:
          RateError: for a rate or a name that was not declared, or is no number.
          PlanError: for a pattern that names no group.
        """
        if isinstance(rate, SubNetwork):
            return rate
        if isinstance(rate, str):
            if rate not in self.names:
                raise RateError(
                    f"no sub-network is named {rate!r}; there are "
                    f"{', '.join(map(repr, self.names)) or 'none'}. Name it: "
                    f"net.named({{{rate!r}: ...}})."
                )
            return self.names[rate]
        if not isinstance(rate, Mapping):
            return self._of(self._declared(check_rate(rate)))
        source = source or self.full
        rates: dict[str, float | None] = dict.fromkeys(self.groups, source.rate)
        widths = dict(source.widths)
        for pattern, one in rate.items():
            if not isinstance(pattern, str):
                raise PlanError(
                    "a rate for each group is given as {name or pattern: rate}; got "
                    f"the key {pattern!r}."
                )
            value = check_rate(one)
            value = value if value == 1.0 else self._declared(value)
            named = [name for name in self.groups if names_group(pattern, name)]
            if not named:
                raise PlanError(no_match(pattern, self.groups, "width groups"))
            for name in named:
                rates[name], widths[name] = value, self.groups[name].width(value)
        mixed = SubNetwork(None, tuple(widths.items()))
        one, *others = set(rates.values())
        if one is not None and not others:
            return self._of(one)
        declared = map(self._of, (*self.rates, 1.0))
        return next((part for part in declared if part.widths == mixed.widths), mixed)

    def _declared(self, rate: float) -> float:
        if rate not in self.rates:
            raise RateError(
                f"rate {rate:g} was not declared; `upgrade` was given rates="
                f"{self.rates}. Use one of these, or declare it there."
            )
        return rate

    def fits(self, rate: Rate, source: Rate) -> bool:
        """Whether a tree at `source` holds all that `rate` keeps."""
        pair = self._part(rate), self._part(source)
        known = self._fits.get(pair)
        if known is None:  # it is asked in every call
            kept, held = (dict(part.widths) for part in pair)
            known = all(kept[name] <= held[name] for name in kept)
            self._fits[pair] = known
        return known

    @functools.cached_property
    def _fits(self) -> dict[tuple[SubNetwork, SubNetwork], bool]:
        return {}

    def slice(self, tree: Any, rate: Rate, *, source: Rate = 1.0) -> Any:
        """The tree at a rate.

        Slicing nests: slicing to a and then, with `source=a`, to b gives what slicing
        to b gives.

        Args:
          tree: like the variables, or with some of their branches left out.
          rate: the rate to slice to.
          source: the rate that the tree is at.

        Raises:
          PlanError: for a leaf that the plan does not know or of another shape.
        """
        target, origin = self.widths(rate), self.widths(source)
        return self._map(
            lambda axes, x: axes_lib.slice_array(x, axes, target, origin), tree
        )

    def put_back(self, full: Any, narrow: Any, rate: Rate) -> Any:
        """The full tree with what the rate keeps replaced by the narrow tree.

        Both are like the variables, or with the same of their branches left out.

        Raises:
          PlanError: for a leaf that the plan does not know or of another shape.
        """
        kept = self.widths(rate)
        return self._map(
            lambda axes, x, y: axes_lib.put_back(x, y, axes, kept), full, narrow
        )

    def slice_state(
        self, state: Any, branch: Any, rate: Rate, *, source: Rate = 1.0
    ) -> Any:
        """An optimizer's state at a rate: what it keeps for each weight is sliced.

        A leaf is kept for a weight if its path ends with that of the weight within
        `branch`, as in the states of Optax. Others, such as counts, stay.

        Args:
          state: a tree that repeats `branch` any number of times.
          branch: the variables that the optimizer trains, at their place in the tree
            of variables: ``{"params": ...}``.
          rate: the rate to slice to.
          source: the rate that the state is at.

        Raises:
          PlanError: for a leaf that belongs to a weight and has neither its shape nor
            a single entry (of a factored second moment, say).
        """
        target, origin = self.widths(rate), self.widths(source)
        weights = {
            tuple(path[1:]): (path, leaf)
            for path, leaf in jax.tree_util.tree_leaves_with_path(branch)
        }

        def at(path: Any, x: Any) -> Any:
            ends = (tuple(path[start:]) for start in range(len(path) + 1))
            found = next((weights[end] for end in ends if end in weights), None)
            if found is None:
                return x
            name, weight = path_name(found[0]), found[1]
            leaf = self.leaf(found[0])
            if leaf is None or math.prod(np.shape(x)) == 1 != math.prod(weight.shape):
                return x  # one number in place of what there is none of
            if np.shape(x) != tuple(weight.shape):
                raise PlanError(
                    f"the optimizer keeps an array of shape {np.shape(x)} for {name} "
                    f"{tuple(weight.shape)}, which cannot be sliced. Begin with a new "
                    "state: optimizer.init(weights of the extracted network)."
                )
            return axes_lib.slice_array(x, leaf.axes, target, origin)

        return jax.tree_util.tree_map_with_path(at, state)

    def mask(self, tree: Any, rate: Rate) -> Any:
        """Which entries of the full tree a rate keeps: booleans of the leaves' shapes.

        Raises:
          PlanError: for a leaf that the plan does not know or of another shape.
        """
        prefix = {name: np.arange(kept) for name, kept in self.widths(rate).items()}

        def mask(axes: tuple[Axis, ...], x: Any) -> np.ndarray:
            kept = np.zeros(np.shape(x), bool)
            kept[np.ix_(*(axes_lib.indices(axis, prefix) for axis in axes))] = True
            return kept

        return self._map(mask, tree)

    def permute(self, tree: Any, permutations: Mapping[str, np.ndarray]) -> Any:
        """Reorders the units of groups in every array that they run through.

        At full width the function of the network stays the same, up to rounding.

        Args:
          tree: the full tree.
          permutations: for each group a permutation of its `size` indices.

        Raises:
          PlanError: for an unknown group, or something that is no permutation.
        """
        self.check_permutations(permutations)
        return self._map(lambda axes, x: axes_lib.take(x, axes, permutations), tree)

    def check_permutations(self, permutations: Mapping[str, Any]) -> None:
        """Raises PlanError for an unknown group, or what is no permutation of it."""
        for name, order in permutations.items():
            if name not in self.groups:
                raise PlanError(no_match(name, self.groups, "permutations"))
            size = self.groups[name].size
            if sorted(np.asarray(order).tolist()) != list(range(size)):
                raise PlanError(
                    f"expected a permutation of 0..{size - 1} for group {name!r}; got "
                    f"{order!r}."
                )

    def inexact(self) -> list[tuple[str, float, int]]:
        """(group, rate, width) where a group cannot keep exactly its rate."""
        return [
            (name, rate, group.width(rate))
            for name, group in self.groups.items()
            for rate in self.rates
            if not group.is_exact(rate)
        ]

    def channels(self, name: str, rate: Rate) -> int:
        """How many channels a group keeps: entries of an axis that it runs through.

        Where heads or groups of channels narrow, an index of the group stands for
        several; a flattened image has a channel once for every position, which does not
        make more of them.
        """
        kept, group = self.widths(rate), self.groups[name]
        leaves = ((self.leaf(path), axis) for path, axis in group.leaves)
        sizes = [axes_lib.width(leaf.axes[axis], kept) for leaf, axis in leaves if leaf]
        return max(group.span * kept[name], min(sizes, default=1))

    def not_split_over(self, shards: int) -> list[str]:
        """Groups that narrow to a plain prefix, though so many shards were asked for.

        Slicing them moves data between devices over which their arrays are sharded.
        """
        if shards == 1:
            return []
        axes = [axis for leaf in self._by_path.values() for axis in leaf.axes]
        split = set().union(*(axes_lib.split_over(axis, shards) for axis in axes))
        return [name for name in self.groups if name not in split]

    def products(self) -> dict[str, str]:
        """The axes of which several factors narrow: 'w:0' and '(8* x 6*)'."""
        return {
            f"{name.removeprefix('params/')}:{at}": str(axis)
            for name, leaf in self._by_name.items()
            for at, axis in enumerate(leaf.axes)
            if isinstance(axis, axes_lib.Product)
            and sum(bool(axes_lib.groups_in(factor)) for factor in axis.factors) > 1
        }

    def parameters(self, rate: Rate) -> int:
        """How many numbers the tree holds at the rate."""
        kept, leaves = self.widths(rate), jax.tree.leaves(self.axes)
        return sum(math.prod(axes_lib.shape(leaf.axes, kept)) for leaf in leaves)

    def elastic_share(self) -> float:
        """The share of the numbers that some axis which narrows runs through."""
        total = elastic = 0
        for leaf in jax.tree.leaves(self.axes):
            count = int(np.prod(axes_lib.shape(leaf.axes)))
            total += count
            if any(axes_lib.groups_in(axis) for axis in leaf.axes):
                elastic += count
        return elastic / total if total else 0.0

    def _map(self, f: Callable[..., Any], tree: Any, *rest: Any) -> Any:
        def at(path: Any, x: Any, *others: Any) -> Any:
            leaf = self.leaf(path)
            if leaf is None:
                raise PlanError(
                    f"the plan has no leaf {path_name(path)!r}; it was made for a tree "
                    f"with {', '.join(list(self._by_name)[:4])}, ..."
                )
            try:
                return f(leaf.axes, x, *others)
            except ValueError as error:
                raise PlanError(f"leaf {path_name(path)!r}: {error}") from error

        return jax.tree_util.tree_map_with_path(at, tree, *rest)
