"""The networks of `mslice_jax.models` for ImageNet, narrow and on small images.

Built narrow by hand they are the same classes with smaller numbers. Every axis keeps
its leading part, except after a concatenation or a flatten.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from flax import nnx

from mslice_jax import models
from tests.citizens.citizen import (
    Citizen,
    Tree,
    beside,
    cut,
    everything,
    lead,
    part_of,
    random_inputs,
    variables_of,
    within,
)
from tests.citizens.nnx_models import built

CLASSES = 10
Path = tuple[str, ...]
Kept = Callable[[Path, float], np.ndarray | None]


def _narrow(by_hand: Any, inputs: np.ndarray, kept: Kept) -> Any:
    """Cuts every leaf to its shape in the network built by hand.

    `kept` gives the indices of the inputs of a kernel (its axis before the last one)
    that are not the leading ones.
    """

    def narrow(variables: Tree, rate: float) -> Tree:
        model = by_hand(rate)
        if isinstance(model, nnx.Module):
            types: Tree = variables_of(model)
        else:
            types = jax.eval_shape(model.init, jax.random.key(0), inputs)

        def leaf(path: Any, like: Any, full: Any) -> np.ndarray:
            names = tuple(key.key for key in path)
            indices = [np.arange(n) for n in like.shape]
            if names[-1] == "kernel" and (own := kept(names, rate)) is not None:
                indices[-2] = own
            return cut(full, *indices)

        return jax.tree_util.tree_map_with_path(leaf, dict(types), variables)

    return narrow


def _leading(path: Path, rate: float) -> None:
    """Every axis keeps its leading part."""
    del path, rate


def _citizen(
    name: str,
    make: Callable[[float], nn.Module | nnx.Module],
    *,
    size: int,
    kept: Kept = _leading,
    not_maskable: str = "",
    has_batch_stats: bool = True,
) -> Citizen:
    """A network that `make` builds at every rate; batch norms are shared."""
    inputs = random_inputs(2, size, size, 3)
    return Citizen(
        name=name,
        model=make(1.0),
        inputs=(inputs,),
        by_hand=make,
        narrow_by_hand=_narrow(make, inputs, kept),
        groups=4,
        norm="shared",
        not_maskable=not_maskable,
        has_batch_stats=has_batch_stats,
    )


def resnet(depth: int) -> Citizen:
    """Basic blocks (18, 34), or bottlenecks (50)."""

    def make(rate: float) -> nn.Module:
        return models.ImageNetResNet(depth, num_classes=CLASSES, widen=rate / 8)

    return _citizen(f"zoo_resnet{depth}", make, size=32)


def vgg(depth: int, *, batch_norm: bool) -> Citizen:
    """The flattened axis is 7 x 7 positions by 32 channels: each keeps its own."""

    def make(rate: float) -> nn.Module:
        settings = {"batch_norm": batch_norm, "num_classes": CLASSES}
        return models.ImageNetVGG(depth, widen=rate / 16, **settings)

    def kept(path: Path, rate: float) -> np.ndarray | None:
        if "classifier0" in path:
            return within(everything(49), 32, lead(32, rate))
        return None

    name = f"zoo_vgg{depth}_bn" if batch_norm else f"zoo_vgg{depth}"
    return _citizen(name, make, size=32, kept=kept, has_batch_stats=batch_norm)


# Channels of the four branches of each block, and the block before it.
_BRANCHES = {
    "3a": (64, 128, 32, 32),
    "3b": (128, 192, 96, 64),
    "4a": (192, 208, 48, 64),
    "4b": (160, 224, 64, 64),
    "4c": (128, 256, 64, 64),
    "4d": (112, 288, 64, 64),
    "4e": (256, 320, 128, 128),
    "5a": (256, 320, 128, 128),
    "5b": (384, 384, 128, 128),
}
_BEFORE = dict(zip([*list(_BRANCHES)[1:], "fc"], _BRANCHES, strict=True))


def googlenet() -> Citizen:
    """The axis after four branches keeps the leading part of each of them."""

    def make(rate: float) -> nn.Module:
        return models.googlenet(num_classes=CLASSES, widen=rate / 2, aux_logits=False)

    def kept(path: Path, rate: float) -> np.ndarray | None:
        block = path[1].removeprefix("inception")
        is_first = block == "fc" or path[2].endswith(("branch1", "_0", "branch4_1"))
        if block not in _BEFORE or not is_first:
            return None
        widths = [channels // 2 for channels in _BRANCHES[_BEFORE[block]]]
        return beside(*((width, lead(width, rate)) for width in widths))

    return _citizen("zoo_googlenet", make, size=32, kept=kept)


def mobilenet() -> Citizen:
    """Depthwise convolutions, inverted residual blocks."""

    def make(rate: float) -> nn.Module:
        return models.mobilenet_v2(num_classes=CLASSES, widen=rate / 2)

    return _citizen("zoo_mobilenet_v2", make, size=32)


_NORMS = "layer norms take means over the axis that narrows"


def _vit_sizes(rate: float) -> dict[str, int]:
    narrow = {name: part_of(n, rate) for name, n in _VIT.items()}
    return {**narrow, "patch_size": 4, "image_size": 8, "layers": 1}


_VIT = {"heads": 4, "hidden": 16, "mlp": 24}


def vit() -> Citizen:
    """Heads, the units of tokens, and those of MLPs."""

    def make(rate: float) -> nn.Module:
        return models.VisionTransformer(**_vit_sizes(rate), num_classes=CLASSES)

    return _citizen(
        "zoo_vit",
        make,
        size=8,
        not_maskable=_NORMS,
        has_batch_stats=False,
    )


def vit_of_nnx() -> Citizen:
    """The same in NNX."""

    def make(rate: float) -> nnx.Module:
        rngs = nnx.Rngs(0)
        sizes = _vit_sizes(rate)
        return built(
            models.vit_nnx.NnxVisionTransformer(**sizes, num_classes=CLASSES, rngs=rngs)
        )

    return _citizen(
        "zoo_nnx_vit",
        make,
        size=8,
        not_maskable=_NORMS,
        has_batch_stats=False,
    )
