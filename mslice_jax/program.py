"""Calls and their programs: a function traced at full width and read under the plan.

A `Definition` is all of a network but its arrays. It keeps one program for every way in
which it was called; the same program runs at any rate.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from .analysis import Analysis, Units, follow
from .counts import Known
from .dims import Axis, Whole
from .functions.base import Function
from .plan import WidthPlan, path_name
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
        statics = tuple(_ARRAY if is_array(x) else (type(x), x) for x in leaves)
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
        leaves = [next(each) if s is _ARRAY else s[1] for s in self.statics]
        return jax.tree.unflatten(self.treedef, leaves)


class _Array:
    """Stands for an array among static arguments."""

    def __repr__(self) -> str:
        return "<array>"


_ARRAY = _Array()


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
    strict: bool = False


@dataclass(frozen=True, eq=False)
class Definition:
    """The static part of a Sliceable; compared by identity.

    `orders` tells for each group that `reorder` moved where its indices were: the
    constants that the function captured stand in the order they were written.
    """

    function: Function
    plan: WidthPlan
    call: Call  # the call that upgrade saw
    arrays: tuple[jax.ShapeDtypeStruct, ...]  # its arrays
    settings: Settings
    orders: Mapping[str, np.ndarray] = field(default_factory=dict)
    derived: dict[Any, "Definition"] = field(default_factory=dict, repr=False)
    _programs: dict[Any, Program] = field(default_factory=dict, repr=False)

    def program(
        self, rate: Rate, call: Call, variables: Any, arrays: Sequence[Any]
    ) -> Program:
        """The program of a call, from types of full-width variables and of arrays."""
        leaves, tree = jax.tree.flatten((variables, list(arrays)))
        key = (
            rate if self.function.depends_on_rate else None,
            call,
            tree,
            tuple((x.shape, x.dtype, getattr(x, "weak_type", False)) for x in leaves),
            # Settings that change what tracing gives.
            jax.config.jax_enable_x64,  # type: ignore[attr-defined]
            jax.config.jax_default_matmul_precision,  # type: ignore[attr-defined]
        )
        program = self._programs.get(key)
        if program is None:
            program = self._read(rate, call, variables, arrays)
            consts = program.analysis.closed.consts
            if not any(isinstance(const, Tracer) for const in consts):
                self._programs[key] = program
        return program

    def _read(
        self, rate: Rate, call: Call, variables: Any, arrays: Sequence[Any]
    ) -> Program:
        traced = trace(self.function, rate, call, variables, arrays)
        paths = [
            path_name(p) for p, _ in jax.tree_util.tree_leaves_with_path(variables)
        ]
        known = [self.plan.leaf(path) for path in paths]
        axes: list[tuple[Axis, ...]] = [leaf.axes for leaf in known if leaf is not None]
        ins = axes + [tuple(Whole(size) for size in x.shape) for x in arrays]
        outs: list[Sequence[Axis] | None] = []
        for kind, aval in zip(
            traced.returns(paths), traced.closed.out_avals, strict=True
        ):
            if isinstance(kind, int):
                outs.append(axes[kind])
            elif kind is None:
                outs.append(None)
            else:
                outs.append([Whole(size) for size in aval.shape])
        known = [Known(parameter=True)] * len(axes) + [Known(data=True)] * len(arrays)
        analysis = follow(
            traced.closed, self.plan.groups, ins, outs, known, self.orders
        )
        return Program(analysis, traced.tree)


@dataclass(frozen=True, eq=False)
class Trace:
    """A jaxpr of the function at full width."""

    closed: Any
    tree: Any
    out_paths: tuple[str | None, ...]  # of updated collections; None for outputs

    def returns(self, paths: Sequence[str]) -> list[int | str | None]:
        """For each result: the variable it updates, why it is fixed, or None."""
        index = {path: i for i, path in enumerate(paths)}
        return [
            "output of the function" if path is None else index.get(path)
            for path in self.out_paths
        ]


def trace(
    function: Function, rate: Rate, call: Call, variables: Any, arrays: Sequence[Any]
) -> Trace:
    """Traces a call of the function at full width.

    Args:
      function: the function.
      rate: which of the norms the function uses.
      call: the static arguments.
      variables: the variables or their types, at full width.
      arrays: the arrays among the arguments, or their types.
    """
    _, kwargs = call.join(arrays)

    def run(variables: Any, arrays: Sequence[Any]) -> Any:
        args, kwargs = call.join(arrays)
        return function(variables, *args, rate=rate, **kwargs)

    closed, out = jax.make_jaxpr(run, return_shape=True)(
        jax.tree.map(type_of, variables), [type_of(x) for x in arrays]
    )
    updates = function.updates(kwargs)
    paths: list[str | None] = []
    for path, _ in jax.tree_util.tree_leaves_with_path(out):
        inside = updates and getattr(path[0], "idx", 0) == 1
        paths.append(path_name(path[1:]) if inside else None)
    return Trace(closed, jax.tree.structure(out), tuple(paths))


def is_array(x: Any) -> bool:
    """Whether a leaf among the arguments is traced."""
    return hasattr(x, "shape") and hasattr(x, "dtype")


def type_of(x: Any) -> jax.ShapeDtypeStruct:
    """Shape and dtype of an array, weak types kept."""
    if isinstance(x, jax.ShapeDtypeStruct):
        return x
    if isinstance(x, (np.ndarray, np.generic)):  # int64 becomes what JAX makes of it
        return jax.ShapeDtypeStruct(x.shape, jax.dtypes.canonicalize_dtype(x.dtype))
    weak = bool(getattr(x, "weak_type", False))
    return jax.ShapeDtypeStruct(x.shape, x.dtype, weak_type=weak)


def _hashable(x: Any) -> bool:
    try:
        hash(x)
    except TypeError:
        return False
    return True
