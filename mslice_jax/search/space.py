"""The networks that a search chooses from: a declared rate for every width group."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

from ..core.errors import PlanError
from ..core.rates import SubNetwork
from ..core.run import resolve
from ..sliceable import Sliceable

Choice: TypeAlias = tuple[int, ...]
"""For each group which of its widths, counted from the narrowest."""


@dataclass(frozen=True)
class Space:
    """All mappings of a network, by choice.

    Attributes:
      groups: their names.
      rates: for each group the rates that give it another width, ascending; of those
        that give the same one the highest.
      widths: the widths that they give.
      uniform: the choice of each declared rate.
    """

    groups: tuple[str, ...]
    rates: tuple[tuple[float, ...], ...]
    widths: tuple[tuple[int, ...], ...]
    uniform: dict[float, Choice]

    @property
    def narrowest(self) -> Choice:
        """Every group at its narrowest."""
        return (0,) * len(self.groups)

    @property
    def widest(self) -> Choice:
        """Every group at its widest."""
        return tuple(len(widths) - 1 for widths in self.widths)

    def mapping(self, choice: Choice) -> dict[str, float]:
        """What `slice_apply` takes in place of a rate."""
        return {
            name: rates[at]
            for name, rates, at in zip(self.groups, self.rates, choice, strict=True)
        }

    def kept(self, choice: Choice) -> dict[str, int]:
        """The width of every group."""
        return {
            name: widths[at]
            for name, widths, at in zip(self.groups, self.widths, choice, strict=True)
        }

    def narrower(self, choice: Choice) -> Iterator[Choice]:
        """The choices with one group a step narrower."""
        for at, index in enumerate(choice):
            if index:
                yield (*choice[:at], index - 1, *choice[at + 1 :])

    def wider(self, choice: Choice) -> Iterator[Choice]:
        """The choices with one group a step wider."""
        for at, (index, last) in enumerate(zip(choice, self.widest, strict=True)):
            if index < last:
                yield (*choice[:at], index + 1, *choice[at + 1 :])

    def nearest(self, part: SubNetwork) -> Choice:
        """The widest choice that a sub-network holds, for what is no choice itself."""
        kept = dict(part.widths)
        return tuple(
            max((i for i, width in enumerate(widths) if width <= kept[name]), default=0)
            for name, widths in zip(self.groups, self.widths, strict=True)
        )


def space_of(net: Sliceable) -> Space:
    """The space of a network, whole or extracted.

    Raises:
      ValueError: if no group has a second width.
      RateError: if it has norms with one set of arrays for each rate.
      PlanError: if the names of the groups do not tell them apart.
    """
    plan, held = net.plan, dict(net.part.widths)
    rates, widths = [], []
    for name, group in plan.groups.items():
        # Of rates that give one width the last stays.
        by_width = {group.width(rate): rate for rate in plan.rates}
        by_width = {kept: r for kept, r in by_width.items() if kept <= held[name]}
        by_width = by_width or {held[name]: 1.0}
        widths.append(tuple(by_width))
        rates.append(tuple(by_width.values()))
    if max(map(len, widths)) == 1:
        raise ValueError(
            f"nothing to search: every width group has one width at the rates "
            f"{plan.rates}. Declare more rates in `upgrade`, or more groups=."
        )
    names = tuple(plan.groups)
    uniform = {
        rate: tuple(
            at.index(plan.groups[name].width(rate))
            for name, at in zip(names, widths, strict=True)
        )
        for rate in net.rates
    }
    space = Space(names, tuple(rates), tuple(widths), uniform)
    for choice in (space.narrowest, *space.narrower(space.widest)):
        part = resolve(net.definition, space.mapping(choice), net.part)
        if dict(part.widths) != space.kept(choice):
            raise PlanError(
                f"the names of the width groups {names} are patterns of each other, so "
                "no mapping gives each its own rate; rename the parameters."
            )
    return space
