"""A spelling: a function of hidden units, a parameter, and the number of units.

    f(h, s, n) -> y

h is (b, n), s is (n,), n an int. The result is (b, n), or a statistic (b, 1), (b,) or
(), to which h is then added.
"""

from collections.abc import Callable
from typing import Any

Spelling = Callable[[Any, Any, int], Any]


def total(x: Any) -> Any:
    """(b, n) -> (b, 1)."""
    return x.sum(-1, keepdims=True)


def rows(x: Any) -> int:
    """Number of rows."""
    return x.shape[0]
