"""Graph networks of jraph, with plain dense layers as their functions."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.families.family import Family, Network, drawn, image, load

NODES, EDGES, FEATURES, WIDTH = 10, 24, 8, 64


def as_network(layers: dict[str, int], forward: Callable[..., Any]) -> Network:
    """Two dense layers for each name in `layers` (inputs of the first), and a graph.

    `forward` takes functions by name and the graph, and returns an array.
    """
    rng = np.random.default_rng(0)
    graph = load("jraph").GraphsTuple(
        nodes=image(NODES, FEATURES),
        edges=image(EDGES, FEATURES),
        senders=jnp.asarray(rng.integers(0, NODES, EDGES)),
        receivers=jnp.asarray(rng.integers(0, NODES, EDGES)),
        n_node=jnp.asarray([6, 4]),
        n_edge=jnp.asarray([14, 10]),
        globals=image(2, FEATURES),
    )

    def shape(*size: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(size, jnp.float32)

    types = {
        name: {
            "w1": shape(inputs, WIDTH),
            "b1": shape(WIDTH),
            "w2": shape(WIDTH, WIDTH),
            "b2": shape(WIDTH),
        }
        for name, inputs in layers.items()
    }
    types["head"] = {"w": shape(WIDTH, 5)}

    def function(variables: Any, graph: Any) -> jax.Array:
        def two_layers(name: str) -> Callable[..., jax.Array]:
            p = variables[name]

            def call(*features: jax.Array) -> jax.Array:
                x = jnp.concatenate(features, axis=-1)
                return jax.nn.relu(x @ p["w1"] + p["b1"]) @ p["w2"] + p["b2"]

            return call

        calls = {name: two_layers(name) for name in layers}
        return forward(calls, graph) @ variables["head"]["w"]

    return Network(model=function, variables=drawn(types), inputs=(graph,))


def graph_network() -> Network:
    """Two rounds of message passing of edges, nodes and globals."""

    def forward(calls: Any, graph: Any) -> jax.Array:
        for step in "12":
            graph = load("jraph").GraphNetwork(
                calls["edge" + step], calls["node" + step], calls["global" + step]
            )(graph)
        return graph.nodes

    f, w = FEATURES, WIDTH
    first = {"edge1": 4 * f, "node1": f + 2 * w + f, "global1": w + w + f}
    second = {"edge2": 4 * w, "node2": 4 * w, "global2": 3 * w}
    return as_network(first | second, forward)


def interaction() -> Network:
    """Edges from their nodes, nodes from their edges."""

    def forward(calls: Any, graph: Any) -> jax.Array:
        for step in "12":
            graph = load("jraph").InteractionNetwork(
                calls["edge" + step],
                calls["node" + step],
                include_sent_messages_in_node_update=True,
            )(graph)
        return graph.nodes

    f, w = FEATURES, WIDTH
    return as_network(
        {"edge1": 3 * f, "node1": f + 2 * w, "edge2": 3 * w, "node2": 3 * w}, forward
    )


def convolution() -> Network:
    """Two graph convolutions with symmetric normalization."""

    def forward(calls: Any, graph: Any) -> jax.Array:
        for step in "12":
            graph = load("jraph").GraphConvolution(
                calls["node" + step], add_self_edges=True
            )(graph)
        return graph.nodes

    return as_network({"node1": FEATURES, "node2": WIDTH}, forward)


def attention() -> Network:
    """Two graph attention layers."""

    def forward(calls: Any, graph: Any) -> jax.Array:
        for step in "12":
            graph = load("jraph").GAT(
                calls["query" + step],
                lambda sent, received, edges, step=step: jnp.sum(
                    calls["logit" + step](sent, received), -1, keepdims=True
                ),
            )(graph)
        return graph.nodes

    layers = {"query1": FEATURES, "query2": WIDTH}
    return as_network(layers | {"logit1": 2 * WIDTH, "logit2": 2 * WIDTH}, forward)


def deep_sets() -> Network:
    """Nodes without edges, summed over each graph."""

    def forward(calls: Any, graph: Any) -> jax.Array:
        graph = load("jraph").DeepSets(calls["node"], calls["global"])(graph)
        return graph.globals

    return as_network({"node": 2 * FEATURES, "global": WIDTH}, forward)


def _family(name: str, build: Callable[[], Network]) -> Family:
    return Family(
        name=name, package="jraph", module="jraph", build=build, maskable=True
    )


FAMILIES = (
    _family("GraphNetwork", graph_network),
    _family("InteractionNetwork", interaction),
    _family("GraphConvolution", convolution),
    _family("GAT", attention),
    _family("DeepSets", deep_sets),
)
