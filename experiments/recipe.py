"""The command of every recipe: check, train, evaluate, write the results.

A recipe is a network and its defaults (`Recipe`); `main` is the command. All checks
come before any work (`prepare`), and a setting that does not fit ends the command with
one line and exit code 2, and leaves no folder. Ctrl-C or SIGTERM saves after the
current step and says how to continue (exit code 130 or 143); a second Ctrl-C stops at
once. A run leaves in its workdir::

    settings.json            the settings, defaults filled in; --config takes it
    metrics.jsonl            losses every ten steps; accuracies and losses on held-out
                             examples every epoch: "test_accuracy/0.5", a number a key
    checkpoints/             the last two and the best
    summary.json             accuracy (of text: perplexity), loss and cost of each rate
    accuracy_vs_flops.png    the same as a picture (of text: perplexity_...)
    accuracy_over_epochs.png each rate's accuracy after every epoch
    norm_scales.jsonl, .png  the scales of the norms, group by group, over the epochs
    network.mslice           the network, for `mslice_jax.load`
    images.json              shape, mean and deviation of the images that it takes (of
                             text: vocabulary.json, the number of each token)
    tensorboard/             with --tensorboard: the numbers of metrics.jsonl

``python -m experiments.evaluate WORKDIR`` evaluates the trained network again.
"""

import collections
import contextlib
import json
import math
import shlex
import signal
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import jax
from rich.console import Console

import mslice_jax as ms
from mslice_jax import data
from mslice_jax.core.rates import rate_key
from mslice_jax.cpu import memory
from mslice_jax.profile import Profile, RateProfile, profile
from mslice_jax.train import (
    Batch,
    CheckpointError,
    NotFiniteError,
    Outcome,
    train,
)

from . import checks, norm_scales
from .measure import ACCURACY, FlatMetricsFile, HeldOut, Numbers, Quantity
from .prepare import NETWORK, Run, prepare
from .prepare import Recipe as Recipe
from .process import keep_compiled_programs, print_anything
from .screen import Bar, TensorBoard, busy, show_settings, show_table
from .settings import as_json, parse

SAVE_EVERY = 4.0
"""Minutes between checkpoints within an epoch."""


def main(recipe: Recipe, args: list[str] | None = None) -> int:
    """Run the recipe as a command; returns the exit code.

    0: the table was shown. 1: writing failed on the way. 2: a setting does not fit,
    nothing was done. 130 (Ctrl-C), 143 (SIGTERM): interrupted, the run is saved.
    """
    print_anything()
    try:
        settings = parse(recipe.name, recipe.description, args, recipe.kind.settings)
        if settings.distributed:
            checks.check_flags(settings)
            _find_hosts()
        console = Console(quiet=settings.distributed and not speaks())
        keep_compiled_programs()
        memory.keep_freed()
        run = prepare(recipe, settings, console)
    except (ValueError, OSError, CheckpointError) as error:
        return fail(error, 2)
    except KeyboardInterrupt:
        print("\nInterrupted before training began; nothing was changed.")
        return 130
    again = _command(recipe, sys.argv[1:] if args is None else args)
    try:
        with run.checkpoints:
            outcome, numbers = fit(run, console)
            stopped = outcome.interrupted
            if stopped is None and numbers is not None:
                finish(run, outcome, numbers, console)
    except (CheckpointError, NotFiniteError, data.DataError, OSError) as error:
        return fail(error, 1)
    except KeyboardInterrupt:
        stopped = signal.SIGINT
    if stopped is None:
        return 0
    _say_saved(run, again)
    return 128 + stopped


def _find_hosts() -> None:
    """Join the other hosts; raises ValueError where JAX finds none."""
    try:
        jax.distributed.initialize()  # finds them in the environment
    except (ValueError, TypeError, RuntimeError) as error:
        raise ValueError(
            "--distributed found no other hosts; JAX says: "
            f"{str(error).rstrip('.')}. It finds them on TPU slices, and where Slurm, "
            "Open MPI or Kubernetes starts the command on each (srun, mpirun). On one "
            "machine leave --distributed out: all its devices are used anyway."
        ) from error


