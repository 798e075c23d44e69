"""The vision networks of Equimo, in Equinox, as plain functions."""

import functools
from collections.abc import Callable
from typing import Any

import jax

from experiments.benchmarks.families import equinox
from experiments.benchmarks.families.family import Family, Network, image, load


def as_network(make: Callable[[], Any], size: int) -> Network:
    """A network of Equimo for square images in CHW, in inference mode."""
    key = jax.random.key(0)  # of dropout, which does not run
    return equinox.as_network(make, image(2, 3, size, size), key=key, inference=True)


def variant(file: str, name: str, *, size: int = 64, **settings: Any) -> Network:
    """A named network of Equimo, made smaller by `settings`."""
    module = load(f"equimo.models.{file}")
    kind = getattr(module, name)
    return as_network(lambda: kind(num_classes=10, **settings), size)


def custom(file: str, name: str, *, size: int = 32, **settings: Any) -> Network:
    """A network of Equimo with settings for small images."""
    module = load(f"equimo.models.{file}")
    kind = getattr(module, name)

    def make() -> Any:
        key = jax.random.key(0)
        return kind(in_channels=3, num_classes=10, key=key, **settings)

    return as_network(make, size)


def family(
    name: str,
    build: Any,
    file: str,
    kind: str,
    *,
    at_most: float = 0.3,
    **settings: Any,
) -> Family:
    """One family of Equimo."""
    return Family(
        name=name,
        package="equimo",
        module="equimo",
        build=functools.partial(build, file, kind, **settings),
        maskable=name == "MobileNetV3",
        at_most=at_most,
    )


FAMILIES = (
    family(
        "ViT",
        custom,
        "vit",
        "VisionTransformer",
        img_size=32,
        dim=64,
        patch_size=8,
        num_heads=4,
        depths=[2],
        dynamic_img_size=False,
    ),
    family("AttNet", variant, "attnet", "attnet_xxs", size=224, depths=[1, 1, 1, 1]),
    family(
        "ConvNeXt",
        custom,
        "convnext",
        "ConvNeXt",
        size=64,
        dims=[32, 64, 128, 256],
        depths=[1, 1, 1, 1],
    ),
    # Groups of its norms straddle the parts of a fused projection.
    family(
        "iFormer",
        variant,
        "iformer",
        "iformer_t",
        at_most=0.33,
        depths=[1, 1, 1, 1, 1, 1],
    ),
    family(
        "LowFormer",
        variant,
        "lowformer",
        "lowformer_backbone_b0",
        attention_type="softmax",
        depths=[0, 1, 1, 1, 1],
    ),
    family(
        "MLLA",
        custom,
        "mlla",
        "Mlla",
        img_size=32,
        dim=32,
        depths=[1, 1],
        num_heads=[2, 4],
    ),
    family("MobileNetV3", variant, "mobilenet", "mobilenetv3_small"),
    family(
        "PartialFormer",
        custom,
        "partialformer",
        "PartialFormer",
        size=64,
        img_size=64,
        dim=32,
        num_heads=[2, 4],
        depths=[1, 1],
        foreground_ratios=0.5,
        patch_size=4,
    ),
    family(
        "ReduceFormer",
        variant,
        "reduceformer",
        "reduceformer_backbone_b1",
        depths=[1, 1, 1, 1, 1],
    ),
    family(
        "VSSD",
        custom,
        "vssd",
        "Vssd",
        img_size=64,
        size=64,
        dim=32,
        depths=[1, 1],
        num_heads=[2, 4],
        attentions_layers=("mamba2mixer", "attention"),
    ),
)
