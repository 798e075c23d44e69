"""ResNet of flaxmodels, in Linen: it normalizes its input itself.

Its other networks do not run with JAX 0.10: they name an argument of `reshape` that was
removed, or need images of 224 x 224.
"""

import jax

from experiments.benchmarks.families.family import Family, Network, drawn, image, load


def resnet() -> Network:
    """ResNet-18, with the mean and deviation of ImageNet as constants."""
    model = load("flaxmodels").ResNet18(
        output="logits", pretrained=None, num_classes=10
    )
    x = image(2, 32, 32, 3)
    types = jax.eval_shape(
        lambda key: model.init(key, x, train=False), jax.random.key(0)
    )
    return Network(
        model=model, variables=drawn(types), inputs=(x,), call={"train": False}
    )


FAMILIES = (
    Family(
        name="ResNet",
        package="flaxmodels",
        module="flaxmodels",
        build=resnet,
        maskable=True,
    ),
)
