"""How long the programs of an executor take, all of them in turn."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..profile.timing import in_turn, median_ms, p99_ms
from .independence import drawn
from .latency import Latency, LatencyTable, TableError
from .rows import Rows
from .signature import Signature

Key = tuple[Any, int, int | None]
"""Rate, batch bucket, length bucket (None without a free length)."""


def times(
    rates: Sequence[Any],
    signature: Signature,
    run: Callable[[Any, Sequence[Rows]], Any],
    cut: Callable[[Any], Any],
    repeats: int,
) -> dict[Key, list[float]]:
    """Seconds of full batches of one-row requests, for every program.

    Args:
      rates: at which they run.
      signature: the call and its buckets.
      run: (rate, requests) -> when it is back, the batch has run.
      cut: (rate), before the clock runs: its narrow weights are there afterwards.
      repeats: how often each runs.

    Raises:
      ValueError: if `repeats` is below 1.
    """
    return in_turn(
        _calls(rates, signature, run), repeats, warm=1, before=lambda key: cut(key[0])
    )


def link(
    rates: Sequence[Any],
    signature: Signature,
    run: Callable[[Any, Sequence[Rows]], Any],
) -> None:
    """Runs every program once.

    The first run links what was compiled or loaded, on CPU for 60 ms: as long as many
    batches take.
    """
    for call in _calls(rates, signature, run).values():
        call()


def _calls(
    rates: Sequence[Any],
    signature: Signature,
    run: Callable[[Any, Sequence[Rows]], Any],
) -> dict[Key, Callable[[], Any]]:
    """A full batch of one-row requests for every program."""
    rows = {length: drawn(signature, 1, length, 0) for length in signature.lengths}

    def batch(rate: Any, size: int, length: int | None) -> Callable[[], Any]:
        return lambda: run(rate, [rows[length]] * size)

    keys = itertools.product(rates, signature.batches, signature.lengths)
    return {key: batch(*key) for key in keys}


def check_keys(rates: Sequence[Any]) -> None:
    """Raises TableError if a rate has a key that is no number."""
    if words := [key for key in rates if not isinstance(key, int | float)]:
        raise TableError(
            f"expected numbers as keys of the rates, got {words}: a policy chooses "
            "the widest that is quick enough."
        )


def table(
    seconds: Mapping[Key, Sequence[float]], about: Mapping[str, str]
) -> LatencyTable:
    """The table of what was timed."""
    each = {key: Latency(p99_ms(s), median_ms(s)) for key, s in seconds.items()}
    return LatencyTable(each, about=about)
