"""Recurrent memories of memax, in Linen, each a scan over a semigroup."""

from typing import Any

import jax
import jax.numpy as jnp

from experiments.benchmarks.families.family import Family, Network, image, load
from experiments.benchmarks.families.frameworks import stirred


def memory(kind: str) -> Network:
    """Two residual layers of a memory; the sequence restarts in its middle."""
    package = load("memax.linen.train_utils")
    (model,) = package.get_residual_memory_models(
        hidden=64, output=5, models=[kind], model_kwargs={}
    ).values()
    x, start = image(12, 8), jnp.arange(12) % 7 == 0
    carry = model.zero_carry()
    variables = model.init(jax.random.key(0), carry, (x, start))

    def function(variables: Any, x: jax.Array, start: jax.Array) -> jax.Array:
        carry = model.apply(variables, method="initialize_carry")
        return model.apply(variables, carry, (x, start))[1]

    return Network(model=function, variables=stirred(variables), inputs=(x, start))


FAMILIES = tuple(
    Family(
        name=name,
        package="memax",
        module="memax",
        build=lambda kind=kind: memory(kind),
    )
    for name, kind in {
        "linear attention": "FART",
        "LRU": "LRU",
        "S6": "S6",
        "GRU": "GRU",
    }.items()
)
