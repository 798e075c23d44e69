"""Train a sliceable network for ImageNet: ResNet, VGG, GoogLeNet, MobileNetV2 or ViT.

    python -m experiments.imagenet
    python -m experiments.imagenet --model resnet50 --dataset imagenet --data-dir DIR
    python -m experiments.imagenet --model vit_b_16 --dataset folder --data-dir DIR

``--model`` takes torchvision's names. Without arguments it trains a ResNet-18 an eighth
as wide on scikit-learn's digits, enlarged to 32 x 32: a check that everything works. It
takes about a minute and a half of one CPU core, compilation included; the accuracy
is 92, 89, 88 and 70 % at r = 1, 0.75, 0.5 and 0.25.

With ``--dataset imagenet`` DIR is the folder of TFDS with imagenet2012 in it, prepared
as array_record, or the folder of any other set that TFDS prepared with the features
image and label. With ``--dataset folder`` it has the images themselves, as
train/CLASS/NAME.jpg and val/CLASS/NAME.jpg, or as CLASS/NAME.jpg, of which a tenth is
held out; each is decoded once at the start, and those that cannot be are skipped.
Reading them needs the extra "imagenet". Images are prepared by --workers processes; if
the device waits for them, ask for more.

The defaults for such images are the usual ones: 100 epochs, batches of 256, a learning
rate of 0.1 (of VGG 0.01) after five epochs of warm-up, and a cosine; of a ViT 300
epochs with adamw. That needs several GPUs. For larger batches give a learning rate in
proportion: ``--batch-size 1024 --lr 0.4``. GoogLeNet's auxiliary heads are trained with
0.3 of their losses, and narrow with it; what is saved is without them. Begin with
torchvision's weights by --weights, see `mslice_jax.models.import_torch`.

Everything else is as in `experiments.cifar_resnet`.
"""

import dataclasses
import sys
from typing import Any, Literal

from flax import linen as nn

from mslice_jax.models import VisionTransformer
from mslice_jax.models.import_torch import FACTORIES

from .images import Images
from .recipe import Recipe, main
from .settings import Float, ImageDefaults, ImageSettings, Norm

Model = Literal[
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "vgg11",
    "vgg11_bn",
    "vgg13",
    "vgg13_bn",
    "vgg16",
    "vgg16_bn",
    "vgg19",
    "vgg19_bn",
    "googlenet",
    "mobilenet_v2",
    "vit_b_16",
    "vit_b_32",
    "vit_l_16",
    "vit_l_32",
    "vit_h_14",
]

ENLARGE = 4
"""Digits of 8 x 8 pixels become 32 x 32, the least that VGG takes."""
_SMALL_PATCH = {14: 8, 16: 8, 32: 16}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageNetSettings(ImageSettings):
    """Flags of `experiments.imagenet`."""

    model: Model = "resnet18"
    """The network, as torchvision names it."""
    widen: Float = None
    """Factor on the channels of every layer; of a ViT on the size of tokens, heads and
    MLPs."""
    norm: Norm = "group"
    """Batch norms become group norms, or one batch norm for each rate, or one batch
    norm whose statistics are measured again for each rate."""
    transform_input: bool = False
    """Take images as torchvision's pretrained googlenet does; for its --weights."""
    cosine: bool = True
    """Let the learning rate decay to zero along a cosine."""

    def check(self) -> None:
        """Flags of other networks."""
        has_norms = not self.model.startswith(("vgg", "vit")) or "_bn" in self.model
        if self.norm != "group" and not has_norms:
            raise ValueError(
                f"--norm {self.norm} has no effect: --model {self.model} has no batch "
                "norms. Leave it out."
            )
        if self.transform_input and self.model != "googlenet":
            raise ValueError(
                "--transform-input has no effect: it is for --model googlenet, this is "
                f"{self.model}. Leave it out."
            )

    def sizes(self, image_size: int) -> dict[str, Any]:
        """Name and width; of a ViT the image's size, of GoogLeNet its input."""
        sizes: dict[str, Any] = {"model": self.model, "widen": self.widen}
        if self.model.startswith("vit"):
            sizes |= {"image_size": image_size, "small": self.dataset == "digits"}
        if self.model == "googlenet":
            sizes |= {"transform_input": self.transform_input}
        return sizes

    def title(self, model: Any) -> str:
        """Such as "resnet18 x0.125"."""
        del model
        return self.model if self.widen == 1 else f"{self.model} x{self.widen:g}"


def build(
    *, model: str, widen: float, num_classes: int, small: bool = False, **sizes: Any
) -> nn.Module:
    """The network of that name; a `small` ViT is for digits, with smaller patches."""
    if not model.startswith("vit"):
        return FACTORIES[model](num_classes=num_classes, widen=widen, **sizes)
    usual: VisionTransformer = FACTORIES[model]()
    return FACTORIES[model](
        num_classes=num_classes,
        hidden=_whole(usual.hidden, widen, usual.heads),
        mlp=_whole(usual.mlp, widen),
        patch_size=_SMALL_PATCH[usual.patch_size] if small else usual.patch_size,
        **sizes,
    )


def _whole(size: int, widen: float, parts: int = 1) -> int:
    wide = size // parts * widen
    if wide < 1 or wide != int(wide):
        raise ValueError(
            f"expected --widen to make the size {size // parts} of a ViT's "
            f"{'heads' if parts > 1 else 'MLPs'} a whole number, got {widen}. Choose "
            f"a multiple of 1 / {size // parts}."
        )
    return int(wide) * parts


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageNetDefaults(ImageDefaults):
    """Defaults of `ImageNetSettings`.

    Attributes:
      widen: factor on the channels.
    """

    widen: float = 1.0
    epochs: int = 100
    batch_size: int = 256
    warmup_epochs: int = 5


_TRANSFORMER: dict[str, Any] = {"optimizer": "adamw", "clip": 1.0}


def usual(settings: ImageNetSettings) -> ImageNetDefaults:
    """The defaults for ImageNet, and for images of your own."""
    if settings.model.startswith("vit"):
        return ImageNetDefaults(epochs=300, lr=1e-3, warmup_epochs=20, **_TRANSFORMER)
    # Without shortcuts or many norms VGG takes smaller steps, as in its paper.
    return ImageNetDefaults(lr=0.01 if settings.model.startswith("vgg") else 0.1)


def small(settings: ImageNetSettings) -> ImageNetDefaults:
    """The defaults for digits."""
    short: dict[str, Any] = {"epochs": 8, "batch_size": 32, "warmup_epochs": 1}
    widths = {"resnet": 1 / 8, "vgg": 1 / 8, "googlenet": 1 / 4, "mobilenet": 1 / 2}
    if settings.model.startswith("vit"):
        return ImageNetDefaults(widen=1 / 8, lr=1e-3, **short, **_TRANSFORMER)
    family = next(name for name in widths if settings.model.startswith(name))
    lr = 0.01 if family == "vgg" else 0.05
    return ImageNetDefaults(widen=widths[family], lr=lr, **short)


RECIPE = Recipe(
    name="imagenet",
    description="Train a sliceable network for ImageNet, by torchvision's name, on "
    "ImageNet or your own images.",
    model=build,
    digits=small,
    cifar=usual,
    kind=Images(settings=ImageNetSettings, enlarge=ENLARGE),
)

if __name__ == "__main__":
    sys.exit(main(RECIPE))
