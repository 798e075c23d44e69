"""Makes docs/coverage.md from runs of the coverage, one for each version of JAX.

    python -m experiments.benchmarks.coverage_page docs/coverage/*.json

The first file gives the numbers of the table; the others add their differences.
"""

import collections
import dataclasses
import itertools
import pathlib
from collections.abc import Callable, Sequence

import tyro

from experiments.benchmarks.coverage_results import Row, Run

SMALL = 0.5
NOTES = """\
The networks of transformers, diffusers and keras-hub have two layers or stages, no \
wider than 128; those of jax-resnet and most of equimo have one block a stage; those \
of keras are whole; most others are as small. Where a backbone of keras-hub has no \
head (T5, XLNet, DINOv3, ViTDet, VideoPrism), a linear map of its outputs stands in \
for one: what a network returns keeps its size. The networks of flax are those of the \
examples in its source distribution. The networks of equinox, jraph, e3x, diffrax and \
qwix, the state spaces of spyx, and VQ-VAE, LSTM, GRU, Conv-LSTM and Transformer of \
dm-haiku, are put together here from the package's modules. A generation is a loop \
around a network with its cache. Batch norms stay batch norms (`norm="shared"`).

Why some keep more than 30 %: a Fourier transform over the hidden axis (FNet); the \
inputs of a group in a grouped convolution (RegNet); group norms whose groups straddle \
the parts of a skip connection (the U-Nets); one hidden layer alone between inputs and \
outputs (RBM), or two beside 784 pixels (VAE).

Not in the table, for they do not run with this JAX themselves: T5, mT5 and LongT5 of \
transformers (keras-hub has a T5), StyleGAN2 of flaxmodels, FasterViT and SHViT of \
equimo. Nothing narrows in the block autoregressive flows of flowjax and numpyro: they \
pick the blocks of their weights by index."""
"""Notes above the table."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """The runs, and the file of the page."""

    runs: tyro.conf.Positional[tuple[pathlib.Path, ...]]
    """Files that `coverage --out` wrote."""
    out: pathlib.Path = pathlib.Path("docs/coverage.md")


def main(config: Config) -> None:
    """Reads the runs and writes the page."""
    runs = [Run.read(path) for path in config.runs]
    config.out.parent.mkdir(parents=True, exist_ok=True)
    config.out.write_text(markdown(runs))


COLUMNS: dict[str, Callable[[Row], str]] = {
    "network": lambda row: row.name,
    "equations": lambda row: f"{row.equations:,}",
    "parameters": lambda row: f"{row.parameters:,}",
    "elastic": lambda row: f"{row.elastic:.1%}",
    "at r = .5": lambda row: f"{row.half:.1%}",
    "analysis/s": lambda row: f"{row.seconds:.2f}",
}


def markdown(runs: Sequence[Run]) -> str:
    """The page of the docs."""
    first, *others = runs
    rates = ", ".join(f"{rate:g}" for rate in first.rates)
    lines = [
        "# Coverage",
        "",
        f"{len(first.rows) + len(first.crashed)} networks of other people's packages, "
        f"of {len({row.package for row in first.rows})} packages and "
        f"{len({row.name for row in first.rows})} names, unmodified, with random "
        "weights and small inputs. The proofs:",
        "",
        "* **identity**: rate 1 equals the jitted original, bit for bit.",
        f"* **rates**: the rates {rates} run; the outputs are finite, and differ from "
        "the full width's.",
        "* **permutation**: with the units of every group in random order the full "
        f"width gives the same to {first.tolerance:g} of its largest entry.",
        f"* **influence**: with NaN in all that rate {SMALL:g} drops its output stays "
        "the same, bit for bit.",
        "* **masking**: with zeros there the full width gives the output of rate "
        f"{SMALL:g}, to {first.tolerance:g}. Only where no mean and no softmax runs "
        "over an axis that narrows.",
        f"* **extraction**: the extracted narrow network gives what rate {SMALL:g} "
        "gives, bit for bit.",
        f"* **nesting**: to extract {SMALL:g}, and {first.rates[0]:g} of that, is to "
        f"extract {first.rates[0]:g}.",
        "* **compilation**: to run all of this again compiles nothing.",
        f"* **gradient** (in runs with `--gradients`): that of rate {SMALL:g} is zero "
        "outside the slice, and inside that of the extracted network. Where the "
        "original has a gradient.",
        "* **own trace**: where the function itself runs on narrow arrays, its trace "
        "there is the narrow program; or why the two cannot be compared.",
        "",
        "Made by `python -m experiments.benchmarks.coverage_page` of",
        "",
        "| command | on | networks | hold every proof | keep at most 30 % |",
        "|---|---|---:|---:|---:|",
        *(summary(run) for run in runs),
        "",
        *(line for run in runs for line in left(run)),
        "*Elastic* is the share of the parameters that some narrowing axis runs "
        "through; *at r = .5* is what that rate keeps of all parameters; *analysis* "
        "is the CPU time of `upgrade` beyond the trace; *numbers* counts the warnings "
        "of numbers that stay. The last column leaves out what every network fixes: "
        "axes of inputs and outputs, windows of convolutions, rows of lookup tables, "
        "the inner factor of a split (the size of a head), and what the call does not "
        "read. In brackets: of how many axes of parameters.",
        "",
        above(first),
        "",
        *traces(first),
        NOTES,
    ]
    seen = [{str(row): row for row in run.rows} for run in others]
    headings = [*COLUMNS, "proofs", "own trace", "numbers"]
    headings += [f"jax {run.jax}" for run in others] + ["fixed, and why"]
    for package, members in itertools.groupby(first.rows, lambda row: row.package):
        lines += [
            "",
            f"## {package} {versions(package, runs)}",
            "",
            f"| {' | '.join(headings)} |",
            f"|---|{'---:|' * (len(COLUMNS) - 1)}{'---|' * (4 + len(others))}",
        ]
        for row in members:
            cells = [cell(row) for cell in COLUMNS.values()]
            cells += [
                proofs(row, first.tolerance),
                "" if row.own_trace is None else row.own_trace,
                "" if row.numbers is None else str(row.numbers),
                *(
                    difference(row, rows.get(str(row)), run)
                    for run, rows in zip(others, seen, strict=True)
                ),
                row.fixed,
            ]
            lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    return "\n".join(lines) + "\n"


def summary(run: Run) -> str:
    """A run as a row of the first table."""
    whole = sum(not row.failed(run.tolerance) for row in run.rows)
    small = sum(row.half <= 0.3 for row in run.rows)
    where = (
        f"{run.date}, Python {run.python}, jax {run.jax}, {run.cores} CPU cores, "
        f"{run.minutes:.0f} minutes"
    )
    count = len(run.rows) + len(run.crashed)
    return f"| `{run.command}` | {where} | {count} | {whole} | {small} |"


def left(run: Run) -> list[str]:
    """The networks and packages without a row in a run, if any."""
    lines = []
    if run.crashed:
        names = "; ".join(f"{name} ({why})" for name, why in run.crashed.items())
        lines += [f"Not upgraded with jax {run.jax}: {names}.", ""]
    if run.absent:
        names = ", ".join(run.absent)
        lines += [f"Not installed with jax {run.jax}, so left out: {names}.", ""]
    return lines


def above(run: Run) -> str:
    """The networks that keep more than 30 % of their parameters; the slowest one."""
    names = [str(row) for row in run.rows if row.half > 0.3]
    slowest = max((row.seconds for row in run.rows), default=0.0)
    return (
        f"More than 30 % of their parameters at r = {SMALL:g} keep "
        f"{', '.join(names) or 'none'}. No analysis took longer than {slowest:.2f} s."
    )


def traces(run: Run) -> list[str]:
    """Number of equal own traces, and the reasons against comparing the others."""
    told = collections.Counter(
        row.own_trace for row in run.rows if row.own_trace is not None
    )
    if not told:
        return []
    same = told.pop("same", 0)
    errors = sum(count for why, count in told.items() if why.endswith("Error"))
    refuses = f"the model holds its sizes and raises an error for others ({errors})"
    reasons = [refuses] if errors else []
    reasons += [
        f"{why} ({count})"
        for why, count in told.most_common()
        if not why.endswith("Error")
    ]
    return [
        f"The own trace is comparable and the same for {same} of {len(run.rows)} "
        f"networks ({same / len(run.rows):.0%}). Not comparable: "
        f"{'; '.join(reasons) or 'none'}.",
        "",
    ]


def versions(package: str, runs: Sequence[Run]) -> str:
    """The versions of a package; one where all runs had the same."""
    found = {run.jax: run.versions.get(package) for run in runs}
    known = {version for version in found.values() if version is not None}
    if len(known) == 1:
        return known.pop()
    told = (f"{version} (jax {jax})" for jax, version in found.items() if version)
    return ", ".join(told)


def proofs(row: Row, tolerance: float) -> str:
    """'all 4' if every proof holds, or the failed ones with their errors."""
    failed = row.failed(tolerance)
    if not failed:
        return f"all {len(row.errors)}"
    return "not " + ", ".join(f"{proof} ({row.errors[proof]:.1e})" for proof in failed)


def difference(row: Row, other: Row | None, run: Run) -> str:
    """The differences of another run for a network; 'same' if there are none."""
    if other is None:
        return "not run" if str(row) not in run.crashed else "not upgraded"
    told = []
    if other.failed(run.tolerance) or len(other.errors) != len(row.errors):
        told.append(proofs(other, run.tolerance))
    if f"{other.half:.1%}" != f"{row.half:.1%}":
        told.append(f"{other.half:.1%}")
    if other.own_trace != row.own_trace:
        told.append(f"own trace: {other.own_trace or 'not said'}")
    if other.numbers != row.numbers:
        told.append(f"{other.numbers} numbers")
    return ", ".join(told) or "same"


if __name__ == "__main__":
    main(tyro.cli(Config))
