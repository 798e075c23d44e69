"""The one private name of Grain that is used here, and why.

Batches of worker processes come through shared memory, which Grain gives back in a
thread of its own. Nothing waits for that thread: where a program ends between the
memory and its name, Python's resource tracker complains that the memory is gone
already. Grain has no public way to wait, so its pool is asked for by its private name.

Where a release of Grain has no such name, nothing is waited for: the numbers are the
same, and a program may end with that complaint. `tests/data/test_images.py` notices.
"""

import sys
from typing import Any

_MODULE = "grain._src.python.ipc.shared_memory_array"


def wait_for_shared_memory() -> None:
    """Return when Grain has given back the shared memory of streams that were closed.

    At once where Grain was not used, or keeps its pool elsewhere.
    """
    pool = _pool()
    if pool is not None:
        pool.apply(int)  # a pool of one thread, which comes to this last


def _pool() -> Any:
    """Grain's pool of the thread that gives memory back; None where there is none."""
    arrays = getattr(sys.modules.get(_MODULE), "SharedMemoryArray", None)
    return getattr(arrays, "_del_thread_pool", None)
