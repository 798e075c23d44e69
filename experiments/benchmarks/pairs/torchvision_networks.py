"""MobileNetV2 and a vision transformer, of torchvision's own classes."""

# The checks of this project do not install PyTorch.
# pyright: reportMissingImports=false

from collections.abc import Mapping
from typing import Any

import torchvision

from mslice_jax.models import MobileNetV2, export_torch
from mslice_jax.models.torch_names import entries
from mslice_jax.models.vit import VisionTransformer

from .data import Images
from .pair import Arrays, Pair


def mobilenet_v2(tiny: bool) -> Pair:
    """Batch norms that all rates share; depthwise convolutions."""
    model = MobileNetV2(num_classes=10, dropout=0.0)
    return _pair(
        model,
        lambda: torchvision.models.mobilenet_v2(num_classes=10, dropout=0.0),
        batch=4 if tiny else 32,
        # Fewer pixels leave the last norms two numbers, whose signs are all they keep.
        size=64,
        norm="shared",
    )


def vit(tiny: bool) -> Pair:
    """Patches of 4 x 4 pixels of CIFAR's images, 4 layers of 8 heads of 32."""
    layers, heads, size = (1, 4, 8) if tiny else (4, 8, 32)
    hidden = (4 if tiny else 32) * heads
    model = VisionTransformer(
        patch_size=4,
        layers=layers,
        heads=heads,
        hidden=hidden,
        mlp=4 * hidden,
        image_size=size,
        num_classes=10,
    )

    def twin() -> Any:
        return torchvision.models.VisionTransformer(
            size, 4, layers, heads, hidden, 4 * hidden, num_classes=10
        )

    return _pair(model, twin, batch=2 if tiny else 32, size=size)


def _pair(model: Any, full: Any, *, batch: int, size: int, **settings: Any) -> Pair:
    def twin(net: Any, rate: float) -> Any:
        return export_torch(net, rate).put(full())

    def tensors(variables: Mapping[tuple[str, ...], Any]) -> Arrays:
        shapes = {path: x.shape for path, x in variables.items()}
        return {
            entry.key: entry.layout.join([variables[path] for path in entry.leaves])
            for entry in entries(model, shapes)
        }

    return Pair(
        model=model,
        twin=twin,
        tensors=tensors,
        batch=batch,
        of_network=True,
        upgrade=settings,
        **Images(size).settings(),
    )
