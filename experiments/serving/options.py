"""What the measurements of the server have in common: its network, its cores, its T."""

import dataclasses
import os
from pathlib import Path
from typing import Literal


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """The server, and where results go.

    Attributes:
      checkpoint: a network to serve, as the server takes it; one is trained unless
        given.
      model: of the checkpoint, MODULE:NAME.
      accuracy: JSON of the checkpoint's accuracies by rate, unless a summary.json is
        beside it.
      network: which one is trained: heavy takes more than ten milliseconds for an
        image; tiny is for trying out.
      epochs: of that training.
      batches: batch buckets.
      repeats: how often each program is measured for the table.
      slo_ms: T; ten times what the full width takes for one request unless given.
      capacity: requests a second that the narrowest rate sustains; measured unless
        given.
      capacity_seconds: how long each load is held that is tried for that.
      server_core, load_core: cores of the processor; below 0 nothing is pinned.
      tries: how often a run is tried whose load was late itself.
      workdir: where everything is kept; a command that was interrupted goes on.
    """

    checkpoint: Path | None = None
    model: str | None = None
    accuracy: Path | None = None
    network: Literal["heavy", "tiny"] = "heavy"
    epochs: int = 30
    batches: tuple[int, ...] = (1, 2, 4, 8, 16)
    repeats: int = 30
    slo_ms: float | None = None
    capacity: float | None = None
    capacity_seconds: float = 10.0
    server_core: int = 0
    load_core: int = 1
    tries: int = 3
    workdir: Path = Path("runs/elastic_serving")

    def check(self) -> None:
        """Raises ValueError for options that do not fit."""
        for name in ("epochs", "repeats", "tries"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} is at least 1.")
        for name in ("slo_ms", "capacity", "capacity_seconds"):
            if (value := getattr(self, name)) is not None and not value > 0:
                raise ValueError(f"--{name.replace('_', '-')} is above 0.")
        if self.checkpoint is None and (self.model or self.accuracy):
            raise ValueError("--model and --accuracy go with --checkpoint.")
        if not self.batches or min(self.batches) < 1:
            raise ValueError("--batches are numbers from 1, one at least.")
        there = os.cpu_count() or 1
        for name in ("server_core", "load_core"):
            if getattr(self, name) >= there:
                flag = name.replace("_", "-")
                raise ValueError(f"--{flag} is below {there}, the number of cores.")

    def common(self) -> dict[str, object]:
        """What all runs in a workdir have in common."""
        names = ("checkpoint", "model", "network", "epochs", "batches", "slo_ms")
        return {name: getattr(self, name) for name in (*names, "capacity")}
