"""Ctrl-C as a wish that the training loop meets between two steps."""

import contextlib
import signal
import threading
from collections.abc import Iterator


class Stop:
    """Whether somebody asked for the end."""

    def __init__(self) -> None:
        self.requested = False


@contextlib.contextmanager
def stop_on_interrupt() -> Iterator[Stop]:
    """Within this context the first Ctrl-C only sets ``stop.requested``.

    A step gives its buffers away as it goes; to break into the middle of one would
    leave no state to save. A second Ctrl-C raises KeyboardInterrupt at once. Outside
    the main thread, where Python handles no signals, nothing is changed.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    previous = signal.getsignal(signal.SIGINT)

    def ask(number, frame):
        del number, frame
        stop.requested = True
        signal.signal(signal.SIGINT, previous)

    signal.signal(signal.SIGINT, ask)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, previous)
