"""Calls and their programs: a function traced at full width and read under the plan.

A `Definition` is all of a network but its arrays. It keeps one program for every way in
which it was called; the same program runs at any rate. JAX tells one call from another,
by all that a trace depends on (types, the mesh, settings such as precision): what was
compiled and what was read for a definition is the work of jitted functions that belong
to it, and go when it goes.
"""

import functools
import struct
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from .analysis import Analysis, Units, follow
from .counts import Asked, Incomparable, Number, Place
from .dims import Axis, Whole, Widths, shape
from .functions.base import Function
from .growth import INPUT, PARAMETER
from .plan import Path, WidthPlan, path_parts
from .rates import Rate


@dataclass(frozen=True)
class Call:
    """The arguments of a call but for the arrays: hashable, so static under jit."""

    treedef: Any
    # By leaf its type and value, or `_ARRAY`. The type, because True == 1 == 1.0.
    statics: tuple[Any, ...]

    @staticmethod
    def split(
        args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple["Call", list[Any]]:
        """Arrays are traced; numbers, strings, booleans, functions are static."""
        leaves, treedef = jax.tree.flatten((tuple(args), dict(kwargs)))
        arrays = [leaf for leaf in leaves if is_array(leaf)]
        statics = tuple(_ARRAY if is_array(x) else _static(x) for x in leaves)
        try:
            hash(statics)
        except TypeError:
            bad = next(x for x in leaves if not is_array(x) and not _hashable(x))
            raise TypeError(
                "the arguments of slice_apply are arrays (traced) or hashable values "
                f"(static); got {bad!r} of type {type(bad).__name__}."
            ) from None
        return Call(treedef, statics), arrays

    def join(self, arrays: Iterable[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments and keyword arguments with these arrays."""
        each = iter(arrays)
        leaves = [next(each) if s is _ARRAY else _value(s) for s in self.statics]
        return jax.tree.unflatten(self.treedef, leaves)

    @property
    def keywords(self) -> frozenset[str]:
        """The names of the arguments that are given by keyword."""
        _, kwargs = jax.tree.unflatten(self.treedef, self.statics)
        return frozenset(kwargs)


class _Array:
    """Stands for an array among static arguments; there is one, also in a copy."""

    def __repr__(self) -> str:
        return "<array>"

    def __reduce__(self) -> str:
        return "_ARRAY"


_ARRAY = _Array()
# By their bits -0.0 is not 0.0, and nan is nan.
_BITS = {float: struct.Struct("d"), complex: struct.Struct("dd")}


def _static(x: Any) -> tuple[type, Any]:
    """A static argument as its type and what to compare it by."""
    if type(x) is float:
        return float, _BITS[float].pack(x)
    if type(x) is complex:
        return complex, _BITS[complex].pack(x.real, x.imag)
    return type(x), x


def _value(static: tuple[type, Any]) -> Any:
    kind, key = static
    return kind(*_BITS[kind].unpack(key)) if kind in _BITS else key


@dataclass(frozen=True, eq=False)
class Program:
    """One trace of the function, read under the plan; it runs at any rate."""

    analysis: Analysis
    tree: Any  # of the output


@dataclass(frozen=True)
class Settings:
    """What the user chose: the arguments of `upgrade` that shape the plan.

    Patterns are those of `mslice_jax.patterns`.
    """

    rates: tuple[float, ...]
    units: Units = Units()
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    inner: tuple[str, ...] = ()
    asked: Asked = Asked()
    strict: bool = False
    check: bool = True


@dataclass(frozen=True, slots=True)
class Agreement:
    """Whether the function's own program at narrow shapes is the narrow program.

    Attributes:
      comparable: it has one at every declared rate, and they are the same.
      reason: why it was not compared; '' where it was.
      numbers: those of the program that are a power of a size that narrows.
      of_inputs: numbers that are sizes of inputs, whatever else they look like.
    """

    comparable: bool = False
    reason: str = "not asked for (check=False)"
    numbers: tuple[Number, ...] = ()
    of_inputs: frozenset[Place] = frozenset()

    def __str__(self) -> str:
        return "the same" if self.comparable else f"not comparable: {self.reason}"


@dataclass(frozen=True, eq=False)
class Definition:
    """The static part of a Sliceable; equal to one that was made in the same way.

    So what the user jitted for a network serves another that was upgraded from the same
    model. What was compiled for the definition itself belongs to it alone, and stays
    behind when it is copied.

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
            # Whoever calls it holds the definition. With a reference back, the two
            # would wait for the garbage collector, and their programs with them.
            this = weakref.ref(self)

            def run(_: Any, *args: Any) -> Any:
                return body(this(), *args)

            run.__name__ = run.__qualname__ = body.__name__.lstrip("_")
            found = jax.jit(run, static_argnums=tuple(range(1 + statics)))
            self._jitted[body] = found
        return found

    def program(
        self, rate: Rate, call: Call, variables: Any, arrays: Sequence[Any]
    ) -> Program:
        """The program of a call, from types of full-width variables and of arrays."""
        own = rate if self.function.depends_on_rate else None
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
    definition: Definition, rate: Rate | None, call: Call, variables: Any, arrays: Any
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


@dataclass(frozen=True, eq=False)
class Trace:
    """A jaxpr of the function at full width."""

    closed: Any
    tree: Any
    out_paths: tuple[Path | None, ...]  # of updated collections; None for outputs

    def returns(self, paths: Sequence[Path]) -> list[int | str | None]:
        """For each result: the variable it updates, why it is fixed, or None."""
        index = {path: i for i, path in enumerate(paths)}
        return [
            "output of the function" if path is None else index.get(path)
            for path in self.out_paths
        ]


def trace(
    function: Function, rate: Rate, call: Call, variables: Any, arrays: Sequence[Any]
) -> Trace:
    """Traces a call of the function.

    Args:
      function: the function.
      rate: which of the norms the function uses.
      call: the static arguments.
      variables: the variables or their types, at full width for the program.
      arrays: the arrays among the arguments, or their types.
    """
    _, kwargs = call.join(arrays)

    def run(variables: Any, arrays: Sequence[Any]) -> Any:
        args, kwargs = call.join(arrays)
        return function(variables, rate, *args, **kwargs)

    closed, out = jax.make_jaxpr(run, return_shape=True)(
        jax.tree.map(type_of, variables), [type_of(x) for x in arrays]
    )
    updates = function.updates(kwargs)
    paths: list[Path | None] = []
    for path, _ in jax.tree_util.tree_leaves_with_path(out):
        inside = updates and getattr(path[0], "idx", 0) == 1
        paths.append(path_parts(path[1:]) if inside else None)
    return Trace(closed, jax.tree.structure(out), tuple(paths))


def own_program(
    function: Function,
    plan: WidthPlan,
    rate: Rate,
    call: Call,
    variables: Any,
    arrays: Sequence[Any],
    widths: Widths,
) -> Any:
    """The function traced with variables at the widths, as `trace` does at full width.

    Raises:
      Incomparable: if it fails there, as modules do that hold their sizes.
    """

    def narrow(path: Any, x: Any) -> Any:
        leaf = plan.leaf(path)
        assert leaf is not None
        kept = shape(leaf.axes, widths)
        known = type_of(x)
        if isinstance(known, jax.ShapeDtypeStruct):
            weak = bool(known.weak_type)
            return jax.ShapeDtypeStruct(kept, known.dtype, weak_type=weak)
        return known.update(shape=kept)

    try:
        types = jax.tree_util.tree_map_with_path(narrow, variables)
        return trace(function, rate, call, types, arrays).closed
    except Exception as error:
        text = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise Incomparable(f"{type(error).__name__}: {text[:160]}") from error


def is_array(x: Any) -> bool:
    """Whether a leaf among the arguments is traced."""
    return hasattr(x, "shape") and hasattr(x, "dtype")


def type_of(x: Any) -> Any:
    """The type of an array for a trace: all that JAX knows of it but its numbers."""
    if isinstance(x, (jax.Array, np.ndarray, np.generic)):
        return jax.typeof(x)  # weak or not, how it is sharded, where it varies
    return x if isinstance(x, jax.ShapeDtypeStruct) else plain_type(x)


def plain_type(x: Any) -> jax.ShapeDtypeStruct:
    """Shape and dtype of an array, weak types kept, wherever it lies."""
    weak = bool(getattr(x, "weak_type", False))
    # int64 of NumPy becomes what JAX makes of it.
    dtype = jax.dtypes.canonicalize_dtype(x.dtype, allow_extended_dtype=True)
    return jax.ShapeDtypeStruct(x.shape, dtype, weak_type=weak)


def _hashable(x: Any) -> bool:
    try:
        hash(x)
    except TypeError:
        return False
    return True
