"""Which numbers follow the width: as the user, the function or the analysis says."""

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from ..axes import Axis, Widths, groups_in, width
from ..growth import Follow, Use, equal
from .own import Own
from .result import Counts, Place, line_of


class NumberWarning(UserWarning):
    """A number looks like the size of an axis that narrows, but stays what it is."""


@dataclass(frozen=True, slots=True)
class Number:
    """A number of the program that is a power of the size of an axis that narrows.

    Attributes:
      value: the number at full width.
      size: the size of the axis.
      groups: the width groups of the axis.
      where: the user's line.
      follows: whether it follows the width.
      why: what decided that.
      meets: why it matters where it stands; '' where nothing speaks for it.
    """

    value: float
    size: int
    groups: tuple[str, ...]
    where: str
    follows: bool
    why: str
    meets: str

    def __str__(self) -> str:
        verb = "follows" if self.follows else "stays"
        at = f" at {self.where}" if self.where else ""
        what = f"{self.value:.6g} beside {' and '.join(self.groups)} ({self.size})"
        why = ", ".join(text for text in (self.why, self.meets) if text)
        return f"{what} {verb}{at}: {why}" if why else f"{what} {verb}{at}"

    @property
    def open(self) -> bool:
        """Whether it stays, matters, and nobody said that it may."""
        return not self.follows and bool(self.meets)


_HELD = "it counts what was summed over the axis, though the function holds it fixed"
_OF_INPUT = "it is the size of an input"
_MAY_COUNT = "it may count what is summed over the axis; the function holds it fixed"
_ASKED, _OWN = "as asked", "the function's own program says so"


@dataclass(frozen=True, slots=True)
class Asked:
    """What the user decided: patterns of lines whose numbers follow, or stay."""

    follow: tuple[str, ...] = ()
    stay: tuple[str, ...] = ()

    def of(self, line: str) -> bool | None:
        """Whether numbers of the line follow; None where nothing is said of it."""
        if any(_names(pattern, line) for pattern in self.stay):
            return False
        return True if any(_names(pattern, line) for pattern in self.follow) else None


def _names(pattern: str, line: str) -> bool:
    """Whether a pattern names a line, such as 'net.py:12 (Net.__call__)'."""
    return fnmatchcase(line, pattern) or fnmatchcase(line.partition(" ")[0], pattern)


def decide(counts: Counts, asked: Asked) -> None:
    """Has numbers follow and stay as the user asked."""
    for use, seen in list(counts.seen.items()) if asked != Asked() else ():
        follows = asked.of(counts.line(use))
        if follows is None or (follows and use in counts.tables):
            continue
        counts.asked[use] = follows
        if not follows:
            counts.follows.pop(use, None)
        elif use not in counts.follows:
            counts.follows[use] = seen.follow or power_of(seen.value, seen.axis)
            counts.values.setdefault(use, seen.value)


def power_of(value: float, axis: Axis) -> Follow:
    """How a number that is a power of the size of an axis follows it."""
    size, number = width(axis), abs(value)
    for exponent in (1.0, -1.0, 0.5, -0.5):
        if any(equal(number, k * size**exponent) for k in (1.0, 0.5, 2.0)):
            return Follow(((axis, exponent),))
    if equal(number, size - 1):
        return Follow(((axis, 1.0),), less=1)
    return Follow(((axis, 1.0),), log=True)


def merge(
    counts: Counts, own: Own, asked: Asked, of_inputs: Set[Place], widths: Widths
) -> dict[tuple[int, int], dict[int, Any]]:
    """The numbers of a program that has one of its own, by (frame id, equation).

    They are its own; where it holds a size fixed right after the sum that it counts,
    as a module does in its attributes, the number is that of the analysis. Elsewhere,
    or as the weight of a term, it may be there by chance: it stays, and is told.

    Args:
      counts: what the analysis says.
      own: the own program at these widths.
      asked: what the user says.
      of_inputs: numbers that are sizes of inputs, whatever they look like.
      widths: how many indices each group keeps.
    """
    numbers = {where: dict(operands) for where, operands in own.operands.items()}
    for frame, index in list(numbers) if asked.stay else ():
        if asked.of(line_of(counts.frames[frame], index)) is False:
            del numbers[frame, index]
    sure = counts.direct & {*held(counts, [own])} - _coefficients(counts)
    for use in {*sure, *counts.asked} & counts.follows.keys():
        others = () if use in counts.asked else (use, *counts.others.get(use, ()))
        one = next((o for o in others if counts.place(o) not in of_inputs), None)
        if use in counts.asked:
            one = use
        if one is not None:
            number = counts.follows[use].at(counts.values[one], widths)
            numbers.setdefault((one.frame, one.index), {})[one.operand] = number
    return numbers


