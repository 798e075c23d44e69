"""The residual networks of jax-resnet, in Linen."""

import functools
from typing import Any

import jax

from experiments.benchmarks.families.family import Family, Network, drawn, image, load


def network(name: str, **settings: Any) -> Network:
    """A network with one block in each of the four stages."""
    kind = getattr(load("jax_resnet"), name)
    model = kind(n_classes=10, stage_sizes=[1, 1, 1, 1], **settings)
    x = image(2, 32, 32, 3)
    types = jax.eval_shape(model.init, jax.random.key(0), x)
    return Network(
        model=model, variables=drawn(types), inputs=(x,), call={"mutable": False}
    )


def _family(name: str, member: str, **settings: Any) -> Family:
    return Family(
        name=name,
        package="jax-resnet",
        module="jax_resnet",
        build=functools.partial(network, member, **settings),
        maskable=name != "ResNeSt",
    )


FAMILIES = (
    _family("ResNet", "ResNet50"),
    _family("ResNet-D", "ResNetD50"),
    _family("ResNeXt", "ResNeXt50"),
    _family("WideResNet", "WideResNet50"),
    _family("ResNeSt", "ResNeSt50"),
)
