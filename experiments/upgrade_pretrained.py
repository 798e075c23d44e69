"""Upgrade a network that is trained already: magika, which tells types of files.

    pip install -e ".[magika]"
    python -m experiments.upgrade_pretrained
    python -m experiments.upgrade_pretrained --files ~/documents --seeds 0 1 2
    python -m experiments.upgrade_pretrained --network resnet
    python -m experiments.upgrade_pretrained --network g2p

The network runs at every rate: as it is, with its units ordered by each criterion, with
statistics of batch norms measured (`calibrate`), and after distillation from the frozen
original, which needs no labels. Accuracy is against labels (the extension of a file),
agreement against what the original says. TIME

It leaves in its workdir (runs/upgrade_pretrained_NETWORK) results.json, which has every
number and the differences with their intervals (a paired bootstrap over the held-out
examples), and accuracy_over_rates.png.
"""

import dataclasses
import json
import sys
import sysconfig
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import optax
import tyro
from rich.console import Console
from rich.table import Table

import mslice_jax as ms
from mslice_jax import schedules
from mslice_jax.core.rates import rate_key
from mslice_jax.train import Distillation, Task, TrainState, make_train_step

from .pretrained.subject import Subject
from .process import keep_compiled_programs, keep_freed_memory, print_anything
from .recipe import fail
from .screen import busy

