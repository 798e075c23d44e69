"""Modules of Linen, NNX and Equinox as a `Network`, with drawn or initial weights."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.benchmarks.families.family import Network, Tree, drawn, load


def from_linen(
    model: Any,
    *inputs: Any,
    returns: Callable[[Any], Any] | None = None,
    own: bool = False,
    **call: Any,
) -> Network:
    """A Linen module.

    Args:
      model: the module.
      *inputs: of a call.
      returns: picks arrays from the output, where it has more than arrays.
      own: whether the weights are the module's initial ones, `stirred`; for modules
        where other weights make no sense, as for the eigenvalues of a state space.
      **call: keyword arguments of a call.
    """

    def init(key: jax.Array) -> Any:
        return model.init({"params": key, "dropout": key}, *inputs, **call)

    key = jax.random.key(0)
    variables = stirred(init(key)) if own else drawn(jax.eval_shape(init, key))
    if returns is None:
        return Network(model=model, variables=variables, inputs=inputs, call=call)

    def function(variables: Tree, *inputs: Any) -> Any:
        return returns(model.apply(variables, *inputs, **call))

    return Network(model=function, variables=variables, inputs=inputs)


def from_nnx(
    model: nnx.Module,
    *inputs: Any,
    returns: Callable[[Any], Any] | None = None,
    **call: Any,
) -> Network:
    """An NNX model at its own start, `stirred`; `returns` as for `from_linen`."""
    nnx.update(model, stirred(nnx.state(model, nnx.Not(nnx.RngState))))
    if returns is not None:
        call["method"] = lambda model, *inputs: returns(model(*inputs))
    return Network(model=model, variables=nnx.state(model), inputs=inputs, call=call)


def stirred(variables: Tree, seed: int = 0) -> Tree:
    """Initial variables of a package, with no two units alike.

    Every entry moves by some hundredths of itself; arrays whose entries all start alike
    (zeros, ones) get noise besides, small enough for the outputs of a layer.
    """
    rng = np.random.default_rng(seed)

    def stir(leaf: Any) -> Any:
        leaf = jnp.asarray(leaf)
        if not jnp.issubdtype(leaf.dtype, jnp.inexact) or leaf.size == 0:
            return leaf
        noise = np.tanh(rng.standard_normal(leaf.shape))
        value = np.asarray(leaf) * (1 + 0.05 * noise)
        if np.ptp(np.abs(leaf)) == 0:
            fan_in = np.prod(leaf.shape[:-1]) if leaf.ndim > 1 else 1
            noise = rng.standard_normal((*leaf.shape, 2)) @ [1, 1j]
            noise = noise if np.iscomplexobj(leaf) else noise.real
            value = value + 0.1 * noise / np.sqrt(fan_in)
        return jnp.asarray(value, leaf.dtype)

    return jax.tree.map(stir, variables)


def from_equinox(
    module: Any, call: Callable[..., Any], *inputs: Any, own: bool = True
) -> Network:
    """A call of an Equinox module, as a function of its floating arrays.

    Args:
      module: the module; its arrays of other types stay in the function.
      call: the computation, as call(module, *inputs).
      *inputs: of a call.
      own: whether the weights are the module's initial ones, `stirred`.
    """
    equinox = load("equinox")
    arrays, static = equinox.partition(module, equinox.is_inexact_array)

    def function(arrays: Tree, *inputs: Any) -> Any:
        return call(equinox.combine(arrays, static), *inputs)

    variables = stirred(arrays) if own else drawn(arrays)
    return Network(model=function, variables=variables, inputs=inputs)
