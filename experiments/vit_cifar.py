"""Train a sliceable vision transformer on small images.

    python -m experiments.vit_cifar
    python -m experiments.vit_cifar --dataset cifar10 --data-dir DIR
    python -m experiments.vit_cifar --dataset npz --data-dir mine.npz --patch-size 8

Without arguments: four layers of 64 on patches of 2 x 2 of scikit-learn's digits. That
takes about 80 seconds of one CPU core, compilation included; the accuracy is 81, 74, 70
and 62 % at r = 1, 0.75, 0.5 and 0.25. (1,442 images are few for a network that knows
nothing of neighbours; `experiments.cifar_resnet` has 99 % there.) On CIFAR the defaults
are patches of 4 x 4, six layers of 192 with eight heads, and 200 epochs with adamw, ten
of them warm-up, and a cosine, which needs a GPU.

Heads, tokens and MLPs narrow; layer norms take their means over what is left of a
token. Everything else is as in `experiments.cifar_resnet`.
"""

import dataclasses
import sys
from typing import Any

from flax import linen as nn

from mslice_jax.models import VisionTransformer

from .images import Images
from .recipe import Recipe, main
from .settings import Float, ImageDefaults, ImageSettings, Int, Optimizer

MLP = 4
"""Units of an MLP, per entry of a token."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class VitSettings(ImageSettings):
    """Flags of `experiments.vit_cifar`."""

    patch_size: Int = None
    """Height and width of a patch, in pixels; images are a multiple of it."""
    layers: Int = None
    """Number of layers."""
    units: Int = None
    """Size of a token; an MLP has four times as many."""
    heads: Int = None
    """Heads of an attention; they divide --units."""
    dropout: Float = None
    """Share of the outputs of layers that is dropped in training."""
    cosine: bool = True
    """Let the learning rate decay to zero along a cosine."""

    def sizes(self, image_size: int) -> dict[str, Any]:
        """All of them."""
        return {
            "image_size": image_size,
            "patch_size": self.patch_size,
            "layers": self.layers,
            "units": self.units,
            "heads": self.heads,
            "dropout": self.dropout,
        }

    def title(self, model: Any) -> str:
        """Such as "ViT of 6 x 192"."""
        del model
        return f"ViT of {self.layers} x {self.units}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class VitDefaults(ImageDefaults):
    """Defaults of `VitSettings`.

    Attributes:
      patch_size: in pixels.
      layers, units, heads: of the network.
      dropout: share of outputs.
    """

    patch_size: int = 4
    layers: int = 6
    units: int = 192
    heads: int = 8
    dropout: float = 0.0
    optimizer: Optimizer = "adamw"
    lr: float = 1e-3
    epochs: int = 200
    warmup_epochs: int = 10
    clip: float | None = 1.0


def build(*, units: int, **sizes: Any) -> nn.Module:
    """The network of resolved flags."""
    return VisionTransformer(hidden=units, mlp=MLP * units, **sizes)


RECIPE = Recipe(
    name="vit_cifar",
    description="Train a sliceable vision transformer on digits, CIFAR or your own "
    "images.",
    model=build,
    digits=VitDefaults(
        patch_size=2,
        layers=4,
        units=64,
        epochs=24,
        batch_size=32,
        lr=2e-3,
        warmup_epochs=2,
    ),
    cifar=VitDefaults(),
    kind=Images(settings=VitSettings),
)

if __name__ == "__main__":
    sys.exit(main(RECIPE))
