"""The parts that a network needs for the proofs.

A citizen is a network in the user's form (`model`), the same network built narrow by
hand (`by_hand`: the same class with smaller numbers), and the weights of the narrow
one cut by hand (`narrow_by_hand`: index sets written out, no plan involved). The index
sets have three forms only: `lead`, `beside` and `within`.
"""

import dataclasses
import functools
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax import nnx

Tree = Any
Model = nn.Module | nnx.Module | Callable[..., Any]
RATES = (0.25, 0.5, 0.75, 1.0)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Citizen:
    """A network with everything that the proofs need."""

    name: str
    model: Model
    inputs: tuple[np.ndarray, ...]
    by_hand: Callable[[float], Model]
    """The network at a rate; at 1.0 the one that rate 1 must equal bit for bit."""
    narrow_by_hand: Callable[[Tree, float], Tree]
    """Full variables in upgraded form, rate -> the variables of `by_hand(rate)`."""
    init: Callable[[jax.Array], Tree] | None = None
    """For a plain function: key -> variables. A module has its own."""
    call: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    groups: int = 8
    norm: str = "group"
    not_maskable: str = ""
    """Why outgoing weights of zero are not the same as dropping; empty: they are."""
    not_permutable: str = ""
    """Why permuted weights do not give the same output; empty: they do."""
    has_batch_stats: bool = False

    def __str__(self) -> str:
        return self.name

    def variables(self) -> Tree:
        """Random variables of `model`: zeros and ones could hide a fault."""
        tree = shaken(_init(self.model, self.init, self.inputs, self.call))
        if self.norm == "group" and "batch_stats" in tree:  # fresh: nothing lost
            tree["batch_stats"] = jax.tree_util.tree_map_with_path(
                lambda path, x: np.full_like(x, path[-1].key == "var"),
                tree["batch_stats"],
            )
        return tree

    def arguments(self) -> tuple[Any, ...]:
        """Arguments of `upgrade`: model, variables unless it has them, inputs."""
        if isinstance(self.model, nnx.Module):
            return self.model, *self.inputs
        return self.model, self.variables(), *self.inputs

    def upgraded_by_hand(self) -> Tree:
        """Random variables in the form that `upgrade` must give them."""
        model = self.by_hand(1.0) if self.norm == "group" else self.model
        tree = _init(model, self.init, self.inputs, self.call)
        if self.norm == "switchable":
            tree = {name: _one_for_each_rate(part) for name, part in tree.items()}
        return shaken(tree)

    def run_by_hand(self, rate: float, variables: Tree) -> Any:
        """The output of the network built narrow by hand, compiled once a rate."""
        return _compiled_by_hand(self, rate)(variables, *self.inputs)

    def function_by_hand(self, rate: float) -> Callable[..., Any]:
        """`by_hand(rate)` as a function of (variables, *inputs, **more keywords)."""
        model = self.by_hand(rate)
        return functools.partial(apply_of(model), **self.call)


def apply_of(model: Model) -> Callable[..., Any]:
    """A module's apply, or the function itself."""
    if isinstance(model, nnx.Module):
        return functools.partial(_apply_nnx, model)
    return model.apply if isinstance(model, nn.Module) else model


_COLLECTIONS = {nnx.Param: "params", nnx.BatchStat: "batch_stats"}


def variables_of(model: nnx.Module) -> Tree:
    """The arrays of an NNX model by collection and path, without random streams."""
    tree: Tree = {}
    for path, variable in nnx.to_flat_state(nnx.state(model)):
        if type(variable) in _COLLECTIONS:
            branch = tree.setdefault(_COLLECTIONS[type(variable)], {})
            for part in path[:-1]:
                branch = branch.setdefault(str(part), {})
            branch[path[-1]] = variable[...]
    return tree


def with_variables(model: nnx.Module, variables: Tree) -> nnx.Module:
    """A copy of an NNX model with the arrays of such a tree."""
    graphdef, state = nnx.split(model)
    leaves = []
    for path, variable in nnx.to_flat_state(state):
        value: Any = variable[...]
        if type(variable) in _COLLECTIONS:
            value = variables[_COLLECTIONS[type(variable)]]
            for part in path:
                value = value[str(part)]
        leaves.append((path, variable.replace(value)))
    return nnx.merge(graphdef, nnx.from_flat_state(leaves))


def compiled(model: nnx.Module, *inputs: Any) -> Any:
    """The output of an NNX model, with its arrays as arguments of one program."""
    graphdef, state = nnx.split(model)

    @jax.jit
    def run(state: Any, *inputs: Any) -> Any:
        merged: Any = nnx.merge(graphdef, state)
        return merged(*inputs)

    return run(state, *inputs)


