"""Which rates a training step uses.

A schedule is a pure function ``step -> rates``: the same seed and step give the same
rates in every process, on every machine and host, whatever was asked before. So a
resumed run draws what the stopped one would have drawn, and hosts agree without
talking to each other.

The rates of a step come in descending order, none twice: the widest first, as in the
original. Section 3.3 of the paper compares these schemes.
"""

import bisect
import itertools
import math
import numbers
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypeAlias

from .core import streams
from .core.rates import check_rates

Schedule: TypeAlias = Callable[[int], tuple[float, ...]]
"""``schedule(step)`` is the rates of that step (0 is the first), widest first."""


class ScheduleError(ValueError):
    """Settings of a schedule that do not fit together."""


def random(
    rates: Sequence[float],
    *,
    k: int = 1,
    weights: Sequence[float] | None = None,
    seed: int = 0,
) -> Schedule:
    """Each step draws `k` of the rates, without replacement.

    Args:
      rates: rates in (0, 1], none twice, in any order.
      k: how many rates a step trains.
      weights: one for each rate, in the order of `rates`; not negative; they need not
        sum to one. A rate is drawn with probability proportional to its weight, then
        the next from those that are left. A rate of weight 0 is never drawn. None:
        all alike.
      seed: not negative.

    Raises:
      RateError: for rates outside (0, 1], repeated, or none.
      ScheduleError: if `weights` or `k` do not fit the rates.

    Example:
      >>> schedule = random((0.25, 0.5, 0.75, 1.0), k=2, seed=3)
      >>> [schedule(step) for step in range(3)]
      [(1.0, 0.25), (0.75, 0.25), (0.75, 0.25)]
    """
    return _drawn(rates, always=[], k=k, weights=weights, seed=seed)


def random_min(
    rates: Sequence[float],
    *,
    k: int = 1,
    weights: Sequence[float] | None = None,
    seed: int = 0,
) -> Schedule:
    """The narrowest rate every step, and `k` drawn from the others.

    Arguments and errors are those of `random`. The weight of the narrowest rate has
    no effect, as that rate is not drawn.

    Example:
      >>> random_min((0.25, 0.5, 1.0), k=2)(0)
      (1.0, 0.5, 0.25)
    """
    return _drawn(rates, always=[min], k=k, weights=weights, seed=seed)


def random_max(
    rates: Sequence[float],
    *,
    k: int = 1,
    weights: Sequence[float] | None = None,
    seed: int = 0,
) -> Schedule:
    """The widest rate every step, and `k` drawn from the others.

    Arguments and errors are those of `random`. The weight of the widest rate has no
    effect, as that rate is not drawn.

    Example:
      >>> random_max((0.25, 0.5, 1.0), k=2)(0)
      (1.0, 0.5, 0.25)
    """
    return _drawn(rates, always=[max], k=k, weights=weights, seed=seed)


def random_min_max(
    rates: Sequence[float],
    *,
    k: int = 1,
    weights: Sequence[float] | None = None,
    seed: int = 0,
) -> Schedule:
    """The widest and the narrowest rate every step, and `k` drawn from between them.

    Arguments and errors are those of `random`. The weights of the widest and the
    narrowest rate have no effect, as those rates are not drawn.

    Example:
      >>> schedule = random_min_max((0.25, 0.5, 0.75, 1.0), seed=1)
      >>> [schedule(step) for step in range(3)]
      [(1.0, 0.75, 0.25), (1.0, 0.75, 0.25), (1.0, 0.5, 0.25)]
    """
    return _drawn(rates, always=[max, min], k=k, weights=weights, seed=seed)


def static(rates: Sequence[float]) -> Schedule:
    """Every rate each step; the original calls this ``round_robin``.

    Example:
      >>> static((0.5, 1.0))(7)
      (1.0, 0.5)
    """
    every = _descending(rates)

    def schedule(step: int) -> tuple[float, ...]:
        _check_count("step", step)
        return every

    return schedule


