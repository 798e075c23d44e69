"""The numbers of the PyTorch original (tests/golden) in Flax's names and layouts.

Every file is one run of the authors' code (nusdbsystem/model-slicing v2.2, PyTorch,
float32). It holds a network's weights, its input, the logits at every rate, one
training step's losses and gradients, and the logits after two such steps.
"""

import dataclasses
import pathlib
import re
from typing import Any

import jax
import numpy as np

from mslice_jax.models import CifarResNet, CifarVGG

_FOLDER = pathlib.Path(__file__).parent / "golden"

NAMES = ("cifar_resnet11_gn8", "cifar_vgg11_w025_gn8", "cifar_resnet11_multibn")

_MODELS = {
    "cifar_resnet11_gn8": CifarResNet(depth=11),
    "cifar_vgg11_w025_gn8": CifarVGG(depth=11, widen=0.25),
    "cifar_resnet11_multibn": CifarResNet(depth=11),
}

# PyTorch's name of a norm's tensor -> (collection, Flax's name, padding of a narrow
# vector).
_NORM_LEAVES = {
    "weight": ("params", "scale", 1.0),
    "bias": ("params", "bias", 0.0),
    "running_mean": ("batch_stats", "mean", 0.0),
    "running_var": ("batch_stats", "var", 1.0),
}

# Positions of VGG-11's layers in the original's nn.Sequential.
_VGG_INDICES = (0, 3, 7, 10, 14, 17, 20, 23)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Golden:
    """One run of the original."""

    model: Any
    """The plain Flax network."""
    x: np.ndarray
    """Images (b, h, w, c)."""
    y: np.ndarray
    """Labels (b,)."""
    rates: tuple[float, ...]
    """Ascending."""
    groups: int
    """Groups of the group norms; 0 for one batch norm per rate."""
    variables: dict
    """Variables of the plain network. With group norm the original has no statistics;
    they are zeros and ones here."""
    sliceable: dict
    """Variables of the upgraded network: no statistics with group norm, and with one
    batch norm per rate {rate: {"scale", "bias"}} in place of {"scale", "bias"}, each as
    long as the full norm (ones and zeros at the end)."""
    logits: dict[float, np.ndarray]
    """Rate -> (b, classes), in evaluation mode."""
    train_rates: tuple[float, ...]
    """The rates of a training step, in the order of `losses`."""
    losses: np.ndarray
    """Cross-entropy at each of the rates, in training mode, before any update."""
    grads: dict
    """Summed over `train_rates`, shaped as sliceable["params"]; zeros at the end."""
    logits_after_2_steps: dict[float, np.ndarray]
    """Rate -> (b, classes), in evaluation mode."""


def load(name: str) -> Golden:
    """The run `name`, one of NAMES."""
    with np.load(_FOLDER / f"{name}.npz") as file:
        arrays = dict(file)
    descending = [float(rate) for rate in arrays["rates"]]
    state = _group(arrays, "state")
    widths = {  # Channels of each norm at full width.
        _norm_path(key)[0]: len(value)
        for key, value in state.items()
        if value.ndim == 1 and _norm_path(key)[1] in (None, 0)
    }
    sliceable = _flax_tree(state, descending, widths)
    grads = _flax_tree(_group(arrays, "grad"), descending, widths, fill=0.0)
    if int(arrays["groups"]) == 0:
        # Rates that were not trained have no gradient in the original.
        zeros = jax.tree.map(np.zeros_like, sliceable["params"])
        variables = _one_rate(sliceable, "1.0")
        grads = {"params": _merge(zeros, grads["params"])}
    else:
        variables = sliceable | {"batch_stats": _fresh_statistics(sliceable["params"])}
    return Golden(
        model=_MODELS[name],
        x=np.ascontiguousarray(arrays["x"].transpose(0, 2, 3, 1)),
        y=arrays["y"].astype(np.int32),
        rates=tuple(sorted(descending)),
        groups=int(arrays["groups"]),
        variables=variables,
        sliceable=sliceable,
        logits=_by_rate(arrays, "logits"),
        train_rates=tuple(float(rate) for rate in arrays["train_rates"]),
        losses=arrays["losses"],
        grads=grads["params"],
        logits_after_2_steps=_by_rate(arrays, "logits_after_2_steps"),
    )


def _group(arrays: dict, prefix: str) -> dict[str, np.ndarray]:
    return {
        key.removeprefix(prefix + "/"): value
        for key, value in arrays.items()
        if key.startswith(prefix + "/")
    }


def _by_rate(arrays: dict, prefix: str) -> dict[float, np.ndarray]:
    return {float(rate): value for rate, value in _group(arrays, prefix).items()}


def _flax_path(module: str) -> tuple[str, ...]:
    """The Flax name of a PyTorch module: features.7 -> conv2, layer1.0.bn1 -> ..."""
    if match := re.fullmatch(r"features\.(\d+)", module):
        index = int(match[1])
        if index in _VGG_INDICES:
            return (f"conv{_VGG_INDICES.index(index)}",)
        return (f"bn{_VGG_INDICES.index(index - 1)}",)
    module = module.replace("downsample.0", "downsample_conv")
    module = module.replace("downsample.1", "downsample_bn")
    return tuple(re.sub(r"^(layer\d)\.(\d+)", r"\1_\2", module).split("."))


def _norm_path(key: str) -> tuple[tuple[str, ...], int | None]:
    """(Flax path of the module, index in its list of batch norms or None)."""
    module, _, _ = key.rpartition(".")
    if match := re.fullmatch(r"(.*)\.bn_list\.(\d+)", module):
        return _flax_path(match[1]), int(match[2])
    return _flax_path(module), None


def _flax_tree(
    state: dict[str, np.ndarray],
    descending: list[float],
    widths: dict[tuple[str, ...], int],
    fill: float | None = None,
) -> dict:
    """A state dict as a tree of collections; `fill` replaces the usual padding."""
    tree: dict = {}
    for key, value in state.items():
        leaf = key.rpartition(".")[2]
        path, index = _norm_path(key)
        if "bn" in path[-1]:
            collection, name, padding = _NORM_LEAVES[leaf]
            if index is not None:
                path += (str(descending[index]),)
                padding = padding if fill is None else fill
                missing = widths[path[:-1]] - len(value)
                value = np.pad(value, (0, missing), constant_values=padding)
        else:
            collection, name = "params", {"weight": "kernel", "bias": "bias"}[leaf]
            if value.ndim == 4:
                value = value.transpose(2, 3, 1, 0)  # OIHW -> HWIO
            elif value.ndim == 2:
                value = value.T
        node = tree.setdefault(collection, {})
        for part in path:
            node = node.setdefault(part, {})
        node[name] = value
    return tree


def _one_rate(tree: dict, rate: str) -> dict:
    """Put the norms of one rate in place of the plain network's own."""
    if rate in tree:
        return tree[rate]
    return {
        name: _one_rate(node, rate) if isinstance(node, dict) else node
        for name, node in tree.items()
    }


def _fresh_statistics(params: dict) -> dict:
    """Mean zero and variance one for every norm."""
    statistics = {}
    for name, node in params.items():
        if "scale" in node:
            zeros = np.zeros_like(node["scale"])
            statistics[name] = {"mean": zeros, "var": zeros + 1}
        elif "kernel" not in node:
            statistics[name] = _fresh_statistics(node)
    return statistics


def _merge(tree: dict, update: dict) -> dict:
    """`tree` with the leaves of `update` in place of its own."""
    return tree | {
        name: _merge(tree[name], node) if isinstance(node, dict) else node
        for name, node in update.items()
    }
