"""What models of Flax have in common: batch norms, which are swapped."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from ..core.function import Function
from ..core.paths import Path
from ..core.rates import rate_key
from .norms import STRATEGIES, Strategy


@dataclass(frozen=True, eq=False, kw_only=True)
class ModuleFunction(Function):
    """A Flax model as a function of a tree of collections, its batch norms swapped.

    Attributes:
      norm: the strategy.
      why: the reason for it.
      groups: how many groups a group norm has.
      sites: the paths of the batch norms within a collection.
      left: the paths of other modules that keep a mean and a variance as batch norms
        do; no strategy changes them.
      rates: the declared rates, ascending.
      calibrated: whether statistics were measured for each rate (see `calibrate`).
      measure: whether batch norms write the statistics of the batch (see `calibrate`).
    """

    norm: Strategy
    why: str = field(default="", compare=False)
    groups: int
    sites: tuple[Path, ...]
    left: tuple[Path, ...] = ()
    rates: tuple[float, ...]
    calibrated: bool = False
    measure: bool = False

    @property
    def per_rate(self) -> tuple[str, ...]:
        """The collections in which every batch norm has one set of arrays per rate."""
        return ("batch_stats",) if self.calibrated else self.norm.per_rate

    @property
    def depends_on_rate(self) -> bool:
        """Whether batch norms have one set of arrays per rate."""
        return bool(self.sites and self.per_rate)

    def updates(self, kwargs: Mapping[str, Any]) -> bool:
        """Whether the call is asked for updated collections, as in `Module.apply`."""
        return self.measure or kwargs.get("mutable", False) not in (False, None)

    def set_of(self, rate: Any) -> str:
        """The key of the batch norms that a rate uses."""
        known = rate if rate in self.rates else self.rates[-1]
        return rate_key(known)

    def select(self, variables: Any, rate: Any) -> Any:
        """The variables with, at each batch norm, the arrays of one rate."""
        key = self.set_of(rate)
        return self._at_sites(variables, lambda sets: sets[key])

    def restore(self, variables: Any, rate: Any) -> Any:
        """The inverse of `select`: each batch norm's arrays under their rate."""
        key = self.set_of(rate)
        return self._at_sites(variables, lambda arrays: {key: arrays})

    def spread(self, variables: Any) -> Any:
        """One copy of each batch norm's arrays for every rate."""
        keys = [rate_key(rate) for rate in self.rates]

        def copies(arrays: Any) -> dict[str, Any]:
            # Real copies: buffers that appear twice in a tree cannot be donated.
            return {key: jax.tree.map(_copy, arrays) for key in keys}

        return self._at_sites(variables, copies)

    def only_rates(self, variables: Any, rates: Iterable[float]) -> Any:
        """The variables with, at each batch norm, the arrays of these rates."""
        kept = {rate_key(rate) for rate in rates}
        return self._at_sites(
            variables, lambda sets: {key: sets[key] for key in sets if key in kept}
        )

    def other_sets(self, collection: str, rate: Any) -> dict[Path, Path]:
        """Branches that a rate does not read: {path: that of the one it reads}."""
        if collection not in self.per_rate:
            return {}
        read = self.set_of(rate)
        keys = [rate_key(other) for other in self.rates]
        norms = [(collection, *site) for site in self.sites]
        return {(*n, key): (*n, read) for n in norms for key in keys if key != read}

    def _at_sites(self, variables: Any, change: Callable[[Any], Any]) -> Any:
        changed = dict(variables)
        for collection in self.per_rate:
            for site in self.sites if collection in changed else ():
                changed[collection] = _replace_at(changed[collection], site, change)
        return changed


def facts(function: ModuleFunction) -> dict[str, Any]:
    """What a model does not say of the function that was made of it."""
    return {
        "norm": function.norm.name,
        "why": function.why,
        "groups": function.groups,
        "sites": [list(site) for site in function.sites],
        "left": [list(path) for path in function.left],
        "calibrated": function.calibrated,
    }


def from_facts(facts: Mapping[str, Any], rates: tuple[float, ...]) -> dict[str, Any]:
    """The fields of a `ModuleFunction` of which `facts` told."""
    return {
        "norm": STRATEGIES[facts["norm"]],
        "why": facts["why"],
        "groups": facts["groups"],
        "sites": tuple(tuple(site) for site in facts["sites"]),
        "left": tuple(tuple(path) for path in facts["left"]),
        "calibrated": facts["calibrated"],
        "rates": rates,
    }


def statistics(variables: Mapping[str, Any]) -> dict[Path, Mapping[str, Any]]:
    """What keeps a mean and a variance in 'batch_stats', by path."""
    found: dict[Path, Mapping[str, Any]] = {}

    def look(tree: Any, path: Path) -> None:
        if isinstance(tree, Mapping):
            if {"mean", "var"} <= set(tree):
                found[path] = tree
            for name, branch in tree.items():
                look(branch, (*path, str(name)))

    look(variables.get("batch_stats"), ())
    return found


def _copy(x: Any) -> Any:
    return x if isinstance(x, jax.ShapeDtypeStruct) else jnp.array(x, copy=True)


def _replace_at(tree: Mapping[str, Any], path: Sequence[str], change: Any) -> Any:
    if not path:
        return change(tree)
    if path[0] not in tree:  # this norm has no arrays in this collection
        return tree
    return {**tree, path[0]: _replace_at(tree[path[0]], path[1:], change)}
