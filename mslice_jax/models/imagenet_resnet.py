"""ResNets for images of ImageNet's size (He et al., 2015, arXiv 1512.03385)."""

import functools
from typing import Any

import jax
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Num

from .layers import check_images, conv, head, norm, norm_relu, widened

# Blocks of each of the four stages. Two convolutions make a basic block, three a
# bottleneck.
_BASIC = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
_BOTTLENECK = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
_BLOCKS = _BASIC | _BOTTLENECK
_EXPANSION = 4

# Normal with variance 2 / fan_out, as torchvision's ResNets begin.
_kernel_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
_conv = functools.partial(conv, kernel_init=_kernel_init)


class ImageNetResNet(nn.Module):
    """ResNet-18 or -34 of basic blocks, -50, -101 or -152 of bottlenecks.

    The form in which most code has it, torchvision's among them ("v1.5"): a norm after
    each convolution, and a bottleneck that halves the image does so in its 3 x 3
    convolution.

    Attributes:
      depth: 18, 34, 50, 101 or 152.
      num_classes: length of the logits.
      widen: factor on the channels of every layer; 64 x widen must be whole.
      dtype: what layers compute in; None is the type of inputs and parameters.
        Parameters are float32.

    Raises:
      ValueError: at construction, if depth or widen ask for no such network.

    Example:
      >>> import jax
      >>> from mslice_jax.models import ImageNetResNet
      >>> model = ImageNetResNet(depth=50)
      >>> x = jax.ShapeDtypeStruct((8, 224, 224, 3), "float32")
      >>> jax.eval_shape(model.init_with_output, jax.random.key(0), x)[0].shape
      (8, 1000)
    """

    depth: int
    num_classes: int = 1000
    widen: float = 1
    dtype: DTypeLike | None = None

    def __post_init__(self):
        if self.depth not in _BLOCKS:
            raise ValueError(
                f"expected a depth of {', '.join(map(str, _BLOCKS))}, got {self.depth}."
            )
        widened(64, self.widen)
        super().__post_init__()

    @nn.compact
    def __call__(
        self, x: Num[Array, "b h w c"], *, train: bool = False
    ) -> Float[Array, "b num_classes"]:
        """Images (b, h, w, c) -> logits (b, num_classes).

        With ``train=True`` norms use the statistics of the batch, and the collection
        "batch_stats" has to be mutable.
        """
        check_images(x, smallest=1)
        width = widened(64, self.widen)
        x = _conv(x, width, 7, stride=2, dtype=self.dtype, name="conv1")
        x = norm_relu(x, train=train, dtype=self.dtype, name="bn1")
        padding = ((1, 1), (1, 1))  # Flax takes it, and says that it wants a string
        x = nn.max_pool(x, (3, 3), (2, 2), padding)  # type: ignore[arg-type]
        block = _Basic if self.depth in _BASIC else _Bottleneck
        for stage, count in enumerate(_BLOCKS[self.depth], start=1):
            for index in range(count):
                x = block(
                    channels=width * 2 ** (stage - 1),
                    stride=2 if stage > 1 and index == 0 else 1,
                    dtype=self.dtype,
                    name=f"layer{stage}_{index}",
                )(x, train)
        return head(
            x,
            self.num_classes,
            dtype=self.dtype,
            name="fc",
            kernel_init=nn.initializers.normal(0.01),
            bias_init=nn.initializers.zeros,
        )


class _Basic(nn.Module):
    """relu(x + branch(x)): two 3 x 3 convolutions."""

    channels: int
    stride: int
    dtype: DTypeLike | None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        out, dtype = self.channels, self.dtype
        y = _conv(x, out, 3, stride=self.stride, dtype=dtype, name="conv1")
        y = norm_relu(y, train=train, dtype=dtype, name="bn1")
        y = _conv(y, out, 3, dtype=dtype, name="conv2")
        y = norm(y, train=train, dtype=dtype, name="bn2")
        return nn.relu(_shortcut(x, out, self.stride, train, dtype) + y)


class _Bottleneck(nn.Module):
    """relu(x + branch(x)): 1 x 1, 3 x 3 and 1 x 1, which widens four times."""

    channels: int
    stride: int
    dtype: DTypeLike | None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        out, dtype = self.channels * _EXPANSION, self.dtype
        y = _conv(x, self.channels, 1, dtype=dtype, name="conv1")
        y = norm_relu(y, train=train, dtype=dtype, name="bn1")
        y = _conv(y, self.channels, 3, stride=self.stride, dtype=dtype, name="conv2")
        y = norm_relu(y, train=train, dtype=dtype, name="bn2")
        y = _conv(y, out, 1, dtype=dtype, name="conv3")
        y = norm(y, train=train, dtype=dtype, name="bn3")
        return nn.relu(_shortcut(x, out, self.stride, train, dtype) + y)


def _shortcut(
    x: jax.Array, out: int, stride: int, train: bool, dtype: DTypeLike | None
) -> jax.Array:
    """x itself, or projected where the block changes size or channels."""
    if stride == 1 and x.shape[-1] == out:
        return x
    x = _conv(x, out, 1, stride=stride, dtype=dtype, name="downsample_conv")
    return norm(x, train=train, dtype=dtype, name="downsample_bn")


def resnet18(**settings: Any) -> ImageNetResNet:
    """ResNet-18, 11.7 million parameters; settings of `ImageNetResNet`."""
    return ImageNetResNet(depth=18, **settings)


def resnet34(**settings: Any) -> ImageNetResNet:
    """ResNet-34, 21.8 million parameters; settings of `ImageNetResNet`."""
    return ImageNetResNet(depth=34, **settings)


def resnet50(**settings: Any) -> ImageNetResNet:
    """ResNet-50, 25.6 million parameters; settings of `ImageNetResNet`.

    Example:
      >>> import jax
      >>> import mslice_jax as ms
      >>> x = jax.ShapeDtypeStruct((1, 224, 224, 3), "float32")
      >>> model = ms.models.resnet50()
      >>> types = jax.eval_shape(model.init, jax.random.key(0), x)
      >>> sum(leaf.size for leaf in jax.tree.leaves(types["params"]))
      25557032
    """
    return ImageNetResNet(depth=50, **settings)


def resnet101(**settings: Any) -> ImageNetResNet:
    """ResNet-101, 44.5 million parameters; settings of `ImageNetResNet`."""
    return ImageNetResNet(depth=101, **settings)


def resnet152(**settings: Any) -> ImageNetResNet:
    """ResNet-152, 60.2 million parameters; settings of `ImageNetResNet`."""
    return ImageNetResNet(depth=152, **settings)
