"""The sizes that layers of `flax.nnx` keep as attributes, set from narrow arrays.

An NNX layer holds its sizes twice: in the shapes of its arrays, and as numbers that its
call reads or checks. `set_sizes` makes the second follow the first. It knows the layers
of Flax and what inherits from them, not what other modules may keep.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from flax import nnx

from ...core import axes as axes_lib
from ...core.axes import Axis, Product

Leading: TypeAlias = Callable[[str, int], int]
"""(name of an array, outer factor of its last axis) -> that factor when narrow."""


def set_sizes(
    model: nnx.Module,
    axes: Callable[[tuple[str, ...]], tuple[Axis, ...] | None],
    widths: Mapping[str, int],
) -> None:
    """Sets the sizes of the layers of Flax within a model from its narrow arrays.

    Args:
      model: has narrow arrays and full sizes; it is changed.
      axes: path of an array in the model ('layers', '0', 'kernel') -> its axes in the
        plan.
      widths: what each width group keeps.
    """
    for path, layer in nnx.iter_modules(model):
        base = tuple(map(str, path))

        def leading(name: str, count: int, base: tuple[str, ...] = base) -> int:
            known = axes((*base, name))
            return count if known is None else _leading(known[-1], count, widths)

        for kind, rule in _RULES.items():
            if isinstance(layer, kind):
                rule(layer, leading)


def _leading(axis: Axis, count: int, widths: Mapping[str, int]) -> int:
    """What remains of the outer `count` of an axis: whole groups, or all of them.

    `count` groups of features are the leading factors of the axis. Where these factors
    are joined with others, the features of a group are taken to stay.
    """
    size = axes_lib.width(axis)
    if count == 1:
        return 1
    outer: list[Axis] = []
    for factor in axis.factors if isinstance(axis, Product) else (axis,):
        if math.prod(axes_lib.shape(outer)) == count:
            break
        outer.append(factor)
    if math.prod(axes_lib.shape(outer)) == count:
        return math.prod(axes_lib.shape(outer, widths))
    return count * axes_lib.width(axis, widths) // size


def _linear(layer: Any, leading: Leading) -> None:
    layer.in_features, layer.out_features = layer.kernel.shape[-2:]


def _linear_general(layer: Any, leading: Leading) -> None:
    ins, outs = len(layer.in_features), len(layer.out_features)
    # Earlier axes are the batch axes, and those of stacked layers.
    sizes = tuple(layer.kernel.shape)[-ins - outs :]
    layer.in_features, layer.out_features = sizes[:ins], sizes[ins:]


def _einsum(layer: Any, leading: Leading) -> None:
    layer.kernel_shape = tuple(layer.kernel.shape)[-len(layer.kernel_shape) :]
    if layer.bias is not None:
        layer.bias_shape = tuple(layer.bias.shape)[-len(layer.bias_shape) :]


def _conv(layer: Any, leading: Leading) -> None:
    layer.kernel_shape = tuple(layer.kernel.shape)[-len(layer.kernel_shape) :]
    layer.feature_group_count = leading("kernel", layer.feature_group_count)
    layer.in_features = layer.kernel_shape[-2] * layer.feature_group_count
    layer.out_features = layer.kernel_shape[-1]


def _conv_transpose(layer: Any, leading: Leading) -> None:
    layer.kernel_shape = tuple(layer.kernel.shape)[-len(layer.kernel_shape) :]
    sizes = layer.kernel_shape[-2:]
    ins, outs = sizes[::-1] if layer.transpose_kernel else sizes
    layer.in_features, layer.out_features = ins, outs


def _embed(layer: Any, leading: Leading) -> None:
    layer.num_embeddings, layer.features = layer.embedding.shape[-2:]


def _norm(layer: Any, leading: Leading) -> None:
    names = ("scale", "bias", "mean")
    arrays = [getattr(layer, name, None) for name in names]
    known = [array for array in arrays if array is not None]
    if known:
        layer.num_features = known[0].shape[-1]


def _group_norm(layer: Any, leading: Leading) -> None:
    for name in ("scale", "bias"):
        array = getattr(layer, name)
        if array is not None:
            layer.num_groups = leading(name, layer.num_groups)
            layer.group_size = array.shape[-1] // layer.num_groups
            return


def _attention(layer: Any, leading: Leading) -> None:
    parts = layer.query, layer.key, layer.out
    query, key, out = (part.kernel.shape for part in parts)
    layer.in_features, layer.num_heads, layer.head_dim = query[-3:]
    layer.qkv_features = layer.num_heads * layer.head_dim
    layer.in_kv_features, layer.num_kv_heads = key[-3:-1]
    layer.out_features = out[-1]


def _lstm_cell(layer: Any, leading: Leading) -> None:
    layer.in_features = layer.ii.kernel.shape[-2]
    layer.hidden_features = layer.hi.kernel.shape[-2]


def _cell(layer: Any, leading: Leading) -> None:
    layer.in_features = layer.dense_i.kernel.shape[-2]
    layer.hidden_features = layer.dense_h.kernel.shape[-2]


def _lora(layer: Any, leading: Leading) -> None:
    layer.in_features = layer.lora_a.shape[-2]
    layer.out_features = layer.lora_b.shape[-1]


_RULES: Mapping[type, Callable[[Any, Leading], None]] = {
    nnx.Linear: _linear,
    nnx.LinearGeneral: _linear_general,
    nnx.Einsum: _einsum,
    nnx.Conv: _conv,
    nnx.ConvTranspose: _conv_transpose,
    nnx.Embed: _embed,
    nnx.BatchNorm: _norm,
    nnx.LayerNorm: _norm,
    nnx.RMSNorm: _norm,
    nnx.InstanceNorm: _norm,
    nnx.GroupNorm: _group_norm,
    nnx.MultiHeadAttention: _attention,
    nnx.LSTMCell: _lstm_cell,
    nnx.OptimizedLSTMCell: _cell,
    nnx.GRUCell: _cell,
    nnx.SimpleCell: _cell,
    nnx.LoRA: _lora,
}
