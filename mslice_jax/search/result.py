"""What a search found."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Point:
    """A network that a search looked at.

    Attributes:
      mapping: the declared rate of every width group, which `slice_apply`, `extract`
        and the executor take as they take a rate.
      cost: in the unit of the limit.
      score: what `evaluate` returned.
    """

    mapping: Mapping[str, float]
    cost: float
    score: float


@dataclass(frozen=True, kw_only=True)
class Found(Point):
    """The best network within the limit, and the way to it.

    Attributes:
      mapping, cost, score: of the best; of several the cheapest.
      limit: (name, value) of the limit that was given.
      uniform: the networks of the declared rates, by rate.
      rounds: what each round kept; of the greedy search these are good networks for
        other limits, from the widest to the first within this one.
      seen: all whose cost is known, in the order they were scored.
      masks: whether masks of the full network stood for slices.
    """

    limit: tuple[str, float]
    uniform: Mapping[float, Point]
    rounds: tuple[Point, ...]
    seen: tuple[Point, ...]
    masks: bool

    @property
    def frontier(self) -> tuple[Point, ...]:
        """Those that no other beats, ascending in cost and in score."""
        best: list[Point] = []
        for point in sorted(self.seen, key=lambda p: (p.cost, -p.score)):
            if not best or point.score > best[-1].score:
                best.append(point)
        return tuple(best)

    def within(self, limit: float) -> Point:
        """The best of all that were seen within another limit, in the same unit.

        Raises:
          ValueError: if none is.
        """
        fits = [point for point in self.seen if point.cost <= limit]
        if not fits:
            least = min(point.cost for point in self.seen)
            raise ValueError(
                f"no network that was seen is within {self.limit[0]}={limit:g}; the "
                f"cheapest takes {least:g}. Search with that limit."
            )
        return max(fits, key=lambda point: (point.score, -point.cost))

    def to_dict(self) -> dict[str, Any]:
        """The result as plain data that JSON can hold, but for `seen`."""

        def plain(point: Point) -> dict[str, Any]:
            return {
                "mapping": dict(point.mapping),
                "cost": point.cost,
                "score": point.score,
            }

        return {
            **plain(self),
            "limit": {self.limit[0]: self.limit[1]},
            "uniform": {str(rate): plain(p) for rate, p in self.uniform.items()},
            "rounds": [plain(point) for point in self.rounds],
            "frontier": [plain(point) for point in self.frontier],
            "seen": len(self.seen),
            "masks": self.masks,
        }


@dataclass(frozen=True)
class Round:
    """How far a search is, for a bar.

    Attributes:
      number: of the round; 1 is the first.
      done: the share of the way, in [0, 1].
      seen: how many networks were scored.
      kept: what the round kept.
    """

    number: int
    done: float
    seen: int
    kept: Point
