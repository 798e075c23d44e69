"""Upgrade a network that is trained already: magika, which tells types of files.

    pip install -e ".[magika]"
    python -m experiments.upgrade_pretrained
    python -m experiments.upgrade_pretrained --files ~/documents --seeds 0 1 2
    python -m experiments.upgrade_pretrained --network resnet
    python -m experiments.upgrade_pretrained --network g2p

The network runs at every rate: as it is, with its units ordered by each criterion, with
statistics of batch norms measured (`calibrate`), and after distillation from the frozen
original, which needs no labels. Accuracy is against labels (the extension of a file),
agreement against what the original says.

Without arguments: magika on some 4,500 files of the system and of Python, of which
1,024 are held out. That takes eight minutes of processor time a seed. On three splits
the original had 87.9 %; half of its width has 76 % as it is, 69 % by l1, 83 % by
activations, and 88 % after distillation; a quarter then has 86 %. The ResNet (40
seconds a seed) has 98.9 %, and 99 and 98 % after distillation. Of the recurrent network
no order makes much; `experiments/LOG.md` has all numbers.

It leaves in its workdir (runs/upgrade_pretrained_NETWORK) the table (results.md),
results.json, which has every number and the differences with their intervals (a paired
bootstrap over the held-out examples), and accuracy_over_rates.png. These are written in
the end; a command that is interrupted leaves nothing.
"""

import dataclasses
import json
import math
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import jax
import tyro
from rich.console import Console

import mslice_jax as ms
from mslice_jax.core.rates import check_rates
from mslice_jax.cpu import memory

from .checks import check_writable
from .comparison.outcome import markdown
from .pretrained.outcome import (
    AS_IS,
    CALIBRATED,
    DISTILLED,
    Scores,
    differences,
    plot,
    results,
    rows,
    show,
)
from .pretrained.steps import Predictions, distilled, hits, ordered
from .pretrained.subject import Subject
from .process import keep_compiled_programs, print_anything
from .recipe import fail
from .screen import busy
from .settings import flag, local

CRITERIA = ("l1", "taylor", "activations", "activations x weights")


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
    steps: int = 400
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


def measure(
    subject: Subject, settings: Settings, seed: int, console: Console
) -> tuple[Scores, Scores, float]:
    """All rows of one seed: accuracy, agreement, and the seconds of distillation."""
    predict = Predictions(subject.call)
    x, labels = subject.examples.test_inputs, subject.examples.test_labels
    counts = labels >= 0
    net = ms.upgrade(
        subject.model,
        subject.variables,
        subject.examples.train_inputs[:2],
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
        return ms.calibrate(net, [subject.examples.train_inputs[:512]], **subject.call)

    row(AS_IS, net, new=False)
    if subject.batch_norms:
        row(CALIBRATED, ready(net), new=False)
    with busy(console, "Asking the original what it says of the training examples"):
        asked = None if settings.steps else settings.order_examples
        taught = predict.logits(net, subject.examples.train_inputs[:asked], 1.0)

    def put_in_order(by: str) -> ms.Sliceable:
        return ordered(
            net,
            subject,
            by,
            taught,
            examples=settings.order_examples,
            batch_size=settings.batch_size,
        )

    for by in CRITERIA:
        in_order = put_in_order(by)
        row(f"by {by}", ready(in_order), new=False)
    seconds = 0.0
    if settings.steps:
        in_order = put_in_order(settings.order)
        started = time.perf_counter()
        with busy(console, f"Distillation, {settings.steps} steps"):
            trained = distilled(
                in_order,
                subject,
                taught,
                steps=settings.steps,
                batch_size=settings.batch_size,
                lr=settings.lr,
                seed=seed,
            )
            jax.block_until_ready(trained.variables)
        seconds = time.perf_counter() - started
        row(DISTILLED, ready(trained))
    return accuracy, agreement, seconds


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
    memory.keep_freed()
    accuracy: dict[int, Scores] = {}
    agreement: dict[int, Scores] = {}
    seconds = []
    workdir = (
        settings.workdir or Path("runs") / f"upgrade_pretrained_{settings.network}"
    )
    try:
        check(settings)
        workdir = local(workdir, "--workdir")
        check_writable(workdir)
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
    except KeyboardInterrupt:
        print("\nInterrupted; nothing was written.")
        return 130
    found = {
        "network": settings.network,
        "order": settings.order,
        "steps": settings.steps,
        "batch_size": settings.batch_size,
        "distillation_seconds": seconds,
        **results(accuracy, agreement),
    }
    title = f"{settings.network}: accuracy (agreement with the original), %"
    caption = f"{title}; {found['held_out']} held out, seeds "
    caption += f"{', '.join(map(str, settings.seeds))}.\n\n"
    caption += "\n".join(f"* {line}" for line in differences(found))
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        (workdir / "results.json").write_text(json.dumps(found, indent=2) + "\n")
        (workdir / "results.md").write_text(markdown(rows(found), caption))
        plot(workdir / "accuracy_over_rates.png", settings.network, found)
    except OSError as error:
        return fail(error, 1)
    show(console, title, found)
    console.print(f"Results and picture are in {workdir}.", highlight=False)
    return 0


# Flags of one network.
_OF_ONE = {
    "files": "magika",
    "per_type": "magika",
    "epochs": "resnet",
    "widen": "resnet",
}


def check(settings: Settings) -> None:
    """Raises ValueError for settings that do not fit, before any work."""
    check_rates(settings.rates)
    if 1.0 not in settings.rates or len(settings.rates) < 2:
        raise ValueError(f"expected rates of which one is 1; got {settings.rates}.")
    if not settings.seeds or len(set(settings.seeds)) < len(settings.seeds):
        raise ValueError(
            f"expected --seeds to be at least one, none twice, got {settings.seeds}."
        )
    least = {"per_type": 1, "at_most": 1, "held_out": 1, "epochs": 1, "widen": 1}
    least |= {"order_examples": 1, "batch_size": 1, "steps": 0}
    for name, low in least.items():
        value = getattr(settings, name)
        if value is not None and value < low:
            raise ValueError(f"expected {flag(name)} of at least {low}, got {value}.")
    if min(settings.seeds) < 0:
        raise ValueError(f"expected --seeds of at least 0, got {settings.seeds}.")
    if not 0 < settings.lr < math.inf:
        raise ValueError(f"expected --lr above 0, got {settings.lr}.")
    for name, network in _OF_ONE.items():
        given = getattr(settings, name) != getattr(Settings(), name)
        if given and settings.network != network:
            raise ValueError(
                f"{flag(name)} has no effect: it is for --network {network}, this is "
                f"{settings.network}. Leave it out."
            )


if __name__ == "__main__":
    sys.exit(main())
