"""The CIFAR networks sliced in PyTorch, in the usual way of writing them.

Layers read a prefix of their weights, as the original's do: the input channels that
arrive, and a share of the output channels. Group norms have as many groups fewer. The
names are those of `mslice_jax.models`, so that `load` can copy a Flax tree into them.
"""

# The checks of this project do not install PyTorch.
# pyright: reportMissingImports=false

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

GROUPS = 8


class SlicedConv(nn.Conv2d):
    """A convolution that keeps a prefix of its inputs and its outputs."""

    def forward(self, x: torch.Tensor, rate: float) -> torch.Tensor:
        """(b, c, h, w) -> (b, rate x out, h', w'); c may be any prefix."""
        out = round(self.out_channels * rate)
        weight = self.weight[:out, : x.shape[1]]
        bias = None if self.bias is None else self.bias[:out]
        return F.conv2d(x, weight, bias, self.stride, self.padding)


class SlicedNorm(nn.Module):
    """A group norm with a share of its groups."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: torch.Tensor, rate: float) -> torch.Tensor:
        """(b, c, h, w) -> the same."""
        c = x.shape[1]
        return F.group_norm(
            x, round(GROUPS * rate), self.weight[:c], self.bias[:c], eps=1e-5
        )


class SlicedHead(nn.Linear):
    """The mean over all positions, then a linear layer that keeps all its outputs."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(b, c, h, w) -> (b, classes)."""
        x = x.mean(dim=(2, 3))
        return F.linear(x, self.weight[:, : x.shape[1]], self.bias)


class SlicedVGG11(nn.Module):
    """CifarVGG(11) with group norms."""

    STAGES = ((64, 128), (256, 256), (512,) * 4)

    def __init__(self):
        super().__init__()
        index, inputs = 0, 3
        for channels in sum(self.STAGES, ()):
            conv = SlicedConv(inputs, channels, 3, padding=1)
            self.add_module(f"conv{index}", conv)
            self.add_module(f"bn{index}", SlicedNorm(channels))
            index, inputs = index + 1, channels
        self.classifier = SlicedHead(inputs, 10)

    def forward(self, x: torch.Tensor, rate: float) -> torch.Tensor:
        """Images (b, 3, h, w) -> logits (b, 10)."""
        index = 0
        for stage, channels in enumerate(self.STAGES):
            if stage > 0:
                x = F.max_pool2d(x, 2)
            for _ in channels:
                x = getattr(self, f"conv{index}")(x, rate)
                x = F.relu(getattr(self, f"bn{index}")(x, rate))
                index += 1
        return self.classifier(x)


class SlicedResNet(nn.Module):
    """CifarResNet(9n + 2) with group norms."""

    def __init__(self, depth: int):
        super().__init__()
        self.conv1 = _conv(3, 16, 3)
        inputs, self.blocks = 16, []
        for stage in (1, 2, 3):
            for index in range((depth - 2) // 9):
                channels = 16 * 2 ** (stage - 1)
                stride = 2 if stage > 1 and index == 0 else 1
                self.blocks.append(f"layer{stage}_{index}")
                block = _Bottleneck(inputs, channels, stride)
                self.add_module(self.blocks[-1], block)
                inputs = 4 * channels
        self.bn1 = SlicedNorm(inputs)
        self.fc = SlicedHead(inputs, 10)

    def forward(self, x: torch.Tensor, rate: float) -> torch.Tensor:
        """Images (b, 3, h, w) -> logits (b, 10)."""
        x = self.conv1(x, rate)
        for name in self.blocks:
            x = getattr(self, name)(x, rate)
        return self.fc(F.relu(self.bn1(x, rate)))


class _Bottleneck(nn.Module):
    """x + branch(x), where every convolution follows a norm and a relu."""

    def __init__(self, inputs: int, channels: int, stride: int):
        super().__init__()
        outputs = 4 * channels
        self.bn1, self.conv1 = SlicedNorm(inputs), _conv(inputs, channels, 1)
        self.bn2, self.conv2 = (
            SlicedNorm(channels),
            _conv(channels, channels, 3, stride),
        )
        self.bn3, self.conv3 = SlicedNorm(channels), _conv(channels, outputs, 1)
        self.downsample = stride != 1 or inputs != outputs
        if self.downsample:
            self.downsample_conv = _conv(inputs, outputs, 1, stride)
            self.downsample_bn = SlicedNorm(outputs)

    def forward(self, x: torch.Tensor, rate: float) -> torch.Tensor:
        """(b, c, h, w) -> (b, outputs, h', w')."""
        y = F.relu(self.bn1(x, rate))
        if self.downsample:
            x = self.downsample_bn(self.downsample_conv(y, rate), rate)
        y = F.relu(self.bn2(self.conv1(y, rate), rate))
        y = F.relu(self.bn3(self.conv2(y, rate), rate))
        return x + self.conv3(y, rate)


def _conv(inputs: int, outputs: int, size: int, stride: int = 1) -> SlicedConv:
    return SlicedConv(
        inputs, outputs, size, stride=stride, padding=size // 2, bias=False
    )


def load(model: nn.Module, params: Mapping[str, Any]) -> None:
    """Copies Flax parameters of the same network into a PyTorch one.

    Raises:
      RuntimeError: if a parameter is missing, left over, or has another shape.
    """
    state = {}
    names = {"kernel": "weight", "scale": "weight", "bias": "bias"}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        *layers, name = (str(key.key) for key in path)
        array = torch.from_numpy(np.array(leaf))
        if (
            name == "kernel"
        ):  # (h, w, in, out) -> (out, in, h, w), (in, out) -> (out, in)
            *space, inputs, outputs = range(array.ndim)
            array = array.permute(outputs, inputs, *space)
        state[".".join((*layers, names[name]))] = array
    model.load_state_dict(state, strict=True)
