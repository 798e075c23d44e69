"""Convolutional networks: VGG and pre-activation ResNets, three kinds of norm."""

from typing import Any

import flax.linen as nn
import jax
import numpy as np

from experiments.benchmarks.hand_written import GroupNorm
from tests.citizens.citizen import (
    Citizen,
    Tree,
    everything,
    kernel,
    lead,
    part_of,
    random_inputs,
    vectors,
    within,
)


def norm(name: str, groups: int | None, train: bool) -> nn.Module:
    """A batch norm, or (groups given) the group norm that replaces it."""
    if groups is None:
        return nn.BatchNorm(use_running_average=not train, momentum=0.9, name=name)
    return GroupNorm(groups, name=name)


class Vgg(nn.Module):
    """Twice convolution, norm, relu, pool; then NHWC flatten into a dense layer."""

    widths: tuple[int, int] = (16, 32)
    groups: int | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        for index, width in enumerate(self.widths):
            x = nn.Conv(width, (3, 3), name=f"conv{index}")(x)
            x = nn.relu(norm(f"norm{index}", self.groups, train)(x))
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = x.reshape(x.shape[0], -1)
        return nn.Dense(10, name="head")(x)


def narrow_norms(part: Tree, kept: dict[str, np.ndarray], rate: float) -> Tree:
    """The norms of one collection; where one is kept for each rate, this rate's."""
    entries = {name: part[name].get(str(rate), part[name]) for name in kept}
    return {name: vectors(entry, kept[name]) for name, entry in entries.items()}


def narrow_vgg(variables: Tree, rate: float) -> Tree:
    """The flattened axis is 2 x 2 positions by 32 channels: each keeps its own."""
    params = variables["params"]
    first, second = lead(16, rate), lead(32, rate)
    flat = within(everything(4), 32, second)
    norms = {"norm0": first, "norm1": second}
    narrow = {
        "params": {
            "conv0": kernel(params["conv0"], everything(3), first),
            "conv1": kernel(params["conv1"], first, second),
            "head": kernel(params["head"], flat, everything(10)),
            **narrow_norms(params, norms, rate),
        }
    }
    if "batch_stats" in variables:
        narrow["batch_stats"] = narrow_norms(variables["batch_stats"], norms, rate)
    return narrow


def vgg(strategy: str) -> Citizen:
    """A batch-norm network under one of the norm strategies."""

    def build(rate: float) -> Vgg:
        widths = part_of(16, rate), part_of(32, rate)
        return Vgg(widths, part_of(8, rate) if strategy == "group" else None)

    switchable = "each rate has its own norm, and rate 1 never sees that of rate r"
    return Citizen(
        name=f"vgg_{strategy}",
        model=Vgg(),
        inputs=(random_inputs(2, 8, 8, 3),),
        by_hand=build,
        narrow_by_hand=narrow_vgg,
        norm=strategy,
        not_maskable=switchable if strategy == "switchable" else "",
        has_batch_stats=strategy != "group",
    )


class PreActivation(nn.Module):
    """A stem, two residual blocks (the second strided, with a projection), a head."""

    width: int = 16
    bottleneck: bool = False
    groups: int | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = nn.Conv(self.width, (3, 3), use_bias=False, name="stem")(x)
        x = self.block("a", x, self.width, 1, train)
        x = self.block("b", x, 2 * self.width, 2, train)
        x = nn.relu(norm("norm", self.groups, train)(x))
        return nn.Dense(10, name="head")(x.mean((1, 2)))

    def block(
        self, name: str, x: jax.Array, width: int, stride: int, train: bool
    ) -> jax.Array:
        """Basic: 3x3, 3x3. Bottleneck: 1x1, 3x3, 1x1, with half the inner width."""
        inner = width // 2 if self.bottleneck else width
        widths = (inner, inner, width) if self.bottleneck else (inner, width)
        sizes = (1, 3, 1) if self.bottleneck else (3, 3)
        strides = (1, stride, 1) if self.bottleneck else (stride, 1)
        out, skip = x, x
        for index, (size, step) in enumerate(zip(sizes, strides, strict=True)):
            out = nn.relu(norm(f"{name}_norm{index}", self.groups, train)(out))
            if index == 0 and stride > 1:
                skip = self.conv(f"{name}_skip", width, 1, stride)(out)
            out = self.conv(f"{name}_conv{index}", widths[index], size, step)(out)
        return skip + out

    def conv(self, name: str, width: int, size: int, stride: int) -> nn.Module:
        """A convolution without bias."""
        return nn.Conv(width, (size, size), stride, use_bias=False, name=name)


def narrow_preactivation(bottleneck: bool) -> Any:
    """The stem, block a and its skip share 16 units, block b and its projection 32."""

    def narrow(variables: Tree, rate: float) -> Tree:
        params = variables["params"]
        low, high = lead(16, rate), lead(32, rate)
        # (inputs, outputs) of each convolution of a block, in order.
        if bottleneck:
            inner_a, inner_b = lead(8, rate), lead(16, rate)
            block_a = (low, inner_a), (inner_a, inner_a), (inner_a, low)
            block_b = (low, inner_b), (inner_b, inner_b), (inner_b, high)
        else:
            block_a = (low, low), (low, low)
            block_b = (low, high), (high, high)
        convolutions = {"stem": (everything(3), low), "b_skip": (low, high)}
        norms = {"norm": high}
        for name, block in {"a": block_a, "b": block_b}.items():
            for index, (inputs, outputs) in enumerate(block):
                convolutions[f"{name}_conv{index}"] = inputs, outputs
                norms[f"{name}_norm{index}"] = inputs  # pre-activation
        convolutions["head"] = high, everything(10)
        narrow = {
            "params": {
                name: kernel(params[name], *kept) for name, kept in convolutions.items()
            }
            | narrow_norms(params, norms, rate)
        }
        if "batch_stats" in variables:
            narrow["batch_stats"] = narrow_norms(variables["batch_stats"], norms, rate)
        return narrow

    return narrow


def preactivation(bottleneck: bool, strategy: str = "group") -> Citizen:
    """A pre-activation ResNet; groups=8, or 4 where the bottleneck has only 8 units."""
    groups = 4 if bottleneck else 8

    def build(rate: float) -> PreActivation:
        kept = part_of(groups, rate) if strategy == "group" else None
        return PreActivation(part_of(16, rate), bottleneck, kept)

    return Citizen(
        name="resnet_bottleneck" if bottleneck else "resnet_basic",
        model=PreActivation(bottleneck=bottleneck),
        inputs=(random_inputs(2, 8, 8, 3),),
        by_hand=build,
        narrow_by_hand=narrow_preactivation(bottleneck),
        groups=groups,
        norm=strategy,
        has_batch_stats=strategy != "group",
    )
