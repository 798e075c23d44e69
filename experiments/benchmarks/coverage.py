"""Does the transformation take the networks that people really have?

    python -m experiments.benchmarks.coverage --out docs/coverage.md

About 100 network families of other people's packages (`families/`), unmodified, with
random weights and small inputs. Each is upgraded and goes through the proofs that need
nothing hand-built:

    identity     rate 1 equals the original, jitted, bit for bit
    rates        every rate runs, gives finite numbers, and not those of the full width
    permutation  units of every group in random order: the full width gives the same
    influence    NaN in everything that rate .5 drops: nothing changes
    masking      zeros there: the full width gives what rate .5 gives (only for networks
                 in which no mean and no softmax runs over an axis that narrows)

The first and the fourth have to hold exactly, the others up to rounding: to `tolerance`
times the largest entry. Packages that are not installed are left out, and named.

Expected on two CPU cores: all proofs hold, in about 20 minutes. Needs the extra
`coverage`.
"""

import collections
import contextlib
import dataclasses
import fnmatch
import gc
import importlib.metadata
import importlib.util
import itertools
import os
import pathlib
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
import rich.progress
import tyro

import mslice_jax as ms
from experiments.benchmarks.analysis import equations_in
from experiments.benchmarks.families import FAMILIES
from experiments.benchmarks.families.family import Family, Network, Tree

