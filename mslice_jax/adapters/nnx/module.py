"""Sliceable networks as NNX models: at one narrow width, or with a static rate."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ...core.call import is_array, keywords
from ..norms import SHARED
from .function import CONSTANTS, NnxFunction, read
from .sizes import set_sizes
from .streams import streams


class SliceableModel(nnx.Module):
    """A sliceable network as an NNX model whose call takes a static rate.

    Its parameters are `nnx.Param`s at their full size, so that `nnx.grad`, `nnx.jit`
    and `nnx.Optimizer` treat it as any model; batch statistics are written in place,
    the narrow part of them. `train()` and `eval()` set the mode. Random streams move on
    with each call, unless the call is given `rngs`.

    The weights are sliced in every call: wrap it in `nnx.jit`, or use `to_nnx` to serve
    one rate.

    Attributes:
      variables: the tree of `Sliceable.variables`, of `nnx.Variable`s.
      deterministic: True after `eval()`, False after `train()`, None for the mode that
        the model was upgraded in.
    """

    def __init__(self, net: Any):
        function = _function(net)
        self.structure = jax.tree.structure(net)
        self.deterministic: bool | None = None
        self.variables = nnx.data(
            {
                collection: jax.tree.map(_variable_type(collection), tree)
                for collection, tree in net.variables.items()
            }
        )
        model = function.model(function.select(net.variables, net.rates[-1]))
        self.streams = nnx.data(streams(model))

    def __call__(
        self,
        *inputs: Any,
        rate: Any = None,
        call: Mapping[str, Any] | None = None,
        **call_kwargs: Any,
    ) -> Any:
        """Runs at the rate, by default the widest; the rest goes to the network.

        A keyword of the network's own that is named `rate` is given as
        ``call={"rate": ...}``, as in `upgrade`.
        """
        kwargs = keywords(call, call_kwargs)
        net = self.sliceable()
        rate = net.rates[-1] if rate is None else rate
        if self.deterministic is not None:
            kwargs.setdefault("train", not self.deterministic)
        if self.streams and "rngs" not in kwargs:
            kwargs["rngs"] = {name: draw() for name, draw in self.streams.items()}
        states = [name for name in self.variables if name not in ("params", CONSTANTS)]
        if not states:
            return net(rate, *inputs, **kwargs)
        y, updates = net(rate, *inputs, **kwargs, mutable=states)
        for name, tree in updates.items():
            jax.tree.map(
                lambda variable, x: variable.set_value(x),
                self.variables[name],
                tree,
                is_leaf=_is_variable,
            )
        return y

    def sliceable(self) -> Any:
        """The network, a `Sliceable`, with the arrays that this model has now."""
        variables = jax.tree.leaves(self.variables, is_leaf=_is_variable)
        return self.structure.unflatten([each.get_value() for each in variables])


def to_nnx(small: Any) -> Any:
    """The narrow network as a model of the class that `upgrade` was given.

    Its arrays are those of the network, of switchable norms the set of its rate; the
    layers of Flax in it have the sizes of these arrays. Batch norms under
    norm='group' are group norms. The model is compared with `slice_apply` before it is
    returned.

    Args:
      small: a `Sliceable` of an NNX model, from `extract`.

    Returns:
      An NNX model, in the mode (`train` or `eval`) that the original was in.

    Raises:
      ValueError: if a module of it computes with a size that is written into it.
    """
    function = _function(small)
    model = _narrow_model(small)
    shaken = small.replace(jax.tree.map(_shaken, small.variables))
    call = small.definition.call
    args, kwargs = call.join([_random(x) for x in small.definition.arrays])
    kwargs.pop("mutable", None)
    if "rngs" not in kwargs and function.streams():
        # From keys of its own the network keeps a part of the wide draw, while the
        # model draws as many numbers as it needs.
        kwargs["rngs"] = jax.random.key(0)
    expected = shaken(small.part, *args, **kwargs)
    try:
        other = _narrow_model(shaken)
        tree, leaves = read(other)
        alone = replace(
            function,
            graphdef=nnx.graphdef(other),
            leaves=leaves,
            norm=SHARED,
            calibrated=False,
        )
        statics, arrays = call.split(args, kwargs)

        def run(tree: Any, arrays: Any) -> Any:
            args, kwargs = statics.join(arrays)
            return alone(tree, small.part.rate, *args, **kwargs)

        got = jax.jit(run)(tree, arrays)
        _check_close(got, expected)
    except Exception as error:
        name = type(model).__name__
        raise ValueError(
            f"{name} does not run at rate {small.part} as slice_apply does: {error}\n"
            f"A module of {name} computes with a size that is written into it. Read it "
            "from the shape of an array there; or use `net.module`, an NNX "
            "model that slices itself; or build the narrow model yourself and fill it "
            "from `extract(net, rate).variables`."
        ) from error
    return model


def _function(net: Any) -> NnxFunction:
    function = net.definition.function
    assert isinstance(function, NnxFunction)  # the adapter of such networks is ours
    return function


def _narrow_model(small: Any) -> Any:
    """The model with the arrays of `small`, and sizes that fit them."""
    function, plan = _function(small), small.plan
    model = function.model(function.select(small.variables, small.part.rate))
    names = {tuple(map(str, leaf.path)): leaf.name for leaf in function.leaves}

    def axes(path: tuple[str, ...]) -> Any:
        leaf = plan.leaf(names.get(path, ()))
        return None if leaf is None else leaf.axes

    set_sizes(model, axes, plan.widths(small.part))
    return model


def _variable_type(collection: str) -> Any:
    try:
        return nnx.variable_type_from_name(collection)
    except ValueError:  # a type that Flax has no name for
        return nnx.Variable


def _is_variable(x: Any) -> bool:
    return isinstance(x, nnx.Variable)


def _shaken(x: Any) -> Any:
    """Weights without zeros, which could hide a fault; variances stay positive."""
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        return x
    rng = np.random.default_rng(x.size)
    return x + jnp.asarray(rng.uniform(0.1, 0.5, x.shape), x.dtype)


def _random(x: Any) -> Any:
    """An array of a type: normal numbers, or zeros and ones."""
    rng = np.random.default_rng(x.size)
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jax.random.split(jax.random.key(0), x.shape)
    if jnp.issubdtype(x.dtype, jnp.inexact):
        return jnp.asarray(rng.normal(size=x.shape), x.dtype)
    return jnp.asarray(rng.integers(2, size=x.shape), x.dtype)


def _check_close(got: Any, expected: Any) -> None:
    """Raises ValueError unless two trees of arrays are equal up to rounding."""
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        if not is_array(a) or not jnp.issubdtype(a.dtype, jnp.inexact):
            continue
        if a.shape != b.shape:
            raise ValueError(f"its output has shape {a.shape}, not {b.shape}.")
        far = float(jnp.max(jnp.abs(a - b), initial=0))
        scale = float(jnp.max(jnp.abs(b), initial=0))
        # A wrong size is off by far more; norms of few entries amplify rounding.
        if not far <= float(jnp.finfo(b.dtype).eps) ** 0.5 * scale:
            raise ValueError(
                f"its output is off by {far:.2g}, its largest entry is {scale:.2g}."
            )
