"""The compared schemes, each as settings of a recipe.

Section 3.3 of the paper schedules the rates of a step: all of them (static), drawn
alike or with weights (R-uniform, R-weighted), and with fixed ends (R-min, R-max,
R-min-max). The sandwich is that of slimmable networks (Yu and Huang, ICCV 2019).
"""

import dataclasses
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
    DISTILLED: "the same, and the widest teaches the others",
}
"""What a step trains, by the name of the scheme."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Member:
    """One run of a comparison.

    Attributes:
      scheme: its name, one of `SCHEMES`.
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


def members(
    schemes: Sequence[str],
    rates: Sequence[float],
    seeds: Sequence[int],
    given: Any,
    workdir: Path,
) -> list[Member]:
    """All runs of a comparison, one seed after the other.

    Args:
      schemes: names of `SCHEMES`.
      rates: the rates of the table, at least two.
      seeds: one run each; `independent` has one for each rate besides.
      given: settings of the recipe that all runs share.
      workdir: the folder of the comparison.
    """
    found = []
    for seed in seeds:
        for scheme in schemes:
            parts = [(r,) for r in rates] if scheme == INDEPENDENT else [tuple(rates)]
            for part in parts:
                name = scheme
                if scheme == INDEPENDENT:
                    name = f"{scheme}-{rate_key(part[0])}"
                folder = Path(name) / f"seed-{seed}"
                settings = dataclasses.replace(
                    given,
                    **changes(scheme, part, given),
                    seed=seed,
                    workdir=workdir / folder,
                )
                found.append(
                    Member(
                        scheme=scheme,
                        seed=seed,
                        measured=part,
                        folder=folder,
                        settings=settings,
                    )
                )
    return found


def changes(scheme: str, rates: Sequence[float], given: Any) -> dict[str, Any]:
    """The settings of a scheme.

    Args:
      scheme: a name of `SCHEMES`.
      rates: the rates of the table.
      given: settings with weights for `weighted`, and share and temperature for the
        distillation, where they are not the defaults.
    """
    of: dict[str, Any] = {
        "rates": tuple(rates),
        "schedule": scheme,
        "num_random": None,
        "rate_weights": None,
        "distill": 0.0,
        "temperature": None,
    }
    if scheme == INDEPENDENT:
        of |= {"schedule": "static"}
    if scheme == "random":
        of |= {"num_random": min(2, len(rates) - 1)}
    if scheme == WEIGHTED:
        weights = given.rate_weights or ends_first(rates)
        drawn = min(2, len(rates) - 1, sum(weight > 0 for weight in weights))
        of |= {"schedule": "random", "num_random": drawn, "rate_weights": weights}
    if scheme in ("sandwich", DISTILLED):
        grid = with_midpoints(rates)
        of |= {"rates": grid, "schedule": "random_min_max"}
        of |= {"num_random": min(2, len(grid) - 2)}
    if scheme == DISTILLED:
        of |= {"distill": given.distill or 0.5, "temperature": given.temperature}
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
