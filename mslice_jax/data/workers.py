"""Worker processes that make batches ahead of time; Grain runs them.

Workers deal the steps out among themselves, so that how many there are changes nothing.
Batches come through shared memory. The workers end when the stream of batches is closed
or forgotten, and with the process that started them, however that ends.
"""

import atexit
import contextlib
import os
import signal
import threading
import weakref
from collections.abc import Callable, Generator, Iterator
from multiprocessing import parent_process, resource_tracker
from typing import Any

import numpy as np

from .dataset import DataError
from .shared_memory import wait_for_shared_memory

Batch = Any  # a tuple of arrays, of one length for all steps


def each_step(
    make: Callable[[int], Batch], steps: range, workers: int
) -> Iterator[Batch]:
    """``make(step)`` for each step, in order.

    Args:
      make: a pure function that can be pickled; it gives a tuple of arrays.
      steps: with the stride 1.
      workers: processes that share the steps; with 0 this one does all.

    Raises:
      DataError: what `make` raised, or if a worker was killed.
    """
    if not workers:
        return map(make, steps)
    stream = _by_workers(make, steps, min(workers, len(steps)))
    _with_workers.add(stream)
    return stream


# Streams that somebody still holds when the program ends: their workers are ended while
# the modules that this takes are still there.
_with_workers: "weakref.WeakSet[Generator]" = weakref.WeakSet()


@atexit.register
def _end_workers() -> None:
    for stream in list(_with_workers):
        stream.close()
    wait_for_shared_memory()


def _by_workers(
    make: Callable[[int], Batch], steps: range, workers: int
) -> Generator[Batch, None, None]:
    import grain
    from absl import flags

    # Grain asks for its flags, which are parsed only where absl runs the program.
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    dataset = (
        grain.MapDataset.range(steps.start, steps.stop)
        .map(make)
        # In a worker nothing runs beside: the workers themselves are what is parallel.
        .to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
        .mp_prefetch(
            grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2),
            worker_init_fn=_end_with_the_parent,
        )
    )
    iterator = iter(dataset)
    try:
        with _deaf_children():
            batch = next(iterator, None)
        while batch is not None:
            # Copied out of the memory that is shared, so that nobody has to keep track
            # of who still uses it: a hundredth of the time that making it takes.
            yield tuple(np.array(part) for part in batch)
            batch = next(iterator, None)
    except DataError as error:
        raise DataError(str(error)) from None  # without what Grain says of itself
    except RuntimeError as error:
        if "exit code" not in str(error):
            raise
        raise DataError(
            f"a process that reads images ended ({error}). If it was killed for want "
            "of memory, ask for fewer --workers or a smaller --batch-size; batches "
            "wait in /dev/shm, which has to hold a few for each worker."
        ) from error
    finally:
        iterator.close()


@contextlib.contextmanager
def _deaf_children():
    """Processes started within never hear Ctrl-C or a request to end.

    Both go to the whole process group; what is to be done about them the process that
    trains decides, which may need another batch first. It ends its workers itself.
    """
    signals = {signal.SIGINT, signal.SIGTERM}
    resource_tracker.ensure_running()  # starting it would end the blocking
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with_the_parent(worker: int, workers: int) -> None:
    """Let this worker end when its parent was killed and cannot tell it to."""
    del worker, workers
    parent = parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
