"""Back to PyTorch: the narrow network in torchvision's own instance."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from ..adapters.modules import ModuleFunction
from ..adapters.norms import group_count
from ..core import axes as axes_lib
from ..core.paths import path_parts
from ..sliceable import Sliceable, extract
from .torch_files import WeightsError
from .torch_names import entries


class TorchExport(NamedTuple):
    """A narrow network for PyTorch.

    Attributes:
      state: NumPy arrays by the names of torchvision's state dict.
      put: puts narrow modules (Conv2d, Linear, norms, attention) with these weights
        into an instance of torchvision's network of the full width, in place, and
        returns it. Batch norms that became group norms are `torch.nn.GroupNorm` there.
    """

    state: dict[str, np.ndarray]
    put: Callable[[Any], Any]


def export_torch(net: Sliceable, r: float | Mapping[str, float]) -> TorchExport:
    """The network at a rate, as PyTorch has it.

    GoogLeNet's auxiliary heads narrow with it if it was upgraded in training mode. A
    network upgraded in evaluation does not read them: they stay full, and do not fit
    the narrow network in training.

    Args:
      net: a network of `mslice_jax.models`, sliceable, of any norm strategy; of shared
        norms `calibrate` should have measured those of each rate.
      r: a declared rate, or one for each width group, see `slice_apply`.

    Raises:
      TypeError: for another network.
      RateError: for a rate that was not declared.
      WeightsError: by `put`, if the instance is of another network, or if attention
        has other widths than torch.nn.MultiheadAttention can have: its heads together
        are as wide as a token.

    Example:
      ``export_torch(net, 0.5).put(torchvision.models.resnet50()).eval()`` gives the
      logits of ``slice_apply(net, x, 0.5)`` on the same images as (b, c, h, w). The
      arrays alone:

      >>> import jax
      >>> import mslice_jax as ms
      >>> model = ms.models.vit_b_16(
      ...     layers=1, hidden=16, heads=4, mlp=24, image_size=16
      ... )
      >>> x = jax.numpy.ones((1, 16, 16, 3))
      >>> variables = jax.jit(model.init)(jax.random.key(0), x)
      >>> net = ms.upgrade(model, variables, x, rates=(0.5, 1.0))
      >>> ms.models.export_torch(net, 0.5).state["conv_proj.weight"].shape
      (8, 3, 16, 16)
    """
    function = net.definition.function
    if not isinstance(function, ModuleFunction):
        raise TypeError(
            "export_torch expects a network of mslice_jax.models, such as "
            "upgrade(models.resnet50(), ...); got a plain function."
        )
    small = extract(net, r)
    tree = function.select(small.variables, small.rate)
    leaves = {
        path_parts(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    names = entries(function.of, {path: leaf.shape for path, leaf in leaves.items()})
    state = {
        entry.key: np.ascontiguousarray(
            entry.layout.join([leaves[path] for path in entry.leaves])
        )
        for entry in names
    }
    groups: dict[str, int] = {}
    if function.norm.forward is not None:
        sites = {("params", *site) for site in function.sites}
        for entry in names:
            path = entry.leaves[0]
            if path[:-1] in sites:
                full, kept = _full_size(net, path), leaves[path].shape[0]
                # A group of the full norm stays whole.
                groups[entry.module] = kept * group_count(full, function.groups) // full
    return TorchExport(state, lambda module: _put(module, state, groups))


def _full_size(net: Sliceable, path: Any) -> int:
    leaf = net.plan.leaf(path)
    assert leaf is not None
    return axes_lib.shape(leaf.axes)[0]


def _put(
    module: Any, state: Mapping[str, np.ndarray], groups: Mapping[str, int]
) -> Any:
    """Narrow modules in the places of those of `module`; all are made first."""
    tensors: dict[str, dict[str, Any]] = {}
    for key, array in state.items():
        name, _, leaf = key.rpartition(".")
        tensors.setdefault(name, {})[leaf] = array
    _check_keys(module, state)
    made = {
        name: _narrow(module, name, arrays, groups.get(name))
        for name, arrays in tensors.items()
    }
    # What holds another one comes before it: attention before its projection.
    for name in sorted(made):
        made[name]()
    if hasattr(module, "hidden_dim"):  # of a ViT, which reshapes by it
        module.hidden_dim = state["class_token"].shape[-1]
    return module


def _check_keys(module: Any, state: Mapping[str, np.ndarray]) -> None:
    """Raise WeightsError unless the instance has these tensors, at full width."""
    there = {
        key for key in module.state_dict() if not key.endswith("num_batches_tracked")
    }
    # Group norms have no statistics.
    optional = {key for key in there if ".running_" in f".{key}"}
    missing = tuple(sorted(there - optional - set(state)))
    left_over = tuple(sorted(set(state) - there))
    if missing or left_over:
        raise WeightsError(
            f"this {type(module).__name__} is another network: it has "
            f"{', '.join(missing) or 'nothing'} besides, and lacks "
            f"{', '.join(left_over) or 'nothing'}. Pass torchvision's instance of the "
            "same network.",
            missing=missing,
            left_over=left_over,
        )


def _narrow(
    module: Any, name: str, arrays: Mapping[str, np.ndarray], groups: int | None
) -> Callable[[], None]:
    """Makes what replaces a submodule, or parameters; returns what puts it there."""
    import torch  # pyright: ignore[reportMissingImports]

    old = module.get_submodule(name)
    tensors = {leaf: torch.tensor(array) for leaf, array in arrays.items()}
    kinds = (torch.nn.Conv2d, torch.nn.Linear, torch.nn.BatchNorm2d, torch.nn.LayerNorm)
    if isinstance(old, torch.nn.MultiheadAttention):
        new = _attention(name, old, tensors["in_proj_weight"])
    elif isinstance(old, kinds):
        new = _layer(old, tensors, groups)
    else:  # parameters of its own: class_token, pos_embedding
        new = old
    like = next(old.parameters())
    tensors = {leaf: x.to(like.device, like.dtype) for leaf, x in tensors.items()}

    def put() -> None:
        target = new
        if target is not old:
            target.to(like.device, like.dtype).train(old.training)
            parent, _, last = name.rpartition(".")
            setattr(module.get_submodule(parent), last, target)
        for leaf, tensor in tensors.items():
            if leaf.startswith("running_"):
                getattr(target, leaf).copy_(tensor)
            else:
                parameter = torch.nn.Parameter(
                    tensor, requires_grad=getattr(old, leaf).requires_grad
                )
                setattr(target, leaf, parameter)

    return put


def _layer(old: Any, tensors: Mapping[str, Any], groups: int | None) -> Any:
    """A layer like `old` of the sizes of its tensors."""
    import torch  # pyright: ignore[reportMissingImports]

    weight = tensors["weight"]
    if isinstance(old, torch.nn.Conv2d):
        depthwise = old.groups == old.in_channels > 1
        count = len(weight) if depthwise else old.groups
        return torch.nn.Conv2d(
            weight.shape[1] * count,
            len(weight),
            old.kernel_size,  # type: ignore[arg-type]
            stride=old.stride,  # type: ignore[arg-type]
            padding=old.padding,  # type: ignore[arg-type]
            dilation=old.dilation,  # type: ignore[arg-type]
            groups=count,
            bias=old.bias is not None,
        )
    if isinstance(old, torch.nn.Linear):  # attention's is of a class of its own
        return type(old)(weight.shape[1], len(weight), bias=old.bias is not None)
    if isinstance(old, torch.nn.LayerNorm):
        return torch.nn.LayerNorm(len(weight), eps=old.eps)
    if groups is not None:
        return torch.nn.GroupNorm(groups, len(weight), eps=old.eps)
    return torch.nn.BatchNorm2d(len(weight), eps=old.eps, momentum=old.momentum)


def _attention(name: str, old: Any, weight: Any) -> Any:
    """Attention whose heads keep their size."""
    import torch  # pyright: ignore[reportMissingImports]

    size, rest = divmod(weight.shape[0], 3 * old.head_dim)
    if rest or size * old.head_dim != weight.shape[1]:
        raise WeightsError(
            f"{name} has {weight.shape[0] // 3 / old.head_dim:g} heads of "
            f"{old.head_dim} for tokens of {weight.shape[1]}; "
            "torch.nn.MultiheadAttention asks for heads that together are as wide as a "
            "token. Choose a rate that gives whole heads, as 0.5 does."
        )
    return torch.nn.MultiheadAttention(
        weight.shape[1], size, dropout=old.dropout, batch_first=old.batch_first
    )
