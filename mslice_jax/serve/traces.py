"""When requests come: arrival times in seconds, ascending, from 0 on.

Every generator is a function of its arguments and the seed, the same on every machine.
"""

from collections.abc import Callable, Sequence

import numpy as np


class TraceError(ValueError):
    """A trace that cannot be made or read."""


def poisson(per_second: float, seconds: float, *, seed: int = 0) -> np.ndarray:
    """Arrivals that know nothing of each other, at a constant mean rate.

    Args:
      per_second: mean number of arrivals a second, not negative.
      seconds: how long.
      seed: not negative.

    Returns:
      Times in [0, seconds), ascending: `[n]`.

    Raises:
      TraceError: for a negative rate or a duration that is not above 0.

    Example:
      >>> times = poisson(100, 10, seed=1)
      >>> len(times), bool((np.diff(times) >= 0).all())
      (1001, True)
    """
    return step([(seconds, per_second)], seed=seed)


def step(levels: Sequence[tuple[float, float]], *, seed: int = 0) -> np.ndarray:
    """Poisson arrivals whose mean rate changes at once.

    Args:
      levels: pairs (seconds, arrivals a second), in their order.
      seed: not negative.

    Returns:
      Times, ascending: `[n]`.

    Raises:
      TraceError: for a negative rate, a duration that is not above 0, or no levels.

    Example:
      >>> times = step([(10, 5), (10, 500), (10, 5)])
      >>> bool(np.histogram(times, 3)[0].argmax() == 1)
      True
    """
    _check(levels)
    random, found, began = np.random.default_rng(seed), [], 0.0
    for seconds, rate in levels:
        count = random.poisson(rate * seconds)
        found.append(began + np.sort(random.uniform(0, seconds, count)))
        began += seconds
    return np.concatenate(found)


def gamma(per_second: float, seconds: float, *, cv: float, seed: int = 0) -> np.ndarray:
    """Arrivals whose gaps are of a Gamma distribution: bursts without a pattern.

    Args:
      per_second: mean number of arrivals a second, above 0.
      seconds: how long.
      cv: standard deviation of the gaps, as a multiple of their mean, above 0; 1 is
        Poisson, below is more even, above comes in bursts.
      seed: not negative.

    Returns:
      Times in [0, seconds), ascending: `[n]`.

    Raises:
      TraceError: for a rate, duration or cv that is not above 0.

    Example:
      >>> gaps = np.diff(gamma(100, 100, cv=4))
      >>> bool(3 < gaps.std() / gaps.mean() < 5)
      True
    """
    _check([(seconds, per_second)])
    if not cv > 0 or not per_second > 0:
        raise TraceError(f"expected a rate and cv above 0, got {per_second} and {cv}.")
    random, shape = np.random.default_rng(seed), cv**-2
    times, last = [], 0.0
    while last < seconds:
        count = int(per_second * seconds) + 16
        gaps = random.gamma(shape, 1 / (shape * per_second), count)
        times.append(last + np.cumsum(gaps))
        last = float(times[-1][-1])
    found = np.concatenate(times)
    return found[found < seconds]


def mmpp(
    low: float, high: float, seconds: float, *, dwell_s: float, seed: int = 0
) -> np.ndarray:
    """A Markov-modulated Poisson process of two states: quiet, and peak.

    The process stays in a state for a time of an exponential distribution, then changes
    to the other. It begins in the quiet one.

    Args:
      low, high: arrivals a second in the two states, not negative.
      seconds: how long.
      dwell_s: the mean time in a state, in seconds, above 0.
      seed: not negative.

    Returns:
      Times in [0, seconds), ascending: `[n]`.

    Raises:
      TraceError: for negative rates, or times that are not above 0.

    Example:
      >>> times = mmpp(10, 160, 60, dwell_s=2)
      >>> counts = np.histogram(times, 60)[0]
      >>> bool(counts.max() > 10 * counts.min())
      True
    """
    _check([(seconds, low), (dwell_s, high)])
    random = np.random.default_rng(seed)
    levels, left, state = [], seconds, 0
    while left > 0:
        stay = min(float(random.exponential(dwell_s)), left)
        if stay > 0:
            levels.append((stay, (low, high)[state]))
        left, state = left - stay, 1 - state
    return step(levels, seed=int(random.integers(2**31)))


def diurnal(
    per_second: float,
    seconds: float,
    *,
    ratio: float = 4.0,
    period_s: float | None = None,
    seed: int = 0,
) -> np.ndarray:
    """Poisson arrivals whose mean rate goes up and down as the load of a day does.

    The rate is a sine between a trough, where the trace begins, and a peak.

    Args:
      per_second: the mean over a period, not negative.
      seconds: how long.
      ratio: peak over trough, at least 1.
      period_s: of the sine in seconds; all of the trace unless given.
      seed: not negative.

    Returns:
      Times in [0, seconds), ascending: `[n]`.

    Raises:
      TraceError: for a negative rate, a ratio below 1, or times that are not above 0.

    Example:
      >>> counts = np.histogram(diurnal(500, 20, ratio=9), 10)[0]
      >>> bool(counts[4:6].min() > 4 * counts[[0, -1]].max())
      True
    """
    period = seconds if period_s is None else period_s
    _check([(seconds, per_second), (period, 0)])
    if not ratio >= 1:
        raise TraceError(f"expected a ratio of at least 1, got {ratio}.")
    swing = (ratio - 1) / (ratio + 1)
    highest = per_second * (1 + swing)
    times = poisson(highest, seconds, seed=seed)
    shape: Callable[[np.ndarray], np.ndarray] = lambda t: (  # noqa: E731
        (1 - swing * np.cos(2 * np.pi * t / period)) / (1 + swing)
    )
    kept = np.random.default_rng([seed, 1]).uniform(size=len(times)) < shape(times)
    return times[kept]


def _check(levels: Sequence[tuple[float, float]]) -> None:
    if not levels:
        raise TraceError("expected at least one level, got none.")
    for seconds, rate in levels:
        if not (0 < seconds < np.inf and 0 <= rate < np.inf):
            raise TraceError(
                f"expected times above 0 and arrivals a second of at least 0, got "
                f"{seconds} s with {rate} a second."
            )
