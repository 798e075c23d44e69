"""Does the transformation take networks from other people's packages?

    python -m experiments.benchmarks.coverage --out docs/coverage/jax-0.10.json

About 190 networks of other people's packages (`families/`), unmodified, with random
weights and small inputs. Each is upgraded and goes through the proofs that need nothing
hand-built, see `coverage_proofs`. Packages that are not installed are left out, and
named. `coverage_page` makes docs/coverage.md from one or more runs.

Expected on two CPU cores: all proofs hold, in about 25 minutes. Needs the extra
`coverage`.
"""

import collections
import contextlib
import dataclasses
import datetime
import fnmatch
import gc
import importlib.metadata
import importlib.util
import os
import pathlib
import platform
import shlex
import sys
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import rich.console
import rich.progress
import tyro

import mslice_jax as ms
from experiments.benchmarks.analysis import equations_in
from experiments.benchmarks.coverage_proofs import (
    RATES,
    SMALL,
    gradient_error,
    has_gradient,
    prove,
)
from experiments.benchmarks.coverage_results import Row, Run
from experiments.benchmarks.coverage_verdicts import (
    NUMBER_WARNING,
    open_numbers,
    own_trace,
)
from experiments.benchmarks.families import FAMILIES
from experiments.benchmarks.families.family import Family, Network, Tree
from experiments.benchmarks.result import save

PROGRAM = "experiments.benchmarks.coverage"
USUAL = (
    "input of the function",
    "output of the function",
    "window slides",
    "looked up by an index",
    "not read by the traced call",
    "another factor of a split narrows",
)
"""Reasons that the table leaves out: every network has such axes."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Families to try, and settings of the proofs."""

    only: str = "*"
    """A pattern such as 'keras:*' or '*:ResNet*', for package:name."""
    tolerance: float = 1e-5
    """Largest error of a proof, relative to the largest entry."""
    optimize: bool = False
    """Whether XLA optimizes the programs; compiling them then takes longer."""
    gradients: bool = False
    """Whether to compare gradients too; most of a run is then spent compiling them."""
    seed: int = 0
    out: pathlib.Path | None = None
    """JSON file for the results."""


# -- one family


def examine(family: Family, seed: int = 0, *, gradients: bool = False) -> Row:
    """Builds a network, upgrades it, and measures the error of each proof."""
    start = time.perf_counter()
    with others_warnings_ignored():
        network = family.build()
        with numbers_told():
            net, equations, seconds = upgraded(network)
        report = ms.report(net).to_dict()
        parameters = report["parameters"]
        errors = prove(network, net, seed=seed, masking=family.maskable)
        if gradients and has_gradient(network):
            errors["gradient"] = gradient_error(network, net)
    return Row(
        package=family.package,
        name=family.name,
        equations=equations,
        parameters=parameters["1.0"],
        elastic=report["elastic"]["parameters"],
        half=parameters[str(SMALL)] / parameters["1.0"],
        seconds=seconds,
        errors=errors,
        fixed=unusual([fixed["reason"] for fixed in report["fixed"]]),
        own_trace=own_trace(net),
        numbers=open_numbers(net),
        wall=time.perf_counter() - start,
    )


def upgraded(network: Network) -> tuple[ms.Sliceable, int, float]:
    """The sliceable network, the equations of the original, and seconds of analysis."""

    def original(variables: Tree, *inputs: Any) -> Any:
        return network.function(variables, *inputs, **network.call)

    jax.make_jaxpr(original)(network.variables, *network.inputs)  # fill jit's caches
    start = time.process_time()
    closed = jax.make_jaxpr(original)(network.variables, *network.inputs)
    traced = time.process_time()
    net = ms.upgrade(
        *network.arguments,
        rates=RATES,
        norm="shared",
        **network.call,
    )
    done = time.process_time()
    seconds = max(0.0, (done - traced) - (traced - start))
    return net, equations_in(closed.jaxpr), seconds


def unusual(reasons: Sequence[str]) -> str:
    """The reasons that are not `USUAL`, and how many axes each keeps, most first."""
    counts = collections.Counter(
        reason for reason in reasons if not any(usual in reason for usual in USUAL)
    )
    return "; ".join(f"{reason} ({n})" for reason, n in counts.most_common(3))


@contextlib.contextmanager
def others_warnings_ignored() -> Iterator[None]:
    """Ignores warnings of old packages; a warning of this library is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", module=r"mslice_jax(\.|$)")
        yield


@contextlib.contextmanager
def numbers_told() -> Iterator[list[Any]]:
    """Collects the library's warnings of numbers that stay; those are no errors."""
    with warnings.catch_warnings(record=True) as told:
        warnings.filterwarnings("always", category=NUMBER_WARNING)
        yield told  # other warnings are errors, or ignored


def installed(family: Family) -> bool:
    """Whether the family's package can be imported."""
    return importlib.util.find_spec(family.module) is not None


# -- all of them


def main(config: Config) -> Run:
    """Examines the families, prints a line for each, and writes the results."""
    start = time.perf_counter()
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    jax.config.update("jax_disable_most_optimizations", not config.optimize)
    console = rich.console.Console(emoji=False)  # a family may be called llama
    wanted = [f for f in FAMILIES if fnmatch.fnmatch(str(f), config.only)]
    families = [family for family in wanted if installed(family)]
    absent = sorted(
        {family.package for family in wanted} - {f.package for f in families}
    )
    if absent:
        console.print(f"not installed, so left out: {', '.join(absent)}")
    packages = dict.fromkeys(["jax", *(family.package for family in families)])
    run = Run(
        command=shlex.join(["python", "-m", PROGRAM, *sys.argv[1:]]),
        date=datetime.date.today().isoformat(),
        python=platform.python_version(),
        versions={package: importlib.metadata.version(package) for package in packages},
        cores=os.cpu_count() or 0,
        minutes=0.0,
        tolerance=config.tolerance,
        rates=RATES,
        rows=(),
        crashed={},
        absent=tuple(absent),
    )
    with rich.progress.Progress(console=console) as progress:
        task = progress.add_task("proving", total=len(families))
        for family in families:
            progress.update(task, description=str(family))
            try:
                row = examine(family, config.seed, gradients=config.gradients)
            except Exception as error:  # the table needs the others
                last = f"{type(error).__name__}: {error}".splitlines()[0]
                run.crashed[str(family)] = last
                progress.console.print(
                    f"{family} crashed\n{traceback.format_exc()}", markup=False
                )
            else:
                run = dataclasses.replace(run, rows=(*run.rows, row))
                progress.console.print(
                    told(row, config.tolerance), highlight=False, markup=False
                )
            progress.advance(task)
            jax.clear_caches()
            gc.collect()
            # Written each time: an interrupted run loses nothing.
            minutes = (time.perf_counter() - start) / 60
            run = dataclasses.replace(run, minutes=minutes)
            save(config.out, run.to_dict())
    return run


def told(row: Row, tolerance: float) -> str:
    """A network in one line."""
    failed = row.failed(tolerance)
    verdict = f"fails: {', '.join(failed)} {row.errors}" if failed else "holds"
    return (
        f"{row}: {row.equations} equations, {row.half:.1%} at r = {SMALL:g}, "
        f"{row.wall:.0f} s, {verdict}"
    )


if __name__ == "__main__":
    main(tyro.cli(Config))
