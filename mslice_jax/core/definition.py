"""The static part of a network, and the programs that were made for it.

A `Definition` is all of a network but its arrays. It keeps one program for every way in
which it was called; the same program runs at any rate. JAX tells one call from another,
by all that a trace depends on (types, the mesh, settings such as precision): what was
compiled and what was read for a definition is the work of jitted functions that belong
to it, and go when it goes.
"""

import functools
import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from .agreement import Agreement
from .analysis import Analysis, follow
from .axes import Axis, Whole, Widths, shape
from .call import Call
from .function import Function
from .growth import INPUT, PARAMETER
from .paths import Path, path_parts
from .plan import WidthPlan
from .rates import Rate, SubNetwork
from .settings import Settings
from .tracing import own_program, trace


@dataclass(frozen=True, eq=False)
class Program:
    """One trace of the function, read under the plan; it runs at any rate."""

    analysis: Analysis
    tree: Any  # of the output


@dataclass(frozen=True, eq=False)
class Definition:
    """The static part of a Sliceable; equal to one that was made in the same way.

    So what the user jitted for a network serves another that was upgraded from the same
    model. Programs that were compiled for the definition belong to it alone; a copy has
    none.

    `orders` tells for each group that `reorder` moved where its indices were: the
    constants that the function captured stand in the order they were written.
    """

    function: Function
    plan: WidthPlan
    call: Call  # the call that upgrade saw
    arrays: tuple[jax.ShapeDtypeStruct, ...]  # its arrays
    settings: Settings
    orders: Mapping[str, np.ndarray] = field(default_factory=dict)
    agreement: Agreement = Agreement()
    derived: dict[Any, "Definition"] = field(
        default_factory=dict, init=False, repr=False
    )
    _jitted: dict[Any, Any] = field(default_factory=dict, init=False, repr=False)
    _programs: weakref.WeakKeyDictionary["_Ticket", Program] = field(
        default_factory=weakref.WeakKeyDictionary, init=False, repr=False
    )
    # One object for definitions that were found to be equal: to compare them again,
    # which JAX does in every call, takes no time.
    _kind: object = field(default_factory=object, init=False, repr=False)

    @functools.cached_property
    def _hash(self) -> int:
        orders = tuple((name, bytes(order)) for name, order in self.orders.items())
        return hash((self.function, self.plan, self.call, self.settings, orders))

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Definition):
            return False
        if self._kind is other._kind:
            return True
        equal = (
            self._hash == other._hash
            and self.function == other.function
            and self.plan == other.plan
            and (self.call, self.arrays) == (other.call, other.arrays)
            and self.settings == other.settings
            and self.orders.keys() == other.orders.keys()
            and all(
                np.array_equal(self.orders[k], other.orders[k]) for k in self.orders
            )
        )
        if equal:
            object.__setattr__(other, "_kind", self._kind)
        return equal

    def __reduce__(self) -> Any:
        made_of = (self.function, self.plan, self.call, self.arrays, self.settings)
        return Definition, (*made_of, self.orders, self.agreement)

    def __deepcopy__(self, memo: Any) -> "Definition":
        return self  # nothing of it changes

    def jitted(self, body: Callable[..., Any], statics: int) -> Callable[..., Any]:
        """A function of a definition, compiled for this one, with which it dies.

        Args:
          body: ``body(definition, *args)``.
          statics: how many of `args`, from the first, are static.

        Returns:
          A jitted function of `unkeyed_settings()` and `args`.
        """
        found = self._jitted.get(body)
        if found is None:
            # The caller holds the definition. With a reference back, the two
            # would wait for the garbage collector, and their programs with them.
            this = weakref.ref(self)

            def run(_: Any, *args: Any) -> Any:
                return body(this(), *args)

            run.__name__ = run.__qualname__ = body.__name__.lstrip("_")
            found = jax.jit(run, static_argnums=tuple(range(1 + statics)))
            self._jitted[body] = found
        return found

    def rates(self, part: SubNetwork) -> tuple[float, ...]:
        """The declared rates that a part of the network can run at, ascending."""
        return tuple(r for r in self.plan.rates if self.plan.fits(r, part))

    def parameters(self, rate: Rate) -> int:
        """How many numbers a rate reads of the parameters.

        That is the collection "params" of a Flax model, and all variables of another
        function. Of norms with one set for each rate the own one counts.
        """
        return sum(self.parameters_by_leaf(rate).values())

    def parameters_by_leaf(self, rate: Rate) -> dict[Path, int]:
        """The same, array by array."""
        axes = self.plan.axes
        collections = axes if isinstance(axes, Mapping) else {}
        part = self.plan.resolve(rate)
        others = {
            branch
            for name in collections
            for branch in self.function.other_sets(str(name), part.rate)
        }
        kept, found = dict(part.widths), {}
        for path, leaf in jax.tree_util.tree_leaves_with_path(axes):
            parts = path_parts(path)
            if "params" in collections and parts[0] != "params":
                continue
            if not any(parts[:end] in others for end in range(len(parts) + 1)):
                found[parts] = math.prod(shape(leaf.axes, kept))
        return found

    def program(
        self, part: SubNetwork, call: Call, variables: Any, arrays: Sequence[Any]
    ) -> Program:
        """The program of a call, from types of full-width variables and of arrays."""
        own = part.rate if self.function.depends_on_rate else None
        args = (unkeyed_settings(), own, call, variables, list(arrays))
        return self._programs[self.jitted(_read, 2).eval_shape(*args)]


def unkeyed_settings() -> tuple[Any, ...]:
    """What changes a trace, and is not told apart by the caches of `jax.jit`."""
    config: Any = jax.config
    return config.jax_default_prng_impl, config.jax_enable_custom_prng


@jax.tree_util.register_static
class _Ticket:
    """Stands for a program where JAX remembers that it was traced.

    JAX may keep it for longer than the definition, and for less if its caches are
    cleared; so the program, which can hold large constants, belongs to both.
    """


def _read(
    definition: Definition, rate: float | None, call: Call, variables: Any, arrays: Any
) -> _Ticket:
    """Traces a call and reads it."""
    rate = definition.settings.rates[-1] if rate is None else rate
    traced = trace(definition.function, rate, call, variables, arrays)
    paths = [path_parts(p) for p, _ in jax.tree_util.tree_leaves_with_path(variables)]
    known = [definition.plan.leaf(path) for path in paths]
    axes: list[tuple[Axis, ...]] = [leaf.axes for leaf in known if leaf is not None]
    ins = axes + [tuple(Whole(size) for size in x.shape) for x in arrays]
    outs: list[Sequence[Axis] | None] = []
    for kind, aval in zip(traced.returns(paths), traced.closed.out_avals, strict=True):
        if isinstance(kind, int):
            outs.append(axes[kind])
        elif kind is None:
            outs.append(None)
        else:
            outs.append([Whole(size) for size in aval.shape])
    numbers = [PARAMETER] * len(axes) + [INPUT] * len(arrays)
    analysis = follow(
        traced.closed, definition.plan.groups, ins, outs, numbers, definition.orders
    )
    analysis.asked = definition.settings.asked
    analysis.strict = definition.settings.strict
    analysis.of_inputs = definition.agreement.of_inputs
    if definition.agreement.comparable:
        function, plan = definition.function, definition.plan

        def own(widths: Widths) -> Any:
            return own_program(function, plan, rate, call, variables, arrays, widths)

        analysis.own = own
    ticket = _Ticket()
    definition._programs[ticket] = Program(analysis, traced.tree)
    return ticket