def fit(run: Run, console: Console) -> tuple[Outcome, Numbers | None]:
    """Train; everything is written into the workdir.

    Returns:
      The outcome of the run, and the last evaluation.
    """
    settings, dataset, kind = run.settings, run.dataset, run.recipe.kind
    epochs, workdir = cast(int, settings.epochs), cast(Path, settings.workdir)
    console.print(f"{run.model_name} on {dataset}", highlight=False, soft_wrap=True)
    show_settings(console, as_json(settings))
    if speaks():
        saved = {"recipe": run.recipe.name, **as_json(settings)}
        (workdir / "settings.json").write_text(json.dumps(saved, indent=2) + "\n")
        kind.keep(dataset, workdir)

    def batches(step: int) -> Iterator[Batch]:
        host = (jax.process_index(), jax.process_count())
        return kind.batches(settings, dataset, start=step, host=host)

    if run.checkpoints.steps()[-1:] != (epochs * run.steps_per_epoch,):
        with busy(console, "Compiling a program for each rate"):
            size = cast(int, settings.batch_size) // jax.process_count()
            seconds = _compile(run, kind.blank(settings, dataset, size))
        console.print(
            f"Compiled {len(run.state.net.rates)} rates in {seconds:.1f} s.",
            highlight=False,
        )
    pace = kind.pace(settings)
    bar = Bar(
        console,
        epochs=epochs,
        steps_per_epoch=run.steps_per_epoch,
        quantity=kind.quantity,
        pace=(pace.what, pace.each),
    )
    local = run.placement.local if run.placement is not None else lambda tree: tree
    held_out = HeldOut(
        kind.measurement(settings, dataset),
        kind.quantity,
        norm_scales.ScalesFile(workdir / norm_scales.FILE, local),
    )
    sinks = []
    with contextlib.ExitStack() as shown:
        if settings.tensorboard and speaks():
            board = TensorBoard(workdir / "tensorboard")
            sinks.append(shown.enter_context(board).write)
        shown.enter_context(bar)
        outcome = train(
            run.state,
            train_step=run.train_step,
            batches=batches,
            schedule=run.schedule,
            evaluate=held_out,
            epochs=epochs,
            steps_per_epoch=run.steps_per_epoch,
            checkpoints=run.checkpoints,
            metrics=FlatMetricsFile(workdir / "metrics.jsonl", held_out, sinks),
            placement=run.placement,
            save_every_minutes=SAVE_EVERY,
            learning_rate=run.learning_rate,
            watcher=bar,
        )
    return outcome, held_out.last


def _compile(run: Run, batch: Batch) -> float:
    """Compile all programs of training at the same time; returns the seconds."""
    if run.placement is not None:
        batch = run.placement.batch(batch)
    return run.train_step.compile(run.state, batch, run.state.net.rates)


