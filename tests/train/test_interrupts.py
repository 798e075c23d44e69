"""Signals: the first requests a stop; the next ones act by kind."""

import signal
import threading

import pytest

from mslice_jax.train.interrupts import stop_on_interrupt

BOTH = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture(autouse=True)
def as_in_a_terminal():
    """A shell starts its background jobs with Ctrl-C ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("sent", BOTH)
def test_the_first_signal_only_requests_a_stop(sent):
    before = [signal.getsignal(number) for number in BOTH]
    with stop_on_interrupt() as stop:
        assert not stop.after(1)
        assert stop.signal is None
        signal.raise_signal(sent)
        assert stop.after(2)
        assert stop.signal is sent
    assert [signal.getsignal(number) for number in BOTH] == before


@pytest.mark.parametrize("first", BOTH)
def test_ctrl_c_after_that_ends_at_once(first):
    before = [signal.getsignal(number) for number in BOTH]
    with pytest.raises(KeyboardInterrupt), stop_on_interrupt() as stop:
        signal.raise_signal(first)
        signal.raise_signal(signal.SIGINT)
    assert stop.signal is first
    assert [signal.getsignal(number) for number in BOTH] == before


@pytest.mark.parametrize("first", BOTH)
def test_sigterm_after_that_changes_nothing(first):
    with stop_on_interrupt() as stop:
        signal.raise_signal(first)
        signal.raise_signal(signal.SIGTERM)  # would end the process without our handler
    assert stop.signal is first


def test_a_thread_that_gets_no_signals_changes_nothing():
    before = [signal.getsignal(number) for number in BOTH]
    seen = []

    def look():
        with stop_on_interrupt() as stop:
            seen.append([signal.getsignal(number) for number in BOTH])
            seen.append(stop.after(1))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [before, False]
