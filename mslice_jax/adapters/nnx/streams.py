"""Random streams of NNX models: their names, and keys for a call."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx


def streams(model: nnx.Module) -> dict[str, nnx.RngStream]:
    """A new random stream for each name of the streams of the model."""
    found: dict[str, nnx.RngStream] = {}
    for _, node in nnx.iter_graph(model):
        if isinstance(node, nnx.RngStream) and node.tag not in found:
            key = jnp.ravel(node.key[...])[0]  # stacked layers have stacked keys
            found[node.tag] = nnx.RngStream(key, tag=node.tag)
    return found


def reseed(model: nnx.Module, rngs: Any) -> dict[str, Any]:
    """Sets the streams of the model from these keys; returns the keys by stream."""
    if isinstance(rngs, (nnx.Rngs, nnx.RngStream)):
        raise TypeError(
            "rngs is a key, or a dict from stream to key, so that a call is a function "
            f"of its arguments; got nnx.{type(rngs).__name__}. Pass "
            "rngs={'dropout': rngs.dropout()}."
        )
    keys = dict(rngs) if isinstance(rngs, Mapping) else {"default": rngs}
    if not keys:
        return {}
    keys.setdefault("default", next(iter(keys.values())))
    nodes = [n for _, n in nnx.iter_graph(model) if isinstance(n, nnx.RngStream)]
    names = {node.tag for node in nodes}
    known = {name: keys[name] for name in names if name in keys}
    # A key for all streams was given as such: those without their own take it.
    if not isinstance(rngs, Mapping) or "default" in rngs:
        known |= dict.fromkeys(names - known.keys(), keys["default"])
    nnx.reseed(model, policy="match_shape", **known)
    # A Linen module of the bridge is given a draw of each stream, "params" too,
    # which only its `init` uses.
    unused = {id(node) for node in _bridged_streams(model) if node.tag == "params"}
    for node in nodes:
        if node.tag not in known and id(node) not in unused:
            object.__setattr__(node, "__class__", _Keyless)
            lacking: Any = node
            lacking.missing = tuple(sorted(names - known.keys()))
            lacking.given = tuple(sorted(rngs))
    return keys


def _bridged_streams(model: nnx.Module) -> list[nnx.RngStream]:
    """The streams that belong to Linen modules within the model."""
    bridges = [n for _, n in nnx.iter_graph(model) if isinstance(n, nnx.bridge.ToNNX)]
    owned = [bridge.to_nnx__rngs for bridge in bridges if bridge.to_nnx__rngs]
    nodes = (node for rngs in owned for _, node in nnx.iter_graph(rngs))
    return [node for node in nodes if isinstance(node, nnx.RngStream)]


class _Keyless(nnx.RngStream):
    """A stream to which a call gave no key though it gave some to others."""

    missing: tuple[str, ...]
    given: tuple[str, ...]

    def __call__(self) -> jax.Array:
        raise ValueError(
            f"the model draws from the random stream {self.tag!r}; expected a key for "
            f"it, got keys for {', '.join(self.given)} alone. Streams without a key: "
            f"{', '.join(self.missing)}. Pass rngs={{{self.tag!r}: key, ...}}, or one "
            "key for all: rngs=key."
        )
