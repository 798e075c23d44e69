"""Compare schemes of training: the paper's table of slice rate scheduling.

    python -m experiments.compare_schedules
    python -m experiments.compare_schedules --schemes independent random_min_max static
    python -m experiments.compare_schedules --recipe language_model --epochs 2
    python -m experiments.compare_schedules --schemes static "static --distill 0.3"
    python -m experiments.compare_schedules --dataset cifar10 --data-dir DIR --depth 11

`SCHEMES` of `experiments.comparison.schemes` says what each scheme trains. Any flag of
the recipe may follow, and holds for all runs. What a scheme is to do otherwise stands
behind its name, in quotes::

    --schemes independent static "static --distill 0.3" "static --epochs 12"

Runs have the same number of updates, however many rates a step trains, unless a scheme
has --epochs of its own; the column "FLOPs" has what training costs beside the first
row. All rates in each step cost as much as the separate networks together.

Without arguments: ResNet-8 on scikit-learn's digits, 5 epochs, all nine schemes, two
seeds. These 24 runs take five minutes of processor time on one core. At full width the
separately trained network has 95 %, the sandwich and the static scheme 93 %, the others
83 to 90 %; at a quarter it has 57 % (alone it has learnt little by then), and all
others but random_max have 66 to 80 % (`experiments/LOG.md`).

Each run has a folder of its own in the workdir (runs/compare_schedules), with the files
of a recipe and its output in log.txt. A comparison that was stopped or killed goes on
with the same command: finished runs are kept, and the one under way continues from its
last checkpoint. More --schemes and --seeds may be added. In the end there are
results.json, results.md (mean ± standard deviation over seeds; in brackets the
difference to the separately trained networks ± its standard error, paired by seed)
and schemes.png.

The separately trained networks are those of the recipe with one rate alone, so of the
same architecture as what is sliced, with its initial weights.
"""

import collections
import dataclasses
import json
import math
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import tyro
from rich import box
from rich.console import Console
from rich.table import Table

from mslice_jax import data
from mslice_jax.core.rates import check_rates, rate_key
from mslice_jax.cpu import memory
from mslice_jax.train import CheckpointError, NotFiniteError

from .comparison import outcome
from .comparison.flags import one_line
from .comparison.picture import plot
from .comparison.schemes import SCHEMES, Member, Scheme, as_scheme, members
from .measure import ACCURACY
from .prepare import Recipe, checked, named, prepare
from .process import keep_compiled_programs, print_anything
from .recipe import fail, finish, fit
from .screen import busy
from .settings import ImageDefaults, as_json, flag, local, parse, resolve

