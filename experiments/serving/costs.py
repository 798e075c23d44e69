"""What a server sustains, and what HTTP costs it."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from mslice_jax import serve

if TYPE_CHECKING:
    from .stand import Stand


def highest(
    sustains: Callable[[float], bool],
    first: float,
    *,
    step: float = 1.3,
    precise: float = 0.05,
    tries: int = 20,
) -> float:
    """The highest load that is sustained, up to a precision; what was seen, no more.

    From the first guess up or down until one is sustained and one is not, then halfway
    between them.

    Args:
      sustains: a load, in requests a second -> whether it is; called once for each.
      first: where to begin.
      step: the factor of the way up or down.
      precise: how far apart the two may stay, as a share of the lower.
      tries: how many loads are tried at most.

    Returns:
      A load that was sustained; 0 where none was.

    Example:
      >>> highest(lambda load: load <= 100, 50, step=2, precise=0.1)
      100.0
    """
    low, high, load = 0.0, float("inf"), float(first)
    for _ in range(tries):
        if sustains(load):
            low = load
        else:
            high = load
        if high <= low * (1 + precise):
            break
        if high == float("inf"):
            load = low * step
        elif low == 0:
            load = high / step
        else:
            load = (low + high) / 2
    return low


def capacity(stand: "Stand") -> float:
    """The highest load at which the narrowest rate keeps 99.9 % in time.

    Loads are Poisson, in requests a second, and the loads that were tried are runs.

    Raises:
      ValueError: if it keeps none, or the load generator is late.
    """
    seconds, narrowest = stand.options.capacity_seconds, stand.table.rates[0]

    def sustains(load: float) -> bool:
        load = float(f"{load:.4g}")
        key = f"capacity/{load:g} a second for {seconds:g} s"
        arrivals = serve.poisson(load, seconds, seed=0)
        told = stand.run(key, stand.fixed(), arrivals)["measured"]
        if told["void"] is not None:
            raise ValueError(f"the capacity cannot be measured: {told['void']}.")
        return told["in_time"] >= 0.999

    size = stand.table.batches[-1]
    # Beside the network, HTTP takes about a millisecond.
    took = stand.table.median_ms(narrowest, size) / 1e3 / size + 1e-3
    found = highest(sustains, 0.7 / took)
    if not found:
        raise ValueError("the narrowest rate keeps 99.9 % in time at no load.")
    return float(f"{found:.4g}")


def http(stand: "Stand") -> dict[str, float]:
    """What HTTP and the queue cost.

    Returns:
      `added_ms`: what they add to the latency of one who is alone, at full width (p50);
      `http_ms`: of the processor, for a request at 60 % of what is sustained.
    """
    found = stand.journal.get("http")
    if found is not None and found["measured"]["void"] is None:
        return found["measured"]
    gap, seconds = max(2 * stand.alone_s, 0.02), stand.options.capacity_seconds
    widest, narrowest = stand.fixed(-1), stand.fixed()
    lone = stand.run("alone", widest, np.arange(0, seconds, gap))["measured"]
    load = serve.poisson(0.6 * stand.capacity(), seconds / 2, seed=1)
    server = stand.serving("elastic")
    before, cpu_s = server.batches(), server.cpu_s()
    stand.drive(narrowest, load)
    cpu_s, after = server.cpu_s() - cpu_s, server.batches()
    ran = {key: count - before.get(key, 0) for key, count in after.items()}
    rows = sum(n * count for (_, n), count in ran.items())
    took_ms = sum(
        count * stand.table.median_ms(rate, n) for (rate, n), count in ran.items()
    )
    measured = {
        "added_ms": lone["p50_ms"] - 1e3 * stand.alone_s,
        "http_ms": max(0.0, (1e3 * cpu_s - took_ms) / rows),
        "void": lone["void"],
    }
    return stand.journal.add("http", {"measured": measured})["measured"]
