"""What the recipes share: check everything, train, measure, write down.

A recipe is a network and its defaults (`Recipe`); `main` is the command. All checks
come before any work (`prepare`), and a setting that does not fit ends the command with
one line and exit code 2. Ctrl-C or SIGTERM saves behind the step under way and says how
to go on (exit code 130 or 143); a second Ctrl-C stops at once. A run leaves in its
workdir::

    settings.json            the settings, defaults filled in
    metrics.jsonl            losses every ten steps, accuracies every epoch
    checkpoints/             the last two and the best
    summary.json             accuracy and cost of each rate
    accuracy_vs_flops.png    the same as a picture
    accuracy_over_epochs.png each rate's accuracy after every epoch
    tensorboard/             with --tensorboard: the numbers of metrics.jsonl
"""

import contextlib
import json
import math
import shlex
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
from rich.console import Console

import mslice_jax as ms
from mslice_jax import data
from mslice_jax.core.rates import rate_key
from mslice_jax.plots import plot_accuracy_over_epochs, plot_accuracy_vs_flops
from mslice_jax.profile import RateProfile, profile
from mslice_jax.train import (
    Batch,
    CheckpointError,
    Evaluate,
    MetricsFile,
    Outcome,
    Watcher,
    Watchers,
    train,
)

from . import inputs
from .prepare import Recipe as Recipe
from .prepare import Run, prepare
from .process import keep_compiled_programs, keep_freed_memory
from .screen import Bar, TensorBoard, show_settings, show_table
from .settings import as_json, parse


def main(recipe: Recipe, args: list[str] | None = None) -> int:
    """Run the recipe as a command; returns the exit code.

    0: the table was shown. 1: writing failed on the way. 2: a setting does not fit,
    nothing was done. 130 (Ctrl-C), 143 (SIGTERM): interrupted, what was done is saved.
    """
    settings = parse(recipe.name, recipe.description, args)
    if settings.distributed:
        jax.distributed.initialize()  # finds its hosts in the environment
    console = Console(quiet=settings.distributed and not _speaks())
    keep_compiled_programs()
    keep_freed_memory()
    try:
        run = prepare(recipe, settings, console)
    except (ValueError, OSError, CheckpointError) as error:
        return _fail(error, 2)
    except KeyboardInterrupt:
        print("\nInterrupted before training began; nothing was changed.")
        return 130
    again = _command(recipe, sys.argv[1:] if args is None else args)
    try:
        with run.checkpoints:
            outcome = fit(run, console)
            stopped = outcome.interrupted
            if stopped is None:
                finish(run, outcome, console)
    except (CheckpointError, data.DataError, OSError) as error:
        return _fail(error, 1)
    except KeyboardInterrupt:
        stopped = signal.SIGINT
    if stopped is None:
        return 0
    _say_saved(run, again)
    return 128 + stopped


def fit(run: Run, console: Console) -> Outcome:
    """Train; everything that is written goes into the workdir."""
    settings, dataset = run.settings, run.dataset
    epochs, workdir = cast(int, settings.epochs), cast(Path, settings.workdir)
    console.print(f"{run.model_name} on {dataset}", highlight=False, soft_wrap=True)
    show_settings(console, as_json(settings))
    if _speaks():
        (workdir / "settings.json").write_text(json.dumps(as_json(settings), indent=2))

    def batches(step: int) -> Iterator[Batch]:
        return inputs.train_batches(
            dataset,
            cast(int, settings.batch_size),
            seed=settings.seed,
            start=step,
            host=(jax.process_index(), jax.process_count()),
        )

    if run.checkpoints.steps()[-1:] != (epochs * run.steps_per_epoch,):
        with console.status("compiling a program for each rate"):
            size = cast(int, settings.batch_size) // jax.process_count()
            seconds = _compile(run, inputs.blank_batch(dataset, size))
        console.print(
            f"Compiled {len(run.state.net.rates)} rates in {seconds:.1f} s.",
            highlight=False,
        )
    bar = Bar(console, epochs=epochs, steps_per_epoch=run.steps_per_epoch)
    with contextlib.ExitStack() as shown:
        watchers: list[Watcher] = [shown.enter_context(bar)]
        if settings.tensorboard and _speaks():
            board = TensorBoard(workdir / "tensorboard")
            watchers.append(shown.enter_context(board))
        return train(
            run.state,
            train_step=run.train_step,
            batches=batches,
            schedule=run.schedule,
            evaluate=_evaluate(run),
            epochs=epochs,
            steps_per_epoch=run.steps_per_epoch,
            checkpoints=run.checkpoints,
            metrics=MetricsFile(workdir / "metrics.jsonl"),
            placement=run.placement,
            learning_rate=run.learning_rate,
            watcher=Watchers(*watchers),
        )


