"""The CIFAR networks written narrow by hand, in plain Flax.

Written for a rate that is known beforehand: fewer channels, and a group norm with as
many groups fewer (computed as `upgrade` does it, since slicing is compared, not norms).
Layers are named as in `mslice_jax.models`, so weights from `extract` fit without a
change.
"""

import flax.linen as nn
import jax

from mslice_jax.adapters.norms import group_norm

GROUPS = 8  # at full width; the groups of the original, and the default of upgrade


class GroupNorm(nn.Module):
    """(b, ..., c) -> the same; rounds as `upgrade` does, see `adapters.norms`."""

    groups: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        size = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, size)
        bias = self.param("bias", nn.initializers.zeros, size)
        return group_norm(x, scale, bias, groups=self.groups, epsilon=1e-5)


def _norm(rate: float, name: str) -> nn.Module:
    return GroupNorm(groups=int(GROUPS * rate), name=name)


class NarrowVGG11(nn.Module):
    """CifarVGG(11) at a rate; images (b, h, w, c) -> logits (b, 10)."""

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        index = 0
        for stage, layers in enumerate(((64, 128), (256, 256), (512,) * 4)):
            if stage > 0:
                x = nn.max_pool(x, (2, 2), strides=(2, 2))
            for channels in layers:
                conv = nn.Conv(int(channels * self.rate), (3, 3), name=f"conv{index}")
                x = nn.relu(_norm(self.rate, f"bn{index}")(conv(x)))
                index += 1
        return nn.Dense(10, name="classifier")(x.mean((1, 2)))


class NarrowResNet(nn.Module):
    """CifarResNet(9n + 2) at a rate; images (b, h, w, c) -> logits (b, 10)."""

    depth: int
    rate: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = _conv(int(16 * self.rate), 3, 1, "conv1")(x)
        for stage in (1, 2, 3):
            for index in range((self.depth - 2) // 9):
                x = NarrowBottleneck(
                    rate=self.rate,
                    channels=int(16 * 2 ** (stage - 1) * self.rate),
                    stride=2 if stage > 1 and index == 0 else 1,
                    name=f"layer{stage}_{index}",
                )(x)
        x = nn.relu(_norm(self.rate, "bn1")(x))
        return nn.Dense(10, name="fc")(x.mean((1, 2)))


class NarrowBottleneck(nn.Module):
    """One pre-activation block: 1x1, 3x3, 1x1; the output four times as wide."""

    rate: float
    channels: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        outputs = 4 * self.channels
        y = nn.relu(_norm(self.rate, "bn1")(x))
        if self.stride != 1 or x.shape[-1] != outputs:
            x = _conv(outputs, 1, self.stride, "downsample_conv")(y)
            x = _norm(self.rate, "downsample_bn")(x)
        y = _conv(self.channels, 1, 1, "conv1")(y)
        y = nn.relu(_norm(self.rate, "bn2")(y))
        y = _conv(self.channels, 3, self.stride, "conv2")(y)
        y = nn.relu(_norm(self.rate, "bn3")(y))
        return x + _conv(outputs, 1, 1, "conv3")(y)


def _conv(channels: int, size: int, stride: int, name: str) -> nn.Module:
    return nn.Conv(
        channels,
        (size, size),
        strides=stride,
        padding=size // 2,
        use_bias=False,
        name=name,
    )
