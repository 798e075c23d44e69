"""What a server sustains, and what HTTP costs it."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from mslice_jax import serve

if TYPE_CHECKING:
    from .outcome import Result
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
        told = stand.run(key, stand.widths[0], arrivals)["measured"]
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


def http(stand: "Stand") -> dict[str, Any]:
    """What HTTP and the queue cost.

    Returns:
      `added_ms`: what they add to the latency of one who is alone, at full width (p50);
      `each_ms`: rate -> of the processor, for a request, while the network runs at that
      rate. With more requests than it can answer the core is never idle: what remains
      of the time beside the batches, which take what the table says, HTTP has taken.
    """
    found = stand.journal.get("http")
    if found is not None and found["measured"]["void"] is None:
        return found["measured"]
    gap, seconds = max(2 * stand.alone_s, 0.02), stand.options.capacity_seconds
    lone = stand.run("alone", stand.widths[-1], np.arange(0, seconds, gap))["measured"]
    added_ms, void = lone["p50_ms"] - 1e3 * stand.alone_s, lone["void"]
    each_ms = {}
    rows_s = {rate: _row_s(stand.table, rate) for rate in stand.table.rates}
    guess = max(1 / stand.capacity - rows_s[stand.table.rates[0]], 0.0)
    for policy, (rate, row_s) in zip(stand.widths, rows_s.items(), strict=True):
        load = max(1.3 / (row_s + guess), 0.4 * stand.capacity)
        took_s, done = _took_s(stand, policy, serve.poisson(load, seconds / 2, seed=1))
        void = void or done.void
        wall_s = float(np.nanmax(done.answered) - done.due[0])
        # Where the core was not full after all, the latency is the better bound.
        each = min(1e3 * (wall_s - took_s) / len(done.due), added_ms)
        each_ms[f"{rate:g}"] = max(each, 0.0)
    measured = {"added_ms": added_ms, "each_ms": each_ms, "void": void}
    return stand.journal.add("http", {"measured": measured})["measured"]


def _row_s(table: serve.LatencyTable, rate: float) -> float:
    """Seconds of a row, in the batches where it takes least."""
    return min(table.median_ms(rate, n) / 1e3 / n for n in table.batches)


def _took_s(
    stand: "Stand", policy: str, arrivals: np.ndarray
) -> tuple[float, "Result"]:
    """Seconds of the batches of a load, by the table; and what became of it."""
    server = stand.serving("elastic")
    before = server.batches()
    done = stand.drive(policy, arrivals, warm=0)
    ran = {key: n - before.get(key, 0) for key, n in server.batches().items()}
    took_ms = sum(n * stand.table.median_ms(*key) for key, n in ran.items())
    return took_ms / 1e3, done
