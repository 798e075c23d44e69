"""Recipes and runs, and every check before any work."""

import dataclasses
import importlib
import importlib.util
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.experimental import multihost_utils
from rich.console import Console

from mslice_jax.schedules import Schedule, make_schedule, progressive
from mslice_jax.train import (
    Checkpoints,
    Placement,
    TrainState,
    TrainStep,
    cosine,
    make_train_step,
    multi_step,
)

from . import checks, norm_scales, optimizers
from .distillation import distillation
from .images import KEPT, Images
from .kind import Kind
from .screen import busy
from .settings import ImageDefaults, Training, resolve
from .text import VOCABULARY

NETWORK = "network.mslice"
"""The trained network, in the workdir; ``ms.load(workdir)`` reads it."""

_OUTPUTS = (
    "settings.json",
    "metrics.jsonl",
    "checkpoints",
    "summary.json",
    "tensorboard",
    norm_scales.FILE,
    norm_scales.PICTURE,
    "consistency.json",
    "consistency.png",
    VOCABULARY,
    KEPT,
    NETWORK,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """A network and the settings it is trained with unless flags say otherwise.

    Attributes:
      name: of the module, and of the folder below runs/.
      description: the first lines of ``--help``.
      model: builds the network: for images from the `sizes` of the settings and
        num_classes, for text from the settings and vocab.
      digits: defaults for digits, of a recipe for images; or settings -> defaults.
      cifar: the same for all other images, as usual for the network.
      kind: the kind of its data.
      optimizer: builds optimizer and learning rate from resolved settings, the initial
        network, the schedule of rates and the steps of an epoch; None: those of the
        flags.
    """

    name: str
    description: str
    model: Callable[..., nn.Module]
    digits: ImageDefaults | Callable[[Any], ImageDefaults] | None = None
    cifar: ImageDefaults | Callable[[Any], ImageDefaults] | None = None
    kind: Kind = dataclasses.field(default_factory=Images)
    optimizer: Callable[..., tuple[Any, optax.Schedule]] | None = None


def named(name: str) -> Recipe:
    """The recipe of the module of that name in experiments; ValueError if none is."""
    try:
        if name.isidentifier():
            return importlib.import_module(f"{__package__}.{name}").RECIPE
    except (ModuleNotFoundError, AttributeError):
        pass
    raise ValueError(
        f"there is no recipe {name!r} in experiments. One is cifar_resnet."
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """Everything that training needs, checked."""

    recipe: Recipe
    settings: Any  # of the recipe's kind, resolved
    model_name: str
    dataset: Any
    state: TrainState
    train_step: TrainStep
    learning_rate: optax.Schedule
    schedule: Schedule
    placement: Placement | None
    steps_per_epoch: int
    checkpoints: Checkpoints


def prepare(recipe: Recipe, settings: Training, console: Console) -> Run:
    """Check all settings, cheapest first, and build the run.

    Raises:
      ValueError, OSError, CheckpointError: for a setting that does not fit.
    """
    settings, schedule = checked(recipe, settings)
    kind, workdir = recipe.kind, cast(Path, settings.workdir)
    checks.check_writable(workdir)

    # A folder of images takes minutes; on no terminal an error stays the only line.
    shown = busy(console, "Reading the data") if console.is_terminal else nullcontext()
    with shown:
        dataset = kind.load(settings)
    steps_per_epoch = kind.steps_per_epoch(settings, dataset)
    placement = _placement(settings)
    if settings.progressive_epochs is not None:
        schedule = progressive(
            schedule,
            settings.rates,
            every=settings.progressive_epochs * steps_per_epoch,
        )
    if recipe.optimizer is None:  # its flags are checked before there is a network
        optimizer, learning_rate = _optimizer(settings, steps_per_epoch)
        net, model_name = kind.network(recipe, settings, dataset)
    else:
        net, model_name = kind.network(recipe, settings, dataset)
        optimizer, learning_rate = recipe.optimizer(
            settings, net, schedule, steps_per_epoch
        )
    given = kind.step(settings, dataset)
    given["distillation"] = distillation(
        settings,
        steps_per_epoch,
        kind.example(settings, dataset),
        kind.classes(dataset),
    )
    train_step = _train_step(settings, given, optimizer, placement)
    _, run_key = jax.random.split(jax.random.key(settings.seed))
    state = TrainState.create(
        net,
        optimizer,
        key=run_key,
        average=settings.average is not None,
        carry=kind.carry(settings),
    )
    if placement is not None:
        # Placed here, for a `Run` would hold the unsharded state to the end.
        state = placement.state(state)

    if not settings.resume:
        _move_aside(workdir, console, kind.pictures)
    workdir.mkdir(parents=True, exist_ok=True)  # only after every check
    checkpoints = Checkpoints(
        workdir / "checkpoints",
        about={
            "model": model_name,
            "norm": getattr(settings, "norm", "group"),
            "groups": settings.groups,
        },
        report=lambda text: console.print(f"Warning: {text}", style="yellow"),
    )
    if checkpoints.steps():
        checkpoints.check(state)
        checks.check_same_run(workdir, recipe.name, settings)
    return Run(
        recipe=recipe,
        settings=settings,
        model_name=model_name,
        dataset=dataset,
        state=state,
        train_step=train_step,
        learning_rate=learning_rate,
        schedule=schedule,
        placement=placement,
        steps_per_epoch=steps_per_epoch,
        checkpoints=checkpoints,
    )


def checked(recipe: Recipe, settings: Training) -> tuple[Any, Schedule]:
    """All checks that need no data: the resolved settings, and their schedule.

    Raises:
      ValueError: for a setting that does not fit.
    """
    if settings.tensorboard and importlib.util.find_spec("tensorboardX") is None:
        raise ValueError(
            '--tensorboard needs tensorboardX: pip install "mslice_jax[tensorboard]".'
        )
    checks.check_flags(settings)
    kind = recipe.kind
    settings = resolve(settings, recipe.name, kind.defaults(recipe, settings))
    checks.check_lengths(settings)
    schedule = make_schedule(
        settings.schedule,
        settings.rates,
        num_random=1 if settings.num_random is None else settings.num_random,
        weights=settings.rate_weights,
        seed=settings.seed,
    )
    kind.check(recipe, settings)
    return settings, schedule


def _optimizer(
    settings: Training, steps_per_epoch: int
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The optimizer of the flags; ValueError for a flag out of its range."""
    learning_rate = (cosine if settings.cosine else multi_step)(
        cast(float, settings.lr),
        epochs=cast(int, settings.epochs),
        steps_per_epoch=steps_per_epoch,
        warmup_epochs=cast(int, settings.warmup_epochs),
    )
    optimizer = optimizers.build(
        cast(str, settings.optimizer),
        learning_rate,
        weight_decay=settings.weight_decay,
        clip=settings.clip,
    )
    return optimizer, learning_rate


def _train_step(
    settings: Training,
    given: dict[str, Any],
    optimizer: optax.GradientTransformation,
    placement: Placement | None,
) -> TrainStep:
    """The training step of flags and data; ValueError for a flag out of its range."""
    weights = settings.loss_weights
    return make_train_step(
        optimizer,
        loss_weights=dict(zip(settings.rates, weights, strict=True)) if weights else {},
        compute_dtype=jnp.bfloat16 if settings.bfloat16 else None,
        accumulate=settings.accumulate,
        remat=settings.remat,
        average=settings.average,
        placement=placement,
        **given,
    )


def _placement(settings: Training) -> Placement | None:
    """A mesh of all devices, over which the batch is sharded; None for one device."""
    devices = jax.devices()
    batch_size = cast(int, settings.batch_size)
    if len(devices) == 1 and settings.fsdp == 1:
        return None
    if batch_size % len(devices):
        raise ValueError(
            f"expected a batch size (--batch-size) that the {len(devices)} devices "
            f"divide; got {batch_size}."
        )
    return Placement.over(devices, fsdp=settings.fsdp)


def _move_aside(workdir: Path, console: Console, pictures: Sequence[str] = ()) -> None:
    """Move the files of an earlier run into a folder of their own; none is deleted.

    Of several hosts the first one does, while the others wait.
    """
    if jax.process_index() == 0:
        _move_outputs(workdir, console, (*_OUTPUTS, *pictures))
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("the earlier run is moved aside")


def _move_outputs(workdir: Path, console: Console, outputs: Sequence[str]) -> None:
    old = [workdir / name for name in outputs if (workdir / name).exists()]
    if not old:
        return
    number = 1
    while (target := workdir / f"previous-{number}").exists():
        number += 1
    target.mkdir()
    for path in old:
        path.rename(target / path.name)
    console.print(
        f"The earlier run is now in {target}.", highlight=False, soft_wrap=True
    )
