"""Network families, and random weights for them."""

import dataclasses
import importlib
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

Tree = Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Network:
    """A network to upgrade: `model` and `variables` as `mslice_jax.upgrade` takes them.

    Attributes:
      model: a Linen module, an NNX model, or a function fn(variables, *inputs, **call).
      variables: a tree of arrays; the state of an NNX model.
      inputs: arrays.
      call: keyword arguments of every call.
    """

    model: Any
    variables: Tree
    inputs: tuple[Any, ...]
    call: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def function(self) -> Callable[..., Any]:
        """The original as a function of variables and inputs."""
        if not isinstance(self.model, nnx.Module):
            return getattr(self.model, "apply", self.model)
        graphdef = nnx.graphdef(self.model)

        def function(state: Tree, *inputs: Any, method: Any = None, **call: Any) -> Any:
            model = nnx.merge(graphdef, state)
            return (method or type(model).__call__)(model, *inputs, **call)

        return function

    @property
    def arguments(self) -> tuple[Any, ...]:
        """Arguments of `mslice_jax.upgrade`; an NNX model holds its variables."""
        if isinstance(self.model, nnx.Module):
            return self.model, *self.inputs
        return self.model, self.variables, *self.inputs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """An architecture of a package, and how to build a small member of it.

    Attributes:
      name: as its authors call it.
      package: the name to install.
      module: the name to import.
      build: makes the network; imports the package.
      maskable: whether no mean and no softmax runs over an axis that narrows, so that
        the narrow network equals the full one with zeros for its dropped units.
      at_most: the share of its parameters that rate .5 may keep: a quarter, and that of
        inputs, outputs and windows. Where it is more, a comment says why.
      quick: whether all its proofs take seconds.
    """

    name: str
    package: str
    module: str
    build: Callable[[], Network]
    maskable: bool = False
    at_most: float = 0.3
    quick: bool = False

    def __str__(self) -> str:
        return f"{self.package}:{self.name}"


NEAR_ONE = "scale", "gamma", "var", "weight"
"""Parts of the names of scales and variances."""


def drawn(types: Tree, seed: int = 0) -> Tree:
    """Random variables for a tree of types, without running an initializer.

    The last axis counts the outputs. Kernels of convolutions have variance 2 / fan in,
    other arrays of two axes and more 1 / fan in (with more, softmax over unscaled
    products nears a step, and rounding shows). Scales and variances are near 1,
    everything else is near 0. No two units are alike, so that a proof notices a swap of
    two.
    """
    rng = np.random.default_rng(seed)

    def draw(path: Any, leaf: Any) -> Any:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return jnp.zeros(leaf.shape, leaf.dtype)
        noise = rng.standard_normal(leaf.shape, np.float32)
        name = jax.tree_util.keystr(path[-2:], simple=True, separator="/")
        vector = max(leaf.shape, default=1) == np.prod(leaf.shape)
        if vector and any(word in name for word in NEAR_ONE):
            value = 1 + 0.2 * np.tanh(noise)
        elif vector:
            value = 0.1 * noise
        else:
            gain = 2 if len(leaf.shape) > 3 else 1
            value = noise * np.sqrt(gain / np.prod(leaf.shape[:-1]))
        return jnp.asarray(value, leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, types)


def load(module: str) -> Any:
    """An optional package, which type checkers need not find."""
    return importlib.import_module(module)


def image(*shape: int) -> jax.Array:
    """A random image in [0, 1]."""
    rng = np.random.default_rng(zlib.crc32(repr(shape).encode()))
    return jnp.asarray(rng.uniform(size=shape).astype(np.float32))


def tokens(*shape: int, vocabulary: int = 90) -> jax.Array:
    """Random token numbers in [5, vocabulary), so that none is a special token."""
    rng = np.random.default_rng(zlib.crc32(repr(shape).encode()))
    return jnp.asarray(rng.integers(5, vocabulary, shape, dtype=np.int32))
