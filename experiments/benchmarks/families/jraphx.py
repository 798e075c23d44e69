"""Graph networks of JraphX, in NNX."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.benchmarks.families.family import Family, Network, image, load
from experiments.benchmarks.families.frameworks import from_nnx

NODES, EDGES = 10, 24


def graph_network(kind: str, **settings: Any) -> Network:
    """Three layers of messages over one graph."""
    ends = np.random.default_rng(0).integers(0, NODES, (2, EDGES))
    model = getattr(load("jraphx.nn.models"), kind)(
        8, 64, num_layers=3, out_features=5, rngs=nnx.Rngs(0), **settings
    )
    return from_nnx(model, image(NODES, 8), jnp.asarray(ends))


def _family(name: str, *, maskable: bool = True, **settings: Any) -> Family:
    return Family(
        name=name,
        package="jraphx",
        module="jraphx",
        build=lambda: graph_network(name, **settings),
        maskable=maskable,
    )


FAMILIES = (
    _family("GCN"),
    _family("GAT", maskable=False, heads=4),
    _family("GraphSAGE"),
    _family("GIN"),
)