CRITERIA = ("l1", "taylor", "activations", "activations x weights")
AS_IS, DISTILLED = "as it is", "distilled"


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is run.

    Attributes:
      network: magika (files), resnet (batch norms, trained here on digits), or g2p
        (a recurrent network, words).
      files: for magika: folders to look for files in; by default those of the system
        and of Python.
      per_type: for magika: how many files of a type are taken at most.
      at_most: how many examples are used in all.
      held_out: of these, how many are held out.
      epochs, widen: for resnet: how long it is trained, and its width.
      seeds: each splits the examples anew, and distils anew.
      rates: the slice rates.
      order_examples: unlabelled training examples that the units are ordered by.
      order: by which criterion they stand in the distillation.
      steps: updates of the distillation.
      batch_size: examples of an update.
      lr: learning rate of Adam, at its highest.
      workdir: where results go.
    """

    network: Literal["magika", "resnet", "g2p"] = "magika"
    files: tuple[Path, ...] = ()
    per_type: int = 200
    at_most: int | None = None
    held_out: int | None = None
    epochs: int = 8
    widen: int = 2
    seeds: tuple[int, ...] = (0,)
    rates: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)
    order_examples: int = 256
    order: Literal["none", "l1", "taylor", "activations", "activations x weights"] = (
        "activations"
    )
    steps: int = 150
    batch_size: int = 32
    lr: float = 1e-3
    workdir: Path | None = None


def subjects(settings: Settings) -> Callable[[int], Subject]:
    """The network and its data, for each seed."""
    held_out = settings.held_out
    if settings.network == "resnet":
        from .pretrained import digits

        return lambda seed: digits.subject(
            held_out=held_out or 400,
            seed=seed,
            at_most=settings.at_most,
            epochs=settings.epochs,
            widen=settings.widen,
        )
    if settings.network == "g2p":
        from .pretrained import g2p

        many = settings.at_most or 12_000
        return lambda seed: g2p.subject(
            held_out=held_out or 2000, seed=seed, at_most=many
        )
    from .pretrained import files, magika

    known = magika.original()
    system = (Path("/usr"), Path(sysconfig.get_paths()["stdlib"]))
    found = files.collect(
        settings.files or tuple(folder for folder in system if folder.is_dir()),
        known.types,
        known.by_extension,
        magika.read,
        per_type=settings.per_type,
        at_most=settings.at_most,
    )
    return lambda seed: magika.subject(
        found, known, held_out=held_out or 1024, seed=seed
    )


class Predictions:
    """What a network predicts, in batches of one size."""

    def __init__(self, call: Mapping[str, Any], batch_size: int = 64):
        self._batch_size = batch_size
        self._run = ms.jit(
            lambda net, x, rate: ms.slice_apply(net, x, rate, **call), static_argnums=2
        )

    def logits(self, net: ms.Sliceable, inputs: np.ndarray, rate: float) -> np.ndarray:
        """The logits of all examples."""
        size, found = self._batch_size, []
        for start in range(0, len(inputs), size):
            part = inputs[start : start + size]
            padded = np.concatenate([part, np.repeat(part[:1], size - len(part), 0)])
            found.append(np.asarray(self._run(net, padded, rate))[: len(part)])
        return np.concatenate(found)

    def __call__(
        self, net: ms.Sliceable, inputs: np.ndarray, rate: float
    ) -> np.ndarray:
        """The likeliest class of each prediction."""
        return self.logits(net, inputs, rate).argmax(-1)


def hits(predicted: np.ndarray, labels: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """For each example the share of its predictions that are right, (n,)."""
    right = (predicted == labels) & counts
    axes = tuple(range(1, right.ndim))
    return right.sum(axes) / counts.sum(axes)


def interval(
    a: np.ndarray, b: np.ndarray, *, draws: int = 10_000, seed: int = 0
) -> tuple[float, float, float]:
    """The mean of a - b, and its 95 % interval: a bootstrap over examples, paired.

    Args:
      a, b: (n,), of the same examples.
      draws: how often the examples are drawn anew.
      seed: of the draws.
    """
    difference = np.asarray(a, float) - b
    rng = np.random.default_rng(seed)
    means = [rng.choice(difference, len(difference)).mean() for _ in range(draws)]
    low, high = np.percentile(means, (2.5, 97.5))
    return float(difference.mean()), float(low), float(high)


def ordered(
    net: ms.Sliceable, subject: Subject, by: str, settings: Settings, taught: np.ndarray
) -> ms.Sliceable:
    """The network with its units in the order of a criterion; none needs labels."""
    x = subject.train_inputs[: settings.order_examples]
    parts = range(0, len(x), settings.batch_size)
    if by == "none":
        return net
    if by.startswith("activations"):
        batches = [x[i : i + settings.batch_size] for i in parts]
        return ms.reorder(net, by, batches=batches, **subject.call)
    if by != "taylor":
        return ms.reorder(net, by)

    def loss(net: ms.Sliceable, batch: Any) -> jax.Array:
        logits = ms.slice_apply(net, batch[0], 1.0, **subject.call)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch[1])
        return losses.mean()

    said = taught[: len(x)].argmax(-1)  # the original's own answers
    batches = [
        (x[i : i + settings.batch_size], said[i : i + settings.batch_size])
        for i in parts
    ]
    return ms.reorder(net, by, loss=loss, batches=batches)


def distilled(
    net: ms.Sliceable,
    subject: Subject,
    taught: np.ndarray,
    settings: Settings,
    seed: int,
) -> ms.Sliceable:
    """Trains all rates on what the original said of unlabelled examples."""
    optimizer = optax.adam(
        optax.warmup_cosine_decay_schedule(
            0.0, settings.lr, max(1, settings.steps // 10), settings.steps + 1
        )
    )
    soft = Distillation()
    task = Task(loss=lambda y, t: soft.loss(y, *t), metrics={}, weights=lambda t: t[1])
    state = TrainState.create(net, optimizer, key=jax.random.key(seed))
    step = make_train_step(optimizer, task=task)
    drawn = min(1, len(settings.rates) - 2)
    schedule = schedules.random_min_max(settings.rates, k=drawn, seed=seed)
    rng, n = np.random.default_rng(seed), len(subject.train_inputs)
    counts = (subject.train_labels >= 0).astype(np.float32)
    order = np.concatenate(
        [
            rng.permutation(n)
            for _ in range(settings.steps * settings.batch_size // n + 1)
        ]
    )
    for number in range(settings.steps):
        i = order[number * settings.batch_size :][: settings.batch_size]
        batch = subject.train_inputs[i], (taught[i], counts[i])
        state, _ = step(state, batch, schedule(number))
    return state.net


Scores = dict[str, dict[float, np.ndarray]]
"""By row and rate the share of each example that is right, (n,)."""


def measure(
    subject: Subject, settings: Settings, seed: int, console: Console
) -> tuple[Scores, Scores, float]:
    """All rows of one seed: accuracy, agreement, and the seconds of distillation."""
    predict = Predictions(subject.call)
    x, labels = subject.test_inputs, subject.test_labels
    counts = labels >= 0
    net = ms.upgrade(
        subject.model,
        subject.variables,
        subject.train_inputs[:2],
        rates=settings.rates,
        **subject.call,
    )
    accuracy: Scores = {}
    agreement: Scores = {}
    said = predict(net, x, 1.0)

    def row(name: str, net: ms.Sliceable, new: bool = True) -> None:
        with busy(console, f"Measuring: {name}"):
            accuracy[name], agreement[name] = {}, {}
            for rate in settings.rates:
                # What was only ordered is at rate 1 what it was.
                found = said if rate == 1 and not new else predict(net, x, rate)
                accuracy[name][rate] = hits(found, labels, counts)
                agreement[name][rate] = hits(found, said, counts)

    def ready(net: ms.Sliceable) -> ms.Sliceable:
        if not subject.batch_norms:
            return net
        return ms.calibrate(net, [subject.train_inputs[:512]], **subject.call)

    row(AS_IS, net, new=False)
    if subject.batch_norms:
        row("calibrated", ready(net), new=False)
    with busy(console, "Asking the original what it says of the training examples"):
        taught = predict.logits(net, subject.train_inputs, 1.0)
    for by in CRITERIA:
        in_order = ordered(net, subject, by, settings, taught)
        row(f"by {by}", ready(in_order), new=False)
    seconds = 0.0
    if settings.steps:
        in_order = ordered(net, subject, settings.order, settings, taught)
        started = time.perf_counter()
        with busy(console, f"Distillation, {settings.steps} steps"):
            trained = distilled(in_order, subject, taught, settings, seed)
            jax.block_until_ready(trained.variables)
        seconds = time.perf_counter() - started
        row(DISTILLED, ready(trained))
    return accuracy, agreement, seconds


def results(
    accuracy: Mapping[int, Scores], agreement: Mapping[int, Scores]
) -> dict[str, Any]:
    """What is written down, of all seeds: means of every row, and differences."""
    seeds = list(accuracy)
    rows, rates = list(accuracy[seeds[0]]), list(accuracy[seeds[0]][AS_IS])
    rates.sort(reverse=True)

    def means(of: Mapping[int, Scores], name: str, rate: float) -> list[float]:
        return [round(float(of[seed][name][rate].mean()), 4) for seed in seeds]

    best = "by activations"
    pairs = [(best, "by l1"), (best, "calibrated" if "calibrated" in rows else AS_IS)]
    return {
        "seeds": seeds,
        "held_out": len(accuracy[seeds[0]][AS_IS][rates[0]]),
        "rows": {
            name: {
                rate_key(rate): {
                    "accuracy": means(accuracy, name, rate),
                    "agreement": means(agreement, name, rate),
                }
                for rate in rates
            }
            for name in rows
        },
        "differences": [
            {
                "of": a,
                "minus": b,
                "rate": rate,
                "seed": seed,
                **dict(
                    zip(
                        ("mean", "low", "high"),
                        interval(accuracy[seed][a][rate], accuracy[seed][b][rate]),
                        strict=True,
                    )
                ),
            }
            for a, b in pairs
            for rate in rates
            if rate < 1
            for seed in seeds
        ],
    }


def show(console: Console, title: str, found: Mapping[str, Any]) -> None:
    """The table: accuracy, and agreement in brackets, in percent, means over seeds."""
    table = Table(title=title, title_justify="left")
    table.add_column("")
    rates = list(found["rows"][AS_IS])
    for rate in rates:
        table.add_column(f"r = {rate}", justify="right")
    for name, row in found["rows"].items():
        cells = (
            f"{100 * np.mean(row[rate]['accuracy']):.1f} "
            f"({100 * np.mean(row[rate]['agreement']):.1f})"
            for rate in rates
        )
        table.add_row(name, *cells)
    console.print(table)
    for each in found["differences"]:
        console.print(
            f"{each['of']} - {each['minus']}, r = {each['rate']:g}, seed "
            f"{each['seed']}: {100 * each['mean']:+.1f} points "
            f"[{100 * each['low']:+.1f}, {100 * each['high']:+.1f}]",
            highlight=False,
            markup=False,
        )


def plot(path: Path, title: str, found: Mapping[str, Any]) -> None:
    """A line for each row: accuracy over the rate."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.0), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name, row in found["rows"].items():
        x = [float(rate) for rate in row]
        y = [100 * np.mean(cell["accuracy"]) for cell in row.values()]
        axes.plot(x, y, marker="o", label=name)
    axes.grid(color="#e5e5e5")
    axes.legend(fontsize=8)
    axes.set_xlabel("slice rate")
    axes.set_ylabel("accuracy on held-out examples, %")
    axes.set_title(title, fontsize=11, loc="left")
    figure.savefig(path)


