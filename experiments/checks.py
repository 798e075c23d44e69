"""Checks of a command before any work: flags, places, earlier runs."""

import contextlib
import json
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from .optimizers import USUAL
from .settings import ImageSettings, Training, changed, flag

# The range of each number: in words, and as a condition.
_RANGES: dict[str, tuple[str, Callable[[float], bool]]] = {
    "train_examples": ("of at least 1", lambda n: n >= 1),
    "max_test_examples": ("of at least 1", lambda n: n >= 1),
    "image_size": ("of at least 1", lambda n: n >= 1),
    "workers": ("of at least 0", lambda n: n >= 0),
    "vocabulary": ("of at least 2", lambda n: n >= 2),
    "length": ("of at least 1", lambda n: n >= 1),
    "units": ("of at least 1", lambda n: n >= 1),
    "layers": ("of at least 1", lambda n: n >= 1),
    "graded": ("of at least 0", lambda n: n >= 0),
    "heads": ("of at least 1", lambda n: n >= 1),
    "kv_heads": ("of at least 1", lambda n: n >= 1),
    "patch_size": ("of at least 1", lambda n: n >= 1),
    "dropout": ("in [0, 1)", lambda x: 0 <= x < 1),
    "widen": ("above 0", lambda x: 0 < x < math.inf),
    "width": ("above 0", lambda x: 0 < x < math.inf),
    "bias_lr": ("above 0", lambda x: 0 < x < math.inf),
    "head_lr": ("above 0", lambda x: 0 < x < math.inf),
    "peak": ("in [0, 1)", lambda x: 0 <= x < 1),
    "divide": ("from 0 to 1", lambda x: 0 <= x <= 1),
    "whitening_epochs": ("of at least 0", lambda n: n >= 0),
    "translate": ("of at least 0", lambda n: n >= 0),
    "groups": ("of at least 1", lambda n: n >= 1),
    "num_random": ("of at least 0", lambda n: n >= 0),
    "progressive_epochs": ("of at least 1", lambda n: n >= 1),
    "distill": ("from 0 to 1", lambda x: 0 <= x <= 1),
    "distill_from": ("of at least 0", lambda n: n >= 0),
    "temperature": ("above 0", lambda x: 0 < x < math.inf),
    "label_smoothing": ("in [0, 1)", lambda x: 0 <= x < 1),
    "epochs": ("of at least 1", lambda n: n >= 1),
    "batch_size": ("of at least 1", lambda n: n >= 1),
    "lr": ("above 0", lambda x: 0 < x < math.inf),
    "weight_decay": ("of at least 0", lambda x: 0 <= x < math.inf),
    "warmup_epochs": ("of at least 0", lambda n: n >= 0),
    "clip": ("above 0", lambda x: 0 < x < math.inf),
    "average": ("between 0 and 1, such as 0.999", lambda x: 0 < x < 1),
    "accumulate": ("of at least 1", lambda n: n >= 1),
    "fsdp": ("of at least 1", lambda n: n >= 1),
    "shards": ("of at least 1", lambda n: n >= 1),
    "seed": ("from 0 to 2^32 - 1", lambda n: 0 <= n < 2**32),
}


def check_flags(settings: Training) -> None:
    """Raise ValueError for a number out of its range, and a flag without effect.

    Args:
      settings: as they were given, before `resolve`.
    """
    check_ranges(vars(settings))
    _check_loss_weights(settings)
    for name, reason in _without_effect(settings):
        raise ValueError(f"{flag(name)} has no effect: {reason}")


def check_ranges(values: Mapping[str, Any]) -> None:
    """Raise ValueError for a setting out of its range; None means not given."""
    for name, (expected, holds) in _RANGES.items():
        value = values.get(name)
        if value is not None and not holds(value):
            raise ValueError(f"expected {flag(name)} {expected}, got {value}.")


def _check_loss_weights(settings: Training) -> None:
    """Raise ValueError unless there is a weight for each rate."""
    weights = settings.loss_weights
    if weights is None:
        return
    if len(weights) != len(settings.rates) or not all(
        0 <= weight < math.inf for weight in weights
    ):
        raise ValueError(
            f"expected --loss-weights, a number of at least 0 for each of the "
            f"{len(settings.rates)} rates, got {weights}."
        )