RATES = (0.25, 0.5, 1.0)
SMALL = 0.5
"""The rate of the proofs of influence and masking."""
EXACT = ("identity", "influence")
"""The proofs that leave no room for rounding."""
NOTES = """\
The networks of transformers, diffusers and keras-hub have two layers or stages, no \
wider than 128; those of jax-resnet and most of equimo have one block a stage; those \
of keras are whole. RegNet keeps more than 30 % because the inputs of a group stay \
whole in a grouped convolution. Where a backbone of keras-hub has no head (T5, XLNet, \
DINOv3, ViTDet, VideoPrism), a linear map of its outputs stands in for one: what a \
network returns keeps its size. The networks of equinox and jraph, and VQ-VAE, LSTM, \
GRU, Conv-LSTM and Transformer of dm-haiku, are put together here from the package's \
modules. Batch norms stay batch norms (`norm="shared"`).

Not in the table, for they do not run with this JAX themselves: T5, mT5 and LongT5 of \
transformers (keras-hub has a T5), StyleGAN2 of flaxmodels, FasterViT and SHViT of \
equimo."""
"""What a reader of the table should know."""
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
    """Which families to try."""

    only: str = "*"
    """A pattern such as 'keras:*' or '*:ResNet*', for package:name."""
    tolerance: float = 1e-5
    """How far a proof may be off, relative to the largest entry."""
    optimize: bool = False
    """Whether XLA optimizes the programs; compiling them then takes longer."""
    seed: int = 0
    out: pathlib.Path | None = None
    """Where to write the table, as Markdown."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """What was seen of one family.

    `errors` has for each proof how far it is off, relative to the largest entry.
    """

    family: Family
    equations: int
    parameters: int
    elastic: float
    """Share of the parameters that an axis which narrows runs through."""
    half: float
    """Parameters at rate .5 over all of them."""
    seconds: float
    """CPU time of `upgrade` beyond the trace."""
    errors: dict[str, float]
    fixed: str

    def failed(self, tolerance: float) -> list[str]:
        """The proofs that do not hold."""
        return [
            proof
            for proof, error in self.errors.items()
            if not error <= (0.0 if proof in EXACT else tolerance)  # NaN fails
        ]


# -- one family


def examine(family: Family, seed: int = 0) -> Row:
    """Builds a network, upgrades it, and measures how far each proof is off."""
    with others_warnings_ignored():
        network = family.build()
        net, equations, seconds = upgraded(network)
        report = ms.report(net).to_dict()
        parameters = report["parameters"]
        return Row(
            family=family,
            equations=equations,
            parameters=parameters["1.0"],
            elastic=report["elastic"]["parameters"],
            half=parameters[str(SMALL)] / parameters["1.0"],
            seconds=seconds,
            errors=prove(network, net, seed=seed, masking=family.maskable),
            fixed=unusual([fixed["reason"] for fixed in report["fixed"]]),
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


def prove(
    network: Network, net: ms.Sliceable, *, seed: int = 0, masking: bool = False
) -> dict[str, float]:
    """How far each proof is off, relative to the largest entry of the output.

    Args:
      network: the original.
      net: the same, upgraded with `RATES`.
      seed: of the permutations.
      masking: whether the narrow network equals the full one with zeros.
    """

    def run(net: ms.Sliceable, rate: float) -> list[np.ndarray]:
        first, *more = network.inputs
        return arrays(ms.slice_apply(net, first, rate, *more, **network.call))

    def original(variables: Tree, *inputs: Any) -> Any:
        return network.function(variables, *inputs, **network.call)

    full = run(net, 1.0)
    errors = {
        "identity": distance(
            full, arrays(jax.jit(original)(network.variables, *network.inputs))
        )
    }
    narrow = {rate: run(net, rate) for rate in RATES[:-1]}
    fine = all(
        np.isfinite(distance(outputs, full)) and distance(outputs, full) > 1e-4
        for outputs in narrow.values()
    )
    errors["rates"] = 0.0 if fine else np.inf

    rng = np.random.default_rng(seed)
    orders = {
        name: rng.permutation(group.size) for name, group in net.plan.groups.items()
    }
    errors["permutation"] = distance(run(net.permute(orders), 1.0), full)

    kept = net.plan.mask(net.variables, SMALL)
    poisoned = net.replace(filled(net.variables, kept, np.nan))
    errors["influence"] = distance(run(poisoned, SMALL), narrow[SMALL])
    if masking:
        masked = net.replace(filled(net.variables, kept, 0.0))
        errors["masking"] = distance(run(masked, 1.0), narrow[SMALL])
    return errors


def filled(variables: Tree, kept: Tree, value: float) -> Tree:
    """The variables with a value in every inexact entry that is not kept."""

    def fill(leaf: Any, keep: np.ndarray) -> Any:
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            return leaf
        return np.where(keep, leaf, np.asarray(value, leaf.dtype))

    return jax.tree.map(fill, variables, kept)


def arrays(output: Any) -> list[np.ndarray]:
    """The arrays of an output; low precision and booleans as float32.

    A complex number stays what it is, and a random key counts as its numbers.
    """

    def array(leaf: Any) -> np.ndarray:
        leaf = jnp.asarray(leaf)
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        wide = jnp.issubdtype(leaf.dtype, jnp.complexfloating)
        return np.asarray(leaf, np.complex64 if wide else np.float32)

    return [array(leaf) for leaf in jax.tree.leaves(output)]


def distance(actual: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> float:
    """The largest difference over the largest entry, of the worst array.

    NaN where anything is not finite: then nothing is proved.
    """
    worst = 0.0
    for a, b in zip(actual, expected, strict=True):
        if a.shape != b.shape:
            raise ValueError(f"expected an output of shape {b.shape}; got {a.shape}.")
        largest = np.max(np.abs(b), initial=np.finfo(np.float32).tiny)
        worst = np.maximum(worst, np.max(np.abs(a - b), initial=0.0) / largest)
    return float(worst)


def unusual(reasons: Sequence[str]) -> str:
    """The reasons that are not `USUAL`, and how many axes each keeps, most first."""
    counts = collections.Counter(
        reason for reason in reasons if not any(usual in reason for usual in USUAL)
    )
    return "; ".join(f"{reason} ({n})" for reason, n in counts.most_common(3))


@contextlib.contextmanager
def others_warnings_ignored() -> Iterator[None]:
    """Ignores what old packages warn of; what this library warns of is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", module=r"mslice_jax(\.|$)")
        yield


def installed(family: Family) -> bool:
    """Whether the family's package can be imported."""
    return importlib.util.find_spec(family.module) is not None


# -- all of them


def main(config: Config) -> list[Row]:
    """Examines the families, prints a line for each, and writes the table."""
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
    rows, crashed = [], []
    with rich.progress.Progress(console=console) as progress:
        task = progress.add_task("proving", total=len(families))
        for family in families:
            progress.update(task, description=str(family))
            try:
                row = examine(family, config.seed)
            except Exception:  # the table has to tell of the others
                crashed.append(str(family))
                progress.console.print(
                    f"{family} crashed\n{traceback.format_exc()}", markup=False
                )
            else:
                rows.append(row)
                failed = row.failed(config.tolerance)
                told = f"fails: {', '.join(failed)}" if failed else "holds"
                progress.console.print(
                    f"{family}: {row.equations} equations, {row.half:.1%} at r = "
                    f"{SMALL:g}, {told} {row.errors if failed else ''}",
                    highlight=False,
                    markup=False,
                )
            progress.advance(task)
            jax.clear_caches()
            gc.collect()
            if config.out is not None:  # each time: what stops a run loses nothing
                config.out.parent.mkdir(parents=True, exist_ok=True)
                config.out.write_text(markdown(rows, crashed, absent, config.tolerance))
    return rows


