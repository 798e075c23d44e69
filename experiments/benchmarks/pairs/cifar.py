"""VGG-11 and ResNet-29 on CIFAR's images, with group norms."""

# The checks of this project do not install PyTorch.
# pyright: reportMissingImports=false

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from mslice_jax.models import CifarResNet, CifarVGG

from .data import Images
from .pair import Pair, named

GROUPS = 8


def vgg11(tiny: bool) -> Pair:
    """The original's VGG-11."""
    return _pair(CifarVGG(11), VGG11, tiny)


def resnet29(tiny: bool) -> Pair:
    """The original's pre-activation ResNet; a tiny one has 11 layers."""
    depth = 11 if tiny else 29
    return _pair(CifarResNet(depth), lambda rate: ResNet(depth, rate), tiny)


def _pair(model: Any, twin: Any, tiny: bool) -> Pair:
    return Pair(
        model=model,
        twin=twin,
        tensors=named,
        batch=2 if tiny else 64,
        upgrade={"groups": GROUPS},
        **Images(8 if tiny else 32).settings(),
    )


class Norm(nn.GroupNorm):
    """A group norm with a share of the groups."""

    def __init__(self, channels: int, rate: float):
        super().__init__(round(GROUPS * rate), channels, eps=1e-5)


class Head(nn.Linear):
    """The mean over all positions, then a linear layer."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(b, c, h, w) -> (b, classes)."""
        return super().forward(x.mean(dim=(2, 3)))


class VGG11(nn.Module):
    """CifarVGG(11) with group norms."""

    STAGES = ((64, 128), (256, 256), (512,) * 4)

    def __init__(self, rate: float):
        super().__init__()
        index, inputs = 0, 3
        for channels in sum(self.STAGES, ()):
            channels = round(channels * rate)
            conv = nn.Conv2d(inputs, channels, 3, padding=1)
            self.add_module(f"conv{index}", conv)
            self.add_module(f"bn{index}", Norm(channels, rate))
            index, inputs = index + 1, channels
        self.classifier = Head(inputs, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images (b, 3, h, w) -> logits (b, 10)."""
        index = 0
        for stage, channels in enumerate(self.STAGES):
            if stage > 0:
                x = F.max_pool2d(x, 2)
            for _ in channels:
                x = getattr(self, f"conv{index}")(x)
                x = F.relu(getattr(self, f"bn{index}")(x))
                index += 1
        return self.classifier(x)


class ResNet(nn.Module):
    """CifarResNet(9n + 2) with group norms."""

    def __init__(self, depth: int, rate: float):
        super().__init__()
        inputs, self.blocks = round(16 * rate), []
        self.conv1 = _conv(3, inputs, 3)
        for stage in (1, 2, 3):
            for index in range((depth - 2) // 9):
                channels = round(16 * 2 ** (stage - 1) * rate)
                stride = 2 if stage > 1 and index == 0 else 1
                self.blocks.append(f"layer{stage}_{index}")
                block = _Bottleneck(inputs, channels, stride, rate)
                self.add_module(self.blocks[-1], block)
                inputs = 4 * channels
        self.bn1 = Norm(inputs, rate)
        self.fc = Head(inputs, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images (b, 3, h, w) -> logits (b, 10)."""
        x = self.conv1(x)
        for name in self.blocks:
            x = getattr(self, name)(x)
        return self.fc(F.relu(self.bn1(x)))


class _Bottleneck(nn.Module):
    """x + branch(x), where every convolution follows a norm and a relu."""

    def __init__(self, inputs: int, channels: int, stride: int, rate: float):
        super().__init__()
        outputs = 4 * channels
        self.bn1, self.conv1 = Norm(inputs, rate), _conv(inputs, channels, 1)
        self.bn2 = Norm(channels, rate)
        self.conv2 = _conv(channels, channels, 3, stride)
        self.bn3, self.conv3 = Norm(channels, rate), _conv(channels, outputs, 1)
        self.downsample = stride != 1 or inputs != outputs
        if self.downsample:
            self.downsample_conv = _conv(inputs, outputs, 1, stride)
            self.downsample_bn = Norm(outputs, rate)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(b, c, h, w) -> (b, outputs, h', w')."""
        y = F.relu(self.bn1(x))
        if self.downsample:
            x = self.downsample_bn(self.downsample_conv(y))
        y = F.relu(self.bn2(self.conv1(y)))
        y = F.relu(self.bn3(self.conv2(y)))
        return x + self.conv3(y)


def _conv(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(
        inputs, outputs, size, stride=stride, padding=size // 2, bias=False
    )