def _without_effect(settings: Training) -> Iterator[tuple[str, str]]:
    """Flags without effect, each with the reason."""
    given = {name for name, value in vars(settings).items() if value is not None}
    for name in ("temperature", "distill_from", "teacher"):
        if name in given and not settings.distill:
            yield (
                name,
                "it is about --distill, which is not given. Give --distill 0.5, for "
                "example, or leave it out.",
            )
    if settings.distill and len(settings.rates) == 1 and "teacher" not in given:
        yield (
            "distill",
            "the widest rate teaches the others, and there is only one. Give more "
            "--rates, or a --teacher, or leave it out.",
        )
    if "num_random" in given and settings.schedule in ("static", "cyclic"):
        yield (
            "num_random",
            f"--schedule {settings.schedule} draws nothing. Choose another --schedule, "
            "or leave it out.",
        )
    usual = USUAL.get(settings.optimizer or "")
    if "weight_decay" in given and usual is not None and usual.weight_decay is None:
        yield (
            "weight_decay",
            f"--optimizer {settings.optimizer} has none. Choose adamw, or leave it "
            "out.",
        )
    if isinstance(settings, ImageSettings):
        yield from _without_effect_on_images(settings, given)
    if "progressive_epochs" in given and len(settings.rates) == 1:
        yield (
            "progressive_epochs",
            "there is only one rate. Give more --rates, or leave it out.",
        )


def _without_effect_on_images(
    settings: ImageSettings, given: set[str]
) -> Iterator[tuple[str, str]]:
    if settings.dataset not in ("imagenet", "folder"):
        for name in ("image_size", "workers"):
            if name in given:
                yield (
                    name,
                    "it is for --dataset imagenet or folder, this is "
                    f"{settings.dataset}. Leave it out.",
                )
    if "data_dir" in given and settings.dataset == "digits":
        yield (
            "data_dir",
            "the digits come with scikit-learn. Say with --dataset what is in "
            f"{settings.data_dir} (npz, cifar10, ...), or leave it out.",
        )


def check_lengths(settings: Training) -> None:
    """Raise ValueError for lengths, of resolved settings, that do not fit together."""
    batch_size, epochs = cast(int, settings.batch_size), cast(int, settings.epochs)
    if batch_size % settings.accumulate:
        near = [n for n in range(1, batch_size + 1) if batch_size % n == 0]
        near = sorted(sorted(near, key=lambda n: abs(n - settings.accumulate))[:2])
        raise ValueError(
            f"expected --accumulate to divide the batch of {batch_size} examples "
            f"(--batch-size) into equal parts, got {settings.accumulate}. "
            f"{' and '.join(map(str, near))} do."
        )
    if (settings.distill_from or 0) >= epochs:
        raise ValueError(
            f"expected --distill-from to be before the end of the run, after fewer "
            f"than {epochs} epochs (--epochs), got {settings.distill_from}."
        )
    if settings.progressive_epochs is not None:
        last = settings.progressive_epochs * (len(settings.rates) - 1)
        if last >= epochs:
            raise ValueError(
                f"with --progressive-epochs {settings.progressive_epochs} the "
                f"narrowest of {len(settings.rates)} rates enters after {last} epochs, "
                f"and the run has {epochs} (--epochs). Train longer, or let the rates "
                "enter earlier."
            )


def check_writable(workdir: Path) -> None:
    """Raise OSError unless `workdir` can be written to, or made.

    Nothing is left there, so a command that is refused later leaves no folder.
    """
    place = workdir
    with contextlib.suppress(OSError):
        while not place.exists() and place != place.parent:
            place = place.parent
    try:
        with tempfile.NamedTemporaryFile(dir=place):
            pass
    except OSError as error:
        where = "" if place == workdir else f": {place} cannot be written to"
        raise OSError(
            f"expected a folder to write to as --workdir, got {workdir}{where} "
            f"({error.strerror}). Choose another."
        ) from error


def check_same_run(workdir: Path, name: str, settings: Training) -> None:
    """Raise ValueError if the run in `workdir` cannot continue with these settings."""
    try:
        saved = json.loads((workdir / "settings.json").read_text())
    except (OSError, ValueError):
        return  # restoring compares the checkpoint itself
    differences = changed(saved, settings)
    if saved.get("recipe", name) != name:
        differences.insert(0, f"it is one of experiments.{saved['recipe']}")
    if saved.get("epochs", 0) > cast(int, settings.epochs):
        differences.append(f"--epochs was {saved['epochs']} and is {settings.epochs}")
    if differences:
        raise ValueError(
            f"{workdir} holds a run with other settings: {'; '.join(differences)}. "
            "Give the same ones to go on with it, another --workdir, or --no-resume."
        )
