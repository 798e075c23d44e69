"""Which load do we carry at full width, beside mosec and LitServe, and beyond?

    pip install -e ".[serve,experiments,rivals]"
    python -m experiments.benchmarks.vs_servers --workdir runs/vs_servers \
        --out runs/vs_servers.json

One network (a vision transformer, `rivals/network.py`), the same weights, one machine:
a server on one core (all of its processes, XLA in one thread), an open loop of Poisson
arrivals from the other. mosec and LitServe serve the full width with their own dynamic
batching, and run what we run: `ms.jit`, compiled for each batch bucket before they are
ready, images and logits as bytes. Their logits must equal ours before anything is
measured. T is ten times what the full width takes for one image.

1. Our server measures its table (`mslice_jax.serve --write-table`).
2. Each rival, with six settings (the largest batch x how long it waits to fill), and
   ours at full width: the highest load at which 99 in 100 requests are answered within
   T, by bisection over a grid, in short runs. Whoever is refused is late.
3. The best setting of each again, in longer runs, up or down the grid from there.
4. Ours with all rates, at four times the load where the better rival fails.

Asked for: ours at full width carries at least what they do; with all rates at least
99.9 % are in time in 4. Cells are kept in the workdir, and are not measured again; a
run in which the load generator was late itself is void, and is tried twice more. What
came out: `experiments/LOG.md`. Linux, two cores with nothing else on them.
"""

import dataclasses
import importlib.util
import pathlib
import sys
from typing import Any

import tyro

from experiments.benchmarks.result import save
from experiments.benchmarks.rivals import network, report
from experiments.benchmarks.rivals.cells import Bench, holds
from experiments.benchmarks.rivals.contenders import Contender, Place, ours
from experiments.benchmarks.rivals.search import Found, bisect, walk
from experiments.serving.journal import Journal
from mslice_jax.serve import LatencyTable

TIMES = 4
"""How many times the load where the rivals fail."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """What to measure."""

    workdir: pathlib.Path = pathlib.Path("runs/vs_servers")
    """Checkpoint, tables, compiled programs and cells; a run goes on with them."""
    rivals: tuple[str, ...] = ("mosec", "litserve")
    """With whom to compare."""
    rows: tuple[int, ...] = (2, 4, 8)
    """Their largest batches ..."""
    waits_ms: tuple[int, ...] = (1, 10)
    """... and how long they wait for one to fill."""
    screen_s: float = 8.0
    """Seconds of a run in 2."""
    final_s: float = 30.0
    """Seconds of a run in 3 and 4."""
    elastic_runs: int = 2
    """How many runs there are in 4."""
    low: float = 0.5
    """The lowest load of the grid, of what the full width does in its best batches."""
    step: float = 0.05
    """The steps of the grid."""
    levels: int = 15
    """How many loads the grid has."""
    network: str = "WIDE"
    """WIDE; TINY is there to try the script."""
    server_core: int | None = 0
    """On which servers run; None: any."""
    load_core: int | None = 1
    """On which the load generator runs."""
    late_ms: float | None = None
    """How late the generator may be (p99); 2 ms and at most 5 % of T unless given."""
    repeats: int = 20
    """Of the table."""
    one_ms: float | None = None
    """What the full width takes for one image, in any batch; T and the loads depend on
    it. As the table says unless given."""
    out: pathlib.Path | None = None
    """Where to write the result as JSON; the tables as Markdown stand beside it."""


def check_packages(rivals: tuple[str, ...]) -> None:
    """Refuses to begin without the rivals.

    Raises:
      ImportError: that names those that are missing.
      ValueError: for one that is not known.
    """
    if unknown := set(rivals) - {"mosec", "litserve"}:
        raise ValueError(f"--rivals {unknown}: expected mosec, litserve.")
    missing = [name for name in rivals if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            f"{' and '.join(missing)} not installed; run: pip install "
            '"mslice_jax[rivals]", or compare with others: --rivals ...'
        )


def table(place: Place, repeats: int) -> LatencyTable:
    """The latency table of all rates, as our server measures it on its core."""
    file = place.folder / "table_elastic.json"
    if not file.exists():
        more = ("--repeats", str(repeats))
        command = ours(place, network.RATES, 3.6e6, file, *more)
        with place.start(command, {}) as server:
            server.said("Ready: ", seconds=3600)
            server.stop()
    found = LatencyTable.read(file)
    widest = {k: v for k, v in found.entries.items() if k.rate == 1.0}
    LatencyTable(widest, about=found.about).write(place.folder / "table_ours.json")
    return found


def search(
    bench: Bench, contender: Contender, grid: list[float], seconds: float, start: Any
) -> Found:
    """The highest load that a contender carries: from a level, or by bisection."""

    def carries(level: int) -> bool | None:
        return holds(bench.cell(contender, grid[level], seconds, seed=level))

    if start is None:
        return bisect(len(grid), carries)
    return walk(len(grid), start, carries)


def main(config: Config) -> dict[str, Any]:
    """Measures and prints."""
    check_packages(config.rivals)
    config.workdir.mkdir(parents=True, exist_ok=True)
    folder = config.workdir.resolve()
    network.prepare(folder, config.network)
    place = Place(folder=folder, network=config.network, core=config.server_core)
    measured = table(place, config.repeats)
    one_ms = config.one_ms or measured.median_ms(1.0, 1)
    most = 1e3 / one_ms
    if config.one_ms is None:
        most = max(1e3 * n / measured.median_ms(1.0, n) for n in measured.batches)
    grid = [most * (config.low + config.step * level) for level in range(config.levels)]
    slo_ms = round(10 * one_ms, 3)
    common = {"network": config.network, "slo_ms": slo_ms, "core": config.server_core}
    bench = Bench(
        place=place,
        journal=Journal(folder / "cells.jsonl", common),
        slo_ms=slo_ms,
        load_core=config.load_core,
        late_ms=config.late_ms,
    )
    print(report.table_of(measured))
    print(f"T = {bench.slo_ms:.0f} ms; loads from {grid[0]:.1f} to {grid[-1]:.1f}/s")
    contenders = [Contender(name="ours")]
    contenders += [
        Contender(name=name, rows=rows, wait_ms=wait)
        for name in config.rivals
        for rows in config.rows
        for wait in config.waits_ms
    ]
    try:
        screened = {
            each: search(bench, each, grid, config.screen_s, None)
            for each in contenders
        }
        best = report.best_of_each(screened)
        final = {
            each: search(bench, each, grid, config.final_s, found.highest or 0)
            for each, found in best.items()
        }
        beyond = _beyond(bench, config, grid, final)
    finally:
        bench.stop()
    result = report.result(
        config, bench, measured, grid, screened=screened, final=final, beyond=beyond
    )
    text = report.markdown(result)
    print(text)
    save(config.out, result)
    if config.out is not None:
        config.out.with_suffix(".md").write_text(text + "\n")
    return result


def _beyond(
    bench: Bench, config: Config, grid: list[float], final: dict[Contender, Found]
) -> list[dict[str, Any]]:
    """Ours with all rates, where the better rival fails, times four."""
    fails = [found.fails for each, found in final.items() if each.rows]
    if not fails or None in fails:
        return []
    load = TIMES * grid[max(level for level in fails if level is not None)]
    return [
        bench.cell(Contender(name="elastic"), load, config.final_s, seed=100 + run)
        for run in range(config.elastic_runs)
    ]


if __name__ == "__main__":
    try:
        main(tyro.cli(Config))
    except (ImportError, ValueError) as error:
        sys.exit(f"error: {error}")
