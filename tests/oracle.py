"""The CIFAR networks written narrow by hand: the expected values of slicing.

This file uses neither plans nor Flax: weights are cut by channel counts from the
caller, and the networks are written in `jax.lax` from the original's code.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

Norm = Callable[[str, jax.Array, dict], jax.Array]
"""(name of the norm, activations, {"scale", "bias"}) -> activations."""

EPSILON = 1e-5


def group_norm(groups: int) -> Norm:
    """Group norm with this many groups; a narrow network has `groups` times r."""

    def norm(name: str, x: jax.Array, weights: dict) -> jax.Array:
        del name
        b, h, w, c = x.shape
        grouped = x.reshape(b, h * w, groups, c // groups)
        mean = grouped.mean(axis=(1, 3), keepdims=True)
        var = ((grouped - mean) ** 2).mean(axis=(1, 3), keepdims=True)
        normed = ((grouped - mean) / jnp.sqrt(var + EPSILON)).reshape(x.shape)
        return _affine(normed, weights)

    return norm


def batch_norm(statistics: dict[str, dict]) -> Norm:
    """Batch norm in evaluation mode; `statistics` is {name: {"mean", "var"}}."""

    def norm(name: str, x: jax.Array, weights: dict) -> jax.Array:
        mean, var = _row(statistics[name]["mean"]), _row(statistics[name]["var"])
        return _affine((x - mean) / jnp.sqrt(var + EPSILON), weights)

    return norm


# VGG: conv0, bn0, conv1, bn1, ..., classifier.


def cut_vgg(params: dict, channels: tuple[int, ...]) -> dict:
    """Keep the first `channels[i]` output channels of the i-th convolution."""
    narrow, inputs = {}, 3
    for index, outputs in enumerate(channels):
        convolution = params[f"conv{index}"]
        narrow[f"conv{index}"] = {
            "kernel": convolution["kernel"][:, :, :inputs, :outputs],
            "bias": convolution["bias"][:outputs],
        }
        narrow[f"bn{index}"] = _cut_norm(params[f"bn{index}"], outputs)
        inputs = outputs
    classifier = params["classifier"]
    narrow["classifier"] = {
        "kernel": classifier["kernel"][:inputs],
        "bias": classifier["bias"],
    }
    return narrow


def vgg11(params: dict, x: jax.Array, norm: Norm) -> jax.Array:
    """Images (b, h, w, c) -> logits, with the weights of `cut_vgg`."""
    for index in range(8):
        if index in (2, 4):
            b, h, w, c = x.shape
            x = x.reshape(b, h // 2, 2, w // 2, 2, c).max(axis=(2, 4))
        weights = params[f"conv{index}"]
        x = _conv(x, weights["kernel"], stride=1) + _row(weights["bias"])
        x = jax.nn.relu(norm(f"bn{index}", x, params[f"bn{index}"]))
    return _head(x, params["classifier"])


# Pre-activation ResNet: conv1, layer1_0, ..., layer3_{count - 1}, bn1, fc.


def cut_resnet(
    params: dict, channels: tuple[int, int, int], *, bottleneck: bool
) -> dict:
    """Keep the first `channels[i]` channels inside the blocks of stage i.

    The output of a bottleneck keeps four times as many.
    """
    expansion = 4 if bottleneck else 1
    inputs = channels[0]
    narrow = {"conv1": {"kernel": params["conv1"]["kernel"][:, :, :, :inputs]}}
    for name in _block_names(params):
        inner = channels[int(name[len("layer")]) - 1]
        outputs = inner * expansion
        ends = (inputs, inner, inner, outputs) if bottleneck else (inputs, inner, inner)
        block, cut = params[name], {}
        for index in range(1, len(ends)):
            before, after = ends[index - 1], ends[index]
            cut[f"bn{index}"] = _cut_norm(block[f"bn{index}"], before)
            kernel = block[f"conv{index}"]["kernel"]
            cut[f"conv{index}"] = {"kernel": kernel[:, :, :before, :after]}
        if "downsample_conv" in block:
            kernel = block["downsample_conv"]["kernel"]
            cut["downsample_conv"] = {"kernel": kernel[:, :, :inputs, :outputs]}
            cut["downsample_bn"] = _cut_norm(block["downsample_bn"], outputs)
        narrow[name], inputs = cut, outputs
    narrow["bn1"] = _cut_norm(params["bn1"], inputs)
    fc = params["fc"]
    narrow["fc"] = {"kernel": fc["kernel"][:inputs], "bias": fc["bias"]}
    return narrow


def resnet(params: dict, x: jax.Array, norm: Norm) -> jax.Array:
    """Images (b, h, w, c) -> logits, with the weights of `cut_resnet`."""
    x = _conv(x, params["conv1"]["kernel"], stride=1)
    for name in _block_names(params):
        # The first blocks of the second and third stage halve height and width.
        stride = 2 if name in ("layer2_0", "layer3_0") else 1
        x = _block(name, params[name], x, norm, stride)
    x = jax.nn.relu(norm("bn1", x, params["bn1"]))
    return _head(x, params["fc"])


def _block(name: str, block: dict, x: jax.Array, norm: Norm, stride: int) -> jax.Array:
    bottleneck = "conv3" in block
    y = jax.nn.relu(norm(f"{name}/bn1", x, block["bn1"]))
    if "downsample_conv" in block:
        x = _conv(y, block["downsample_conv"]["kernel"], stride=stride)
        x = norm(f"{name}/downsample_bn", x, block["downsample_bn"])
    y = _conv(y, block["conv1"]["kernel"], stride=1 if bottleneck else stride)
    y = jax.nn.relu(norm(f"{name}/bn2", y, block["bn2"]))
    y = _conv(y, block["conv2"]["kernel"], stride=stride if bottleneck else 1)
    if bottleneck:
        y = jax.nn.relu(norm(f"{name}/bn3", y, block["bn3"]))
        y = _conv(y, block["conv3"]["kernel"], stride=1)
    return x + y


def _block_names(params: dict) -> list[str]:
    names = [name for name in params if name.startswith("layer")]
    return sorted(names, key=lambda name: [int(n) for n in name[5:].split("_")])


def _head(x: jax.Array, weights: dict) -> jax.Array:
    return x.mean(axis=(1, 2)) @ weights["kernel"] + weights["bias"][None]


def _affine(x: jax.Array, weights: dict) -> jax.Array:
    return x * _row(weights["scale"]) + _row(weights["bias"])


def _row(vector: jax.Array) -> jax.Array:
    """(c,) -> (1, 1, 1, c)."""
    return vector[None, None, None]


def _cut_norm(weights: dict, channels: int) -> dict:
    return {name: vector[:channels] for name, vector in weights.items()}


def _conv(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    pad = kernel.shape[0] // 2
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=((pad, pad), (pad, pad)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
