"""Before any work: what a recipe and a run are, and every check there is."""

import dataclasses
import functools
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.experimental import multihost_utils
from rich.console import Console

import mslice_jax as ms
from mslice_jax import data
from mslice_jax.schedules import Schedule, make_schedule, progressive
from mslice_jax.train import (
    Checkpoints,
    Distillation,
    Placement,
    TrainState,
    TrainStep,
    cosine,
    cross_entropy,
    make_train_step,
    multi_step,
)

from . import checks, inputs, optimizers, weights
from .settings import Defaults, Settings, resolve

NETWORK = "network.mslice"
"""The trained network, in the workdir; ``ms.load(workdir)`` reads it."""

_OUTPUTS = (
    "settings.json",
    "metrics.jsonl",
    "checkpoints",
    "summary.json",
    "accuracy_vs_flops.png",
    "accuracy_over_epochs.png",
    "tensorboard",
    NETWORK,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """A network and the settings it is trained with unless flags say otherwise.

    Attributes:
      name: of the module, and of the folder below runs/.
      description: what ``--help`` says first.
      model: builds the network from depth, num_classes and widen.
      digits: defaults for digits.
      cifar: defaults for everything else: what is usual for the network.
    """

    name: str
    description: str
    model: Callable[..., nn.Module]
    digits: Defaults
    cifar: Defaults


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """All that training needs, checked."""

    recipe: str
    settings: Settings
    model_name: str
    dataset: inputs.Inputs
    state: TrainState
    train_step: TrainStep
    learning_rate: optax.Schedule
    schedule: Schedule
    placement: Placement | None
    steps_per_epoch: int
    checkpoints: Checkpoints


def prepare(recipe: Recipe, settings: Settings, console: Console) -> Run:
    """Check everything there is to check, cheapest first, and build what is needed.

    Raises:
      ValueError, OSError, CheckpointError: for whatever does not fit.
    """
    if settings.tensorboard and importlib.util.find_spec("tensorboardX") is None:
        raise ValueError(
            '--tensorboard needs tensorboardX: pip install "mslice_jax[tensorboard]".'
        )
    checks.check_flags(settings)
    defaults = recipe.digits if settings.dataset == "digits" else recipe.cifar
    settings = resolve(settings, recipe.name, defaults)
    checks.check_lengths(settings)
    schedule = make_schedule(
        settings.schedule,
        settings.rates,
        num_random=1 if settings.num_random is None else settings.num_random,
        weights=settings.rate_weights,
        seed=settings.seed,
    )
    size = {"depth": settings.depth, "widen": settings.widen}
    recipe.model(**size, num_classes=10)  # a wrong depth should not wait for the data
    workdir = cast(Path, settings.workdir)
    checks.check_writable(workdir)

    dataset = inputs.load(settings)
    batch_size = cast(int, settings.batch_size)
    steps_per_epoch = data.steps_per_epoch(inputs.num_train(dataset), batch_size)
    learning_rate = (cosine if settings.cosine else multi_step)(
        cast(float, settings.lr),
        epochs=cast(int, settings.epochs),
        steps_per_epoch=steps_per_epoch,
        warmup_epochs=cast(int, settings.warmup_epochs),
    )
    placement = _placement(settings)
    optimizer = optimizers.build(
        settings.optimizer,
        learning_rate,
        weight_decay=settings.weight_decay,
        clip=settings.clip,
    )
    if settings.progressive_epochs is not None:
        schedule = progressive(
            schedule,
            settings.rates,
            every=settings.progressive_epochs * steps_per_epoch,
        )
    train_step = _train_step(settings, dataset, optimizer, placement)

    net, model_name = network(recipe, settings, dataset)
    _, run_key = jax.random.split(jax.random.key(settings.seed))
    state = TrainState.create(
        net, optimizer, key=run_key, average=settings.average is not None
    )
    if placement is not None:
        # Here already: a `Run` that held the whole of it would hold it to the end.
        state = placement.state(state)

    if not settings.resume:
        _move_aside(workdir, console)
    workdir.mkdir(parents=True, exist_ok=True)  # not before all else is accepted
    checkpoints = Checkpoints(
        workdir / "checkpoints",
        about={"model": model_name, "norm": settings.norm, "groups": settings.groups},
        report=lambda text: console.print(f"Warning: {text}", style="yellow"),
    )
    if checkpoints.steps():
        checkpoints.check(state)
        checks.check_same_run(workdir, recipe.name, settings)
    return Run(
        recipe=recipe.name,
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


def network(
    recipe: Recipe, settings: Settings, dataset: inputs.Inputs
) -> tuple[ms.Sliceable, str]:
    """The network at its start, and its name.

    Args:
      recipe: what builds it.
      settings: resolved.
      dataset: gives the shape of an image and the number of classes.
    """
    size = {"depth": settings.depth, "widen": settings.widen}
    model = recipe.model(**size, num_classes=dataset.num_classes)
    name = f"{type(model).__name__}-{settings.depth}"
    if settings.widen != 1:
        name += f" x{settings.widen:g}"
    shape = (cast(int, settings.batch_size), *dataset.image_shape)
    key, _ = jax.random.split(jax.random.key(settings.seed))
    variables = _initialize(model, key, dataset.image_shape)
    found = None if settings.weights is None else weights.read(settings.weights)
    if found is not None and weights.fits(found, variables):
        variables = weights.put(found, variables, cast(Path, settings.weights))
        found = None
    net = ms.upgrade(
        model,
        variables,
        jax.ShapeDtypeStruct(shape, jnp.float32),
        rates=settings.rates,
        groups=settings.groups,
        norm=settings.norm,
        shards=cast(int, settings.shards),
    )
    if found is not None:  # norms of every rate, or group norms
        own = weights.put(found, net.variables, cast(Path, settings.weights))
        net = net.replace(own)
    return net, name


def _train_step(
    settings: Settings,
    dataset: inputs.Inputs,
    optimizer: optax.GradientTransformation,
    placement: Placement | None,
) -> TrainStep:
    """The step as the flags want it; raises ValueError for one out of its range."""
    distillation = None
    if settings.distill:
        distillation = Distillation(
            weight=settings.distill, temperature=cast(float, settings.temperature)
        )
    return make_train_step(
        optimizer,
        transform=data.train_transform(dataset),
        loss=functools.partial(cross_entropy, smoothing=settings.label_smoothing),
        distillation=distillation,
        compute_dtype=jnp.bfloat16 if settings.bfloat16 else None,
        accumulate=settings.accumulate,
        remat=settings.remat,
        average=settings.average,
        placement=placement,
    )


def _placement(settings: Settings) -> Placement | None:
    """A mesh of all devices, among which the batch is divided; None for one."""
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


def _initialize(
    model: nn.Module, key: jax.Array, image_shape: tuple[int, int, int]
) -> dict[str, Any]:
    """Fresh variables, in one compiled program."""
    # It runs once: LLVM would take six seconds to optimize it, and takes one not to.
    quick = {"xla_backend_optimization_level": 0}
    options = quick if jax.default_backend() == "cpu" else None
    init = jax.jit(model.init, compiler_options=options)
    return init(key, jnp.zeros((1, *image_shape)))


def _move_aside(workdir: Path, console: Console) -> None:
    """Move what an earlier run left into a folder of its own; nothing is deleted.

    Of several hosts the first one does, while the others wait.
    """
    if jax.process_index() == 0:
        _move_outputs(workdir, console)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("the earlier run is moved aside")


def _move_outputs(workdir: Path, console: Console) -> None:
    old = [workdir / name for name in _OUTPUTS if (workdir / name).exists()]
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
