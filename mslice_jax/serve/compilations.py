"""How many programs XLA compiled inside of a block, as JAX itself tells."""

import threading
from typing import Any

import jax

_EVENT = "/jax/core/compile/backend_compile_duration"
_here = threading.local()


class Compilations:
    """Counts what is compiled, or loaded from JAX's cache, within its blocks.

    A block counts its own thread alone, so what the rest of the process compiles is
    left out::

        with compilations:
            program(x)
        assert compilations.count == 0

    Attributes:
      count: how many programs so far.
    """

    def __init__(self) -> None:
        self.count = 0
        self._lock = threading.Lock()
        _listen()

    def __enter__(self) -> None:
        _stack().append(self)

    def __exit__(self, *_: object) -> None:
        _stack().pop()

    def _add(self) -> None:
        with self._lock:
            self.count += 1


def _stack() -> list[Compilations]:
    if not hasattr(_here, "stack"):
        _here.stack = []
    return _here.stack


_listening = threading.Event()
_first = threading.Lock()


def _listen() -> None:
    # One for the process: JAX keeps every listener that it was ever given.
    with _first:
        if not _listening.is_set():
            jax.monitoring.register_event_duration_secs_listener(_heard)
            _listening.set()


def _heard(event: str, duration_secs: float, **kwargs: Any) -> None:
    del duration_secs, kwargs
    if event == _EVENT and (stack := _stack()):
        stack[-1]._add()
