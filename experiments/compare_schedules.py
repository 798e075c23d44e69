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

import dataclasses
import json
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import tyro
from rich.console import Console

from mslice_jax import data
from mslice_jax.core.rates import check_rates
from mslice_jax.cpu import memory
from mslice_jax.train import CheckpointError, NotFiniteError

from .comparison import report, results
from .comparison.flags import one_line
from .comparison.schemes import SCHEMES, Member, Scheme, as_scheme, members
from .prepare import Recipe, checked, named, prepare
from .process import keep_compiled_programs, print_anything
from .recipe import fail, finish, fit
from .screen import busy
from .settings import ImageDefaults, as_json, flag, local, parse, resolve

SETTINGS = "settings.json"


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
        report.write(recipe.kind.quantity, flags.seeds, runs, workdir, console)
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
    # A flag newer than the comparison is not in its file, and had its present default.
    names = [name for name in kept if name in saved and saved[name] != kept[name]]
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
    if results.summary(run) is None:
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
        f"r{rate:g} {quantity.short(results.value(run, quantity.name, rate))}"
        for rate in run.measured
    )
    console.print(f"{what}: {quantity.name} {values}{quantity.unit}", highlight=False)
    return None


def _interrupted(stopped: signal.Signals, args: list[str]) -> int:
    again = shlex.join(["python", "-m", "experiments.compare_schedules", *args])
    print(f"\nInterrupted; what is done is saved. To go on:\n  {again}")
    return 128 + stopped


if __name__ == "__main__":
    sys.exit(main())
