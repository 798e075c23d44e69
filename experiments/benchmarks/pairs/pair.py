"""A network of ours and its twin in PyTorch, and how weights of one become the other's.

The twin is an ordinary PyTorch module that is built at a rate, with layers that are as
narrow as the rate says. Its tensors are those of the narrow network of ours, laid out
as PyTorch has them. In training PyTorch's narrow modules read cuts of the wide weights,
which is how slicing is written by hand there; how to cut follows from where our plan
puts every number.
"""

# The checks of this project do not install PyTorch.
# pyright: reportMissingImports=false

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

import mslice_jax as ms
from mslice_jax.train import Task

RATES = (1.0, 0.5, 0.25)
Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair:
    """Two networks that compute the same.

    Attributes:
      model: ours, of Linen.
      twin: (rate) -> PyTorch's module; or (network, rate) if `of_network`.
      tensors: (our variables, an array for each path) -> PyTorch's state dict.
      inputs: (batch) -> an array that the network takes.
      targets: (batch) -> what the loss compares with.
      batch: of a training step.
      images: whether inputs are images, channels last.
      task: what is minimized.
      upgrade: how `ms.upgrade` is called.
    """

    model: Any
    twin: Callable[..., Any]
    tensors: Callable[[Mapping[tuple[str, ...], Any]], Arrays]
    inputs: Callable[[int], Any]
    targets: Callable[[int], Any]
    batch: int
    task: Task
    images: bool = False
    of_network: bool = False
    upgrade: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def network(self) -> Any:
        """Ours, sliceable."""
        x = self.inputs(2)
        variables = dict(jax.jit(self.model.init)(jax.random.key(1), x))
        variables["params"] = _moved(variables["params"])
        return ms.upgrade(self.model, variables, x, rates=RATES, **self.upgrade)

    def module(self, net: Any, rate: float) -> Any:
        """PyTorch's network of a rate, with our weights."""
        module = self.twin(net, rate) if self.of_network else self.twin(rate)
        missing, left = module.load_state_dict(self.state(net, rate), strict=False)
        assert not left, left
        learned = {n for n, p in module.named_parameters() if p.requires_grad}
        assert not learned & set(missing), missing
        return module

    def state(self, net: Any, rate: float) -> dict[str, Any]:
        """The tensors of a rate, by their names in PyTorch."""
        arrays = self.tensors(_leaves(ms.extract(net, rate).variables))
        return {name: torch.tensor(np.array(x)) for name, x in arrays.items()}

    def cuts(self, net: Any, rate: float) -> dict[str, "Cut"]:
        """How the tensors of a rate are cut out of the wide ones."""
        leaves, tree = jax.tree.flatten(net.variables)
        ends = np.cumsum([x.size for x in leaves])
        # Several leaves may be one tensor. float32 tells whole numbers up to 2**24.
        assert ends[-1] < 2**24
        places = [
            jnp.arange(end - x.size, end, dtype=jnp.float32).reshape(x.shape)
            for x, end in zip(leaves, ends, strict=True)
        ]
        numbered = net.replace(jax.tree.unflatten(tree, places))
        full = self.tensors(_leaves(numbered.variables))
        narrow = self.tensors(_leaves(ms.extract(numbered, rate).variables))
        return {name: Cut.of(full[name], narrow[name]) for name in full}


@dataclasses.dataclass(frozen=True)
class Cut:
    """Runs of indices (start, end) that each axis keeps; None: all of them."""

    runs: tuple[tuple[tuple[int, int], ...] | None, ...]

    @classmethod
    def of(cls, full: np.ndarray, narrow: np.ndarray) -> "Cut":
        """From two arrays of numbers that occur once, one of which is cut out."""
        order = np.argsort(full, axis=None)
        places = order[np.searchsorted(full.ravel()[order], narrow.ravel())]
        indices = np.stack(np.unravel_index(places, full.shape))
        indices = indices.reshape(full.ndim, *narrow.shape)
        runs = []
        for axis, size in enumerate(full.shape):
            first: list[Any] = [0] * full.ndim
            first[axis] = slice(None)
            kept = indices[axis][tuple(first)].tolist()
            runs.append(None if len(kept) == size else _runs(kept))
        cut = cls(tuple(runs))
        np.testing.assert_array_equal(cut(torch.tensor(full.copy())).numpy(), narrow)
        return cut

    def __call__(self, x: Any) -> Any:
        """The tensor of a rate, a view where that is possible."""
        for axis, runs in enumerate(self.runs):
            if runs is not None:
                parts = [x.narrow(axis, start, end - start) for start, end in runs]
                x = torch.cat(parts, axis) if len(parts) > 1 else parts[0]
        return x


def named(variables: Mapping[tuple[str, ...], Any]) -> Arrays:
    """The tensors of a twin whose modules have the names of ours."""
    return {
        ".".join((*path[1:-1], _LEAVES[path[-1]])): laid_out(path[-1], x)
        for path, x in variables.items()
    }


def laid_out(leaf: str, x: Any) -> np.ndarray:
    """A kernel with its outputs first, as PyTorch has it; other leaves as they are."""
    x = np.asarray(x)
    if leaf != "kernel":
        return x
    *space, inputs, outputs = range(x.ndim)
    return x.transpose(outputs, inputs, *space)


_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "embedding": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}


def _moved(params: Any) -> Any:
    """Weights that are all different: heads and biases begin with zeros."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    moved = [
        x + 0.02 * jax.random.normal(key, x.shape)
        for x, key in zip(leaves, keys, strict=True)
    ]
    return jax.tree.unflatten(tree, moved)


def _leaves(variables: Any) -> dict[tuple[str, ...], Any]:
    leaves = jax.tree_util.tree_leaves_with_path(variables)
    return {tuple(key.key for key in path): leaf for path, leaf in leaves}


def _runs(kept: list[int]) -> tuple[tuple[int, int], ...]:
    """Neighbours together: [0, 1, 4, 5] -> ((0, 2), (4, 6))."""
    groups = itertools.groupby(enumerate(kept), lambda pair: pair[1] - pair[0])
    runs = []
    for _, group in groups:
        members = [index for _, index in group]
        runs.append((members[0], members[-1] + 1))
    return tuple(runs)
