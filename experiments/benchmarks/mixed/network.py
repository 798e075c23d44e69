"""The network that is served, in several versions, and all of its right answers."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import mslice_jax as ms

RATES = (0.25, 0.5, 1.0)
FEATURES, KINDS, CLASSES = 6, 5, 4
MOST_ROWS = 4
"""Of a request: the largest batch bucket."""
CLOSE = 1e-4
"""How far an answer may be from its reference: batches round differently."""


def mlp(p: Any, x: jax.Array, kind: jax.Array) -> dict[str, jax.Array]:
    """Floats (b, 6) and integers (b,) -> logits (b, 4), and the floats as they came."""
    h = jnp.tanh(x @ p["w1"] + p["by_kind"][kind])
    return {"logits": jnp.tanh(h @ p["w2"]) @ p["w3"], "same": x}


def network(version: int, hidden: int) -> ms.Sliceable:
    """The network with the weights of a version."""
    rng = np.random.default_rng(version)
    shapes = {
        "w1": (FEATURES, hidden),
        "by_kind": (KINDS, hidden),
        "w2": (hidden, hidden),
        "w3": (hidden, CLASSES),
    }
    p = {
        name: jnp.asarray(rng.normal(size=s) / s[0] ** 0.5, jnp.float32)
        for name, s in shapes.items()
    }
    x, kind = jnp.ones((1, FEATURES)), jnp.ones((1,), jnp.int32)
    return ms.upgrade(mlp, p, x, kind, rates=RATES)


@dataclasses.dataclass(frozen=True)
class Pool:
    """Rows to ask for, and what every version answers at every rate.

    Attributes:
      x, kind: the rows, (n, 6) and (n,).
      logits: (n, 4), by version and rate.
    """

    x: np.ndarray
    kind: np.ndarray
    logits: dict[tuple[int, float], np.ndarray]

    @classmethod
    def of(cls, networks: list[ms.Sliceable], rows: int = 64) -> "Pool":
        """Rows at random, and the answers of `slice_apply`.

        Raises:
          AssertionError: if two answers to a row are too near to be told apart.
        """
        rng = np.random.default_rng(99)
        x = rng.normal(size=(rows, FEATURES)).astype(np.float32)
        kind = rng.integers(0, KINDS, rows).astype(np.int32)
        logits = {
            (version, rate): np.asarray(ms.slice_apply(net, x, rate, kind)["logits"])
            for version, net in enumerate(networks)
            for rate in net.rates
        }
        # The nearest two of all answers, so that a wrong one cannot pass for right.
        every = np.concatenate([*logits.values()])
        apart = np.abs(every[:, None] - every[None]).max(-1)
        np.fill_diagonal(apart, np.inf)
        assert apart.min() > 4 * CLOSE, f"two answers differ by {apart.min():.1e} alone"
        return cls(x, kind, logits)

    def versions(self, rows: np.ndarray, rate: float, logits: np.ndarray) -> set[int]:
        """The versions that give these logits to these rows at that rate."""
        return {
            version
            for version in self._versions
            if np.abs(self.logits[version, rate][rows] - logits).max() < CLOSE
        }

    @functools.cached_property
    def _versions(self) -> set[int]:
        return {version for version, _ in self.logits}
