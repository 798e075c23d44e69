"""Networks from the modules of Equinox, as its examples build them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from experiments.benchmarks.families.family import Family, Network, drawn, image, load


def as_network(make: Callable[[], Any], *inputs: Any, **call: Any) -> Network:
    """An Equinox module for one example as a function of its arrays and of a batch.

    Args:
      make: builds the module; run abstractly, its arrays are drawn afterwards.
      *inputs: a batch of the module's inputs.
      **call: keyword arguments of the module.
    """
    equinox = load("equinox")
    arrays, static = equinox.partition(equinox.filter_eval_shape(make), _is_floating)

    def function(arrays: Any, *batch: Any) -> Any:
        module = equinox.combine(arrays, static)
        return jax.vmap(lambda *example: module(*example, **call))(*batch)

    return Network(model=function, variables=drawn(arrays), inputs=inputs)


def _is_floating(x: Any) -> bool:
    return isinstance(x, jax.ShapeDtypeStruct) and jnp.issubdtype(x.dtype, jnp.floating)


def mlp() -> Network:
    """Three dense layers."""
    nn, key = load("equinox").nn, jax.random.key(0)
    return as_network(lambda: nn.MLP(20, 10, 256, 2, key=key), image(4, 20))


def convolutional() -> Network:
    """Two convolutions and two dense layers, flattened in between."""
    nn, keys = load("equinox").nn, jax.random.split(jax.random.key(0), 4)

    def make() -> Any:
        return nn.Sequential(
            [
                nn.Conv2d(1, 32, 3, key=keys[0]),
                nn.MaxPool2d(2, 2),
                nn.Lambda(jax.nn.relu),
                nn.Conv2d(32, 64, 3, key=keys[1]),
                nn.Lambda(jax.nn.relu),
                nn.Lambda(jnp.ravel),
                nn.Linear(64 * 5 * 5, 128, key=keys[2]),
                nn.Lambda(jax.nn.relu),
                nn.Linear(128, 10, key=keys[3]),
            ]
        )

    return as_network(make, image(2, 1, 16, 16))


def recurrent() -> Network:
    """A GRU over a sequence, and a dense layer on its last state."""
    equinox, (key, other) = load("equinox"), jax.random.split(jax.random.key(0))

    class Recurrent(equinox.Module):
        cell: Any
        linear: Any

        def __call__(self, sequence: jax.Array) -> jax.Array:
            def step(state: jax.Array, x: jax.Array) -> tuple[jax.Array, None]:
                return self.cell(x, state), None

            state, _ = jax.lax.scan(step, jnp.zeros(self.cell.hidden_size), sequence)
            return self.linear(state)

    nn = equinox.nn
    return as_network(
        lambda: Recurrent(nn.GRUCell(8, 64, key=key), nn.Linear(64, 5, key=other)),
        image(2, 12, 8),
    )


def _family(name: str, build: Callable[[], Network]) -> Family:
    return Family(
        name=name,
        package="equinox",
        module="equinox",
        build=build,
        maskable=True,
        quick=True,
    )


FAMILIES = (
    _family("MLP", mlp),
    _family("CNN", convolutional),
    _family("GRU", recurrent),
)
