"""The result of `experiments.benchmarks.vs_servers`: as JSON, and as tables."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from mslice_jax.serve import LatencyTable

from .cells import Bench
from .contenders import Contender
from .search import Found

_PATHS = ("workdir", "out")
_HEAD = "| server | batching | holds | fails | p50 | p99 |\n|---|---|---|---|---|---|"


def best_of_each(screened: Mapping[Contender, Found]) -> dict[Contender, Found]:
    """The setting of each server that carries most; the first of those alike."""
    best: dict[str, Contender] = {}
    for each, found in screened.items():
        other = best.get(each.name)
        if other is None or _level(found) > _level(screened[other]):
            best[each.name] = each
    return {each: screened[each] for each in best.values()}


def _level(found: Found) -> int:
    return -1 if found.highest is None else found.highest


def result(
    config: Any,
    bench: Bench,
    measured: LatencyTable,
    grid: list[float],
    *,
    screened: Mapping[Contender, Found],
    final: Mapping[Contender, Found],
    beyond: list[dict[str, Any]],
) -> dict[str, Any]:
    """All of it, as JSON has it."""
    told = {
        name: [_row(bench, each, f, grid, seconds) for each, f in searched.items()]
        for name, searched, seconds in (
            ("screened", screened, config.screen_s),
            ("final", final, config.final_s),
        )
    }
    settings = dataclasses.asdict(config)
    return {
        "settings": {k: v for k, v in settings.items() if k not in _PATHS},
        "table_ms": {
            f"{key.rate:g} x {key.batch}": each._asdict()
            for key, each in measured.entries.items()
        },
        "slo_ms": bench.slo_ms,
        "grid_per_second": grid,
        "furthest_logits": bench.furthest,
        **told,
        "elastic": beyond,
        "asked": _asked(told["final"], beyond),
    }


def _row(
    bench: Bench, each: Contender, found: Found, grid: list[float], seconds: float
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "server": each.name,
        "batching": each.setting,
        "highest_per_second": None,
        "fails_per_second": None if found.fails is None else grid[found.fails],
        "void": found.void,
    }
    if found.highest is not None:
        level = found.highest
        cell = bench.cell(each, grid[level], seconds, seed=level)
        names = ("p50_ms", "p99_of_all_ms", "in_time")
        row |= {"highest_per_second": grid[level], **{n: cell[n] for n in names}}
    return row


def _asked(
    final: list[dict[str, Any]], beyond: list[dict[str, Any]]
) -> dict[str, bool | None]:
    """What was asked for, and whether it is so; None: that cannot be said."""
    highest = {row["server"]: row["highest_per_second"] or 0.0 for row in final}
    rivals = [load for name, load in highest.items() if name != "ours"]
    told = not any(row["void"] for row in final) and any(highest.values())
    # Who carries all of the grid may carry more.
    told = told and all(
        row["fails_per_second"] for row in final if row["server"] != "ours"
    )
    counted = bool(beyond) and not any(cell["void"] for cell in beyond)
    return {
        "ours at full width carries at least what they do": (
            highest["ours"] >= max(rivals) if rivals and told else None
        ),
        "elastic at 4 times the load where they fail: 99.9 % in time": (
            min(cell["in_time"] for cell in beyond) >= 0.999 if counted else None
        ),
    }


def table_of(measured: LatencyTable) -> str:
    """Medians of the latency table, rates by batches."""
    lines = ["| rate | " + " | ".join(f"batch {n}" for n in measured.batches) + " |"]
    lines.append("|---" * (1 + len(measured.batches)) + "|")
    for rate in reversed(measured.rates):
        each = [f"{measured.median_ms(rate, n):.1f} ms" for n in measured.batches]
        lines.append(f"| {rate:g} | " + " | ".join(each) + " |")
    return "\n".join(lines)


def markdown(result: Mapping[str, Any]) -> str:
    """The result as tables."""
    parts = []
    for name, words in (("screened", "short runs"), ("final", "long runs")):
        parts += [
            f"Highest load with p99 <= T = {result['slo_ms']:.0f} ms, {words}:",
            "\n".join([_HEAD, *(_line(row) for row in result[name])]),
        ]
    for cell in result["elastic"]:
        rates = ", ".join(f"{r}: {n}" for r, n in cell.get("rates", {}).items())
        parts.append(
            f"Elastic at {cell['per_second']:.1f}/s: {100 * cell['in_time']:.2f} % in "
            f"time (answers by rate {rates})"
            + (f"; VOID: {cell['void']}" if cell["void"] else "")
        )
    words = {True: "yes", False: "NO", None: "not measured"}
    parts += [f"{what}: {words[so]}" for what, so in result["asked"].items()]
    return "\n\n".join(parts)


def _line(row: Mapping[str, Any]) -> str:
    def number(name: str, unit: str) -> str:
        return f"{row[name]:.1f}{unit}" if row.get(name) is not None else "-"

    entries = [
        row["server"],
        row["batching"],
        number("highest_per_second", "/s") + (" VOID" if row["void"] else ""),
        number("fails_per_second", "/s"),
        number("p50_ms", " ms"),
        number("p99_of_all_ms", " ms"),
    ]
    return "| " + " | ".join(entries) + " |"