def cyclic(rates: Sequence[float]) -> Schedule:
    """One rate a step, in turn from the widest to the narrowest, and again.

    Example:
      >>> [cyclic((0.5, 1.0))(step) for step in range(3)]
      [(1.0,), (0.5,), (1.0,)]
    """
    every = _descending(rates)

    def schedule(step: int) -> tuple[float, ...]:
        return (every[_check_count("step", step) % len(every)],)

    return schedule


def progressive(schedule: Schedule, rates: Sequence[float], *, every: int) -> Schedule:
    """Lets the rates enter one after the other, the widest first.

    Progressive shrinking (Once-for-all, Cai et al., ICLR 2020, section 3.3): in the
    first `every` steps there is the widest rate alone, then the next narrower one
    enters, and so on. A rate of `schedule` that has not entered yet is replaced by the
    narrowest that has.

    Args:
      schedule: what is drawn from when all have entered.
      rates: the rates that it draws from.
      every: steps from one entry to the next.

    Raises:
      RateError: for rates outside (0, 1], repeated, or none.
      ScheduleError: if `every` is no positive whole number.

    Example:
      >>> shrinking = progressive(static((0.25, 0.5, 1.0)), (0.25, 0.5, 1.0), every=10)
      >>> [shrinking(step) for step in (0, 10, 20)]
      [(1.0,), (1.0, 0.5), (1.0, 0.5, 0.25)]
    """
    entering = _descending(rates)
    if _check_count("every, the steps between two entries,", every) == 0:
        raise ScheduleError("every, the steps between two entries, is at least 1.")

    def shrinking(step: int) -> tuple[float, ...]:
        narrowest = entering[min(step // every, len(entering) - 1)]
        entered = {max(rate, narrowest) for rate in schedule(step)}
        return tuple(sorted(entered, reverse=True))

    return shrinking


class _Drawing(Protocol):
    def __call__(
        self,
        rates: Sequence[float],
        *,
        k: int,
        weights: Sequence[float] | None,
        seed: int,
    ) -> Schedule: ...


_DRAWING: Mapping[str, _Drawing] = {
    "random": random,
    "random_min": random_min,
    "random_max": random_max,
    "random_min_max": random_min_max,
}
_FIXED: Mapping[str, Callable[[Sequence[float]], Schedule]] = {
    "static": static,
    "cyclic": cyclic,
}
NAMES = (*_DRAWING, *_FIXED)
"""The names that `make_schedule` knows."""


def make_schedule(
    name: str,
    rates: Sequence[float],
    *,
    num_random: int = 1,
    weights: Sequence[float] | None = None,
    seed: int = 0,
) -> Schedule:
    """The schedule of that name, for command lines.

    Args:
      name: one of `NAMES`.
      rates: rates in (0, 1], none twice, in any order.
      num_random: how many rates a step draws, besides those that it always has. The
        schedules that draw nothing (static, cyclic) have no use for it.
      weights: one for each rate, in the order of `rates`, or None.
      seed: not negative.

    Raises:
      RateError: for rates outside (0, 1], repeated, or none.
      ScheduleError: for an unknown name, weights for a schedule that draws nothing,
        and settings that do not fit the rates.

    Example:
      >>> make_schedule("cyclic", (0.5, 1.0))(1)
      (0.5,)
    """
    if name in _DRAWING:
        return _DRAWING[name](rates, k=num_random, weights=weights, seed=seed)
    if name not in _FIXED:
        raise ScheduleError(
            f"there is no schedule {name!r}; choose one of {', '.join(NAMES)}."
        )
    if weights is not None:
        raise ScheduleError(
            f"schedule {name!r} draws nothing, so it takes no weights; got "
            f"{tuple(weights)}. Leave them out, or choose one of {', '.join(_DRAWING)}."
        )
    return _FIXED[name](rates)


def _drawn(
    rates: Sequence[float],
    *,
    always: Sequence[Callable[[Sequence[float]], float]],
    k: int,
    weights: Sequence[float] | None,
    seed: int,
) -> Schedule:
    """The rates that `always` picks, and k drawn from the rest."""
    every = _descending(rates)
    weight_of = _check_weights(rates, weights)
    # dict.fromkeys: of a single rate, the widest is also the narrowest.
    fixed = tuple(dict.fromkeys(pick(every) for pick in always))
    rest = [rate for rate in every if rate not in fixed]
    drawable = [rate for rate in rest if weight_of[rate] > 0.0]
    k = _check_count("k, the number of rates to draw,", k)
    if k > len(drawable):
        raise ScheduleError(
            f"expected to draw k = {k} rates a step, but only {len(drawable)} of "
            f"{every} can be drawn: {fixed} come every step, and "
            f"{tuple(rate for rate in rest if rate not in drawable)} have weight 0. "
            f"Lower k (--num-random) to {len(drawable)}, or declare more rates."
        )
    if k + len(fixed) == 0:
        raise ScheduleError("a step needs at least one rate; k = 0 draws none.")
    seed = _check_count("seed", seed)
    drawable_weights = [weight_of[rate] for rate in drawable]

    def schedule(step: int) -> tuple[float, ...]:
        uniforms = _uniforms(seed, _check_count("step", step), k)
        chosen = _sample(drawable, drawable_weights, uniforms)
        return tuple(sorted((*fixed, *chosen), reverse=True))

    return schedule


def _uniforms(seed: int, step: int, count: int) -> list[float]:
    """`count` numbers in [0, 1), a function of seed and step alone."""
    return streams.uniforms(seed, streams.Stream.RATES, step, count=count).tolist()


def _sample(
    items: Sequence[float], weights: Sequence[float], uniforms: Sequence[float]
) -> list[float]:
    """One item for each number in [0, 1), where it falls among the running sums.

    Only sums, products and comparisons in a fixed order, which IEEE 754 rounds alike
    everywhere. (The built-in sum does not: Python 3.12 made it compensate.)
    """
    left, left_weights = list(items), list(weights)
    chosen = []
    for uniform in uniforms:
        running = list(itertools.accumulate(left_weights))
        index = bisect.bisect_right(running, uniform * running[-1])
        # The product can round up to the whole sum, which lies past the last item.
        index = min(index, len(left) - 1)
        chosen.append(left.pop(index))
        del left_weights[index]
    return chosen


def _descending(rates: Sequence[float]) -> tuple[float, ...]:
    return check_rates(rates)[::-1]


def _check_weights(
    rates: Sequence[float], weights: Sequence[float] | None
) -> dict[float, float]:
    """Rate -> weight, of rates that were checked."""
    if weights is None:
        return dict.fromkeys(map(float, rates), 1.0)
    weights = tuple(weights)
    if len(weights) != len(rates):
        raise ScheduleError(
            f"expected one weight for each of the {len(rates)} rates {tuple(rates)}, "
            f"in the same order; got {len(weights)}: {weights}."
        )
    for weight in weights:
        if not isinstance(weight, numbers.Real) or not 0.0 <= weight < math.inf:
            raise ScheduleError(
                f"a weight is a finite number that is not negative; got {weight!r} "
                f"among {weights}."
            )
    if not any(weights):
        raise ScheduleError(
            f"at least one weight is positive; got {weights}. Leave the weights out "
            "to draw all rates alike."
        )
    return {float(r): float(w) for r, w in zip(rates, weights, strict=True)}


def _check_count(what: str, value: object) -> int:
    """`value` as an int that is not negative; NumPy's and JAX's integers count too."""
    try:
        count = operator.index(value)  # pyright: ignore[reportArgumentType]
    except TypeError:
        raise ScheduleError(
            f"{what} is a whole number; got {value!r} of type {type(value).__name__}."
        ) from None
    if count < 0:
        raise ScheduleError(f"{what} is not negative; got {count}.")
    return count