def _apply_nnx(
    model: nnx.Module,
    variables: Tree,
    *inputs: Any,
    train: bool = False,
    mutable: Any = (),
) -> Any:
    copy: Any = with_variables(model, variables)
    copy.train() if train else copy.eval()
    y = copy(*inputs)
    return (y, {"batch_stats": variables_of(copy)["batch_stats"]}) if mutable else y


@functools.cache
def _compiled_by_hand(citizen: Citizen, rate: float) -> Callable[..., Any]:
    return jax.jit(citizen.function_by_hand(rate))


def _init(model: Model, init: Any, inputs: tuple[Any, ...], call: Any) -> Tree:
    key = jax.random.key(0)
    if isinstance(model, nnx.Module):
        return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), variables_of(model))
    if not isinstance(model, nn.Module):
        return init(key)
    arguments = {name: value for name, value in call.items() if name != "rngs"}
    start = functools.partial(model.init, **arguments)
    shapes = jax.eval_shape(start, {"params": key, "dropout": key}, *inputs)
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)


def _one_for_each_rate(tree: Tree) -> Tree:
    """Under norm='switchable' each leaf dict of a norm has one copy for each rate."""
    if {"scale", "bias"} == set(tree) or {"mean", "var"} == set(tree):
        return {str(rate): tree for rate in RATES}
    return {
        name: _one_for_each_rate(part) if isinstance(part, dict) else part
        for name, part in tree.items()
    }


def shaken(tree: Tree) -> Tree:
    """The tree with random leaves, each drawn from its own path's generator."""

    def draw(path: Any, leaf: Any) -> np.ndarray:
        name = jax.tree_util.keystr(path)
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        noise = rng.normal(size=np.shape(leaf))
        if name.endswith(("['var']", "['scale']")):
            return np.exp(0.3 * noise).astype(np.float32)
        fan_in = max(1, int(np.prod(np.shape(leaf)[:-1])))
        scale = 0.3 if np.ndim(leaf) < 2 else 1.5 / np.sqrt(fan_in)
        return (scale * noise).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, tree)


def random_inputs(*shape: int, seed: int = 0) -> np.ndarray:
    """Standard normal float32 numbers."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def random_tokens(*shape: int, below: int, seed: int = 0) -> np.ndarray:
    """Token ids, int32, in [0, below)."""
    return np.random.default_rng(seed).integers(below, size=shape).astype(np.int32)


# Index sets of the units that a rate keeps.


def part_of(size: int, rate: float) -> int:
    """`size * rate`, an integer for the citizens."""
    count = size * rate
    assert count == int(count), f"{size} units at rate {rate} are not whole"
    return int(count)


def lead(size: int, rate: float) -> np.ndarray:
    """A plain axis: the leading part."""
    return np.arange(part_of(size, rate))


def beside(*segments: tuple[int, np.ndarray]) -> np.ndarray:
    """A concatenation of (size, kept): each segment keeps its own indices."""
    starts = np.cumsum([0] + [size for size, _ in segments])
    kept = [start + part for start, (_, part) in zip(starts, segments, strict=False)]
    return np.concatenate(kept)


def within(outer: np.ndarray, inner_size: int, inner: np.ndarray) -> np.ndarray:
    """A product of two axes: every kept outer index with every kept inner one."""
    return (outer[:, None] * inner_size + inner).ravel()


def everything(size: int) -> np.ndarray:
    """A fixed axis."""
    return np.arange(size)


# Leaves and layers cut at such index sets.


def cut(leaf: Any, *kept: np.ndarray) -> np.ndarray:
    """The leaf at the kept indices of its last axes; earlier axes are fixed."""
    leaf = np.asarray(leaf)
    for axis, indices in zip(range(-len(kept), 0), kept, strict=True):
        leaf = np.take(leaf, indices, axis)
    return leaf


def kernel(layer: Tree, inputs: np.ndarray, outputs: np.ndarray) -> Tree:
    """A dense or convolution layer: kernel (..., in, out), and bias (out) if any."""
    narrow = {"kernel": cut(layer["kernel"], inputs, outputs)}
    if "bias" in layer:
        narrow["bias"] = cut(layer["bias"], outputs)
    return narrow


def vectors(layer: Tree, kept: np.ndarray) -> Tree:
    """A norm or a bias: every leaf has this one axis."""
    return {name: cut(leaf, kept) for name, leaf in layer.items()}
