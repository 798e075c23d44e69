"""Results of a run of the coverage, as JSON; the page is made of them."""

import dataclasses
import json
import pathlib
from typing import Any

EXACT = ("identity", "influence", "extraction", "nesting", "compilation")
"""The proofs without room for rounding."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """Results of one network.

    `errors` has the error of each proof, relative to the largest entry.
    """

    package: str
    name: str
    equations: int
    parameters: int
    elastic: float
    """Share of the parameters with an axis that narrows."""
    half: float
    """Parameters at rate .5 over all of them."""
    seconds: float
    """CPU time of `upgrade` beyond the trace."""
    errors: dict[str, float]
    fixed: str
    own_trace: str | None
    """Whether the function's own trace is the narrow program; None: not known."""
    numbers: int | None
    """Warnings of numbers that stay; None: none are given."""
    wall: float
    """Seconds for building and all proofs."""

    def __str__(self) -> str:
        return f"{self.package}:{self.name}"

    def failed(self, tolerance: float) -> list[str]:
        """The proofs that do not hold."""
        return [
            proof
            for proof, error in self.errors.items()
            if not error <= (0.0 if proof in EXACT else tolerance)  # NaN fails
        ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One run of the coverage, and its machine.

    Attributes:
      command: as typed.
      date: the day, as 2026-11-25.
      python: the version.
      versions: of jax and of every package of the table.
      cores: number of CPU cores of the machine.
      minutes: duration of the run.
      tolerance: largest error of a proof.
      rates: that the networks ran at.
      rows: results, package by package.
      crashed: networks that were not upgraded, and the last line of the error.
      absent: packages that were not installed.
    """

    command: str
    date: str
    python: str
    versions: dict[str, str]
    cores: int
    minutes: float
    tolerance: float
    rates: tuple[float, ...]
    rows: tuple[Row, ...]
    crashed: dict[str, str]
    absent: tuple[str, ...]

    @property
    def jax(self) -> str:
        """The version of JAX."""
        return self.versions["jax"]

    def to_dict(self) -> dict[str, Any]:
        """Data for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def read(cls, path: pathlib.Path) -> "Run":
        """A run from the JSON file of `to_dict`."""
        data = json.loads(path.read_text())
        rows = tuple(Row(**row) for row in data.pop("rows"))
        lists = {name: tuple(data.pop(name)) for name in ("rates", "absent")}
        return cls(rows=rows, **lists, **data)
