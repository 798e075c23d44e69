"""MobileNetV2 (Sandler et al., CVPR 2018, arXiv 1801.04381)."""

import functools
from typing import Any

import jax
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Num

from .layers import check_images, classifier, conv, norm, widened

# Factor of the inner channels, channels, blocks and the first block's stride.
_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
_STEM, _LAST = 32, 1280
_SMALLEST = 8  # All channels are multiples of it.

# Normal with variance 2 / fan_out, as torchvision's begins. Its fan-out counts the
# outputs of all groups, as Flax's does.
_kernel_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
_conv = functools.partial(conv, kernel_init=_kernel_init)


class MobileNetV2(nn.Module):
    """MobileNetV2: inverted residual blocks with depthwise convolutions.

    Attributes:
      num_classes: length of the logits.
      widen: factor on the channels of every layer; 8 x widen must be whole. (The
        paper's multiplier leaves the last convolution at 1,280 and rounds to multiples
        of eight.)
      dropout: share of the units in front of the logits that training drops.
      dtype: what layers compute in; None is the type of inputs and parameters.
        Parameters are float32.

    Raises:
      ValueError: at construction, if widen asks for no such network.

    Example:
      >>> import jax
      >>> from mslice_jax.models import MobileNetV2
      >>> model = MobileNetV2(num_classes=10)
      >>> x = jax.ShapeDtypeStruct((8, 224, 224, 3), "float32")
      >>> jax.eval_shape(model.init_with_output, jax.random.key(0), x)[0].shape
      (8, 10)
    """

    num_classes: int = 1000
    widen: float = 1
    dropout: float = 0.2
    dtype: DTypeLike | None = None

    def __post_init__(self):
        widened(_SMALLEST, self.widen)
        super().__post_init__()

    @nn.compact
    def __call__(
        self, x: Num[Array, "b h w c"], *, train: bool = False
    ) -> Float[Array, "b num_classes"]:
        """Images (b, h, w, c) -> logits (b, num_classes).

        With ``train=True`` units are dropped, which takes a random stream "dropout";
        norms use the statistics of the batch, and the collection "batch_stats" has to
        be mutable.
        """
        check_images(x, smallest=1)
        dtype = self.dtype
        x = _conv(x, self._wide(_STEM), 3, stride=2, dtype=dtype, name="stem_conv")
        x = nn.relu6(norm(x, train=train, dtype=dtype, name="stem_bn"))
        number = 1
        for factor, base, count, stride in _STAGES:
            for index in range(count):
                x = _InvertedResidual(
                    channels=self._wide(base),
                    factor=factor,
                    stride=stride if index == 0 else 1,
                    dtype=dtype,
                    name=f"block{number}",
                )(x, train)
                number += 1
        x = _conv(x, self._wide(_LAST), 1, dtype=dtype, name="last_conv")
        x = nn.relu6(norm(x, train=train, dtype=dtype, name="last_bn"))
        x = nn.Dropout(self.dropout, deterministic=not train)(x.mean(axis=(1, 2)))
        return classifier(
            x,
            self.num_classes,
            dtype=dtype,
            name="classifier",
            kernel_init=nn.initializers.normal(0.01),
        )

    def _wide(self, base: int) -> int:
        return widened(base, self.widen)


class _InvertedResidual(nn.Module):
    """1 x 1 to many channels, 3 x 3 on each of them, 1 x 1 to few, without relu."""

    channels: int
    factor: int
    stride: int
    dtype: DTypeLike | None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        inner, dtype, y = x.shape[-1] * self.factor, self.dtype, x
        if self.factor != 1:
            y = _conv(y, inner, 1, dtype=dtype, name="expand_conv")
            y = nn.relu6(norm(y, train=train, dtype=dtype, name="expand_bn"))
        y = _conv(
            y,
            inner,
            3,
            stride=self.stride,
            depthwise=True,
            dtype=dtype,
            name="depthwise_conv",
        )
        y = nn.relu6(norm(y, train=train, dtype=dtype, name="depthwise_bn"))
        y = _conv(y, self.channels, 1, dtype=dtype, name="project_conv")
        y = norm(y, train=train, dtype=dtype, name="project_bn")
        return x + y if self.stride == 1 and x.shape == y.shape else y


def mobilenet_v2(**settings: Any) -> MobileNetV2:
    """MobileNetV2, 3.5 million parameters; settings of `MobileNetV2`."""
    return MobileNetV2(**settings)
