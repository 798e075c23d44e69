"""A lock on a folder: two runs that write into one would destroy each other's files."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows, which has no locks of this kind; there is none then
    fcntl = None

_NAME = ".lock"
# By folder: the open lock, and how many hold it. The lock is one of the process.
_held: dict[Path, tuple[int, int]] = {}


class LockedError(RuntimeError):
    """A folder that another process writes to."""


def lock(folder: Path) -> Callable[[], None]:
    """Lock a folder for this process; returns what gives it back.

    The system gives the lock of a process that ends back, however it ends. Within one
    process a folder may be locked several times.

    Raises:
      LockedError: if another process holds it; its id is named.
      OSError: if the folder cannot be written.
    """
    folder = folder.resolve()
    descriptor, count = _held.get(folder, (-1, 0))
    if count == 0:
        descriptor = _locked(folder)
    _held[folder] = descriptor, count + 1
    released = False

    def release() -> None:
        nonlocal released
        if released:
            return
        released = True
        descriptor, count = _held.pop(folder)
        if count > 1:
            _held[folder] = descriptor, count - 1
        elif descriptor >= 0:
            os.close(descriptor)

    return release


def _locked(folder: Path) -> int:
    """The open file of the lock; -1 where the system has none."""
    if fcntl is None:
        return -1
    descriptor = os.open(folder / _NAME, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(descriptor, 100).decode(errors="replace").strip()
        os.close(descriptor)
        raise LockedError(
            f"{folder} is in use by another process ({holder or 'unknown'}). Wait for "
            "it to end, or choose another folder."
        ) from None
    except OSError:  # a file system without locks
        os.close(descriptor)
        return -1
    with contextlib.suppress(OSError):  # a full disk does not make it less of a lock
        os.ftruncate(descriptor, 0)
        os.pwrite(
            descriptor, f"process {os.getpid()} on {os.uname().nodename}".encode(), 0
        )
    return descriptor
