"""What all tests run under, and the fixtures that they share.

Strict: warnings are errors (pyproject.toml), rank promotion raises, there are four
devices. All of it is set in the environment, before JAX is imported, so that processes
that a test starts run under the same rules.
"""

import atexit
import contextlib
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import pytest


def _strict_environment() -> None:
    # Tests compare with numbers made on a CPU, and are the same on every machine.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    flags = os.environ.get("XLA_FLAGS", "")
    if "xla_force_host_platform_device_count" not in flags:
        devices = "--xla_force_host_platform_device_count=4"
        os.environ["XLA_FLAGS"] = f"{flags} {devices}".strip()
    # (4,) + (3, 4) is more often a mistake than meant.
    os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
    # Tests compile the same programs again under other names: a cache for the run, and
    # not for longer, so that no run depends on another. CI brings its own folder.
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = tempfile.mkdtemp(prefix="mslice-jax-compiled-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
    # JAX does not write an entry at once: another process can read half of one. So each
    # worker of pytest-xdist has a folder of its own.
    if worker := os.environ.get("PYTEST_XDIST_WORKER"):
        own = pathlib.Path(os.environ["JAX_COMPILATION_CACHE_DIR"]) / worker
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(own)
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")


_strict_environment()

import jax  # noqa: E402  (the environment comes first)

_COMPILED = "/jax/core/compile/backend_compile_duration"
_SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared"


@contextlib.contextmanager
def _compilations() -> Iterator[list[str]]:
    names: list[str] = []

    def listen(event: str, seconds: float, **about: Any) -> None:
        del seconds
        if event == _COMPILED:
            names.append(str(about.get("fun_name", "")))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield names
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


@pytest.fixture
def compilations() -> Callable[[], contextlib.AbstractContextManager[list[str]]]:
    """Collects the name of every program that XLA compiles (or loads) within a block.

    ::

        with compilations() as names:
            step(state)
        assert names == []
    """
    return _compilations


@pytest.fixture
def shared() -> Callable[[str], pathlib.Path]:
    """``shared("data/text")``: a file beside the checkout, or the test is skipped."""

    def find(path: str) -> pathlib.Path:
        if not (_SHARED / path).exists():
            pytest.skip(f"needs shared/{path} beside the checkout, which is not there")
        return _SHARED / path

    return find
