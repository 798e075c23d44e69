"""The compared schemes, each as settings of a recipe.

Section 3.3 of the paper schedules the rates of a step: all of them (static), drawn
alike or with weights (R-uniform, R-weighted), and with fixed ends (R-min, R-max,
R-min-max). The sandwich is that of slimmable networks (Yu and Huang, ICCV 2019). Flags
of the recipe may follow the name, and hold for this scheme alone.
"""

import dataclasses
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mslice_jax.core.rates import rate_key

INDEPENDENT, WEIGHTED, DISTILLED = "independent", "weighted", "sandwich_distill"

SCHEMES = {
    INDEPENDENT: "a network for each rate, trained at this rate alone",
    "static": "all rates in each step",
    "random": "two rates, drawn alike",
    WEIGHTED: "two rates, drawn with weights: the widest and the narrowest more often",
    "random_min": "the narrowest, and one drawn",
    "random_max": "the widest, and one drawn",
    "random_min_max": "the widest, the narrowest, and one drawn between them",
    "sandwich": "the widest, the narrowest, and two drawn from a finer grid",
    DISTILLED: "the same with --distill 0.5: the widest teaches the others",
}
"""What a step trains, by the name of the scheme."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Member:
    """One run of a comparison.

    Attributes:
      scheme: as it was given: one of `SCHEMES`, and flags of its own.
      seed: of weights, data order and rates.
      measured: the rates that it stands for in the table.
      folder: of the run, below the folder of the comparison.
      settings: of the recipe, not yet resolved.
      passes: rates that a step trains.
    """

    scheme: str
    seed: int
    measured: tuple[float, ...]
    folder: Path
    settings: Any
    passes: int = 0

    def __str__(self) -> str:
        return ", ".join(self.folder.parts).replace("-", " ")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scheme:
    """A row of the table.

    Attributes:
      text: as it was given.
      name: one of `SCHEMES`.
      flags: what followed the name.
    """

    text: str
    name: str
    flags: tuple[str, ...]

    @property
    def folder(self) -> str:
        """The text as the name of a folder, such as "static-distill-0.3"."""
        return re.sub(r"[^\w.]+", "-", self.text).strip("-")

    def of_rate(self, rate: float) -> str:
        """The folder of the network that is trained at one rate alone."""
        own = self.folder.removeprefix(INDEPENDENT)
        return f"{INDEPENDENT}-{rate_key(rate)}{own}"


def as_scheme(text: str) -> Scheme:
    """A scheme from its name and flags; ValueError for a name that there is not.

    Example:
      >>> as_scheme("static --distill .3").flags
      ('--distill', '.3')
    """
    name, *flags = shlex.split(text) or [""]
    if name not in SCHEMES:
        raise ValueError(
            f"there is no scheme {name!r}. --schemes takes {', '.join(SCHEMES)}, and "
            'flags behind a name in quotes: "static --distill 0.3".'
        )
    return Scheme(text=text, name=name, flags=tuple(flags))


def members(
    schemes: Sequence[tuple[Scheme, Any]],
    rates: Sequence[float],
    seeds: Sequence[int],
    workdir: Path,
) -> list[Member]:
    """All runs of a comparison, one seed after the other.

    Args:
      schemes: each with the settings of the recipe that its runs share.
      rates: the rates of the table, at least two.
      seeds: one run each; `independent` has one for each rate besides.
      workdir: the folder of the comparison.

    Raises:
      ValueError: for --rates of a scheme that lack one of the table.
    """
    found = []
    for seed in seeds:
        for scheme, given in schemes:
            alone = scheme.name == INDEPENDENT
            parts = [(r,) for r in rates] if alone else [tuple(rates)]
            for part in parts:
                name = scheme.of_rate(part[0]) if alone else scheme.folder
                folder = Path(name) / f"seed-{seed}"
                settings = dataclasses.replace(
                    given,
                    **changes(scheme, part, given),
                    seed=seed,
                    workdir=workdir / folder,
                )
                found.append(
                    Member(
                        scheme=scheme.text,
                        seed=seed,
                        measured=part,
                        folder=folder,
                        settings=settings,
                    )
                )
    return found


def changes(scheme: Scheme, rates: Sequence[float], given: Any) -> dict[str, Any]:
    """The settings that a scheme decides.

    Args:
      scheme: its name, and whether its flags have --rates.
      rates: the rates of the table.
      given: settings of the recipe, with the flags of the scheme.

    Raises:
      ValueError: for --rates that lack one of the table.
    """
    if scheme.name != INDEPENDENT and "--rates" in scheme.flags:
        if missing := set(rates) - set(given.rates):
            raise ValueError(
                f"{scheme.text}: expected --rates with those of the table, got none of "
                f"{', '.join(f'{rate:g}' for rate in sorted(missing))}."
            )
        rates = given.rates
    of: dict[str, Any] = {"rates": tuple(rates), "schedule": scheme.name}
    if scheme.name == INDEPENDENT:
        of |= {"schedule": "static"}
    if scheme.name == "random":
        of |= {"num_random": given.num_random or min(2, len(rates) - 1)}
    if scheme.name == WEIGHTED:
        weights = given.rate_weights or ends_first(rates)
        drawn = min(2, len(rates) - 1, sum(weight > 0 for weight in weights))
        of |= {"schedule": "random", "num_random": given.num_random or drawn}
        of |= {"rate_weights": weights}
    if scheme.name in ("sandwich", DISTILLED):
        grid = rates if "--rates" in scheme.flags else with_midpoints(rates)
        of |= {"rates": tuple(grid), "schedule": "random_min_max"}
        of |= {"num_random": given.num_random or min(2, len(grid) - 2)}
    if scheme.name == DISTILLED:
        of |= {"distill": given.distill or 0.5}
    return of


def ends_first(rates: Sequence[float]) -> tuple[float, ...]:
    """The paper's weights: half for the widest, a quarter for the narrowest.

    The other rates share the last quarter. They are in the order of `rates`.

    Example:
      >>> ends_first((1.0, 0.75, 0.5, 0.25))
      (0.5, 0.125, 0.125, 0.25)
    """
    ends = {max(rates): 0.5, min(rates): 0.25}
    return tuple(ends.get(rate, 0.25 / max(len(rates) - 2, 1)) for rate in rates)


def with_midpoints(rates: Sequence[float]) -> tuple[float, ...]:
    """The rates and the midpoints between neighbours, widest first.

    The sandwich draws two rates between the ends: of four it would draw both, each
    step, and be the static scheme.

    Example:
      >>> with_midpoints((1.0, 0.5, 0.25))
      (1.0, 0.75, 0.5, 0.375, 0.25)
    """
    every = sorted(rates, reverse=True)
    between = [(a + b) / 2 for a, b in zip(every, every[1:], strict=False)]
    return tuple(sorted((*every, *between), reverse=True))
