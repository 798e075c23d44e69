"""A function that is compiled in one of two ways: its program says in which.

Both ways are a `jax.jit` of the same function, so that JAX keeps one trace for the two.
A call goes to the way that was chosen last. What that has compiled it runs, at the cost
of a call of `jax.jit`; for anything else it would trace the function, which raises
`_Undecided` instead. Then the function is traced, and its program chooses.

A function with signatures of both kinds asks a third program, which computes nothing
and returns the choice: JAX keeps that by signature, as it keeps compiled programs.
"""

import contextlib
import dataclasses
import functools
import threading
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from jax.extend.core import get_opaque_trace_state


class _Undecided(Exception):
    """Nothing was chosen yet for this signature."""


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Choice:
    special: bool


class Jitted:
    """A function that is jitted in two ways, and what stands for it inside of programs.

    Under another transformation (jit, grad, vmap) it is part of another program, whose
    compiler options are not ours.

    Args:
      fun: the function.
      is_special: whether a program, a closed jaxpr, is compiled with our options.
      within: a context for tracing it, where it is a program of its own.
      compiler_options: those of ours; `options` may have more, for either way.
      options: what `jax.jit` takes.
      outermost: JAX's trace state outside of every transformation.
    """

    def __init__(
        self,
        fun: Callable[..., Any],
        is_special: Callable[[Any], bool],
        within: Callable[[], contextlib.AbstractContextManager[Any]],
        compiler_options: Mapping[str, Any],
        options: Mapping[str, Any],
        outermost: Any,
    ):
        functools.update_wrapper(self, fun)
        self._fun, self._is_special, self._outermost = fun, is_special, outermost
        options = dict(options)
        users = options.pop("compiler_options", None) or {}

        @functools.wraps(fun)
        def traced(*args: Any, **kwargs: Any) -> Any:
            # Outside of a trace somebody looks for the operation that made a NaN.
            if not self._is_asked and get_opaque_trace_state() != outermost:
                raise _Undecided
            with within():
                return fun(*args, **kwargs)

        @functools.wraps(fun)
        def choice(*args: Any, **kwargs: Any) -> _Choice:
            del args, kwargs
            if not self._is_asked:
                raise _Undecided
            return self._here.choice

        choice.__name__ = "choice"

        self._inside = jax.jit(fun, **options)
        self._plain = jax.jit(traced, **options, compiler_options=users)
        both = {**compiler_options, **users}
        self._special = jax.jit(traced, **options, compiler_options=both)
        names = ("static_argnums", "static_argnames", "in_shardings")
        alike = {name: options[name] for name in names if name in options}
        self._choice = jax.jit(choice, **alike)
        # The way of all signatures so far, or what asks for that of each.
        self._call: Callable[..., Any] = self._undecided
        self._is_mixed = False
        self._lock, self._here = threading.Lock(), threading.local()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if get_opaque_trace_state() != self._outermost:
            return self._inside(*args, **kwargs)
        try:
            return self._call(*args, **kwargs)
        except _Undecided:
            pass  # not here, where errors of the function would tell of this one
        return self._first_call(args, kwargs)

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else types.MethodType(self, instance)

    def trace(self, *args: Any, **kwargs: Any) -> Any:
        """As of `jax.jit`."""
        with self._asked():
            return self._chosen(args, kwargs).trace(*args, **kwargs)

    def lower(self, *args: Any, **kwargs: Any) -> Any:
        """As of `jax.jit`."""
        with self._asked():
            return self._chosen(args, kwargs).lower(*args, **kwargs)

    def eval_shape(self, *args: Any, **kwargs: Any) -> Any:
        """As of `jax.jit`."""
        with self._asked():
            return self._chosen(args, kwargs).eval_shape(*args, **kwargs)

    def clear_cache(self) -> None:
        """As of `jax.jit`."""
        ways: list[Any] = [self._inside, self._plain, self._special, self._choice]
        for jitted in ways:
            jitted.clear_cache()

    def _first_call(self, args: Any, kwargs: Any) -> Any:
        if jax.config.values["jax_disable_jit"]:
            return self._fun(*args, **kwargs)
        with self._asked():
            way = self._chosen(args, kwargs)
            if self._is_mixed:
                self._here.choice = _Choice(way is self._special)
                self._choice(*args, **kwargs)
            return way(*args, **kwargs)

    def _chosen(self, args: Any, kwargs: Any) -> Any:
        """Traces the function, unless JAX has its trace, and chooses."""
        program = self._plain.trace(*args, **kwargs).jaxpr
        way = self._special if self._is_special(program) else self._plain
        with self._lock:
            if self._call == self._undecided:
                self._call = way
            elif self._call is not way and not self._is_mixed:
                self._call, self._is_mixed = self._by_signature, True
        return way

    def _undecided(self, *args: Any, **kwargs: Any) -> Any:
        raise _Undecided

    def _by_signature(self, *args: Any, **kwargs: Any) -> Any:
        special = self._choice(*args, **kwargs).special
        return (self._special if special else self._plain)(*args, **kwargs)

    @property
    def _is_asked(self) -> bool:
        return getattr(self._here, "asked", False)

    @contextlib.contextmanager
    def _asked(self) -> Iterator[None]:
        before = self._is_asked
        self._here.asked = True
        try:
            yield
        finally:
            self._here.asked = before
