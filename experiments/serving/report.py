"""Results as tables and pictures."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mslice_jax.serve import Simulation, plot_attainment

from .outcome import Result


def as_simulation(done: Result) -> Simulation:
    """Measured requests as `plot_serving` draws them."""
    return Simulation(
        arrived=done.due,
        deadline=done.due + done.slo_s,
        started=np.full(len(done.due), np.nan),
        finished=np.where(done.served, done.answered, np.nan),
        rate=np.where(done.served, done.rate, np.nan),
        batch=np.zeros(len(done.due), int),
    )


def row_of(
    trace: str, policy: str, measured: Mapping[str, Any], simulated: Mapping[str, Any]
) -> dict[str, Any]:
    """A row of the table: shares and accuracies in percent, the difference in points.

    Args:
      trace, policy: names.
      measured: of `Result.summary`.
      simulated: of `Simulation.summary`.
    """
    share, said = 100 * measured["in_time"], 100 * simulated["in_time"]
    return {
        "trace": trace,
        "policy": policy,
        "in_time": share,
        "simulated": said,
        "difference": share - said,
        "accuracy": _percent(measured.get("accuracy")),
        "simulated_accuracy": _percent(simulated.get("accuracy")),
        "p50_ms": measured["p50_ms"],
        "p99_ms": measured["p99_ms"],
        "void": measured["void"],
    }


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table of four traces."""
    lines = [
        "| trace | policy | in time, % | simulated | points apart | accuracy, % | "
        "simulated | p50, ms | p99, ms |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        names = ("in_time", "simulated", "difference", "accuracy")
        cells = [_number(row[name], 2) for name in names]
        cells[2] = cells[2] if cells[2].startswith("-") else f"+{cells[2]}"
        cells += [_number(row["simulated_accuracy"], 2)]
        cells += [_number(row[name], 1) for name in ("p50_ms", "p99_ms")]
        void = " (void: the load was late)" if row["void"] else ""
        lines.append(
            f"| {row['trace']} | {row['policy']}{void} | {' | '.join(cells)} |"
        )
    return "\n".join(lines) + "\n"


def attainment(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """A picture for each trace: the share in time against the accuracy, as measured."""
    for trace in dict.fromkeys(row["trace"] for row in rows):
        # Who served nobody in time has no accuracy.
        points = {
            row["policy"]: (row["in_time"] / 100, row["accuracy"] / 100)
            for row in rows
            if row["trace"] == trace and row["accuracy"] is not None
        }
        if points:
            path = folder / f"attainment_{trace.replace(' ', '_')}.png"
            plot_attainment(path, points, title=f"{trace}, measured over HTTP")


def save(path: Path, told: Mapping[str, Any]) -> None:
    """Writes JSON."""
    path.write_text(json.dumps(told, indent=1, default=str) + "\n", encoding="utf-8")


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
