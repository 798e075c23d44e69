"""How a value grows with the sizes of axes, and which numbers take that growth away.

A sum over n entries grows with n, a norm with the root of n, what is divided by a norm
with its inverse. A number that the program holds beside such a value, n or a power of
it, makes it a mean: the growth is gone. In a narrow network that number has to be the
narrow size, so it *follows* the width.

`Known` is what the analysis (`flow.py`) says of one value:

* ``growth``: a product of powers of axes, such as {units: 1} of a sum, {units: -1/2} of
  a vector over its norm. Products add exponents, powers multiply them.
* ``logs``: what is added to a value when axes grow: log(sum) grows by log(n).
* ``powers``: a product over an axis is a power: prod(h) ** (1/n) is a geometric mean.
* ``pending``: numbers that were multiplied in before anything was summed, as in
  sum(h / n). They wait for growth that they cancel.
"""

import bisect
import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from .axes import FULL, Axis, Widths, groups_in, width

Growth: TypeAlias = Mapping[Axis, float]
"""By axis the exponent of its size; axes that are not named have exponent 0."""


class Use(NamedTuple):
    """Where a number stands: an operand of an equation."""

    frame: int  # the id of the frame
    index: int
    operand: int


@dataclass(frozen=True, slots=True)
class Pending:
    """A number that was multiplied in, and waits for a sum over as many entries.

    Attributes:
      uses: where it stands; two equal terms of a sum have one number at two places.
      value: the number.
      power: the value has been multiplied by value ** power.
      fresh: whether nothing but a change of shape came after it.
    """

    uses: tuple[Use, ...]
    value: float
    power: float
    fresh: bool = True


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of one value of the program.

    Attributes:
      number: the number that every entry is, at full width; None if not known.
      growth, logs, powers, pending: see above.
      summed: how many terms it is a sum of, whatever they grow with: n terms of a
        softmax do not grow with n, and over n are a mean all the same.
      data: whether it depends on an input; a value that does not is made of
        parameters and constants.
      origin: the variable it is a view of, for those that only changed shape.
      parameter: whether it is (a part of) a parameter: numbers beside it are told.
      weight: whether it is a parameter, wherever something moved it: no activation.
      cotangent: whether it is made of what comes into a backward pass.
      spread: axes along which such a value was repeated: the transpose of a sum over
        them. The transpose of a mean has 1/n there.
      counted: whether it is made of the positions along an axis.
      contracted: axes over which it was contracted with a parameter. A weight learns
        its own scale, so that is no growth, but a number of that size is told.
      made: of a number that the program computes, the numbers that it is made of; of
        a table of positions those that scaled them.
    """

    number: Any = None
    growth: Growth = dataclasses.field(default_factory=dict)
    logs: Growth = dataclasses.field(default_factory=dict)
    powers: Growth = dataclasses.field(default_factory=dict)
    pending: tuple[Pending, ...] = ()
    summed: Growth = dataclasses.field(default_factory=dict)
    data: bool = False
    origin: Any = None
    parameter: bool = False
    weight: bool = False
    cotangent: bool = False
    spread: tuple[Axis, ...] = ()
    counted: bool = False
    contracted: tuple[Axis, ...] = ()
    made: tuple[tuple[Use, float], ...] = ()

    @property
    def plain(self) -> bool:
        """Whether nothing grows and no number waits."""
        return not (self.growth or self.logs or self.powers or self.pending)

    @property
    def zero(self) -> bool:
        """Whether every entry is 0, which grows like anything."""
        return self.number is not None and self.number == 0


PARAMETER, INPUT = Known(parameter=True, weight=True), Known(data=True)
COTANGENT = Known(data=True, cotangent=True)


@dataclass(frozen=True, slots=True)
class Follow:
    """How a number follows the width.

    Attributes:
      axes: the axes whose sizes it is made of, with their exponents.
      less: 1 where a factor n of it is n - 1, as of an unbiased variance.
      log: whether it is (a power of) the logarithm of the sizes.
    """

    axes: tuple[tuple[Axis, float], ...]
    less: int = 0
    log: bool = False

    def at(self, number: float, widths: Widths) -> float:
        """The number when every group keeps these widths."""
        full = _product(self.axes)
        narrow = _product(self.axes, widths)
        if narrow == full:
            return number
        if self.log:
            (exponent,) = {e for _, e in self.axes}
            sizes = [
                math.prod(width(a, w) for a, _ in self.axes) for w in (widths, FULL)
            ]
            share = math.log(sizes[0]) / math.log(sizes[1])
            if not share and exponent < 0:  # of one entry, as 1 / jnp.log(1) is
                return math.copysign(math.inf, number)
            return number * share**exponent
        if self.less:
            (exponent,) = {e for _, e in self.axes}
            sizes = [
                math.prod(width(a, w) for a, _ in self.axes) for w in (widths, FULL)
            ]
            full, narrow = (
                _less_one(float(size), exponent) for size in reversed(sizes)
            )
        factor = number / full
        exact = round(factor * 2) / 2  # half, once or twice the size, without rounding
        return (exact if exact and equal(factor, exact, 0.01) else factor) * narrow

    @property
    def narrows(self) -> bool:
        """Whether any of the axes does."""
        return any(narrows(axis) for axis, _ in self.axes)


def _less_one(size: float, exponent: float) -> float:
    """size ** exponent with one factor less one: n - 1, n * (n - 1), 1 / (n - 1)."""
    value = size ** (abs(exponent) - 1) * (size - 1)
    return value if exponent > 0 else 1 / value if value else math.inf


def _product(axes: tuple[tuple[Axis, float], ...], widths: Widths = FULL) -> float:
    return math.prod(float(width(axis, widths)) ** e for axis, e in axes)


def narrows(axis: Axis) -> bool:
    """Whether some unit of the axis does."""
    return bool(groups_in(axis))


def narrowing(growth: Growth) -> bool:
    """Whether an axis that narrows is among those of the growth."""
    return any(narrows(axis) for axis in growth)


def times(a: Growth, b: Growth, power: float = 1.0) -> Growth:
    """The growth of x * y ** power."""
    if not b:
        return a
    product = dict(a)
    for axis, exponent in b.items():
        total = product.get(axis, 0.0) + exponent * power
        if abs(total) < 1e-9:
            product.pop(axis, None)
        else:
            product[axis] = total
    return product


def to_power(a: Growth, power: float) -> Growth:
    """The growth of x ** power."""
    return times({}, a, power)


_TOLERANCE = 2e-6
# A simple multiple of the size is a mean, too: sum / (2n). Of a few entries it would be
# a number of many meanings.
_MULTIPLES = {0.5: 6, 2.0: 6, 1 / 3: 12, 3.0: 12, 0.25: 12, 4.0: 12}


def equal(a: float, b: float, rounding: float = 0.0) -> bool:
    """Whether two numbers are one, up to the rounding of a dtype."""
    return math.isclose(a, b, rel_tol=max(_TOLERANCE, 2 * rounding))


class Match(NamedTuple):
    """Axes of a growth that a number cancels, and how it follows them."""

    cancels: Mapping[Axis, float]  # exponents of the growth that are gone
    follow: Follow


def matches(
    pending: Pending,
    growth: Growth,
    rounding: float,
    *,
    multiples: bool = False,
    partly: bool = False,
) -> list[Match]:
    """The ways in which a number cancels as much of a growth as it can.

    The number may be the size, have one factor n less one, or, with `multiples`, be a
    simple multiple of it; with either sign. With `partly` these are all ways, also
    those that cancel half a power.
    """
    value, power = abs(pending.value), pending.power
    if value in (0.0, 1.0) or not math.isfinite(value):
        return []
    found: list[tuple[float, Match]] = []
    for cancels in _parts(growth, partly):
        size = math.prod(float(width(a)) ** e for a, e in cancels.items())
        if size <= 0 or size == 1.0:
            continue
        wanted = size ** (-1 / power)
        left = sum(abs(e) for e in growth.values()) - sum(map(abs, cancels.values()))
        exponents = tuple((axis, -e / power) for axis, e in cancels.items())
        entries = math.prod(width(axis) for axis in cancels)
        if equal(value, wanted, rounding):
            found.append((left, Match(cancels, Follow(exponents))))
        elif multiples and _is_multiple(value, wanted, entries, exponents, rounding):
            found.append((left + 100, Match(cancels, Follow(exponents))))
        # A variance divides by n - 1; what takes away a norm's growth never is so.
        divides = all(e > 0 for e in cancels.values())
        if divides and entries > 2 and {e for _, e in exponents} <= _WHOLE_POWERS:
            less = {_less_one(float(entries), e) for _, e in exponents}
            one = less.pop()
            pairs = {e for _, e in exponents} <= {-2.0, 2.0}  # half of them differ
            ways = (one, one / 2, one * 2) if pairs else (one,)
            if not less and any(equal(value, way, rounding) for way in ways):
                found.append((left + 0.25, Match(cancels, Follow(exponents, less=1))))
    if not found:
        return []
    if partly:
        return [match for _, match in sorted(found, key=lambda way: way[0])]
    least = min(left for left, _ in found)
    return [match for left, match in found if left == least]


_WHOLE_POWERS = {-2.0, -1.0, 1.0, 2.0}


def _is_multiple(
    value: float,
    wanted: float,
    entries: int,
    exponents: tuple[tuple[Axis, float], ...],
    rounding: float,
) -> bool:
    """Whether a number is a simple multiple of the one that cancels a growth.

    Roots of some sizes are small integers, and so are multiples of them: 16 beside 64
    units is a quarter of them or twice their root, and of 66 nobody would have asked.
    """
    if not all(float(exponent).is_integer() for _, exponent in exponents):
        return False
    if any(equal(value, k * wanted**0.5, rounding) for k in (0.5, 2.0)):
        return False
    return any(
        entries > least and equal(value, factor * wanted, rounding)
        for factor, least in _MULTIPLES.items()
    )


def _parts(growth: Growth, halves: bool) -> Iterator[dict[Axis, float]]:
    """All that could be taken from a growth: some axes, wholly or by one power."""
    axes = [
        (axis, e) for axis, e in growth.items() if isinstance(width(axis), int) and e
    ][:6]
    choices = [
        [0.0, e]
        + [math.copysign(1.0, e)] * (abs(e) > 1)
        + [math.copysign(0.5, e)] * (halves and abs(e) > 0.5)
        for _, e in axes
    ]
    for chosen in itertools.product(*choices):
        part = {axis: c for (axis, _), c in zip(axes, chosen, strict=True) if c}
        if part:
            yield part


def log_match(value: float, logs: Growth, rounding: float) -> Follow | None:
    """How a number, its sign aside, is the logarithm of a growth, or its inverse."""
    axes = [(a, e) for a, e in logs.items() if isinstance(width(a), int)]
    if len({e for _, e in axes}) != 1:
        return None
    total = axes[0][1] * math.log(math.prod(width(a) for a, _ in axes))
    for exponent in (1.0, -1.0) if total else ():
        if equal(abs(value), abs(total) ** exponent, rounding):
            return Follow(tuple((axis, exponent) for axis, _ in axes), log=True)
    return None


_PLAIN = (0.0, 0.5, 1.0, 2.0)
"""Numbers that stand everywhere, whatever the sizes are."""


def sizes_in(value: float, axes: tuple[Axis, ...], rounding: float) -> Axis | None:
    """The axis of whose size a number is a power (1, 1/2, less one, logarithm)."""
    value = abs(value)
    if value in _PLAIN or not math.isfinite(value):
        return None
    for axis in axes:
        size = width(axis)
        if not isinstance(size, int) or size < 2:
            continue
        powers = (size, 1 / size, size**0.5, size**-0.5)
        others = (size - 1, math.log(size))
        if any(equal(value, float(p), rounding) for p in (*powers, *others) if p):
            return axis
    return None


def frequency_of(value: float, axes: Sequence[Axis], rounding: float) -> Axis | None:
    """The axis along which positions are scaled to run from 1 to some whole number.

    As log(10000) / n does in exp(-i * log(10000) / n), or 8 / n in 2 ** (-8 * i / n).
    """
    if abs(value) in _PLAIN:
        return None
    for axis in axes:
        size = width(axis)
        for steps in (size, 2 * size) if isinstance(size, int) and size > 4 else ():
            turn = abs(value) * steps
            if any(equal(turn, whole, rounding) for whole in range(3, 17)):
                return axis
            largest = round(math.exp(turn)) if turn < 20 else 0
            if largest > 20_000:  # of them any number is a logarithm; of these few are
                largest = round(largest, -4)
            if largest > 16 and equal(turn, math.log(largest), rounding):
                return axis
    return None


class Sizes:
    """The powers of sizes of axes that narrow, and of products of two: a table.

    A number among them is one that may stand for a size, wherever it stands.
    """

    def __init__(self, axes: Sequence[Axis]):
        found: dict[float, tuple[Axis, Follow]] = {}
        by_size = {
            size: axis
            for axis in reversed(axes)
            if narrows(axis) and isinstance(size := width(axis), int) and size > 1
        }
        for size, axis in by_size.items():
            for exponent in (1.0, -1.0, 0.5, -0.5):
                found.setdefault(size**exponent, (axis, Follow(((axis, exponent),))))
            one = Follow(((axis, 1.0),), less=1), Follow(((axis, 1.0),), log=True)
            found.setdefault(float(size - 1), (axis, one[0]))
            found.setdefault(math.log(size), (axis, one[1]))
        largest = sorted(by_size.items())[-_PRODUCTS:]
        pairs = itertools.combinations_with_replacement(largest, 2)
        for (m, a), (n, b) in pairs:
            for exponent in (1.0, -1.0, 0.5, -0.5):
                both = times({a: exponent}, {b: exponent})
                follow = Follow(tuple(both.items()))
                found.setdefault(float(m * n) ** exponent, (a, follow))
        self._values = sorted(found)
        self._found = found

    def find(self, value: float) -> tuple[Axis, Follow] | None:
        """The axis, and how the number follows it, of a number that is such a power."""
        value = abs(value)
        if value in (0.0, 0.5, 1.0, 2.0) or not math.isfinite(value):
            return None
        at = bisect.bisect_left(self._values, value)
        for near in self._values[max(at - 1, 0) : at + 1]:
            if equal(value, near):
                return self._found[near]
        return None


_PRODUCTS = 8  # of so many sizes, the largest, products are looked for
