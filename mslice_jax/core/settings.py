"""What the user chose at `upgrade`, and what it says of each parameter."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .counts import Asked
from .errors import PlanError
from .groups import Parameter, Units
from .patterns import matches, no_match


@dataclass(frozen=True)
class Settings:
    """What the user chose: the arguments of `upgrade` that shape the plan.

    Patterns are those of `mslice_jax.core.patterns`.
    """

    rates: tuple[float, ...]
    units: Units = Units()
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    inner: tuple[str, ...] = ()
    asked: Asked = Asked()
    strict: bool = False
    check: bool = True


def choices(settings: Settings, ranks: Mapping[str, int]) -> dict[str, Parameter]:
    """For each parameter what the patterns of the settings say of its axes.

    Args:
      settings: what the user chose.
      ranks: how many axes each parameter has, by path.

    Raises:
      PlanError: if a pattern matches nothing.
    """
    axes = [(path, axis) for path, rank in ranks.items() for axis in range(rank)]

    def named(argument: str, patterns: Sequence[str]) -> dict[tuple[str, int], str]:
        """The axes that some pattern names, with the first that does."""
        found: dict[tuple[str, int], str] = {}
        for pattern in patterns:
            hits = [(p, axis) for p, axis in axes if matches(pattern, p, axis)]
            if not hits:
                raise PlanError(no_match(pattern, ranks, argument))
            for hit in hits:
                found.setdefault(hit, pattern)
        return found

    include = named("include", settings.include)
    exclude = named("exclude", settings.exclude)
    inner = named("inner", settings.inner)
    whole: dict[str, dict[int, str]] = {path: {} for path in ranks}
    for path, axis in axes:
        if settings.include and (path, axis) not in include:
            whole[path][axis] = f"not in include={', '.join(settings.include)}"
        elif (path, axis) in exclude:
            whole[path][axis] = f"excluded by {exclude[path, axis]!r}"
    return {
        path: Parameter(
            path,
            whole=whole[path],
            inner=frozenset(
                axis for axis in range(ranks[path]) if (path, axis) in inner
            ),
        )
        for path in ranks
    }
