"""Flags of `experiments.cifar_speedrun`, and their defaults."""

import dataclasses
import math
from typing import Annotated, Any, Literal

import tyro

from ..settings import Float, ImageDefaults, ImageSettings, Norm, Schedule, flag

Method = Literal["muon", "sgd"]
_Method = Annotated[
    Method | None, tyro.conf.arg(metavar="{muon,sgd}", help_behavior_hint="")
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpeedSettings(ImageSettings):
    """Flags of `experiments.cifar_speedrun`."""

    width: Float = None
    """Factor on the channels of the three groups, which are 64, 256 and 256."""
    norm: Norm = "switchable"
    """One batch norm for each rate, as it learns its own biases, which are trained at
    a high rate; or one whose statistics are measured again for each rate; or group
    norms."""
    schedule: Schedule = "static"
    """The rates of a training step: all of them unless told otherwise, as the few steps
    of a short run are as many as a separate network has."""
    label_smoothing: float = 0.2
    """Share of each label that is spread over all classes."""
    optimizer: _Method = None  # pyright: ignore[reportIncompatibleVariableOverride]
    """muon: orthogonal updates of kernels, and sgd for norms and the last layer, as in
    airbench94_muon; sgd: for all, as in airbench94, which has --lookahead. muon if not
    given."""
    lr: Float = None
    """Learning rate of kernels at its peak: of muon the size of an update, in units of
    the norm of a filter (.24 in batches of 2000 if not given, in others in proportion
    to the root of their size); of sgd of the loss of an example (.0015)."""
    bias_lr: Float = None
    """Learning rate of biases of norms, of the loss of an example; with muon .053, with
    sgd 64 times that of kernels if not given."""
    head_lr: Float = None
    """Learning rate of the last layer, of the loss of an example; it fits any width."""
    weight_decay: Float = None
    """Share of biases and of the last layer (of sgd of all weights) that a step takes
    away per example of its batch, 2e-6 if not given."""
    peak: Float = None
    """Share of the run at which learning rates are highest; they rise and fall in
    straight lines. 0 with muon, .23 with sgd if not given."""
    divide: float = 0.5
    """Power of the number of a step's rates that train a weight, by which its gradient,
    their sum, is divided: 0 leaves the sum, 1 makes it the mean."""
    init: Literal["identity", "orthogonal", "uniform"] = "identity"
    """Convolutions begin as the identity, with orthogonal filters, or uniformly at
    random."""
    lookahead: bool = False
    """Put weights back on their average every five steps, after three epochs, as
    airbench94 does with sgd."""
    whitening_epochs: int = 0
    """Epochs in which the bias of the first layer is trained, 3 in the public runs;
    with 0 there is none, and steps are quicker."""
    translate: int = 2
    """Pixels that training images are shifted by, at most."""
    flip: Literal["alternate", "random", "none"] | None = None
    """Mirror half of the images: each in every second epoch, or drawn anew; if not
    given alternate for colour images, and none for others."""
    views: Literal[1, 2, 6] = 6
    """In the end accuracy is measured with this many views of an image besides: itself
    and its mirror image, or both also shifted by a pixel."""

    def check(self) -> None:
        """Flags of the other recipes, and data that is not in memory."""
        for name in ("cosine", "clip", "warmup_epochs"):
            if getattr(self, name):
                raise ValueError(
                    f"{flag(name)} has no effect: learning rates rise to --peak and "
                    "fall in straight lines. Leave it out."
                )
        if self.dataset in ("imagenet", "folder"):
            raise ValueError(
                "expected a --dataset that is held in memory (digits, cifar10, "
                f"cifar100, npz), got {self.dataset}."
            )

    def sizes(self, image_size: int) -> dict[str, Any]:
        """Width, whether the first layer has a bias, and how convolutions begin."""
        del image_size
        return {
            "width": self.width,
            "whitening_bias": self.whitening_epochs > 0,
            "kernel_init": self.init,
        }

    def title(self, model: Any) -> str:
        """Such as "SpeedNet x0.5"."""
        del model
        return "SpeedNet" if self.width == 1 else f"SpeedNet x{self.width:g}"


# By method; those of the public runs, the last layer's in units of its scale here.
_USUAL: dict[str, dict[str, float]] = {
    "muon": {"lr": 0.24, "bias_lr": 0.053, "head_lr": 8.3e-4, "peak": 0.0},
    "sgd": {"lr": 1.5e-3, "bias_lr": 0.096, "head_lr": 1.5e-3, "peak": 0.23},
}
_MUON_BATCH = 2000  # that the learning rate above is for


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpeedDefaults(ImageDefaults):
    """Defaults of `SpeedSettings`.

    Attributes:
      width: factor on the channels.
      optimizer: "muon" or "sgd".
      bias_lr, head_lr: of biases and the last layer.
      weight_decay: share per step and example.
      peak: share of the run.
    """

    width: float = 1.0
    epochs: int = 8
    batch_size: int = 500
    optimizer: Method = "muon"  # pyright: ignore[reportIncompatibleVariableOverride]
    bias_lr: float = 0.0
    head_lr: float = 0.0
    weight_decay: float = 2e-6
    peak: float = 0.0

    def learning_rate(self, optimizer: str) -> float:
        """That of kernels."""
        del optimizer
        return self.lr


def defaults(
    settings: SpeedSettings, *, batch_size: int = 500, **given: Any
) -> SpeedDefaults:
    """The defaults of a method, and of a batch.

    Args:
      settings: as they were given.
      batch_size: unless settings have one.
      given: other defaults.
    """
    method = settings.optimizer or "muon"
    usual = dict(_USUAL[method])
    batch_size = settings.batch_size or batch_size
    if method == "muon":
        usual["lr"] = float(f"{usual['lr'] * math.sqrt(batch_size / _MUON_BATCH):.3g}")
    return SpeedDefaults(batch_size=batch_size, optimizer=method, **usual, **given)
