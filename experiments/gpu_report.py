"""Sliced networks on CIFAR-10 against separately trained ones, within a time limit.

    python -m experiments.gpu_report --cifar10 cifar10.npz --out runs/gpu --minutes 8

For VGG-13 and ResNet-56, in bfloat16: one network trained with model slicing, and one
network of each width trained alone, with the same epochs, batches and optimizer. Each
call continues the last one from the checkpoints in the output folder and ends within
the limit. `report.json` and `report.md` have the jobs finished so far: accuracy of each
rate, images per second, hardware and versions. A folder is for one choice of data,
epochs, batch size, learning rate, seed and precision.

Needs jax, flax, optax, orbax-checkpoint, numpy and scikit-learn; `cifar10.npz` has
x_train, y_train, x_test, y_test. Without it the digits of scikit-learn are used: with
--epochs 1 a trial of a minute or two.
"""

import argparse
import dataclasses
import datetime
import json
import pathlib
import signal
import statistics
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

import mslice_jax as ms
from mslice_jax import data, schedules
from mslice_jax.models import CifarResNet, CifarVGG
from mslice_jax.train import (
    Checkpoints,
    MetricsFile,
    TrainState,
    Watcher,
    make_evaluate,
    make_train_step,
    multi_step,
    sgd,
    train,
)

RATES = (0.25, 0.5, 0.75, 1.0)


@dataclasses.dataclass(frozen=True)
class Job:
    """One network to train: sliced, with all rates, or alone, at a single width."""

    model: str
    alone: float | None = None

    @property
    def name(self) -> str:
        """Such as 'vgg13-sliced' or 'vgg13-0.5'."""
        return f"{self.model}-{'sliced' if self.alone is None else self.alone}"


def jobs(models: list[str]) -> list[Job]:
    """The sliced networks first, then the widths alone, the widest first."""
    sliced = [Job(model) for model in models]
    alone = [Job(model, rate) for rate in reversed(RATES) for model in models]
    return sliced + alone


def network(name: str, classes: int) -> nn.Module:
    """A network by its name, such as 'vgg13' or 'resnet56'."""
    if name.startswith("vgg"):
        return CifarVGG(depth=int(name.removeprefix("vgg")), num_classes=classes)
    return CifarResNet(depth=int(name.removeprefix("resnet")), num_classes=classes)


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """Settings that all rows of a report share."""
    return {
        "dtype": "float32" if args.float32 else "bfloat16",
        "dataset": "CIFAR-10" if args.cifar10 else "digits",
        "epochs": args.epochs,
        "batch_size": args.batch_size,
        "lr": args.lr,
        "seed": args.seed,
    }


class Clock(Watcher):
    """Stops a run in time, as Ctrl-C does: saved after the current step.

    Args:
      seconds: time limit, from now.
    """

    def __init__(self, seconds: float):
        self._end = time.monotonic() + seconds
        self._pressed = False

    @property
    def left(self) -> float:
        """Seconds left."""
        return self._end - time.monotonic()

    def stepped(
        self, step: int, losses: dict[float, float], examples_per_second: float
    ) -> None:
        """Interrupt the run, once, when the time is up."""
        if self.left < 0 and not self._pressed:
            self._pressed = True  # a second one would stop the run at once
            signal.raise_signal(signal.SIGINT)


def fit(
    job: Job, dataset: data.Dataset, folder: pathlib.Path, clock: Clock, args: Any
) -> dict[str, Any] | None:
    """Trains a job, or continues it; its row of the report, None if time is up."""
    steps = data.steps_per_epoch(len(dataset.x_train), args.batch_size)
    optimizer = sgd(multi_step(args.lr, epochs=args.epochs, steps_per_epoch=steps))
    model = network(job.model, dataset.num_classes)
    image = jax.ShapeDtypeStruct((args.batch_size, *dataset.image_shape), jnp.float32)
    variables = jax.jit(model.init)(
        jax.random.key(args.seed), jnp.zeros((1, *dataset.image_shape))
    )
    if job.alone is None:
        net = ms.upgrade(model, variables, image, rates=RATES)
        schedule = schedules.random_min_max(RATES, seed=args.seed)
    else:
        full = ms.upgrade(model, variables, image, rates=(job.alone,))
        net = ms.extract(full, job.alone)
        schedule = schedules.static((job.alone,))
    metrics = folder / job.name / "metrics.jsonl"
    step = make_train_step(
        optimizer,
        transform=data.train_transform(dataset),
        compute_dtype=jnp.float32 if args.float32 else jnp.bfloat16,
    )

    def batches(start: int) -> Iterator[Any]:
        return data.train_batches(
            dataset.x_train,
            dataset.y_train,
            args.batch_size,
            seed=args.seed,
            start=start,
        )

    place = folder / job.name / "checkpoints"
    with Checkpoints(place, about=settings_of(args)) as checkpoints:
        outcome = train(
            TrainState.create(net, optimizer, key=jax.random.key(args.seed)),
            train_step=step,
            batches=batches,
            schedule=schedule,
            evaluate=make_evaluate(
                dataset.x_test,
                dataset.y_test,
                batch_size=1024,
                normalize=data.eval_transform(dataset),
            ),
            epochs=args.epochs,
            steps_per_epoch=steps,
            checkpoints=checkpoints,
            metrics=MetricsFile(metrics),
            watcher=clock,
        )
    if outcome.interrupted:
        return None
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    speeds = [line["examples_per_second"] for line in lines if "loss" in line]
    return {
        "accuracy": {str(rate): a for rate, a in outcome.accuracy.items()},
        "examples_per_second": statistics.median(speeds) if speeds else None,
        "seconds": round(outcome.progress.train_seconds, 1),
    }