def _compile(run: Run, batch: Batch) -> float:
    """All programs of training, side by side; returns the seconds."""
    if run.placement is not None:
        batch = run.placement.batch(batch)
    return run.train_step.compile(run.state, batch, run.state.net.rates)


def finish(run: Run, outcome: Outcome, console: Console) -> None:
    """Measure the cost of each rate; show the table, write summary and picture."""
    workdir = cast(Path, run.settings.workdir)
    image = np.zeros((1, *run.dataset.image_shape), np.float32)
    net = outcome.state.eval_net
    if run.placement is not None:
        net = run.placement.local(net)
    if not _speaks():
        return
    with console.status("measuring what each rate costs"):
        profiles = profile(net, image)
    summary = _summary(run, outcome, profiles)
    (workdir / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    title = f"{run.model_name} on {run.dataset.name}"
    flops = {rate: cost.flops for rate, cost in profiles.items()}
    if not any(map(math.isnan, flops.values())):
        picture = workdir / "accuracy_vs_flops.png"
        plot_accuracy_vs_flops(picture, outcome.accuracy, flops, title=title)
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    each = {
        line["epoch"]: {float(rate): a for rate, a in line["accuracy"].items()}
        for line in map(json.loads, lines)
        if "accuracy" in line
    }
    plot_accuracy_over_epochs(workdir / "accuracy_over_epochs.png", each, title=title)
    show_table(console, title, outcome.accuracy, profiles)
    console.print(
        f"Trained for {outcome.progress.train_seconds:.0f} s. "
        f"Summary, pictures and checkpoints are in {workdir}.",
        highlight=False,
        soft_wrap=True,
    )


def _summary(
    run: Run, outcome: Outcome, profiles: dict[float, RateProfile]
) -> dict[str, Any]:
    return {
        "dataset": run.dataset.name,
        "model": run.model_name,
        "schedule": run.settings.schedule,
        "seed": run.settings.seed,
        "epochs": outcome.progress.epoch,
        "train_seconds": round(outcome.progress.train_seconds, 1),
        "rates": {
            rate_key(rate): {
                "accuracy": round(outcome.accuracy[rate], 6),
                "parameters": cost.parameters,
                # JSON has no NaN; a device that does not count gives null.
                "flops": None if math.isnan(cost.flops) else cost.flops,
                "latency_ms": round(cost.latency_ms, 4),
            }
            for rate, cost in sorted(profiles.items(), reverse=True)
        },
    }


def _speaks() -> bool:
    """Of several hosts the first one shows and writes what there is to show."""
    return jax.process_index() == 0


def _evaluate(run: Run) -> Evaluate:
    evaluate = inputs.evaluation(run.dataset)
    if run.settings.norm != "shared":
        return evaluate
    # One batch norm for all rates has statistics of none: they are measured first.
    parts = inputs.calibration_batches(run.dataset)
    return lambda net: evaluate(ms.calibrate(net, parts))


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


def _fail(error: Exception, code: int) -> int:
    """Say in one line what is wrong."""
    print("error: " + " ".join(str(error).split()), file=sys.stderr)
    return code
