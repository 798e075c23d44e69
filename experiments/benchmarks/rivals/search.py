"""The highest load at which something holds, on a grid of loads."""

from collections.abc import Callable
from typing import NamedTuple

Holds = Callable[[int], bool | None]
"""Whether it holds at a level of the grid; None if that cannot be said."""


class Found(NamedTuple):
    """Levels of a grid, by their index.

    Attributes:
      highest: at which it holds; None if at none that was tried.
      fails: the lowest at which it does not; None if at none that was tried.
      void: whether some level could not be told, and so the search ended.
    """

    highest: int | None
    fails: int | None
    void: bool = False


def bisect(count: int, holds: Holds) -> Found:
    """Halves the grid of so many levels; below one that holds all are taken to hold.

    >>> bisect(7, lambda level: level < 3)
    Found(highest=2, fails=3, void=False)
    >>> bisect(7, lambda level: True)
    Found(highest=6, fails=None, void=False)
    """
    low, high = -1, count
    while high - low > 1:
        middle = (low + high) // 2
        held = holds(middle)
        if held is None:
            return _found(low, high, count, void=True)
        low, high = (middle, high) if held else (low, middle)
    return _found(low, high, count)


def walk(count: int, start: int, holds: Holds) -> Found:
    """From a level up as long as it holds, or down until it does.

    >>> walk(7, 1, lambda level: level < 3)
    Found(highest=2, fails=3, void=False)
    >>> walk(7, 5, lambda level: level < 3)
    Found(highest=2, fails=3, void=False)
    """
    low, high, level = -1, count, start
    while low < level < high:
        held = holds(level)
        if held is None:
            return _found(low, high, count, void=True)
        low, high = (level, high) if held else (low, level)
        level += 1 if held else -1
    return _found(low, high, count)


def _found(low: int, high: int, count: int, void: bool = False) -> Found:
    return Found(low if low >= 0 else None, high if high < count else None, void)
