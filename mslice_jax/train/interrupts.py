"""Ctrl-C and SIGTERM as a wish that the training loop meets between two steps."""

import contextlib
import signal
import threading
from collections.abc import Iterator

import jax
from jax.experimental import multihost_utils


class Stop:
    """Whether somebody asked for the end, and how.

    Attributes:
      signal: SIGINT (Ctrl-C) or SIGTERM (the machine will be taken away), or None.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def after(self, step: int) -> bool:
        """Whether to end after `step`."""
        del step
        return self.signal is not None


class StopTogether(Stop):
    """The same for several hosts, each of which has to ask after every step.

    A signal that one host gets is one for all: JAX's preemption service, which takes
    notice of SIGTERM, finds a step that none of them has done yet.
    """

    def __init__(self) -> None:
        super().__init__()
        self._agreed = False

    def after(self, step: int) -> bool:
        """Whether to end after `step`: the same on every host."""
        if not self._agreed and multihost_utils.reached_preemption_sync_point(step):
            self._agreed = True
            self.signal = self.signal or signal.SIGTERM
        return self._agreed


@contextlib.contextmanager
def stop_on_interrupt() -> Iterator[Stop]:
    """Within this context the first Ctrl-C or SIGTERM only asks for the end.

    A step gives its buffers away as it goes; to break into the middle of one would
    leave no state to save. After that Ctrl-C raises KeyboardInterrupt at once, and
    another SIGTERM changes nothing: what sends it may send it twice, and has SIGKILL.
    Nothing is changed outside the main thread, where Python handles no signals, nor
    with several hosts where JAX's preemption service is off: they could not agree on a
    step after which it ends.
    """
    several = jax.process_count() > 1
    stop = StopTogether() if several and _has_preemption_service() else Stop()
    handled = [signal.SIGINT] if several else [signal.SIGINT, signal.SIGTERM]
    if threading.current_thread() is not threading.main_thread() or (
        several and not isinstance(stop, StopTogether)
    ):
        yield stop
        return
    previous = {number: signal.getsignal(number) for number in handled}

    def ask(number, frame):
        del frame
        if stop.signal is None:
            stop.signal = signal.Signals(number)
            signal.signal(signal.SIGINT, previous[signal.SIGINT])
            if several:
                signal.raise_signal(signal.SIGTERM)  # tells the service

    try:
        for number in handled:
            signal.signal(number, ask)
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _has_preemption_service() -> bool:
    return jax.config.jax_enable_preemption_service  # type: ignore[attr-defined]
