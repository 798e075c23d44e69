"""How long calls take: one loop, and the two numbers that are made of its seconds."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np

K = TypeVar("K")


def in_turn(
    runs: Mapping[K, Callable[[], Any]],
    repeats: int,
    *,
    warm: int = 2,
    before: Callable[[K], object] | None = None,
) -> dict[K, list[float]]:
    """Seconds of each call of each function, all of them called in turn.

    A machine that slows down, or is shared, slows all of them alike.

    Args:
      runs: what is timed, until its result is there.
      repeats: calls of each that count.
      warm: turns ahead of them, which do not: they warm caches.
      before: called with the key ahead of each call, while no clock runs.

    Raises:
      ValueError: if `repeats` is below 1.
    """
    if repeats < 1:
        raise ValueError(f"expected at least one repeat, got {repeats}.")
    seconds: dict[K, list[float]] = {key: [] for key in runs}
    for turn in range(-warm, repeats):
        for key, run in runs.items():
            if before is not None:
                before(key)
            began = time.perf_counter()
            jax.block_until_ready(run())
            if turn >= 0:
                seconds[key].append(time.perf_counter() - began)
    return seconds


def median_ms(seconds: Sequence[float]) -> float:
    """Milliseconds that half of the calls do not exceed."""
    return 1e3 * statistics.median(seconds)


def p99_ms(seconds: Sequence[float]) -> float:
    """Milliseconds that 99 in 100 calls do not exceed; of few calls the longest."""
    return 1e3 * float(np.quantile(seconds, 0.99, method="higher"))
