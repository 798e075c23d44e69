"""Settings of the process that an experiment runs in."""

import io
import os
import sys
from pathlib import Path

import jax


def keep_compiled_programs() -> None:
    """Let later runs load the programs of this one, unless JAX has a cache already.

    The cache is below XDG_CACHE_HOME or ~/.cache. Without such a folder, as for a user
    without a home, nothing is kept.
    """
    if jax.config.jax_compilation_cache_dir is not None:  # type: ignore[attr-defined]
        return
    try:
        caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(caches) / "mslice_jax" / "compiled"
        folder.mkdir(parents=True, exist_ok=True)
    except (RuntimeError, OSError):  # no home, or not writable
        return
    if not os.access(folder, os.W_OK):
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def print_anything() -> None:
    """Let the screen escape a character that it cannot encode, not raise.

    A file's name may have any character; under LANG=C the screen takes ASCII alone.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
