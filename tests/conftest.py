"""What all tests run under, and the fixtures that they share.

Strict: warnings are errors (pyproject.toml), rank promotion raises, there are four
devices. All of it is set in the environment, before JAX is imported, so that processes
that a test starts run under the same rules.

Quick: XLA does not optimize, for a program here runs once or twice (`compiling.py`).
What has to hold under its optimisation takes the fixture `optimized`; `.ci/nightly`
optimizes everything and runs what is marked `nightly`. A file is run by one worker of
pytest-xdist, so that its networks are compiled once (pyproject.toml).
"""

import atexit
import contextlib
import gc
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.compiling import AS_FOR_USERS, xla_flags


def _strict_environment() -> None:
    # Tests compare with numbers made on a CPU, and are the same on every machine.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    # Two thirds of the time of the suite would be compilation.
    os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")
    os.environ["XLA_FLAGS"] = xla_flags(4, os.environ.get("XLA_FLAGS", ""))
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
    # Small programs too: a process that a test starts finds what another one compiled.
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")


_strict_environment()

# Traces live as long as their programs; looking through all of them after every seven
# hundred new objects is a twentieth of the suite's time. So is looking through what was
# imported (`pytest_collection_finish`).
gc.set_threshold(50_000, 50, 100)

import jax  # noqa: E402  (the environment comes first)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--nightly", action="store_true", help="also run what is marked nightly"
    )


def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> None:
    if not config.getoption("--nightly"):
        left_out = [item for item in items if item.get_closest_marker("nightly")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("nightly")]


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()


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
def optimized() -> Iterator[dict[str, Any]]:
    """XLA optimizes what is compiled within the test, as it does for users.

    A function that was compiled before stays what it was: jit it anew, with these
    `compiler_options`.
    """
    with _disabled_optimizations(False):
        yield dict(AS_FOR_USERS)


@pytest.fixture
def unoptimized() -> Iterator[None]:
    """XLA does not optimize, in `.ci/nightly` either."""
    with _disabled_optimizations(True):
        yield


@contextlib.contextmanager
def _disabled_optimizations(value: bool) -> Iterator[None]:
    name = "jax_disable_most_optimizations"
    before = jax.config.read(name)
    jax.config.update(name, value)
    try:
        yield
    finally:
        jax.config.update(name, before)


@pytest.fixture
def shared() -> Callable[[str], pathlib.Path]:
    """``shared("data/text")``: a file beside the checkout, or the test is skipped."""

    def find(path: str) -> pathlib.Path:
        if not (_SHARED / path).exists():
            pytest.skip(f"needs shared/{path} beside the checkout, which is not there")
        return _SHARED / path

    return find
