"""Memory that was freed goes back to the operating system.

The C library of Linux keeps what was freed for the next allocation. After programs were
compiled, and when narrow weights of one size make place for those of another, that is
more than a tenth of the weights.
"""

import ctypes
import functools
from collections.abc import Callable


def give_back() -> None:
    """Gives back what is free, where the C library can be asked to; takes a while."""
    _trim()(0)


@functools.cache
def _trim() -> Callable[[int], object]:
    try:
        return ctypes.CDLL(None).malloc_trim  # of glibc
    except (OSError, AttributeError, TypeError):
        return lambda pad: None
