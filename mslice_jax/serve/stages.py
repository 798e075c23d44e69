"""What a stage of a cascade keeps, and how many candidates the next one may get.

Pure functions of scores and counts. Programs have fixed sizes, so every size that a
stage can be asked for is known before anything is compiled.
"""

import math
import numbers
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, TypeAlias

import numpy as np


@dataclass(frozen=True)
class Above:
    """Keeps the candidates whose score is above a threshold: a filter.

    Attributes:
      score: the threshold; a candidate with this very score goes.
      most: how many are kept at most, the best; None: any number.

    Example:
      >>> from mslice_jax.serve import Above
      >>> stages = [(0.25, Above(0.0, most=50)), (1.0, 5)]
    """

    score: float
    most: int | None = None


Keep: TypeAlias = int | float | Above | None
"""A number, a share of those that come in (a float in (0, 1]), a filter; None: all."""

_SMALLEST = 64  # after a filter no program is smaller than such a part of the first


def check_keeps(keeps: Sequence[Any], candidates: int) -> tuple[Keep, ...]:
    """Checks what the stages keep.

    Args:
      keeps: of each stage, in their order.
      candidates: how many the first stage gets at most.

    Raises:
      ValueError: for a keep that is none, and for more than the stage may get.
    """
    if not keeps:
        raise ValueError(
            "a cascade has at least one stage, (rate, keep); got none. Two or more "
            "are of use: [(0.25, 100), (1.0, 10)]."
        )
    found: list[Keep] = []
    left = candidates
    for stage, keep in enumerate(keeps):
        name = f"stage {stage + 1} of {len(keeps)}"
        keep = _checked(keep, name, last=stage == len(keeps) - 1)
        number = keep.most if isinstance(keep, Above) else keep
        if isinstance(number, int) and number > left:
            before = f"there are at most {left} candidates"
            if left < candidates:
                before = f"at most {left} are handed on to it"
            raise ValueError(
                f"{name} keeps {number}, but {before}; what stages keep never grows."
            )
        left = kept(keep, left)
        found.append(keep)
    return tuple(found)


def _checked(keep: Any, name: str, *, last: bool) -> Keep:
    if isinstance(keep, Above):
        score, most = keep.score, keep.most
        if not isinstance(score, numbers.Real) or math.isnan(score):
            raise ValueError(f"{name}: a threshold is a number; got {score!r}.")
        return Above(float(score), None if most is None else _number(most, name))
    if keep is None:
        if not last:
            raise ValueError(f"{name} keeps all (None); only the last stage may.")
        return None
    if isinstance(keep, (float, np.floating)):
        if not 0 < keep <= 1:  # written so that nan fails too
            raise ValueError(
                f"{name}: a share lies in (0, 1], and a number of candidates is an "
                f"integer; got {keep!r}."
            )
        return float(keep)
    return _number(keep, name)


def _number(keep: Any, name: str) -> int:
    whole = isinstance(keep, numbers.Integral) and not isinstance(keep, bool)
    if not whole or int(keep) < 1:
        raise ValueError(
            f"{name}: expected how many candidates are kept (an integer from 1), a "
            f"share (a float in (0, 1]) or Above(score); got {keep!r}."
        )
    return int(keep)


def kept(keep: Keep, count: int) -> int:
    """How many of `count` candidates are kept; of a filter, how many at most.

    Of a share the next whole number: 0.3 of 10 are 3, of 11 are 4.
    """
    if isinstance(keep, Above):
        keep = keep.most
    if keep is None:
        return count
    if isinstance(keep, int):
        return min(keep, count)
    # As it is written: 0.1 as a binary number is more than a tenth.
    return math.ceil(Fraction(repr(keep)) * count)


def sizes_after(keep: Keep, size: int, first: int) -> tuple[int, ...]:
    """The sizes in which a stage's survivors are handed on, ascending.

    Args:
      keep: of the stage.
      size: of the stage: how many candidates its program scores.
      first: the size of the first stage.

    Returns:
      One size; after a filter, of which nobody knows what it lets through, those that
      come from halving, down to a 64th of the first or just below.
    """
    found = [kept(keep, size)]
    while isinstance(keep, Above) and found[-1] > max(1, first / _SMALLEST):
        found.append((found[-1] + 1) // 2)
    return tuple(reversed(found))


def sizes(keeps: Sequence[Keep], first: int) -> list[tuple[int, ...]]:
    """For each stage the sizes that it may be asked for, ascending.

    >>> sizes([20, 0.5, None], 100)
    [(100,), (20,), (10,)]
    >>> sizes([Above(0.0), 4], 100)
    [(100,), (1, 2, 4, 7, 13, 25, 50, 100)]
    """
    found: list[tuple[int, ...]] = [(first,)]
    for keep in keeps[:-1]:
        after = {n for size in found[-1] for n in sizes_after(keep, size, first)}
        found.append(tuple(sorted(after)))
    return found


def survivors(
    scores: np.ndarray, counts: np.ndarray, keep: Keep
) -> tuple[np.ndarray, np.ndarray]:
    """Who is kept, best first.

    Args:
      scores: (q, n), of the candidates of q queries.
      counts: (q,), how many of each row are candidates; the rest fills up.
      keep: of the stage.

    Returns:
      The order (q, n): where in a row the best one stands, the next one, ...; equal
      scores stay in the order they were in, and NaN comes last. And (q,), how many of
      each row are kept.

    >>> order, left = survivors(np.array([[1.0, 3.0, 2.0, 9.0]]), np.array([3]), 2)
    >>> order.tolist(), left.tolist()
    ([[1, 2, 0, 3]], [2])
    """
    there = np.arange(scores.shape[1])[None] < counts[:, None]
    # NaN sorts behind all numbers; stable, so that what fills up comes behind it.
    known = np.where(there, scores.astype(np.float64), np.nan)
    order = np.argsort(-known, axis=1, kind="stable")
    if isinstance(keep, Above):
        passed = (known > keep.score).sum(axis=1)
        return order, np.array([kept(keep, int(n)) for n in passed])
    return order, np.array([kept(keep, int(n)) for n in counts])
