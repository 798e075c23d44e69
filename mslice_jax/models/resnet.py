"""Pre-activation ResNets for small images, as in the PyTorch original (CIFAR)."""

import math
from typing import Literal

import jax
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Num

from .layers import check_images, conv, head, norm, norm_relu, widened

Block = Literal["auto", "bottleneck", "basic"]

# Convolutions of one block: three in a bottleneck, two in a basic block. A network has
# three stages of blocks, and the first and the last layer besides.
_LAYERS_PER_STEP = {"bottleneck": 9, "basic": 6}
_EXPANSION = {"bottleneck": 4, "basic": 1}


class CifarResNet(nn.Module):
    """Pre-activation ResNet with three stages of 16, 32 and 64 channels.

    A network of depth 9n + 2 has n bottleneck blocks per stage (output four times as
    wide), one of depth 6n + 2 has n basic blocks. `block` decides where a depth, such
    as 20 or 56, fits both: "auto" takes bottlenecks, as the original does.

    Attributes:
      depth: number of layers with weights on the longest path.
      num_classes: length of the logits.
      widen: factor on the channels of every stage; 16 x widen must be whole.
      block: "auto", "bottleneck" or "basic".
      dtype: what layers compute in; None is the type of inputs and parameters.
        Parameters are float32.

    Raises:
      ValueError: at construction, if depth, block or widen ask for no such network.

    Example:
      >>> import jax
      >>> from mslice_jax.models import CifarResNet
      >>> model = CifarResNet(depth=11)
      >>> x = jax.ShapeDtypeStruct((8, 32, 32, 3), "float32")
      >>> jax.eval_shape(model.init_with_output, jax.random.key(0), x)[0].shape
      (8, 10)
    """

    depth: int
    num_classes: int = 10
    widen: float = 1
    block: Block = "auto"
    dtype: DTypeLike | None = None

    def __post_init__(self):
        _block_and_count(self.depth, self.block)
        widened(16, self.widen)
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
        block, count = _block_and_count(self.depth, self.block)
        width = widened(16, self.widen)
        x = conv(x, width, 3, dtype=self.dtype, name="conv1")
        for stage in (1, 2, 3):
            for index in range(count):
                x = _PreActBlock(
                    channels=width * 2 ** (stage - 1),
                    stride=2 if stage > 1 and index == 0 else 1,
                    block=block,
                    dtype=self.dtype,
                    name=f"layer{stage}_{index}",
                )(x, train)
        x = norm_relu(x, train=train, dtype=self.dtype, name="bn1")
        return head(x, self.num_classes, dtype=self.dtype, name="fc")


class _PreActBlock(nn.Module):
    """x + branch(x), where every convolution follows a norm and a relu."""

    channels: int
    stride: int
    block: str
    dtype: DTypeLike | None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        out_channels = self.channels * _EXPANSION[self.block]
        if self.block == "bottleneck":
            convs = [(self.channels, 1, 1), (self.channels, 3, self.stride)]
            convs += [(out_channels, 1, 1)]
        else:
            convs = [(self.channels, 3, self.stride), (self.channels, 3, 1)]

        y = norm_relu(x, train=train, dtype=self.dtype, name="bn1")
        if self.stride != 1 or x.shape[-1] != out_channels:
            # The original's shortcut starts after the first norm, and has its own.
            shortcut = conv(
                y,
                out_channels,
                1,
                stride=self.stride,
                dtype=self.dtype,
                name="downsample_conv",
            )
            x = norm(shortcut, train=train, dtype=self.dtype, name="downsample_bn")
        for index, (features, kernel, stride) in enumerate(convs, start=1):
            if index > 1:
                y = norm_relu(y, train=train, dtype=self.dtype, name=f"bn{index}")
            y = conv(
                y,
                features,
                kernel,
                stride=stride,
                dtype=self.dtype,
                name=f"conv{index}",
            )
        return x + y


def _block_and_count(depth: int, block: str) -> tuple[str, int]:
    """Which block a network of this depth has, and how many of it in each stage."""
    if block != "auto" and block not in _LAYERS_PER_STEP:
        raise ValueError(
            f'expected block "auto", "bottleneck" or "basic", got {block!r}.'
        )
    allowed = list(_LAYERS_PER_STEP) if block == "auto" else [block]
    for kind in allowed:
        count, rest = divmod(depth - 2, _LAYERS_PER_STEP[kind])
        if count >= 1 and rest == 0:
            return kind, count
    near = [
        f"{_nearest_depths(depth, _LAYERS_PER_STEP[kind])} ({kind})" for kind in allowed
    ]
    steps = " or ".join(f"{_LAYERS_PER_STEP[kind]}n + 2 ({kind})" for kind in allowed)
    raise ValueError(
        f"expected a depth of {steps} with n >= 1, got {depth}. "
        f"Near it: {', '.join(near)}."
    )


def _nearest_depths(depth: int, step: int) -> str:
    """The one or two depths step * n + 2 next to `depth`, in words."""
    below = max(1, math.floor((depth - 2) / step))
    return " and ".join(str(step * n + 2) for n in (below, below + 1))
