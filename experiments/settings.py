"""The flags that the recipes share, and their defaults."""

import argparse
import contextlib
import dataclasses
import difflib
import io
import json
import re
import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, cast

import tyro

from mslice_jax.schedules import make_schedule

from . import optimizers


def _maybe(read: Callable[[str], Any], metavar: str) -> Any:
    """Form of an optional flag for tyro; None means not given.

    Left to itself tyro shows ``{None}|INT``, and reports of a mistyped number that it
    is not None either.
    """
    spec = tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=lambda args: read(args[0]),
        is_instance=lambda value: True,
        str_from_instance=lambda value: [str(value)],
    )
    return spec, tyro.conf.arg(help_behavior_hint="")


def _number(kind: Callable[[str], Any], what: str) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        try:
            return kind(text)
        except ValueError:
            raise ValueError(f"expected {what}, got {text!r}") from None

    return read


Int = Annotated[int | None, *_maybe(_number(int, "a whole number"), "INT")]
Float = Annotated[float | None, *_maybe(_number(float, "a number"), "FLOAT")]
Place = Annotated[Path | None, *_maybe(Path, "PATH")]
Floats = Annotated[
    tuple[float, ...] | None,
    tyro.conf.arg(metavar="FLOAT [FLOAT ...]", help_behavior_hint=""),
]


