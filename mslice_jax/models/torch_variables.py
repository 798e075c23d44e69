"""A state dict of PyTorch as the variables of the same network in Flax."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx

from .resnet import CifarResNet
from .torch_files import WeightsError
from .torch_names import Entry, Path, entries
from .vgg import CifarVGG

_STATISTICS = ("mean", "var")


def import_state_dict(
    state: Mapping[str, np.ndarray], model: Any, *, statistics: bool = True
) -> Any:
    """A state dict of PyTorch as the variables of the same network in Flax.

    Args:
      state: arrays by name, such as `read_state_dict` gives them. Counters
        (``num_batches_tracked``) are passed over.
      model: a network of `mslice_jax.models` of the same settings, Linen or NNX.
      statistics: whether the state dict has the running statistics of batch norms.
        Networks of the authors' code with group norms have none: without them they are
        fresh here, and `upgrade` takes norm="group".

    Returns:
      For Linen ``{"params": ..., "batch_stats": ...}`` of float32 NumPy arrays, as
      `Module.init` arranges them; for NNX a copy of the model with the weights.

    Raises:
      WeightsError: unless each tensor has a place and each place a tensor of its shape;
        lists all that are missing, left over, or of another shape.
      TypeError: for a network that PyTorch has no names for.

    Example:
      >>> import numpy as np
      >>> import mslice_jax as ms
      >>> from mslice_jax.models.import_torch import import_state_dict
      >>> model = ms.models.mobilenet_v2(num_classes=2)
      >>> import_state_dict({"classifier.1.bias": np.zeros(3)}, model)
      Traceback (most recent call last):
      ...
      mslice_jax.models.torch_files.WeightsError: the state dict is not that of this \
MobileNetV2: ...
    """
    types = _types(model)
    shapes = {path: leaf.shape for path, leaf in types.items()}
    wanted = entries(model, shapes)
    if not statistics:
        wanted = [e for e in wanted if e.leaves[0][-1] not in _STATISTICS]
    state = _renamed(state)
    check_keys(model, state, wanted, shapes)
    leaves: dict[Path, np.ndarray] = {}
    for entry in wanted:
        tensor = np.asarray(state[entry.key], np.float32)
        arrays = entry.layout.split(tensor, [shapes[path] for path in entry.leaves])
        leaves |= zip(entry.leaves, map(np.ascontiguousarray, arrays), strict=True)
    for path in shapes.keys() - leaves.keys():  # statistics that nobody has
        leaves[path] = np.full(shapes[path], path[-1] == "var", np.float32)
    tree: dict[str, Any] = {}
    for path in shapes:  # in their order
        node = tree
        for part in path[:-1]:
            node = node.setdefault(part, {})
        node[path[-1]] = leaves[path]
    return (
        _with_params(model, tree["params"]) if isinstance(model, nnx.Module) else tree
    )


def _types(model: Any) -> dict[Path, Any]:
    """Types of the leaves of a plain network, by collection and path."""
    if isinstance(model, nnx.Module):
        flat = nnx.to_flat_state(nnx.state(model, nnx.Param))
        return {("params", *map(str, path)): leaf for path, leaf in flat}
    if not isinstance(model, nn.Module):
        raise TypeError(
            "expected a network of mslice_jax.models, such as models.resnet50(), got "
            f"{model!r}."
        )
    size = image_size(model)
    x = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    tree = jax.eval_shape(model.init, jax.random.key(0), x)
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {tuple(key.key for key in path): leaf for path, leaf in leaves}


def image_size(model: Any) -> int:
    """Height and width of the images that a network is made for."""
    cifar = isinstance(model, CifarResNet | CifarVGG)
    return getattr(model, "image_size", 32 if cifar else 224)


def _with_params(model: nnx.Module, params: Mapping[str, Any]) -> nnx.Module:
    graphdef, state = nnx.split(model)
    leaves = []
    for path, variable in nnx.to_flat_state(state):
        if isinstance(variable, nnx.Param):
            value: Any = params
            for part in path:
                value = value[str(part)]
            variable = variable.replace(jnp.asarray(value))
        leaves.append((path, variable))
    return nnx.merge(graphdef, nnx.from_flat_state(leaves))


def _renamed(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Without counters; the MLPs of old ViT files under the names of today."""

    def name(key: str) -> str:
        key = key.replace(".mlp.linear_1.", ".mlp.0.")
        return key.replace(".mlp.linear_2.", ".mlp.3.")

    counters = "num_batches_tracked"
    return {name(key): x for key, x in state.items() if not key.endswith(counters)}


def check_keys(
    model: Any,
    state: Mapping[str, np.ndarray],
    wanted: Sequence[Entry],
    shapes: Mapping[Path, tuple[int, ...]],
    what: str = "the state dict",
) -> None:
    """Raise WeightsError unless keys and shapes are those of the network."""
    expected = {
        entry.key: entry.layout.shape([shapes[path] for path in entry.leaves])
        for entry in wanted
    }
    missing = tuple(sorted(key for key in expected if key not in state))
    left_over = tuple(sorted(key for key in state if key not in expected))
    misshapen = {
        key: (shape, np.shape(state[key]))
        for key, shape in expected.items()
        if key in state and np.shape(state[key]) != shape
    }
    if not (missing or left_over or misshapen):
        return
    parts = []
    if missing:
        parts.append(f"it lacks {', '.join(missing)}")
    if left_over:
        parts.append(f"nothing takes its {', '.join(left_over)}")
    if misshapen:
        each = (f"{k} is {found}, not {want}" for k, (want, found) in misshapen.items())
        parts.append(", ".join(each))
    hints = []
    if missing and all(".running_" in f".{key}" for key in missing) and not left_over:
        hints.append("If its norms are group norms, import it with norm='group'.")
    if any(".bn_list." in key for key in left_over):
        hints.append("import_network takes lists of batch norms (MultiBN).")
    raise WeightsError(
        f"{what} is not that of this {type(model).__name__}: "
        + "; ".join(parts)
        + ". "
        + " ".join(hints or ["Give the model the settings of the one it came from."]),
        missing=missing,
        left_over=left_over,
        misshapen=misshapen,
    )
