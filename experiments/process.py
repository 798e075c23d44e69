"""What experiments ask of the process that they run in."""

import ctypes
import io
import os
import sys
from pathlib import Path

import jax

# Of `mallopt`, see its manual page.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_compiled_programs() -> None:
    """Let a later run load what this one compiles, unless JAX was told another place.

    They are kept where programs keep such things (XDG_CACHE_HOME, or ~/.cache); not at
    all where there is no such place, as for a user without a home.
    """
    if jax.config.jax_compilation_cache_dir is not None:  # type: ignore[attr-defined]
        return
    try:
        caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(caches) / "mslice_jax" / "compiled"
        folder.mkdir(parents=True, exist_ok=True)
    except (RuntimeError, OSError):  # Path.home does not know, or nobody may write
        return
    if not os.access(folder, os.W_OK):
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def print_anything() -> None:
    """Let the screen show what it cannot encode in another way, not end the program.

    A name of a file may have any character; under LANG=C the screen takes ASCII alone.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def keep_freed_memory() -> None:
    """Let a step on CPU use the memory of the one before.

    XLA frees its buffers after every step, and the C library of Linux (glibc) gives
    blocks of their size back to the system, which hands them out page by page when the
    next step writes to them: up to a quarter of a step (`experiments/LOG.md`). After
    this call the process keeps what it had at its peak. Other C libraries are left
    alone, and so are processes whose JAX computes elsewhere.
    """
    if jax.default_backend() != "cpu":
        return
    mallopt = (
        getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    )
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)
