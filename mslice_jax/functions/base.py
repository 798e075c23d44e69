"""What a network is to the rest of the package: a function of its variables.

`Function` is the contract. Models of Flax (`linen.py`, `nnx.py`) are `ModuleFunction`s,
which know their batch norms; everything else is a `PlainFunction` already.
"""

import abc
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from ..rates import rate_key

Path: TypeAlias = tuple[str, ...]


@dataclass(frozen=True, eq=False, kw_only=True)
class Function(abc.ABC):
    """A network as a function of its variables.

    Two are equal that were made of the same model with the same settings: a program
    that was traced of one is that of the other.
    """

    @abc.abstractmethod
    def __call__(self, variables: Any, rate: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Runs at full width. The rate only says which of the norms are meant."""

    @property
    @abc.abstractmethod
    def of(self) -> Any:
        """The model, or its class."""

    def __eq__(self, other: object) -> bool:
        return self is other or (
            type(self) is type(other)
            and all(
                _same(getattr(self, field.name), getattr(other, field.name))
                for field in fields(self)
                if field.compare
            )
        )

    def __hash__(self) -> int:
        return hash(type(self))  # a model need not have a hash

    @property
    def depends_on_rate(self) -> bool:
        """Whether the program differs between rates in more than its widths."""
        return False

    def updates(self, kwargs: Mapping[str, Any]) -> bool:
        """Whether a call with these keywords returns (output, updated collections)."""
        return False

    def streams(self) -> tuple[str, ...]:
        """The names of the random streams that it is known to have."""
        return ()

    def other_sets(self, collection: str, rate: Any) -> dict[Path, Path]:
        """Branches that a rate does not read: {path: that of the one it reads}."""
        return {}

    def only_rates(self, variables: Any, rates: Iterable[float]) -> Any:
        """The variables without what only other rates read."""
        return variables


@dataclass(frozen=True, eq=False, kw_only=True)
class PlainFunction(Function):
    """A function fn(variables, *inputs).

    Called with `mutable`, it returns (output, updated collections) as `Module.apply`
    does: a dict with some of the entries of its variables.
    """

    function: Callable[..., Any]

    def __call__(self, variables: Any, rate: Any, /, *args: Any, **kwargs: Any) -> Any:
        return self.function(variables, *args, **kwargs)

    @property
    def of(self) -> Any:
        """The function itself."""
        return self.function

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PlainFunction):
            return False
        mine, others = self.function, other.function
        # A bound method is made anew each time that somebody asks for it.
        is_method = isinstance(mine, types.MethodType)
        return mine == others if is_method else mine is others

    def __hash__(self) -> int:
        is_method = isinstance(self.function, types.MethodType)
        return hash(self.function) if is_method else id(self.function)

    def updates(self, kwargs: Mapping[str, Any]) -> bool:
        """Whether `mutable` names something; an array is an argument like others."""
        mutable = kwargs.get("mutable")
        return not hasattr(mutable, "shape") and bool(mutable)


@dataclass(frozen=True, eq=False, kw_only=True)
class ModuleFunction(Function):
    """A Flax model as a function of a tree of collections, its batch norms swapped.

    Attributes:
      norm: the strategy, one of `mslice_jax.norms.STRATEGIES`.
      why: the reason for it.
      groups: how many groups a group norm has.
      sites: the paths of the batch norms within a collection.
      left: the paths of other modules that keep a mean and a variance as batch norms
        do; no strategy changes them.
      rates: the declared rates, ascending.
      per_rate: collections in which every batch norm has one set of arrays per rate.
      measure: whether batch norms write the statistics of the batch (see `calibrate`).
    """

    norm: str
    why: str = field(default="", compare=False)
    groups: int
    sites: tuple[Path, ...]
    left: tuple[Path, ...] = ()
    rates: tuple[float, ...]
    per_rate: tuple[str, ...] = ()
    measure: bool = False

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


def collections_per_rate(norm: str) -> tuple[str, ...]:
    """The collections that have one set of arrays per rate under a strategy."""
    return ("params", "batch_stats") if norm == "switchable" else ()


def _same(a: Any, b: Any) -> bool:
    """Whether two parts of a function are the same, as far as can be told.

    Modules compare their attributes by value, for which 1 is True and 0.0 is -0.0; the
    way they are written tells these apart.
    """
    try:
        return a is b or (a == b and repr(a) == repr(b))
    except Exception:  # arrays among the attributes cannot be compared
        return False


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


def as_array(x: Any) -> Any:
    """An array of JAX, or the type of one."""
    return x if isinstance(x, (jax.Array, jax.ShapeDtypeStruct)) else jnp.asarray(x)
