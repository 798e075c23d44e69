"""What PyTorch calls the weights of the zoo, and how it lays them out.

One entry for each tensor of a state dict: its key, the leaves of the Flax network that
hold its numbers, and the layout. Read one way it imports, the other way it exports.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from . import imagenet_vgg, inception, vgg
from .imagenet_resnet import ImageNetResNet
from .imagenet_vgg import ImageNetVGG
from .inception import GoogLeNet
from .mobilenet import MobileNetV2
from .resnet import CifarResNet
from .vgg import CifarVGG
from .vit import VisionTransformer
from .vit_nnx import NnxVisionTransformer

Path = tuple[str, ...]
"""Where a leaf is in the variables: ("params", "layer1_0", "conv1", "kernel")."""
Shapes = Sequence[tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Layout:
    """One tensor of PyTorch as one or more arrays of Flax, and back.

    Attributes:
      split: (tensor, shapes of Flax's arrays) -> the arrays.
      join: the inverse.
      shape: shapes of Flax's arrays -> that of the tensor.
    """

    split: Callable[[np.ndarray, Shapes], list[np.ndarray]]
    join: Callable[[list[np.ndarray]], np.ndarray]
    shape: Callable[[Shapes], tuple[int, ...]]


def _permuted(to_torch: Sequence[int]) -> Layout:
    """The axes in another order."""
    back = tuple(int(i) for i in np.argsort(to_torch))
    return Layout(
        lambda x, _: [x.transpose(back)],
        lambda xs: xs[0].transpose(to_torch),
        lambda shapes: tuple(shapes[0][i] for i in to_torch),
    )


SAME = Layout(lambda x, _: [x], lambda xs: xs[0], lambda shapes: shapes[0])
CONV = _permuted((3, 2, 0, 1))  # HWIO -> OIHW
DENSE = _permuted((1, 0))  # in x out -> out x in


def flat(size: int) -> Layout:
    """A linear layer on flat images of size x size: (h, w, c) here, (c, h, w) there."""

    def split(x: np.ndarray, shapes: Shapes) -> list[np.ndarray]:
        images = x.reshape(len(x), -1, size, size)
        return [images.transpose(2, 3, 1, 0).reshape(shapes[0])]

    def join(xs: list[np.ndarray]) -> np.ndarray:
        images = xs[0].reshape(size, size, -1, xs[0].shape[-1])
        return images.transpose(3, 2, 0, 1).reshape(xs[0].shape[::-1])

    return Layout(split, join, DENSE.shape)


# Queries, keys and values, one below the other: each is (d, heads, n) or (heads, n).
QKV_KERNEL = Layout(
    lambda x, shapes: [
        part.T.reshape(shape)
        for part, shape in zip(np.split(x, 3), shapes, strict=True)
    ],
    lambda xs: np.concatenate([x.reshape(len(x), -1).T for x in xs]),
    lambda shapes: (3 * shapes[0][1] * shapes[0][2], shapes[0][0]),
)
QKV_BIAS = Layout(
    lambda x, shapes: [
        part.reshape(shape) for part, shape in zip(np.split(x, 3), shapes, strict=True)
    ],
    lambda xs: np.concatenate([x.reshape(-1) for x in xs]),
    lambda shapes: (3 * shapes[0][0] * shapes[0][1],),
)
# What comes out of the heads: (heads, n, d) here, (d, heads x n) there.
OUT_KERNEL = Layout(
    lambda x, shapes: [x.T.reshape(shapes[0])],
    lambda xs: xs[0].reshape(-1, xs[0].shape[-1]).T,
    lambda shapes: (shapes[0][2], shapes[0][0] * shapes[0][1]),
)


@dataclasses.dataclass(frozen=True)
class Entry:
    """A tensor of PyTorch: its key, and the leaves that hold it in a layout."""

    key: str
    leaves: tuple[Path, ...]
    layout: Layout

    @property
    def module(self) -> str:
        """The name of PyTorch's module that has it."""
        return self.key.rpartition(".")[0]


_SUFFIX = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
_QKV = ("query", "key", "value")


def entries(model: Any, shapes: Mapping[Path, tuple[int, ...]]) -> list[Entry]:
    """All tensors of the state dict of a network.

    Args:
      model: a network of `mslice_jax.models`, of Linen or NNX.
      shapes: of its leaves, by path; full or narrow, with or without statistics.

    Raises:
      TypeError: for a network that PyTorch has no names for here.
    """
    family = next((f for kind, f in _FAMILIES.items() if isinstance(model, kind)), None)
    if family is None:
        kinds = ", ".join(kind.__name__ for kind in _FAMILIES)
        raise TypeError(
            f"expected a network of mslice_jax.models that PyTorch has too ({kinds}), "
            f"got {type(model).__name__}."
        )
    return [entry for path in shapes for entry in _entries(model, family, path, shapes)]


def _entries(
    model: Any, family: Any, path: Path, shapes: Mapping[Path, tuple[int, ...]]
) -> list[Entry]:
    name, leaf = _linen(path[1:-1]), path[-1]
    if name and name[-1] in _QKV:
        if name[-1] != "query":
            return []  # they come with the queries
        at = path.index("query")
        leaves = tuple((*path[:at], each, leaf) for each in _QKV)
        kernel, module = leaf == "kernel", family(model, name[:-1])
        suffix = "in_proj_weight" if kernel else "in_proj_bias"
        layout = QKV_KERNEL if kernel else QKV_BIAS
        return [Entry(f"{module}.{suffix}", leaves, layout)]
    if not name:  # the parameters of a ViT itself
        return [Entry(family(model, (leaf,)), (path,), SAME)]
    module = family(model, name)
    return [
        Entry(f"{module}.{_SUFFIX[leaf]}", (path,), _layout(module, leaf, shapes[path]))
    ]


def _layout(module: str, leaf: str, shape: tuple[int, ...]) -> Layout:
    if leaf != "kernel":
        return SAME
    if module in _FLAT:
        return flat(_FLAT[module])
    return {4: CONV, 3: OUT_KERNEL, 2: DENSE}[len(shape)]


# Linear layers that see flat images.
_FLAT = {
    "classifier.0": imagenet_vgg.POSITIONS,
    "aux1.fc1": inception.POSITIONS,
    "aux2.fc1": inception.POSITIONS,
}


def _linen(path: Path) -> Path:
    """A path of an NNX model as Linen has it: blocks, 0, ... is block0, ..."""
    return (f"block{path[1]}", *path[2:]) if path[:1] == ("blocks",) else path


# PyTorch's name of a module, for each family.


def _resnet(model: Any, path: Path) -> str:
    name = re.sub(r"^(layer\d)_", r"\1.", ".".join(path))
    name = name.replace("downsample_conv", "downsample.0")
    return name.replace("downsample_bn", "downsample.1")


def _vgg(model: ImageNetVGG | CifarVGG, path: Path) -> str:
    found = re.fullmatch(r"(conv|bn|classifier)(\d*)", path[0])
    kind, number = found.groups()  # type: ignore[union-attr]
    if kind == "classifier":  # a relu and a dropout follow each but the last
        return f"classifier.{3 * int(number)}" if number else "classifier"
    is_cifar = isinstance(model, CifarVGG)
    stages = (vgg.STAGES if is_cifar else imagenet_vgg.STAGES)[model.depth]
    with_norm = is_cifar or model.batch_norm
    # Each convolution has a relu, and maybe a norm; a pooling lies between the stages.
    ends = np.cumsum([len(stage) for stage in stages])
    poolings = int(np.searchsorted(ends, int(number), side="right"))
    index = (3 if with_norm else 2) * int(number) + poolings
    return f"features.{index + (kind == 'bn')}"


def _googlenet(model: GoogLeNet, path: Path) -> str:
    return re.sub(r"(branch\d)_", r"\1.", ".".join(path))


def _mobilenet(model: MobileNetV2, path: Path) -> str:
    if path[0] == "classifier":
        return "classifier.1"
    ends = {
        "stem_conv": "0.0",
        "stem_bn": "0.1",
        "last_conv": "18.0",
        "last_bn": "18.1",
    }
    if path[0] in ends:
        return f"features.{ends[path[0]]}"
    number = int(path[0].removeprefix("block"))
    first = 1 if number > 1 else 0  # the first block does not expand
    inner = {
        "expand_conv": "0.0",
        "expand_bn": "0.1",
        "depthwise_conv": f"{first}.0",
        "depthwise_bn": f"{first}.1",
        "project_conv": f"{first + 1}",
        "project_bn": f"{first + 2}",
    }
    return f"features.{number}.conv.{inner[path[1]]}"


def _vit(model: Any, path: Path) -> str:
    top = {"pos_embedding": "encoder.pos_embedding", "ln": "encoder.ln"}
    top |= {"head": "heads.head"}
    if not path[0].startswith("block"):
        return top.get(path[0], path[0])
    number = path[0].removeprefix("block")
    inner = ".".join(path[1:]).replace("self_attention.out", "self_attention.out_proj")
    inner = inner.replace("fc1", "mlp.0").replace("fc2", "mlp.3")
    return f"encoder.layers.encoder_layer_{number}.{inner}"


_FAMILIES: dict[type, Callable[[Any, Path], str]] = {
    ImageNetResNet: _resnet,
    CifarResNet: _resnet,
    ImageNetVGG: _vgg,
    CifarVGG: _vgg,
    GoogLeNet: _googlenet,
    MobileNetV2: _mobilenet,
    VisionTransformer: _vit,
    NnxVisionTransformer: _vit,
}