def main(args: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    print_anything()
    settings = tyro.cli(
        Settings,
        prog="python -m experiments.upgrade_pretrained",
        description=(__doc__ or "").split("\n\n")[0],
        args=args,
    )
    console = Console()
    keep_compiled_programs()
    keep_freed_memory()
    accuracy: dict[int, Scores] = {}
    agreement: dict[int, Scores] = {}
    seconds = []
    try:
        check(settings)
        with busy(console, "Looking for examples"):
            make = subjects(settings)
        for seed in settings.seeds:
            subject = make(seed)
            for note in subject.notes:
                console.print(note, highlight=False)
            accuracy[seed], agreement[seed], took = measure(
                subject, settings, seed, console
            )
            seconds.append(round(took, 1))
    except (ValueError, OSError, ModuleNotFoundError) as error:
        return fail(error, 2)
    found = {
        "network": settings.network,
        "order": settings.order,
        "steps": settings.steps,
        "batch_size": settings.batch_size,
        "distillation_seconds": seconds,
        **results(accuracy, agreement),
    }
    workdir = (
        settings.workdir or Path("runs") / f"upgrade_pretrained_{settings.network}"
    )
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "results.json").write_text(json.dumps(found, indent=2) + "\n")
    title = f"{settings.network}: accuracy (agreement with the original), %"
    plot(workdir / "accuracy_over_rates.png", settings.network, found)
    show(console, title, found)
    console.print(f"Results and picture are in {workdir}.", highlight=False)
    return 0


def check(settings: Settings) -> None:
    """Raises ValueError for settings that do not fit, before any work."""
    if 1.0 not in settings.rates or len(settings.rates) < 2:
        raise ValueError(f"expected rates of which one is 1; got {settings.rates}.")
    if not settings.seeds or settings.order_examples < 1 or settings.steps < 0:
        raise ValueError("expected at least one seed, one example to order by, steps.")


if __name__ == "__main__":
    sys.exit(main())