def finish(run: Run, outcome: Outcome, numbers: Numbers, console: Console) -> None:
    """Measure the cost of each rate; show the table, write network and pictures."""
    workdir, kind = cast(Path, run.settings.workdir), run.recipe.kind
    net = outcome.state.eval_net
    if run.placement is not None:
        net = run.placement.local(net)
    net = kind.shipped(run.recipe, run.settings, run.dataset, net)
    with busy(console, "Saving the network"):
        ms.save(net, workdir / NETWORK, overwrite=True)
    if not speaks():
        return
    profiles = costs(net, kind.example(run.settings, run.dataset), console)
    further = {
        name: measure(net)
        for name, measure in kind.further(run.settings, run.dataset).items()
    }
    summary = {
        "recipe": run.recipe.name,
        "dataset": run.dataset.name,
        "model": run.model_name,
        "schedule": run.settings.schedule,
        "optimizer": run.settings.optimizer,
        "seed": run.settings.seed,
        "epochs": outcome.progress.epoch,
        "train_seconds": round(outcome.progress.train_seconds, 1),
        "examples": {rate_key(rate): n for rate, n in _trained_on(run).items()},
        **as_summary(numbers, profiles, kind.quantity, further),
    }
    (workdir / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    title = f"{run.model_name} on {run.dataset.name}"
    kind.draw(workdir, numbers, profiles, title)
    norm_scales.draw(workdir, title)
    show_table(
        console, title, numbers, profiles, device=device(), quantity=kind.quantity
    )
    for name, found in further.items():
        values = kind.quantity.of(found)
        each = (
            f"{kind.quantity.text(value)} (r = {rate:g})"
            for rate, value in sorted(values.items(), reverse=True)
        )
        said = f"{name.replace('_', ' ')}: {', '.join(each)}"
        console.print(said, highlight=False, soft_wrap=True)
    console.print(
        f"Trained for {outcome.progress.train_seconds:.0f} s. "
        f"Network, summary, pictures and checkpoints are in {workdir}.",
        highlight=False,
        soft_wrap=True,
    )


def _trained_on(run: Run) -> dict[float, int]:
    """How many examples each rate was trained on, those of all epochs together."""
    steps = cast(int, run.settings.epochs) * run.steps_per_epoch
    drawn = collections.Counter(r for step in range(steps) for r in run.schedule(step))
    return {r: drawn[r] * cast(int, run.settings.batch_size) for r in sorted(drawn)}


def costs(net: ms.Sliceable, example: Any, console: Console) -> Profile:
    """The cost of each rate for one example."""
    with busy(console, "Measuring what each rate costs"):
        return profile(net, example)


def as_summary(
    numbers: Numbers,
    profiles: Mapping[float, RateProfile],
    quantity: Quantity = ACCURACY,
    further: Mapping[str, Numbers] | None = None,
) -> dict[str, Any]:
    """Results for JSON; NaN, for FLOPs that a device does not count, is null."""
    values = quantity.of(numbers)
    more = {name: quantity.of(found) for name, found in (further or {}).items()}
    return {
        # latency_ms is of one example at a time, on this device.
        "latency_device": device(),
        "latency_batch": 1,
        "rates": {
            rate_key(rate): {
                quantity.name: _or_null(round(values[rate], 6)),
                "loss": _or_null(round(numbers.loss[rate], 6)),
                "parameters": cost.parameters,
                "flops": _or_null(cost.flops),
                "latency_ms": round(cost.latency_ms, 4),
                **{name: _or_null(round(of[rate], 6)) for name, of in more.items()},
            }
            for rate, cost in sorted(profiles.items(), reverse=True)
        },
    }


def _or_null(value: float) -> float | None:
    return value if math.isfinite(value) else None


def device() -> str:
    """Name of the device, such as "cpu" or "NVIDIA H200"."""
    return jax.local_devices()[0].device_kind


def speaks() -> bool:
    """Whether this host shows and writes results: the first one does."""
    return jax.process_index() == 0


def _command(recipe: Recipe, args: list[str]) -> str:
    kept = [arg for arg in args if arg != "--no-resume"]
    return shlex.join(["python", "-m", f"experiments.{recipe.name}", *kept])


def _say_saved(run: Run, again: str) -> None:
    steps = run.checkpoints.steps()
    place = cast(Path, run.settings.workdir) / "checkpoints"
    if steps:
        print(f"\nInterrupted. Step {steps[-1]} is saved in {place}. To go on:")
    else:
        print("\nInterrupted before anything was saved. To start again:")
    print(f"  {again}")


def fail(error: Exception, code: int) -> int:
    """Print the error in one line; returns the exit code."""
    print("error: " + " ".join(str(error).split()), file=sys.stderr)
    return code
