"""Slice rates and widths: the one place where a size and a rate become a count.

A *slice rate* r in (0, 1] asks for the leading fraction r of the units of an axis
(Model Slicing, Cai et al., PVLDB 2019, section 3.1). All rounding of this library is
in `width`; nothing else may round.
"""

import functools
import math
import numbers
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from .errors import RateError


def check_rate(rate: object) -> float:
    """Returns `rate` as a float in (0, 1].

    Raises:
      RateError: for anything else (a traced array too: a rate is static, because XLA
        compiles one program per rate).

    >>> check_rate(1)
    1.0
    """
    if not isinstance(rate, numbers.Real) or isinstance(rate, bool):
        raise RateError(
            "a slice rate is a Python number in (0, 1], known before tracing; got "
            f"{rate!r} of type {type(rate).__name__}. Under jit, mark it as a static "
            "argument."
        )
    value = float(rate)
    if not (0.0 < value <= 1.0):  # written so that nan fails too
        raise RateError(f"a slice rate lies in (0, 1]; got {value!r}.")
    return value


def check_rates(rates: Iterable[float]) -> tuple[float, ...]:
    """Returns the rates in ascending order.

    Raises:
      RateError: if there are none, one is outside (0, 1], or one appears twice.

    >>> check_rates([1.0, 0.25, 0.5])
    (0.25, 0.5, 1.0)
    """
    if isinstance(rates, (str, bytes)) or not isinstance(rates, Iterable):
        raise RateError(
            f"rates is a sequence of numbers in (0, 1], such as (0.25, 0.5, 1.0); got "
            f"{rates!r}."
        )
    checked = [check_rate(rate) for rate in rates]
    if not checked:
        raise RateError(
            "rates is empty; declare at least one slice rate, such as (0.25, 0.5, 1.0)."
        )
    repeated = sorted({rate for rate in checked if checked.count(rate) > 1})
    if repeated:
        raise RateError(
            f"each slice rate is declared once; {repeated} stand more than once in "
            f"{tuple(checked)}."
        )
    return tuple(sorted(checked))


def width(size: int, rate: float, unit: int = 1, minimum: int = 1) -> int:
    """How many of `size` indices a rate keeps: whole units, at least `minimum`.

    The count of units is rounded half to even, as the PyTorch original's `round`. The
    last unit may be smaller than the others; rate 1 keeps everything.

    Args:
      size: full size of the axis.
      rate: slice rate in (0, 1].
      unit: indices that stay or go together.
      minimum: how many indices are kept at least, as far as there are so many.

    >>> width(64, 0.25), width(10, 0.25), width(64, 0.3, unit=8), width(4, 0.1)
    (16, 2, 16, 1)
    >>> width(100, 0.5, unit=8), width(100, 1.0, unit=8), width(64, 0.1, 8, minimum=12)
    (48, 100, 16)
    """
    if rate == 1.0:
        return size
    units = max(round(rate * size / unit), math.ceil(minimum / unit), 1)
    return min(size, unit * units)


def is_exact(size: int, rate: float, unit: int = 1, minimum: int = 1) -> bool:
    """Whether the rate keeps exactly `rate * size` indices, without rounding.

    >>> is_exact(64, 0.25), is_exact(10, 0.25)
    (True, False)
    """
    kept = width(size, rate, unit, minimum)
    return math.isclose(kept, rate * size, rel_tol=1e-6)


@dataclass(frozen=True)
class SubNetwork:
    """A part of a network: how many indices it keeps of every width group.

    Static and hashable, so that a program is compiled for each. Made by
    `WidthPlan.resolve` from what a user may give as a rate.

    Attributes:
      rate: the slice rate, where one rate gives all widths: norms with one set of
        arrays per rate read the set of this rate. Otherwise None.
      widths: (name, width) of every group.
    """

    rate: float | None
    widths: tuple[tuple[str, int], ...]

    @functools.cached_property
    def _hash(self) -> int:
        return hash((self.rate, self.widths))

    def __hash__(self) -> int:  # asked in every call
        return self._hash

    def __str__(self) -> str:
        if self.rate is not None:
            return f"{self.rate:g}"
        shown = [f"{name}: {width}" for name, width in self.widths[:4]]
        more = ["..."] if len(self.widths) > 4 else []
        return "{" + ", ".join(shown + more) + "}"

    def __format__(self, spec: str) -> str:
        return str(self)  # messages format a rate with ':g', whichever kind it is


Rate: TypeAlias = float | str | Mapping[str, float] | SubNetwork
"""What a user may give: one rate, rates of width groups by name or pattern, or the name
of a sub-network."""


def rate_key(rate: float) -> str:
    """The name of a rate as a key of a tree: '1.0', '0.25'."""
    return repr(float(rate))
