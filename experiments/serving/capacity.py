"""The highest load that a server sustains."""

from collections.abc import Callable


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
