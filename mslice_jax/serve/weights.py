"""Weights as a server takes them: on one device, and like those that are served."""

from typing import Any

import jax
import jax.numpy as jnp

from ..core.paths import path_name
from .saved import Served


def device_of(net: Served) -> Any:
    """The device that the weights are on.

    Raises:
      ValueError: if they are types, or on several devices.
    """
    leaves = jax.tree.leaves(net.variables)
    if any(isinstance(x, jax.ShapeDtypeStruct) for x in leaves):
        raise ValueError("expected a network with weights; this one consists of types.")
    each = [x.devices() for x in leaves if isinstance(x, jax.Array)]
    devices = set[Any]().union(*each)
    if len(devices) > 1:
        raise ValueError(
            f"an executor runs on one device; the weights are on {len(devices)}. Put "
            "them on one: jax.device_put(net, jax.devices()[0])."
        )
    return devices.pop() if devices else jax.devices()[0]


def placed(variables: Any, device: Any) -> list[jax.Array]:
    """The leaves on the device; arrays that are there already are not copied."""

    def place(x: Any) -> jax.Array:
        if not jnp.issubdtype(x.dtype, jax.dtypes.extended):
            x = jnp.asarray(x, x.dtype)  # of a type that is not weak
        return jax.device_put(x, device)

    return [place(x) for x in jax.tree.leaves(variables)]


def check_like(types: Any, variables: Any) -> None:
    """Raises ValueError if variables differ from types in structure, shape or dtype."""
    wanted, got = _described(types), _described(variables)
    wrong = [
        f"  {name}: expected {wanted.get(name, 'nothing')}, "
        f"got {got.get(name, 'nothing')}"
        for name in [*wanted, *(got.keys() - wanted.keys())]
        if wanted.get(name) != got.get(name)
    ]
    if wrong:
        raise ValueError(
            "the new weights do not fit those that are served, which stay:\n"
            + "\n".join(wrong[:8])
        )
    if jax.tree.structure(types) != jax.tree.structure(variables):
        raise ValueError(
            "the new weights have the leaves of those that are served, but in another "
            "kind of tree; pass one like net.variables. Those that are served stay."
        )


def _described(tree: Any) -> dict[str, str]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {path_name(path): _type(x) for path, x in leaves}


def _type(x: Any) -> str:
    if not hasattr(x, "shape") or not hasattr(x, "dtype"):
        return type(x).__name__
    return f"{x.dtype}{list(x.shape)}"