SETTINGS, RESULTS, TABLE, PICTURE = (
    "settings.json",
    "results.json",
    "results.md",
    "schemes.png",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """Flags of the comparison."""

    recipe: str = "cifar_resnet"
    """A recipe of experiments: cifar_resnet, cifar_vgg, language_model, ..."""
    schemes: tuple[str, ...] = tuple(SCHEMES)
    """The rows of the table: static, random_min_max, ..., alone or with flags of its
    own in quotes, as in "static --distill 0.3"."""
    rates: tuple[float, ...] = (1.0, 0.75, 0.5, 0.25)
    """Slice rates in (0, 1], the columns of the table."""
    seeds: tuple[int, ...] = (0, 1)
    """One run of each scheme for each of them."""
    workdir: Path = Path("runs/compare_schedules")
    """Folder for all runs and results."""


# On digits, where thirty runs are to take minutes.
SHORT = {"cifar_resnet": {"widen": 1.0, "epochs": 5}}

# What the comparison decides, and how.
_DECIDED = {
    "schedule": "Choose --schemes",
    "seed": "Give --seeds",
    "resume": "Choose another --workdir",
    "workdir": "Give it once, for all runs",
    "distributed": "Leave it out",
}

# What is about several rates: separate networks would have no use for it.
_OF_SCHEMES = (
    "num_random",
    "rate_weights",
    "progressive_epochs",
    "distill",
    "temperature",
    "distill_from",
    "teacher",
    "loss_weights",
)

# Settings that do not change what comes out, or belong to single runs.
_FREE = (*_DECIDED, *_OF_SCHEMES, "fsdp", "workers", "tensorboard")


class TrainingError(Exception):
    """A run that failed on the way."""


def main(args: Sequence[str] | None = None, recipe: Recipe | None = None) -> int:
    """The command; returns the exit code, as a recipe does.

    Args:
      args: of the command line.
      recipe: in place of the one that --recipe names.
    """
    print_anything()
    args = list(sys.argv[1:] if args is None else args)
    console = Console()
    try:
        flags, rest = _flags(args)
        recipe = short(recipe or named(flags.recipe))
        workdir = local(flags.workdir, "--workdir")
        given = _given(recipe, flags, rest)
        runs = planned(recipe, flags, given, workdir)
        kept = _kept(recipe, flags, given)
        check_same(workdir, kept)
        keep_compiled_programs()
        memory.keep_freed()

        def keep() -> None:
            text = json.dumps(kept, indent=2) + "\n"
            (workdir / SETTINGS).write_text(text)

        for at, run in enumerate(runs):
            what = f"{run} ({at + 1} of {len(runs)})"
            stopped = train(recipe, run, what, console, keep)
            if stopped is not None:
                return _interrupted(stopped, args)
        write(recipe, flags, runs, workdir, console)
    except TrainingError as error:
        return fail(error, 1)
    except (ValueError, OSError, CheckpointError) as error:
        return fail(error, 2)
    except KeyboardInterrupt:
        return _interrupted(signal.SIGINT, args)
    return 0


def _flags(args: list[str]) -> tuple[Flags, list[str]]:
    """Flags of the comparison, and those for the recipe."""
    flags, rest = one_line(
        lambda: tyro.cli(
            Flags,
            prog="python -m experiments.compare_schedules",
            description="Compare schemes of training. All other flags go to the "
            "recipe, see its --help.",
            args=args,
            return_unknown_args=True,
        )
    )
    check_rates(flags.rates)
    if len(flags.rates) < 2:
        raise ValueError(
            f"expected at least two --rates to compare schemes at, got {flags.rates}."
        )
    for name in ("schemes", "seeds"):
        found = getattr(flags, name)
        if not found or len(set(found)) < len(found):
            raise ValueError(
                f"expected {flag(name)} to be at least one, none twice, got {found}."
            )
    return flags, rest


def short(recipe: Recipe) -> Recipe:
    """The recipe with the defaults of a comparison on digits."""
    if recipe.name not in SHORT or not isinstance(recipe.digits, ImageDefaults):
        return recipe
    digits = dataclasses.replace(recipe.digits, **SHORT[recipe.name])
    return dataclasses.replace(recipe, digits=digits)


def _given(recipe: Recipe, flags: Flags, rest: list[str]) -> Any:
    """The settings that all runs share, from flags of the recipe."""
    given = one_line(lambda: parse(recipe.name, "", rest, recipe.kind.settings))
    usual = recipe.kind.settings()
    _check_decided(given, usual)
    for name in _OF_SCHEMES:
        if getattr(given, name) != getattr(usual, name):
            raise ValueError(
                f"{flag(name)} belongs to a scheme. Write it behind its name: "
                f'--schemes "static {flag(name)} ..."'
            )
    return given


def _check_decided(given: Any, usual: Any) -> None:
    for name, advice in _DECIDED.items():
        if getattr(given, name) != getattr(usual, name):
            raise ValueError(f"{flag(name)} is up to the comparison. {advice}.")


def _own(recipe: Recipe, scheme: Scheme, given: Any) -> Any:
    """The settings of a scheme: those of all runs, and its own flags."""
    try:
        found = one_line(
            lambda: parse(
                recipe.name, "", [*scheme.flags], recipe.kind.settings, default=given
            )
        )
        _check_decided(found, given)
    except ValueError as error:
        raise ValueError(f"{scheme.text}: {error}") from error
    return found


def planned(recipe: Recipe, flags: Flags, given: Any, workdir: Path) -> list[Member]:
    """All runs, their settings checked as far as that needs no data."""
    schemes = [as_scheme(text) for text in flags.schemes]
    folders = [scheme.folder for scheme in schemes]
    if len({*folders}) < len(folders):
        raise ValueError(f"expected each of --schemes once, got {flags.schemes}.")
    each = [(scheme, _own(recipe, scheme, given)) for scheme in schemes]
    runs = []
    for run in members(each, flags.rates, flags.seeds, workdir):
        try:
            _, schedule = checked(recipe, run.settings)
        except ValueError as error:
            raise ValueError(f"{run}: {error}") from error
        runs.append(dataclasses.replace(run, passes=len(schedule(0))))
    return runs


def _kept(recipe: Recipe, flags: Flags, given: Any) -> dict[str, Any]:
    """What all runs of a comparison have in common, as its settings.json has it."""
    shared = dataclasses.replace(given, rates=flags.rates)
    shared = resolve(shared, recipe.name, recipe.kind.defaults(recipe, shared))
    values = {k: v for k, v in as_json(shared).items() if k not in _FREE}
    return {"recipe": recipe.name, **values}


def check_same(workdir: Path, kept: dict[str, Any]) -> None:
    """Raise ValueError if the folder holds a comparison with other settings."""
    file = workdir / SETTINGS
    if not file.exists():
        return
    saved = json.loads(file.read_text())
    names = [name for name in kept if saved.get(name) != kept[name]]
    if names:
        changes = (f"{flag(n)} was {saved.get(n)} and is {kept[n]}" for n in names)
        raise ValueError(
            f"{workdir} holds a comparison with other settings: {'; '.join(changes)}. "
            "Give the same ones to go on with it, or another --workdir."
        )


def train(
    recipe: Recipe, run: Member, what: str, console: Console, keep: Callable[[], None]
) -> signal.Signals | None:
    """Train and measure, unless that is done; returns what interrupted it, if any.

    Args:
      recipe: what is trained.
      run: its settings and folder.
      what: the run in words.
      console: shows what is under way; the run's own output goes to a file.
      keep: called when the folder of the comparison is there.
    """
    workdir = cast(Path, run.settings.workdir)
    if _summary(run) is None:
        with busy(console, what):
            ready = prepare(recipe, run.settings, console)
            keep()
            try:
                with ready.checkpoints, (workdir / "log.txt").open("a") as file:
                    log = Console(file=file, width=100)
                    ended, numbers = fit(ready, log)
                    if ended.interrupted is not None:
                        return ended.interrupted
                    assert numbers is not None  # a run that ended was evaluated
                    finish(ready, ended, numbers, log)
            except (CheckpointError, NotFiniteError, data.DataError, OSError) as error:
                raise TrainingError(f"{run}: {error}") from error
    quantity = recipe.kind.quantity
    values = "  ".join(
        f"r{rate:g} {quantity.short(_value(run, quantity.name, rate))}"
        for rate in run.measured
    )
    console.print(f"{what}: {quantity.name} {values}{quantity.unit}", highlight=False)
    return None


def _summary(run: Member) -> dict[str, Any] | None:
    """What a finished run left; None for one that is not finished."""
    try:
        return json.loads((run.settings.workdir / "summary.json").read_text())
    except (OSError, ValueError):  # not there, or half-written
        return None


def _value(run: Member, name: str, rate: float) -> float:
    return _rates_of(run)[rate_key(rate)][name]


def _further(runs: Sequence[Member], quantity: str) -> list[str]:
    """What all runs were measured by besides: "accuracy_6_views", and "loss"."""
    each = [set(r) for run in runs for r in _rates_of(run).values()]
    found = set.intersection(*each)
    views = sorted(name for name in found if name.startswith(f"{quantity}_"))
    return [*views, *found & {"loss"}]


def _rates_of(run: Member) -> dict[str, dict[str, float]]:
    return cast(dict[str, Any], _summary(run))["rates"]


def _training_flops(summary: dict[str, Any]) -> float:
    """FLOPs of all forward passes of a run; NaN where they were not counted.

    A backward pass has about twice as many, at each rate.
    """
    each = summary.get("examples", {"": math.nan})
    of = {name: found.get("flops") for name, found in summary["rates"].items()}
    return sum(n * (math.nan if of.get(r) is None else of[r]) for r, n in each.items())


def _cells(runs: Sequence[Member], name: str) -> dict[str, dict[float, outcome.Cell]]:
    """The table of one of the numbers of finished runs."""
    values: dict[str, dict[float, list[float]]] = {}
    for run in runs:
        for rate in run.measured:
            row = values.setdefault(run.scheme, {}).setdefault(rate, [])
            row.append(_value(run, name, rate))
    return outcome.cells(values)


def write(
    recipe: Recipe,
    flags: Flags,
    runs: Sequence[Member],
    workdir: Path,
    console: Console,
) -> None:
    """Write results, table and picture of finished runs, and show the table."""
    quantity = recipe.kind.quantity
    seconds: dict[str, float] = collections.defaultdict(float)
    flops: dict[str, float] = collections.defaultdict(float)
    for run in runs:
        summary = cast(dict[str, Any], _summary(run))
        seconds[run.scheme] += summary["train_seconds"]
        flops[run.scheme] += _training_flops(summary)
    found = _cells(runs, quantity.name)
    further = {name: _cells(runs, name) for name in _further(runs, quantity.name)}
    summary = cast(dict[str, Any], _summary(runs[0]))
    first = flops[runs[0].scheme]
    cost = {name: each / first if first else math.nan for name, each in flops.items()}
    results = {
        **{name: summary[name] for name in ("recipe", "dataset", "model", "epochs")},
        "quantity": quantity.name,
        "seeds": list(flags.seeds),
        "train_seconds": {name: round(took, 1) for name, took in seconds.items()},
        "training_flops": {
            name: each if math.isfinite(each) else None for name, each in flops.items()
        },
        "schemes": outcome.as_json(found),
        **{name: outcome.as_json(each) for name, each in further.items()},
    }
    (workdir / RESULTS).write_text(json.dumps(results, indent=2) + "\n")

    scale = 100.0 if quantity is ACCURACY else 1.0
    axis = f"{quantity.name}{', %' if quantity is ACCURACY else ''}, held-out examples"
    title = f"{summary['model']} on {summary['dataset']}, {summary['epochs']} epochs"
    passes = {run.scheme: run.passes for run in runs}
    table = outcome.rows(found, passes, cost, scale=scale)
    several = len(flags.seeds) > 1
    caption = f"{title}; {axis}; seeds {', '.join(map(str, flags.seeds))}: mean"
    caption += " ± standard deviation." if several else "."
    if any(
        cell.difference is not None for row in found.values() for cell in row.values()
    ):
        caption += " In brackets: more than separately trained networks have"
        caption += ", ± standard error." if several else "."
    written = outcome.markdown(table, caption)
    for name, each in further.items():
        said = "loss, nats" if name == "loss" else name.replace("_", " ")
        rows = (
            outcome.rows(each, passes, cost, digits=4)
            if name == "loss"
            else outcome.rows(each, passes, cost, scale=scale)
        )
        written += "\n" + outcome.markdown(rows, f"The same, {said}.")
    (workdir / TABLE).write_text(written)
    plot(workdir / PICTURE, found, title=title, axis=axis, scale=scale)

    # Close, to fit into 80 columns.
    shown = Table(
        title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False
    )
    shown.caption, shown.caption_justify = caption, "left"
    for scheme, _, _, *row in table:
        if not shown.columns:
            shown.add_column(scheme, no_wrap=True)
            for rate in row:
                shown.add_column(rate, justify="right")
            continue
        close = (text.replace(" (", "\n(").replace(" ± ", "±") for text in row)
        shown.add_row(scheme, *close)
    console.print(shown)
    console.print(
        f"Table, picture and numbers are in {workdir}.", highlight=False, soft_wrap=True
    )


def _interrupted(stopped: signal.Signals, args: list[str]) -> int:
    again = shlex.join(["python", "-m", "experiments.compare_schedules", *args])
    print(f"\nInterrupted; what is done is saved. To go on:\n  {again}")
    return 128 + stopped


if __name__ == "__main__":
    sys.exit(main())