Schedule = Literal[
    "random", "random_min", "random_max", "random_min_max", "static", "cyclic"
]
Optimizer = Literal["sgd", "adam", "adamw", "lamb", "lion"]
OwnOptimizer = Annotated[
    Optimizer | None,
    tyro.conf.arg(metavar="{sgd,adam,adamw,lamb,lion}", help_behavior_hint=""),
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """Flags of every recipe. A default that is not named depends on the data."""

    config: Place = None
    """A file of settings, JSON or TOML, such as the settings.json of another run; flags
    override it."""
    groups: int = 8
    """Units of an axis that are kept or dropped together, where the network sets none;
    for channels the groups of each group norm."""
    rates: tuple[float, ...] = (1.0, 0.75, 0.5, 0.25)
    """Slice rates in (0, 1], the widths that are trained."""
    schedule: Schedule = "random_min_max"
    """The rates of a training step."""
    num_random: Int = None
    """Rates that a step draws, besides the fixed ones: 1 if not given, and 0 where the
    schedule leaves none to draw."""
    rate_weights: Floats = None
    """Probability of each of --rates, in their order; equal if not given."""
    progressive_epochs: Int = None
    """Epochs between the entries of two rates, the widest first; all train from the
    start if not given."""
    distill: float = 0.0
    """Share of the loss that distills the widest rate of a step into the others; the
    rest comes from the labels."""
    temperature: Float = None
    """Temperature of the softmax for --distill; 1 if not given."""
    distill_from: Int = None
    """Epochs before --distill begins; from the start if not given."""
    teacher: Place = None
    """Workdir of another run, whose network at its widest teaches all rates with
    --distill, in place of the widest of the step."""
    loss_weights: Floats = None
    """What the loss of each of --rates is multiplied with, in their order; 1 if not
    given."""
    label_smoothing: float = 0.0
    """Share of each label that is spread over all classes."""
    epochs: Int = None
    """Length of the run, in passes over the training data."""
    batch_size: Int = None
    """Images, or rows of text, per step."""
    optimizer: OwnOptimizer = None
    """sgd has Nesterov momentum of 0.9, as in the paper; the others are Optax's with
    their default settings. sgd if not given, and adamw for transformers."""
    lr: Float = None
    """Learning rate after warm-up, by default that of the optimizer; a tenth from half
    of the epochs on, a hundredth from three quarters on, unless --cosine."""
    weight_decay: Float = None
    """Weight decay: with sgd added to the gradient, times the weight (1e-4 if not
    given); with adamw, lamb and lion decoupled (0.01 if not given)."""
    cosine: bool = False
    """Let the learning rate decay to zero along a cosine."""
    warmup_epochs: Int = None
    """Epochs in which the learning rate rises from a tenth."""
    clip: Float = None
    """Largest norm of a step's gradient; a larger one is scaled down."""
    average: Float = None
    """Decay, such as 0.999, of the moving average of the weights that is evaluated and
    kept beside the weights; no average if not given."""
    bfloat16: bool = False
    """Let the network compute in bfloat16; weights stay float32."""
    accumulate: int = 1
    """Chunks of a batch, computed one after the other to save memory."""
    remat: bool = False
    """Recompute activations in the backward pass to save memory."""
    fsdp: int = 1
    """Devices that the weights are sharded over; the batch always is over all."""
    shards: Int = None
    """Equal parts of an axis, each of which narrows by itself; as many as --fsdp if not
    given. They belong to the network; --fsdp may change when a run continues."""
    distributed: bool = False
    """Train on all hosts of a TPU slice or a cluster: start the same command on each,
    as with srun or mpirun."""
    seed: int = 0
    """Seed of weights, data order, augmentation and rates."""
    tensorboard: bool = False
    """Write for TensorBoard too (extra "tensorboard")."""
    workdir: Place = None
    """Folder for all files of the run; runs/ and the name of the recipe if not
    given."""
    resume: bool = True
    """Continue the run in the workdir, if there is one. With --no-resume its files are
    moved into a folder of their own in there, and a new run starts."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageSettings(Training):
    """Flags of every recipe for images."""

    dataset: Literal["digits", "cifar10", "cifar100", "npz", "imagenet", "folder"] = (
        "digits"
    )
    """digits needs no files; cifar10 and cifar100 are read as TFDS prepared them; npz
    is a file with your own x_train, y_train, x_test, y_test; imagenet is read from disk
    as TFDS prepared it, and so is any such set of images and labels; folder is your own
    images, in train/CLASS/ and val/CLASS/, or in CLASS/ alone."""
    data_dir: Place = None
    """Folder of TFDS, the npz file, or the folder of images; for imagenet also the
    folder of another set."""
    image_size: Int = None
    """Height and width that images of imagenet or a folder are resized to; 224 if not
    given."""
    workers: Int = None
    """Processes that read images of imagenet or a folder; as many as CPU cores if not
    given."""
    train_examples: Int = None
    """Train on this many examples only, chosen by the seed; all if not given."""
    max_test_examples: Int = None
    """Evaluate at most this many of the held-out examples, the same ones for every
    seed; all if not given."""
    weights: Place = None
    """Saved weights to begin with: a network that mslice_jax.models.import_torch made
    from PyTorch's, or the workdir of another run; random if not given. Trained batch
    norms need --norm shared."""

    def check(self) -> None:
        """Raise ValueError for flags, of resolved settings, that have no effect."""

    def sizes(self, image_size: int) -> dict[str, Any]:
        """Arguments of the recipe's `model`, besides num_classes.

        `image_size` is the height of its images.
        """
        raise NotImplementedError

    def title(self, model: Any) -> str:
        """Name of the network on the screen and in files."""
        raise NotImplementedError


Norm = Literal["group", "switchable", "shared"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(ImageSettings):
    """Flags of the recipes for the networks of the paper, ResNet and VGG."""

    depth: Int = None
    """Layers of the network: 9n+2 or 6n+2 for ResNet; 11, 13, 16 or 19 for VGG."""
    widen: Float = None
    """Factor on the channels of every layer."""
    norm: Norm = "group"
    """Batch norms become group norms, or one batch norm for each rate, or one batch
    norm whose statistics are measured again for each rate."""

    def sizes(self, image_size: int) -> dict[str, Any]:
        """Depth and width."""
        del image_size
        return {"depth": self.depth, "widen": self.widen}

    def title(self, model: Any) -> str:
        """Such as "CifarResNet-8 x2"."""
        name = f"{type(model).__name__}-{self.depth}"
        return name if self.widen == 1 else f"{name} x{self.widen:g}"


S = TypeVar("S", bound=Training)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageDefaults:
    """Defaults of the flags that depend on network and data set.

    Attributes:
      epochs: passes over the training examples.
      batch_size: images per step.
      optimizer: one of `optimizers.USUAL`.
      lr: its learning rate after warm-up.
      warmup_epochs: epochs of warm-up; at most a fifth of the run.
      clip: largest norm of a gradient; None is any.
    """

    epochs: int = 300
    batch_size: int = 128
    optimizer: Optimizer = "sgd"
    lr: float = 0.1
    warmup_epochs: int = 0
    clip: float | None = None

    def learning_rate(self, optimizer: str) -> float:
        """Default of --lr: `lr` is meant for `optimizer`."""
        if optimizer == self.optimizer:
            return self.lr
        usual = optimizers.USUAL[optimizer].lr
        return 0.1 if usual is None else usual


@dataclasses.dataclass(frozen=True, kw_only=True)
class Defaults(ImageDefaults):
    """Defaults of `Settings`.

    Attributes:
      depth: layers.
      widen: factor on the channels.
    """

    depth: int
    widen: float = 1.0


def parse(
    name: str,
    description: str,
    args: list[str] | None,
    kind: type[S] = Settings,
    *,
    default: S | None = None,
) -> S:
    """Settings of a kind from the command line, and from --config's file below it.

    Without a file what is not given is that of `default`.

    Exits with code 2 for a flag that is not understood.

    Raises:
      ValueError: for a file that is not; it names the file and the setting.
    """
    program = f"python -m experiments.{name}"
    first = argparse.ArgumentParser(prog=program, add_help=False, allow_abbrev=False)
    first.add_argument("--config", type=Path, nargs="?")  # tyro says what is missing
    config = first.parse_known_args(args)[0].config
    return tyro.cli(
        kind,
        prog=program,
        description=description,
        default=(
            default or kind() if config is None else read_settings(config, name, kind)
        ),
        args=args,
    )


def read_settings(file: Path, name: str, kind: type[S] = Settings) -> S:
    """Settings from a file: JSON or TOML, with ``_`` or ``-`` in the names.

    Raises:
      ValueError: if it cannot be read, or does not hold settings of this recipe.
    """
    values = _read_table(file.expanduser())
    recipe = values.pop("recipe", name)
    if recipe != name:
        raise ValueError(
            f"{file} holds settings of experiments.{recipe}; this is "
            f"experiments.{name}. Start that one, or leave --config out."
        )
    known = {field.name for field in dataclasses.fields(kind)} - {"config"}
    parts = {}
    for key, value in values.items():
        setting = key.replace("-", "_")
        if setting not in known:
            close = difflib.get_close_matches(setting, known, n=1)
            advice = f" Did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"{file}: there is no setting {key!r}.{advice}")
        parts[setting] = _as_flags(setting, value)
    try:
        return _quietly(kind, parts.values())
    except SystemExit:
        pass
    for setting, part in parts.items():  # which one does not parse
        try:
            _quietly(kind, [part])
        except SystemExit:
            raise ValueError(
                f"{file}: {values.get(setting)!r} is no value for {setting!r}; --help "
                f"says what {flag(setting)} takes."
            ) from None
    raise ValueError(f"{file} cannot be understood; give its settings as flags.")


def _read_table(file: Path) -> dict[str, Any]:
    read = {".json": json.loads, ".toml": tomllib.loads}.get(file.suffix)
    if read is None:
        raise ValueError(
            f"expected a file of settings that ends in .json or .toml as --config, got "
            f"{file}."
        )
    try:
        values = read(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(
            f"cannot read the settings in {file}: {error.strerror}."
        ) from error
    except ValueError as error:
        raise ValueError(
            f"{file} is not valid {file.suffix[1:].upper()}: {error}."
        ) from error
    if not isinstance(values, dict):
        raise ValueError(
            f'{file}: expected settings by name, such as {{"epochs": 5}}; got '
            f"{type(values).__name__}."
        )
    return values


def _as_flags(setting: str, value: Any) -> list[str]:
    """A value in the form of the command line."""
    if value is None:
        return []
    if isinstance(value, bool):
        return [flag(setting) if value else "--no-" + flag(setting)[2:]]
    if isinstance(value, list):
        return [flag(setting), *map(str, value)]
    return [f"{flag(setting)}={value}"]


def _quietly(kind: type[S], parts: Iterable[list[str]]) -> S:
    """Settings from flags; SystemExit without output for wrong ones."""
    args = [arg for part in parts for arg in part]
    with contextlib.redirect_stderr(io.StringIO()):
        return tyro.cli(kind, args=args)


def resolve(settings: S, name: str, defaults: Any) -> S:
    """The same settings, with every default of the data filled in.

    `defaults` is a dataclass such as `Defaults`: a value for each setting of that name.

    A setting without effect stays None, so that the file of settings can be given as
    --config.

    Raises:
      ValueError: for impossible rates or places.
    """
    missing = {
        field: value
        for field, value in dataclasses.asdict(defaults).items()
        if getattr(settings, field) is None
    }
    optimizer = settings.optimizer or defaults.optimizer
    missing["optimizer"] = optimizer
    if "lr" in missing:
        missing["lr"] = defaults.learning_rate(optimizer)
    if settings.weight_decay is None and "weight_decay" not in missing:
        missing["weight_decay"] = optimizers.USUAL[optimizer].weight_decay
    if settings.num_random is None:
        missing["num_random"] = _to_draw(settings)
    if settings.distill:
        missing |= {
            name: value
            for name, value in {"temperature": 1.0, "distill_from": 0}.items()
            if getattr(settings, name) is None
        }
    if settings.shards is None:
        missing["shards"] = settings.fsdp
    missing["workdir"] = local(settings.workdir or Path("runs") / name, "--workdir")
    for place in ("data_dir", "text", "weights", "teacher"):
        if (given := getattr(settings, place, None)) is not None:
            missing[place] = local(given, flag(place))
    resolved = dataclasses.replace(settings, **missing)
    if settings.warmup_epochs is None:
        # A short run should not fail because its warm-up is longer.
        warmup = min(defaults.warmup_epochs, cast(int, resolved.epochs) // 5)
        resolved = dataclasses.replace(resolved, warmup_epochs=max(warmup, 0))
    return resolved


def _to_draw(settings: Training) -> int | None:
    """Default number of rates that a step draws; None if it never draws."""
    if settings.schedule in ("static", "cyclic"):
        return None
    if settings.schedule == "random" or settings.rate_weights is not None:
        return 1
    always = make_schedule(settings.schedule, settings.rates, num_random=0)(0)
    return min(1, len(settings.rates) - len(always))


# Path has made gs:/bucket of gs://bucket. A drive of Windows has one letter.
_REMOTE = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+:/")


def local(path: Path, name: str) -> Path:
    """With ``~`` expanded; raises ValueError for a place on another machine."""
    if found := _REMOTE.match(str(path)):
        scheme = found[0].removesuffix("/") + "//"
        raise ValueError(
            f"expected a path of this machine's file system as {name}, got {scheme}"
            f"{str(path)[found.end() :]}. Mount the bucket (gcsfuse), or copy the "
            "files."
        )
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise ValueError(
            f"cannot tell which folder {path.parts[0]} is in {name} {path}: no home "
            "directory is known. Give the whole path."
        ) from error


def as_json(settings: Training) -> dict[str, Any]:
    """Plain values, as they are written to settings.json: what belongs to the run."""
    values = dataclasses.asdict(settings)
    del values["config"], values["resume"]
    return json.loads(json.dumps(values, default=str))


# Settings that may change when a run continues: they do not change the training, and
# more epochs train longer.
_FREE = (
    "workdir",
    "data_dir",
    "text",
    "epochs",
    "fsdp",
    "distributed",
    "workers",
    "tensorboard",
)


# None means without effect for these, whatever they were before.
_IDLE = ("num_random", "temperature", "distill_from", "weight_decay")


def changed(saved: dict[str, Any], settings: Training) -> list[str]:
    """Differences from the run that `saved` belongs to, a phrase for each setting."""
    now = as_json(settings)
    # A flag newer than the run is not in its file, and had its present default.
    names = [name for name in now if name in saved and name not in _FREE]
    return [
        f"{flag(name)} was {_said(saved[name])} and is {_said(now[name])}"
        for name in names
        if saved[name] != now[name] and not (name in _IDLE and now[name] is None)
    ]


def _said(value: Any) -> str:
    return "not given" if value is None else str(value)


def flag(name: str) -> str:
    """The flag of a setting."""
    return "--" + name.replace("_", "-")
