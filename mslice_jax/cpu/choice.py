"""A function that is compiled in one of two ways: its program says in which.

Both ways are a `jax.jit` of the same function, so that JAX keeps one trace for the two.
The program of the first call chooses, and the next calls go the same way, at the cost
of a call of `jax.jit`. A way that traces the function notes that: the signature is new,
and its program is looked at after the call, which costs no second trace.

If that one should go the other way, the function has signatures of both kinds. Then a
third program is asked first, which computes nothing and returns the choice: JAX keeps
that by signature, as it keeps compiled programs. (Nothing may end such a call with an
exception: JAX would run the signature without its fast path from then on, half a
millisecond slower for a hundred arrays.)
"""

import contextlib
import dataclasses
import functools
import threading
import types
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.extend.core import get_opaque_trace_state


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
            if get_opaque_trace_state() != outermost:
                self._here.has_traced = True
            with within():
                return fun(*args, **kwargs)

        @functools.wraps(fun)
        def choice(*args: Any, **kwargs: Any) -> _Choice:
            return _Choice(self._way_of(args, kwargs) is self._special)

        choice.__name__ = "choice"

        self._inside = jax.jit(fun, **options)
        self._plain = jax.jit(traced, **options, compiler_options=users)
        both = {**compiler_options, **users}
        self._special = jax.jit(traced, **options, compiler_options=both)
        names = ("static_argnums", "static_argnames", "in_shardings")
        alike = {name: options[name] for name in names if name in options}
        self._choice = jax.jit(choice, **alike)
        # The way of all signatures so far, or what asks for that of each.
        self._call: Callable[..., Any] | None = None
        self._lock, self._here = threading.Lock(), _Here()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if get_opaque_trace_state() != self._outermost:
            return self._inside(*args, **kwargs)
        call = self._call
        if call is None:
            if jax.config.values["jax_disable_jit"]:
                return self._fun(*args, **kwargs)
            call = self._chosen(args, kwargs)
        self._here.has_traced = False
        out = call(*args, **kwargs)
        if self._here.has_traced:
            self._chosen(args, kwargs)
        return out

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else types.MethodType(self, instance)

    def trace(self, *args: Any, **kwargs: Any) -> Any:
        """As of `jax.jit`."""
        return self._chosen(args, kwargs).trace(*args, **kwargs)

    def lower(self, *args: Any, **kwargs: Any) -> Any:
        """As of `jax.jit`."""
        return self._chosen(args, kwargs).lower(*args, **kwargs)

    def eval_shape(self, *args: Any, **kwargs: Any) -> Any:
        """As of `jax.jit`."""
        return self._chosen(args, kwargs).eval_shape(*args, **kwargs)

    def clear_cache(self) -> None:
        """As of `jax.jit`."""
        ways: list[Any] = [self._inside, self._plain, self._special, self._choice]
        for jitted in ways:
            jitted.clear_cache()

    def _chosen(self, args: Any, kwargs: Any) -> Any:
        """The way of a signature, which the next calls take, too."""
        way = self._way_of(args, kwargs)
        with self._lock:
            if self._call is None:
                self._call = way
            elif self._call is not way:
                self._call = self._by_signature
        return way

    def _way_of(self, args: Any, kwargs: Any) -> Any:
        """Traces the function, unless JAX has its trace, and chooses."""
        program = self._plain.trace(*args, **kwargs).jaxpr
        return self._special if self._is_special(program) else self._plain

    def _by_signature(self, *args: Any, **kwargs: Any) -> Any:
        special = self._choice(*args, **kwargs).special
        return (self._special if special else self._plain)(*args, **kwargs)


class _Here(threading.local):
    """What a thread knows: whether the function was traced since its call began."""

    has_traced = False
