"""What the recipes share: check everything, train, measure, write down.

A recipe is a network and its defaults (`Recipe`); `main` is the command. All checks
come before any work, and a setting that does not fit ends the command with one line
and exit code 2. A run leaves in its workdir::

    settings.json            the settings, defaults filled in
    metrics.jsonl            losses every ten steps, accuracies every epoch
    checkpoints/             the last two and the best
    summary.json             accuracy and cost of each rate
    accuracy_vs_flops.png    the same as a picture
"""

import dataclasses
import json
import math
import shlex
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from rich.console import Console

import mslice_jax as ms
from mslice_jax import data
from mslice_jax.plots import plot_accuracy_vs_flops
from mslice_jax.profile import RateProfile, profile
from mslice_jax.rates import rate_key
from mslice_jax.schedules import Schedule, make_schedule
from mslice_jax.train import (
    CheckpointError,
    Checkpoints,
    Evaluate,
    MetricsFile,
    Outcome,
    TrainState,
    cosine,
    make_evaluate,
    make_train_step,
    multi_step,
    sgd,
    train,
)

from .screen import Bar, show_settings, show_table
from .settings import Defaults, Settings, as_json, changed, parse, resolve

_OUTPUTS = (
    "settings.json",
    "metrics.jsonl",
    "checkpoints",
    "summary.json",
    "accuracy_vs_flops.png",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """A network and the settings it is trained with unless flags say otherwise.

    Attributes:
      name: of the module, and of the folder below runs/.
      description: what ``--help`` says first.
      model: builds the network from depth, num_classes and widen.
      digits: defaults for digits.
      cifar: defaults for everything else, the original's.
    """

    name: str
    description: str
    model: Callable[..., nn.Module]
    digits: Defaults
    cifar: Defaults


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """All that training needs, checked."""

    settings: Settings
    model_name: str
    dataset: data.Dataset
    state: TrainState
    optimizer: optax.GradientTransformation
    learning_rate: optax.Schedule
    schedule: Schedule
    steps_per_epoch: int
    checkpoints: Checkpoints


def main(recipe: Recipe, args: list[str] | None = None) -> int:
    """Run the recipe as a command; returns the exit code.

    0: the table was shown. 1: writing failed on the way. 2: a setting does not fit,
    nothing was done. 130: interrupted, what was done is saved.
    """
    settings = parse(recipe.name, recipe.description, args)
    console = Console()
    try:
        run = prepare(recipe, settings, console)
    except (ValueError, TypeError, OSError, CheckpointError) as error:
        return _fail(error, 2)
    except KeyboardInterrupt:
        print("\nInterrupted before training began; nothing was changed.")
        return 130
    again = _command(recipe, sys.argv[1:] if args is None else args)
    with run.checkpoints:
        try:
            outcome = fit(run, console)
            if outcome.interrupted:
                _say_saved(run, again)
                return 130
            finish(run, outcome, console)
        except (CheckpointError, OSError) as error:
            return _fail(error, 1)
        except KeyboardInterrupt:
            _say_saved(run, again)
            return 130
    return 0


def prepare(recipe: Recipe, settings: Settings, console: Console) -> Run:
    """Check everything there is to check, cheapest first, and build what is needed.

    Raises:
      ValueError, OSError, CheckpointError: for whatever does not fit.
    """
    defaults = recipe.digits if settings.dataset == "digits" else recipe.cifar
    settings = resolve(settings, recipe.name, defaults)
    schedule = make_schedule(
        settings.schedule,
        settings.rates,
        num_random=settings.num_random,
        weights=settings.rate_weights,
        seed=settings.seed,
    )
    size = {"depth": settings.depth, "widen": settings.widen}
    recipe.model(**size, num_classes=10)  # a wrong depth should not wait for the data
    workdir = cast(Path, settings.workdir)
    _check_writable(workdir)

    dataset = data.load(
        settings.dataset,
        settings.data_dir,
        train_examples=settings.train_examples,
        seed=settings.seed,
    )
    batch_size = cast(int, settings.batch_size)
    steps_per_epoch = data.steps_per_epoch(len(dataset.x_train), batch_size)
    learning_rate = (cosine if settings.cosine else multi_step)(
        cast(float, settings.lr),
        epochs=cast(int, settings.epochs),
        steps_per_epoch=steps_per_epoch,
        warmup_epochs=cast(int, settings.warmup_epochs),
    )
    optimizer = sgd(learning_rate, weight_decay=settings.weight_decay)

    model = recipe.model(**size, num_classes=dataset.num_classes)
    model_name = f"{type(model).__name__}-{settings.depth}"
    if settings.widen != 1:
        model_name += f" x{settings.widen:g}"
    net_key, run_key = jax.random.split(jax.random.key(settings.seed))
    images = jax.ShapeDtypeStruct((batch_size, *dataset.image_shape), jnp.float32)
    net = ms.upgrade(
        model,
        _initialize(model, net_key, dataset.image_shape),
        images,
        rates=settings.rates,
        groups=settings.groups,
        norm=settings.norm,
    )
    state = TrainState.create(net, optimizer, key=run_key)

    if not settings.resume:
        _move_aside(workdir, console)
    checkpoints = Checkpoints(
        workdir / "checkpoints",
        about={"model": model_name, "norm": settings.norm, "groups": settings.groups},
        report=lambda text: console.print(f"Warning: {text}", style="yellow"),
    )
    if checkpoints.steps():
        checkpoints.check(state)
        _check_same_settings(workdir, settings)
    return Run(
        settings=settings,
        model_name=model_name,
        dataset=dataset,
        state=state,
        optimizer=optimizer,
        learning_rate=learning_rate,
        schedule=schedule,
        steps_per_epoch=steps_per_epoch,
        checkpoints=checkpoints,
    )


def fit(run: Run, console: Console) -> Outcome:
    """Train; everything that is written goes into the workdir."""
    settings, dataset = run.settings, run.dataset
    epochs, workdir = cast(int, settings.epochs), cast(Path, settings.workdir)
    console.print(f"{run.model_name} on {dataset}", highlight=False, soft_wrap=True)
    show_settings(console, as_json(settings))
    (workdir / "settings.json").write_text(json.dumps(as_json(settings), indent=2))
    bar = Bar(console, epochs=epochs, steps_per_epoch=run.steps_per_epoch)
    with bar:
        return train(
            run.state,
            train_step=make_train_step(
                run.optimizer, transform=data.train_transform(dataset)
            ),
            batches=lambda step: data.train_batches(
                dataset.x_train,
                dataset.y_train,
                cast(int, settings.batch_size),
                seed=settings.seed,
                start=step,
            ),
            schedule=run.schedule,
            evaluate=_evaluate(run),
            epochs=epochs,
            steps_per_epoch=run.steps_per_epoch,
            checkpoints=run.checkpoints,
            metrics=MetricsFile(workdir / "metrics.jsonl"),
            learning_rate=run.learning_rate,
            watcher=bar,
        )


def finish(run: Run, outcome: Outcome, console: Console) -> None:
    """Measure the cost of each rate; show the table, write summary and picture."""
    workdir = cast(Path, run.settings.workdir)
    image = np.zeros((1, *run.dataset.image_shape), np.float32)
    with console.status("measuring what each rate costs"):
        profiles = profile(outcome.state.net, image)
    summary = _summary(run, outcome, profiles)
    (workdir / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    title = f"{run.model_name} on {run.dataset.name}"
    flops = {rate: cost.flops for rate, cost in profiles.items()}
    if not any(map(math.isnan, flops.values())):
        picture = workdir / "accuracy_vs_flops.png"
        plot_accuracy_vs_flops(picture, outcome.accuracy, flops, title=title)
    show_table(console, title, outcome.accuracy, profiles)
    console.print(
        f"Trained for {outcome.progress.train_seconds:.0f} s. "
        f"Summary, picture and checkpoints are in {workdir}.",
        highlight=False,
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


def _evaluate(run: Run) -> Evaluate:
    normalize = data.eval_transform(run.dataset)
    evaluate = make_evaluate(
        run.dataset.x_test, run.dataset.y_test, normalize=normalize
    )
    if run.settings.norm != "shared":
        return evaluate
    # One batch norm for all rates has statistics of none: they are measured first.
    images = run.dataset.x_train[: min(len(run.dataset.x_train), 1024)]
    parts = [normalize(jnp.asarray(images[i : i + 128])) for i in range(0, 1024, 128)]
    parts = [part for part in parts if len(part) == len(parts[0])]
    return lambda net: evaluate(ms.calibrate(net, parts))


def _initialize(
    model: nn.Module, key: jax.Array, image_shape: tuple[int, int, int]
) -> dict[str, Any]:
    """Fresh variables, in one compiled program."""
    # It runs once: LLVM would take six seconds to optimize it, and takes one not to.
    quick = {"xla_backend_optimization_level": 0}
    options = quick if jax.default_backend() == "cpu" else None
    init = jax.jit(model.init, compiler_options=options)
    return init(key, jnp.zeros((1, *image_shape)))


def _check_writable(workdir: Path) -> None:
    """Raise OSError unless files can be made in `workdir`, which is made if absent."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=workdir):
            pass
    except OSError as error:
        raise OSError(
            f"expected a folder to write to as --workdir, got {workdir} "
            f"({error.strerror}). Choose another."
        ) from error


def _check_same_settings(workdir: Path, settings: Settings) -> None:
    """Raise ValueError if the run in `workdir` cannot go on with these settings."""
    try:
        saved = json.loads((workdir / "settings.json").read_text())
    except (OSError, ValueError):
        return  # nothing to compare with; the checkpoint itself was compared
    differences = changed(saved, settings)
    if saved.get("epochs", 0) > cast(int, settings.epochs):
        differences.append(f"--epochs was {saved['epochs']} and is {settings.epochs}")
    if differences:
        raise ValueError(
            f"{workdir} holds a run with other settings: {'; '.join(differences)}. "
            "Give the same ones to go on with it, another --workdir, or --no-resume."
        )


def _move_aside(workdir: Path, console: Console) -> None:
    """Move what an earlier run left into a folder of its own; nothing is deleted."""
    old = [workdir / name for name in _OUTPUTS if (workdir / name).exists()]
    if not old:
        return
    number = 1
    while (target := workdir / f"previous-{number}").exists():
        number += 1
    target.mkdir()
    for path in old:
        path.rename(target / path.name)
    console.print(f"The earlier run is now in {target}.", highlight=False)


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
