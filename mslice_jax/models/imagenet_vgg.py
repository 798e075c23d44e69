"""VGG for images of ImageNet's size (Simonyan and Zisserman, 2014, arXiv 1409.1556)."""

import functools
from typing import Any

from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Num

from .layers import adaptive_mean, check_images, classifier, conv, norm, widened

# Output channels of the 3 x 3 convolutions; a max-pooling by two ends each stage.
STAGES = {
    11: ((64,), (128,), (256,) * 2, (512,) * 2, (512,) * 2),
    13: ((64,) * 2, (128,) * 2, (256,) * 2, (512,) * 2, (512,) * 2),
    16: ((64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512,) * 3),
    19: ((64,) * 2, (128,) * 2, (256,) * 4, (512,) * 4, (512,) * 4),
}
_HIDDEN = 4096
POSITIONS = 7
"""Height and width of what the classifier sees flat, in the order h, w, channels."""

# As torchvision's VGGs begin.
_kernel_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
_dense_init = nn.initializers.normal(0.01)


class ImageNetVGG(nn.Module):
    """VGG with five poolings and a classifier of three linear layers, as torchvision's.

    What the convolutions give is pooled to 7 x 7 means, which at 224 x 224 pixels it is
    already, so images may have any size.

    Attributes:
      depth: 11, 13, 16 or 19.
      batch_norm: whether a batch norm follows each convolution.
      num_classes: length of the logits.
      widen: factor on the channels of every layer, also the 4,096 of the classifier;
        64 x widen must be whole.
      dropout: share of the classifier's 4,096 units that training drops, twice.
      dtype: what layers compute in; None is the type of inputs and parameters.
        Parameters are float32.

    Raises:
      ValueError: at construction, if depth or widen ask for no such network.

    Example:
      >>> import jax
      >>> from mslice_jax.models import ImageNetVGG
      >>> model = ImageNetVGG(depth=16, batch_norm=True)
      >>> x = jax.ShapeDtypeStruct((8, 224, 224, 3), "float32")
      >>> jax.eval_shape(model.init_with_output, jax.random.key(0), x)[0].shape
      (8, 1000)
    """

    depth: int
    batch_norm: bool = False
    num_classes: int = 1000
    widen: float = 1
    dropout: float = 0.5
    dtype: DTypeLike | None = None

    def __post_init__(self):
        if self.depth not in STAGES:
            raise ValueError(
                f"expected a depth of {', '.join(map(str, STAGES))}, got {self.depth}."
            )
        widened(64, self.widen)
        super().__post_init__()

    @nn.compact
    def __call__(
        self, x: Num[Array, "b h w c"], *, train: bool = False
    ) -> Float[Array, "b num_classes"]:
        """Images (b, h, w, c), at least 32 x 32 pixels -> logits (b, num_classes).

        With ``train=True`` the classifier drops units, which takes a random stream
        "dropout"; norms use the statistics of the batch, and the collection
        "batch_stats" has to be mutable.
        """
        check_images(x, smallest=32)
        index = 0
        for stage in STAGES[self.depth]:
            for base in stage:
                x = conv(
                    x,
                    widened(base, self.widen),
                    3,
                    use_bias=True,
                    dtype=self.dtype,
                    name=f"conv{index}",
                    kernel_init=_kernel_init,
                    bias_init=nn.initializers.zeros,
                )
                if self.batch_norm:
                    x = norm(x, train=train, dtype=self.dtype, name=f"bn{index}")
                x = nn.relu(x)
                index += 1
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = adaptive_mean(x, POSITIONS)
        x = x.reshape(x.shape[0], -1)
        dense = functools.partial(nn.Dense, dtype=self.dtype, kernel_init=_dense_init)
        for name in ("classifier0", "classifier1"):
            x = nn.relu(dense(widened(_HIDDEN, self.widen), name=name)(x))
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return classifier(
            x,
            self.num_classes,
            dtype=self.dtype,
            name="classifier2",
            kernel_init=_dense_init,
        )


def vgg11(**settings: Any) -> ImageNetVGG:
    """VGG-11, 132.9 million parameters; settings of `ImageNetVGG`."""
    return ImageNetVGG(depth=11, **settings)


def vgg11_bn(**settings: Any) -> ImageNetVGG:
    """VGG-11 with batch norm; settings of `ImageNetVGG`."""
    return ImageNetVGG(depth=11, batch_norm=True, **settings)


def vgg13(**settings: Any) -> ImageNetVGG:
    """VGG-13, 133.0 million parameters; settings of `ImageNetVGG`."""
    return ImageNetVGG(depth=13, **settings)


def vgg13_bn(**settings: Any) -> ImageNetVGG:
    """VGG-13 with batch norm; settings of `ImageNetVGG`."""
    return ImageNetVGG(depth=13, batch_norm=True, **settings)


def vgg16(**settings: Any) -> ImageNetVGG:
    """VGG-16, 138.4 million parameters; settings of `ImageNetVGG`."""
    return ImageNetVGG(depth=16, **settings)


def vgg16_bn(**settings: Any) -> ImageNetVGG:
    """VGG-16 with batch norm; settings of `ImageNetVGG`."""
    return ImageNetVGG(depth=16, batch_norm=True, **settings)


def vgg19(**settings: Any) -> ImageNetVGG:
    """VGG-19, 143.7 million parameters; settings of `ImageNetVGG`."""
    return ImageNetVGG(depth=19, **settings)


def vgg19_bn(**settings: Any) -> ImageNetVGG:
    """VGG-19 with batch norm; settings of `ImageNetVGG`."""
    return ImageNetVGG(depth=19, batch_norm=True, **settings)
