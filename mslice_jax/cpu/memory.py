"""What the C library of Linux does with memory that was freed.

It gives large blocks back to the operating system, which hands them out anew page by
page when the next program writes to them: up to half of a batch's time. And it keeps
small ones, which after compiling is more than a tenth of a network's weights.
"""

import ctypes
import functools
import os
from collections.abc import Callable

import jax

# Options of `mallopt`, see its manual page.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
# glibc gives what other threads allocate heaps of this size.
_HEAP = 64 * 2**20


def keep_freed() -> None:
    """Let a program on CPU reuse the memory of the last one.

    XLA frees its buffers after every call. After this one the process keeps the memory
    of its peak, but for what `give_back` gives. It holds for the whole process, so it
    is for commands, not for libraries. Other C libraries than glibc are left alone, and
    so are processes whose JAX computes elsewhere.
    """
    if jax.default_backend() != "cpu":
        return
    mallopt = getattr(_c_library(), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)
        # XLA's threads allocate its buffers, too. A heap of theirs that becomes empty
        # is unmapped whatever the threshold, unless so much has to be left to spare.
        mallopt(_M_TOP_PAD, _HEAP)


def give_back() -> None:
    """Gives back what is free, where the C library can be asked to; takes a while."""
    _trim()(0)


@functools.cache
def _trim() -> Callable[[int], object]:
    return getattr(_c_library(), "malloc_trim", lambda pad: None)


def _c_library() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(None) if os.name == "posix" else None
    except OSError:
        return None