def held(counts: Counts, owns: Sequence[Own]) -> list[Use]:
    """Numbers that count what was summed, though the own programs keep them."""
    return [
        use
        for use in counts.follows
        if not _any_follows(counts, owns, counts.others.get(use, (use,)))
    ]


def _coefficients(counts: Counts) -> set[Use]:
    """Numbers that people write as weights of a term: 0.1, 0.01, 0.001, 0.0001.

    The mean of 100 terms, where the function holds their number, looks the same. Its
    own program keeps the number, so it stays, and is told.
    """
    return {
        use
        for use, value in counts.values.items()
        if any(equal(abs(value), 10.0**-k, 1e-6) for k in range(1, 5))
    }


def describe(
    counts: Counts, owns: Sequence[Own], of_inputs: Mapping[Place, bool]
) -> tuple[Number, ...]:
    """The numbers of a program, for the report.

    Args:
      counts: what the analysis says.
      owns: the function's own programs at narrow widths, where it has them.
      of_inputs: numbers that count, though the function holds them, and may be sizes
        of inputs; and whether that is certain.
    """
    found, of_held = {}, set(held(counts, owns))
    for use, seen in counts.seen.items():
        follows, why, meets = use in counts.follows, "", seen.meets
        if use in counts.asked:
            why = _ASKED
        elif owns and use in of_held:
            of_input = of_inputs.get(counts.place(use))
            sure = use in counts.direct and use not in _coefficients(counts)
            follows = of_input is None and sure
            why = _OF_INPUT if of_input else _HELD if follows else ""
            meets = _MAY_COUNT
        elif owns:
            follows, why = _any_follows(counts, owns, [use]), _OWN
        found[use] = Number(
            value=float(seen.value),
            size=seen.size,
            groups=_groups(seen.axis),
            where=counts.line(use),
            follows=follows,
            why=why,
            meets="" if why else meets,
        )
    return tuple(dict.fromkeys(found.values()))


def _any_follows(counts: Counts, owns: Sequence[Own], uses: Iterable[Use]) -> bool:
    """Whether one of the numbers is another one in the function's own programs."""
    return any(
        own.follows(counts.frames[use.frame], use.index, use.operand)
        for own in owns
        for use in uses
    )


def _groups(axis: Axis) -> tuple[str, ...]:
    return tuple(dict.fromkeys(groups_in(axis)))


def lines(counts: Counts) -> list[str]:
    """The lines of all numbers that can be decided."""
    return list(dict.fromkeys(counts.line(use) for use in counts.seen))


def unmatched(patterns: Iterable[str], known: Sequence[str]) -> list[str]:
    """The patterns that name none of the lines."""
    return [p for p in patterns if not any(_names(p, line) for line in known)]


def warning(numbers: Sequence[Number]) -> str:
    """What is said of numbers that stay and matter; '' where there are none."""
    left = [number for number in numbers if number.open]
    if not left:
        return ""
    listed = "\n".join(f"  {number}" for number in left[:8])
    more = f"\n  and {len(left) - 8} more" if len(left) > 8 else ""
    return (
        "these numbers look like the size of an axis that narrows, and stay what they "
        f"are at every rate:\n{listed}{more}\nSay follow='file.py:12' where a number "
        "is to be made of the narrow size, and stay='file.py:12' where it is right as "
        "it is; patterns may have *. `report` lists them all."
    )
