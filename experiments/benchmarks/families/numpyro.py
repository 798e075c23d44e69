"""Autoregressive networks of NumPyro, as pairs of functions."""

from typing import Any

import jax

from experiments.benchmarks.families.family import Family, Network, image, load
from experiments.benchmarks.families.frameworks import stirred

DIMENSION = 4


def network(kind: str, *settings: Any, **more: Any) -> Network:
    """A network that the flows of NumPyro use."""
    init, apply = getattr(load("numpyro.nn"), kind)(DIMENSION, *settings, **more)
    _, variables = init(jax.random.key(0), (DIMENSION,))
    return Network(
        model=lambda variables, x: apply(variables, x),
        variables=stirred(variables),
        inputs=(2 * image(6, DIMENSION) - 1,),
    )


def _family(name: str, **settings: Any) -> Family:
    return Family(
        name=name,
        package="numpyro",
        module="numpyro",
        build=lambda: network("AutoregressiveNN", [64, 64, 64], **settings),
        maskable=True,
    )


FAMILIES = (
    _family("autoregressive"),
    _family("autoregressive, with skips", skip_connections=True),
)