# -- the table


COLUMNS: dict[str, Callable[[Row], str]] = {
    "family": lambda row: row.family.name,
    "equations": lambda row: f"{row.equations:,}",
    "parameters": lambda row: f"{row.parameters:,}",
    "elastic": lambda row: f"{row.elastic:.1%}",
    "at r = .5": lambda row: f"{row.half:.1%}",
    "analysis/s": lambda row: f"{row.seconds:.2f}",
}


def markdown(
    rows: Sequence[Row], crashed: Sequence[str], absent: Sequence[str], tolerance: float
) -> str:
    """The page of the docs."""
    whole = sum(not row.failed(tolerance) for row in rows)
    above = [row.family.name for row in rows if row.half > 0.3]
    lines = [
        "# Coverage",
        "",
        f"{len(rows) + len(crashed)} networks of other people's packages, of "
        f"{len({row.family.name for row in rows})} names, unmodified, with random "
        f"weights and small inputs: {whole} hold every proof. Made by",
        "",
        "    python -m experiments.benchmarks.coverage --out docs/coverage.md",
        "",
        f"with jax {jax.__version__} on {os.cpu_count()} CPU cores. The proofs:",
        "",
        "* **identity**: rate 1 equals the jitted original, bit for bit.",
        f"* **rates**: the rates {', '.join(f'{rate:g}' for rate in RATES)} run; the "
        "outputs are finite, and differ from the full width's.",
        "* **permutation**: with the units of every group in random order the full "
        f"width gives the same to {tolerance:g} of its largest entry.",
        f"* **influence**: with NaN in all that rate {SMALL:g} drops its output stays "
        "the same, bit for bit.",
        "* **masking**: with zeros there the full width gives the output of rate "
        f"{SMALL:g}, to {tolerance:g}. Only where no mean and no softmax runs over an "
        "axis that narrows.",
        "",
        "*Elastic* is the share of the parameters that some narrowing axis runs "
        "through; *at r = .5* is what that rate keeps of all parameters; *analysis* is "
        "the CPU time of `upgrade` beyond the trace. The last column leaves out what "
        "every network fixes: axes of inputs and outputs, windows of convolutions, "
        "rows of lookup tables, the inner factor of a split (the size of a head), and "
        "what the call does not read. In brackets: of how many axes of parameters.",
        "",
        f"{len(rows) - len(above)} families keep at most 30 % of their parameters at "
        f"r = {SMALL:g}; more keep {', '.join(above) or 'none'}. No analysis took "
        f"longer than {max((row.seconds for row in rows), default=0):.2f} s.",
        "",
        NOTES,
    ]
    for package, members in itertools.groupby(rows, lambda row: row.family.package):
        version = importlib.metadata.version(package)
        headings = [*COLUMNS, "proofs", "fixed, and why"]
        lines += [
            "",
            f"## {package} {version}",
            "",
            f"| {' | '.join(headings)} |",
            f"|---|{'---:|' * (len(COLUMNS) - 1)}---|---|",
        ]
        for row in members:
            cells = [cell(row) for cell in COLUMNS.values()]
            cells += [proofs(row, tolerance), row.fixed.replace("|", "/")]
            lines.append(f"| {' | '.join(cells)} |")
    if crashed:
        lines += ["", f"Not upgraded: {', '.join(crashed)}."]
    if absent:
        lines += ["", f"Not installed, so left out: {', '.join(absent)}."]
    return "\n".join(lines) + "\n"


def proofs(row: Row, tolerance: float) -> str:
    """Which proofs hold: 'all 4', or which do not and by how much."""
    failed = row.failed(tolerance)
    if not failed:
        return f"all {len(row.errors)}"
    return "not " + ", ".join(f"{proof} ({row.errors[proof]:.1e})" for proof in failed)


if __name__ == "__main__":
    main(tyro.cli(Config))