def markdown(report: dict[str, Any]) -> str:
    """The report as tables: rates of one sliced network, and widths trained alone."""
    about = report["about"]
    lines = [
        f"{about['date']}, {about['device']}, jax {about['jax']}, {about['dtype']}: "
        f"{about['dataset']}, {about['epochs']} epochs of batches of "
        f"{about['batch_size']}.",
        "",
        f"| | {' | '.join(f'r = {rate:g}' for rate in RATES)} | images/s | seconds |",
        "|---|" + "---|" * (len(RATES) + 2),
    ]
    rows = report["rows"]
    for model in about["models"]:
        sliced = rows.get(f"{model}-sliced")
        alone = {rate: rows.get(f"{model}-{rate}") for rate in RATES}
        if sliced:
            cells = [f"{100 * sliced['accuracy'][str(rate)]:.2f}" for rate in RATES]
            speed = f"{sliced['examples_per_second'] or 0:,.0f}"
            cells += [speed, f"{sliced['seconds']:.0f}"]
            lines.append(f"| {model}, one network | {' | '.join(cells)} |")
        if any(alone.values()):
            cells = [
                f"{100 * row['accuracy'][str(rate)]:.2f}" if row else "-"
                for rate, row in alone.items()
            ]
            speeds = [
                f"{row['examples_per_second'] or 0:,.0f}" if row else "-"
                for row in alone.values()
            ]
            total = sum(row["seconds"] for row in alone.values() if row)
            cells += [", ".join(speeds), f"{total:.0f}"]
            lines.append(f"| {model}, each width alone | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    """Works until all is done or the time is up; 0 if all is done, 3 if not yet."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.gpu_report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--cifar10", type=pathlib.Path, help="npz; digits without it")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/gpu"))
    parser.add_argument("--minutes", type=float, default=8.0, help="of this call")
    parser.add_argument("--models", nargs="+", default=["vgg13", "resnet56"])
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--float32", action="store_true", help="not bfloat16")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "report.json"
    report = json.loads(file.read_text()) if file.exists() else {"rows": {}}
    settings, before = settings_of(args), report.get("about", {})
    differences = [
        f"{name} was {before.get(name)} and is {value}"
        for name, value in settings.items()
        if before and before.get(name) != value
    ]
    if differences:
        parser.error(
            f"{file} is of other settings: {'; '.join(differences)}. Give the same "
            "ones to go on with it, or another --out."
        )
    # The end of a call takes time itself: to save, to evaluate.
    clock = Clock(60 * args.minutes * 0.9)
    dataset = data.load("npz" if args.cifar10 else "digits", args.cifar10)
    report["about"] = {
        "date": datetime.date.today().isoformat(),
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "models": args.models,
        **settings,
    }
    todo = [job for job in jobs(args.models) if job.name not in report["rows"]]
    for job in todo:
        print(f"{job.name}: {clock.left:.0f} s left", flush=True)
        row = fit(job, dataset, args.out, clock, args)
        if row is not None:
            report["rows"][job.name] = row
        file.write_text(json.dumps(report, indent=2) + "\n")
        (args.out / "report.md").write_text(markdown(report))
        if row is None or clock.left < 0:  # stopped, by the clock or by Ctrl-C
            break
    missing = [j.name for j in jobs(args.models) if j.name not in report["rows"]]
    print(markdown(report))
    if missing:
        print(f"Still to do: {', '.join(missing)}. Give the same command again.")
        return 3
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
