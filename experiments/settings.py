"""The flags that the recipes share, and what they stand for when nobody gives them."""

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal, cast

import tyro


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Flags of a recipe. Where no default is named, it depends on the data set."""

    dataset: Literal["digits", "cifar10", "cifar100", "npz", "imagenet"] = "digits"
    """digits needs nothing; cifar10 and cifar100 are read as TFDS prepared them; npz
    holds your own x_train, y_train, x_test, y_test; imagenet is read as TFDS prepared
    it, without ever being in memory, or any such set of images and labels."""
    data_dir: Path | None = None
    """Folder of TFDS, or the npz file; for imagenet also the folder of another set."""
    image_size: int | None = None
    """Height and width that images of imagenet are resized to; 224 if not given."""
    workers: int | None = None
    """Processes that read images of imagenet; as many as CPU cores if not given."""
    train_examples: int | None = None
    """Train on this many examples only, chosen by the seed; all if not given."""
    depth: int | None = None
    """Layers of the network: 9n+2 or 6n+2 for ResNet; 11, 13, 16 or 19 for VGG."""
    widen: float | None = None
    """Factor on the channels of every layer."""
    groups: int = 8
    """Groups of each group norm; channels are kept or dropped by the group."""
    norm: Literal["group", "switchable", "shared"] = "group"
    """What becomes of batch norms: group norms, one set for each rate, or one batch
    norm whose statistics are measured again for each rate."""
    rates: tuple[float, ...] = (1.0, 0.75, 0.5, 0.25)
    """Slice rates in (0, 1], the widths that are trained."""
    schedule: Literal[
        "random", "random_min", "random_max", "random_min_max", "static", "cyclic"
    ] = "random_min_max"
    """Which rates a training step uses."""
    num_random: int = 1
    """Rates that a step draws, besides those that it always has."""
    rate_weights: tuple[float, ...] | None = None
    """How likely each of --rates is drawn, in their order; all alike if not given."""
    progressive_epochs: int | None = None
    """Let the rates enter one after the other, the widest first, each so many epochs
    after the one before; all from the start if not given."""
    distill: float = 0.0
    """Share of the loss in which the widest rate of a step teaches the others; the rest
    comes from the labels."""
    temperature: float = 1.0
    """By which predictions are softened for --distill."""
    label_smoothing: float = 0.0
    """Share of each label that is spread over all classes."""
    epochs: int | None = None
    """Length of the run, in passes over the training examples."""
    batch_size: int | None = None
    """Images a step."""
    lr: float | None = None
    """Learning rate after warm-up; a tenth from half of the epochs on, a hundredth
    from three quarters on, unless --cosine."""
    weight_decay: float = 1e-4
    """Added to the gradient, times the weight."""
    cosine: bool = False
    """Let the learning rate fall to zero along a cosine."""
    warmup_epochs: int | None = None
    """Epochs in which the learning rate climbs from a tenth."""
    clip: float | None = None
    """Largest norm of a step's gradient; a larger one is scaled down."""
    average: float | None = None
    """Decay, such as 0.999, of the moving average of the weights that is evaluated and
    kept beside the weights; no average if not given."""
    bfloat16: bool = False
    """Let the network compute in bfloat16; weights stay float32."""
    accumulate: int = 1
    """Parts that a batch is worked off in, one after the other, to save memory."""
    remat: bool = False
    """Save memory by computing activations again in the backward pass."""
    fsdp: int = 1
    """Devices that the weights are dealt out over; the batch always is over all."""
    distributed: bool = False
    """Train on all hosts of a TPU slice or a cluster: the same command on each."""
    seed: int = 0
    """Of weights, data order, augmentation and rates."""
    tensorboard: bool = False
    """Write for TensorBoard too (extra "tensorboard")."""
    workdir: Path | None = None
    """Where everything is written; runs/ and the name of the recipe if not given."""
    resume: bool = True
    """Go on with the run in the workdir, if there is one. With --no-resume its files
    are moved into a folder beside and a new run starts."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Defaults:
    """What the flags that depend on the data set stand for.

    Attributes:
      depth: layers.
      widen: factor on the channels.
      epochs: passes over the training examples.
      batch_size: images a step.
      lr: learning rate after warm-up.
      warmup_epochs: epochs of warm-up; at most a fifth of the run.
    """

    depth: int
    widen: float = 1.0
    epochs: int = 300
    batch_size: int = 128
    lr: float = 0.1
    warmup_epochs: int = 0


def parse(name: str, description: str, args: list[str] | None) -> Settings:
    """Settings from the command line; exits with code 2 where it is not understood."""
    return tyro.cli(
        Settings,
        prog=f"python -m experiments.{name}",
        description=description,
        args=args,
    )


def resolve(settings: Settings, name: str, defaults: Defaults) -> Settings:
    """The same settings, nothing of them left to the data set."""
    missing = {
        field: value
        for field, value in dataclasses.asdict(defaults).items()
        if getattr(settings, field) is None
    }
    workdir = settings.workdir or Path("runs") / name
    resolved = dataclasses.replace(settings, **missing, workdir=workdir)
    if settings.warmup_epochs is None:
        # A short run that was asked for should not fail for want of a longer one.
        warmup = min(defaults.warmup_epochs, cast(int, resolved.epochs) // 5)
        resolved = dataclasses.replace(resolved, warmup_epochs=max(warmup, 0))
    return resolved


def as_json(settings: Settings) -> dict[str, Any]:
    """Plain values, as they are written to settings.json."""
    values = dataclasses.asdict(settings)
    return json.loads(json.dumps(values, default=str))


# Settings that may change when a run goes on: they are no part of what is trained,
# and more epochs is what somebody asks for who wants to train longer.
_FREE = (
    "workdir",
    "data_dir",
    "resume",
    "epochs",
    "distributed",
    "workers",
    "tensorboard",
)


def changed(saved: dict[str, Any], settings: Settings) -> list[str]:
    """What was other in the run that `saved` belongs to, a phrase for each setting."""
    now = as_json(settings)
    return [
        f"{_flag(name)} was {saved.get(name)} and is {now[name]}"
        for name in now
        if name not in _FREE and saved.get(name) != now[name]
    ]


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
