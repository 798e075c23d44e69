"""The plan: for every axis of every array of a tree, what a rate keeps of it.

A plan belongs to the parameters. It turns the full tree into a narrow one and puts a
narrow tree back; both are pure functions of trees, so the gradient of a sliced tree
lands in the leading part of the full one.
"""

import collections
import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import numpy as np

from . import axes as axes_lib
from .analysis import FixedAxis, PlanError, WidthGroup
from .axes import Axis
from .patterns import names_group, no_match
from .rates import GroupRates, Rate, RateError, check_rate

Path: TypeAlias = tuple[str, ...]
"""Where a leaf is in a tree: the keys on the way to it."""


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
    """

    axes: Any
    groups: Mapping[str, WidthGroup]
    rates: tuple[float, ...]
    fixed: tuple[FixedAxis, ...] = ()

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

    def widths(self, rate: Rate) -> dict[str, int]:
        """How many indices each group keeps at the rate."""
        if isinstance(rate, GroupRates):
            return {name: self.groups[name].width(own) for name, own in rate.rates}
        return {name: group.width(rate) for name, group in self.groups.items()}

    def resolve(self, rate: object, default: Rate = 1.0) -> Rate:
        """What a user may give as a rate, as one that is static.

        Args:
          rate: a declared rate; or a mapping from width groups (names or patterns, of
            several that fit the last counts) to declared rates or 1.
          default: the rate of groups that a mapping does not name.

        Returns:
          The rate; a mapping that gives every group one declared rate is that rate.

        Raises:
          RateError: for a rate that was not declared, or is no number.
          PlanError: for a pattern that names no group.
        """
        if not isinstance(rate, (Mapping, GroupRates)):
            return self._declared(check_rate(rate))
        given = rate.rates if isinstance(rate, GroupRates) else tuple(rate.items())
        if isinstance(default, GroupRates):
            chosen = dict(default.rates)
        else:
            chosen = dict.fromkeys(self.groups, default)
        for pattern, one in given:
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
            chosen.update(dict.fromkeys(named, value))
        if len(one := set(chosen.values())) == 1:
            return one.pop()
        mixed = GroupRates(tuple(chosen.items()))
        widths = self.widths(mixed)
        same = [r for r in (*self.rates, 1.0) if self.widths(r) == widths]
        return same[0] if same else mixed

    def _declared(self, rate: float) -> float:
        if rate not in self.rates:
            raise RateError(
                f"rate {rate:g} was not declared; `upgrade` was given rates="
                f"{self.rates}. Use one of these, or declare it there."
            )
        return rate

    def fits(self, rate: Rate, source: Rate) -> bool:
        """Whether a tree at `source` holds all that `rate` keeps."""
        known = self._fits.get((rate, source))
        if known is None:  # it is asked in every call
            kept, held = self.widths(rate), self.widths(source)
            known = all(kept[name] <= held[name] for name in kept)
            self._fits[rate, source] = known
        return known

    @functools.cached_property
    def _fits(self) -> dict[tuple[Rate, Rate], bool]:
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


def path_name(path: Any) -> str:
    """A path of a tree in words: 'params/Dense_0/kernel'.

    Keys may have slashes themselves, so two paths can read alike: where leaves are to
    be told apart use `path_parts`, and `path_names` for people.
    """
    return jax.tree_util.keystr(path, simple=True, separator="/")


def path_parts(path: Sequence[Any]) -> Path:
    """The keys of a path of a tree as strings: ('params', 'Dense_0', 'kernel')."""
    return tuple(
        key if isinstance(key, str) else jax.tree_util.keystr((key,), simple=True)
        for key in path
    )


def path_names(paths: Iterable[Path]) -> list[str]:
    r"""A name for each path of one tree, no two alike.

    >>> path_names([("a", "b"), ("c/d",)])
    ['a/b', 'c/d']
    >>> print(*path_names([("a", "b"), ("a/b",)]))
    a/b a\/b
    """
    paths = list(paths)
    names = ["/".join(path) for path in paths]
    while len(set(names)) < len(names):
        count = collections.Counter(names)
        names = [
            "/".join(map(_escaped, path)) if count[name] > 1 else name
            for path, name in zip(paths, names, strict=True)
        ]
    return names


def _escaped(part: str) -> str:
    return part.replace("\\", "\\\\").replace("/", "\\/")


def check_exact(plan: WidthPlan) -> None:
    """Raises PlanError if a group cannot keep exactly its share at a declared rate."""
    inexact = plan.inexact()
    if inexact:
        lines = []
        for name, rate, got in inexact[:8]:
            group = plan.groups[name]
            lines.append(
                f"  {name}: {group.size / group.unit:g} units of {group.unit}, so rate "
                f"{rate:g} keeps {got} of {group.size} indices, not "
                f"{rate * group.size:g}"
            )
        raise PlanError(
            "strict=True asks that every group of axes keeps exactly its rate, but\n"
            + "\n".join(lines)
            + "\nChoose rates or `groups` that the sizes can honour, or pass "
            "strict=False to accept the rounding."
        )
