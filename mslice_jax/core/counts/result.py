"""What the analysis of a program says of its numbers."""

from dataclasses import dataclass, field
from typing import TypeAlias

from ..axes import Axis, Widths, width
from ..growth import Follow, Known, Use
from ..rules import Frame
from ..source import user_line

Place: TypeAlias = tuple[str, int]
"""The user's line of a number, and the how manieth of that line it is."""


def line_of(frame: Frame, index: int) -> str:
    """The user's line of an equation."""
    return user_line((frame.jaxpr.eqns[index].source_info, *frame.sources))


@dataclass(frozen=True, slots=True)
class Seen:
    """A number that is a power of the size of an axis that narrows.

    Attributes:
      value: the number at full width.
      axis: the axis.
      meets: why the number matters where it stands; '' where nothing speaks for it.
      follow: how it would follow the width, where that is known.
    """

    value: float
    axis: Axis
    meets: str = ""
    follow: Follow | None = None

    @property
    def size(self) -> int:
        """The size of the axis."""
        return width(self.axis)


@dataclass(slots=True)
class Counts:
    """What the numbers of a program stand for.

    Attributes:
      follows: the numbers that follow the width.
      seen: the numbers that are a power of a size that narrows, the former among them.
      frames: the frames by their ids, of all uses.
      values: the numbers themselves, at full width.
      direct: those right after the sum that they count.
      others: of numbers that cancel a growth together, those that could follow instead.
      tables: those that are made into a table at full width, which is cut: they stay.
      asked: what the user said of some, see `decisions`.
      operands: what is known of the operands of equations with their own derivative.
      results: what is known of the results of the program.
    """

    follows: dict[Use, Follow] = field(default_factory=dict)
    seen: dict[Use, Seen] = field(default_factory=dict)
    frames: dict[int, Frame] = field(default_factory=dict)
    operands: dict[tuple[int, int], list[Known]] = field(default_factory=dict)
    results: list[Known] = field(default_factory=list)
    values: dict[Use, float] = field(default_factory=dict)
    asked: dict[Use, bool] = field(default_factory=dict)
    tables: set[Use] = field(default_factory=set)
    direct: set[Use] = field(default_factory=set)
    others: dict[Use, tuple[Use, ...]] = field(default_factory=dict)
    _places: dict[Use, Place] | None = None
    _at: dict[tuple[int, int], dict[Use, Follow]] | None = None

    @property
    def has_backward(self) -> bool:
        """Whether some function of the program has a backward pass of its own."""
        names = (self.frames[f].jaxpr.eqns[i].primitive.name for f, i in self.operands)
        return "custom_vjp_call" in names

    def line(self, use: Use) -> str:
        """The user's line of a number."""
        return line_of(self.frames[use.frame], use.index)

    def place(self, use: Use) -> Place:
        """Which number it is, also in another program of the function."""
        if self._places is None:
            seen: dict[str, int] = {}
            self._places = {}
            for each in self.values:
                line = self.line(each)
                seen[line] = seen.get(line, -1) + 1
                self._places[each] = line, seen[line]
        return self._places[use]

    def numbers(self, frame: Frame, index: int, widths: Widths) -> dict[int, float]:
        """The operands of an equation that are other numbers at these widths."""
        if self._at is None:
            self._at = {}
            for use, follow in self.follows.items():
                self._at.setdefault(use[:2], {})[use] = follow
        found = self._at.get((id(frame), index))
        if not found:
            return {}
        return {
            use.operand: number
            for use, follow in found.items()
            if (number := follow.at(self.values[use], widths)) != self.values[use]
        }
