"""Normalizing flows of FlowJAX, in Equinox: the density of a batch of points."""

from typing import Any

import jax
import jax.numpy as jnp

from experiments.benchmarks.families.family import Family, Network, image, load
from experiments.benchmarks.families.frameworks import from_equinox

DIMENSION = 4


def flow(kind: str, **settings: Any) -> Network:
    """Two layers that transform a standard normal distribution."""
    model = getattr(load("flowjax.flows"), kind)(
        jax.random.key(0),
        base_dist=load("flowjax.distributions").Normal(jnp.zeros(DIMENSION)),
        flow_layers=2,
        **settings,
    )
    return from_equinox(
        model, lambda model, x: model.log_prob(x), 2 * image(6, DIMENSION) - 1
    )


def _splines() -> Any:
    return load("flowjax.bijections").RationalQuadraticSpline(knots=4, interval=3)


def _family(name: str, kind: str, **settings: Any) -> Family:
    return Family(
        name=name,
        package="flowjax",
        module="flowjax",
        build=lambda: flow(
            kind, **{k: v() if callable(v) else v for k, v in settings.items()}
        ),
        maskable=True,
    )


WIDE = {"nn_width": 64, "nn_depth": 2}
FAMILIES = (
    _family("coupling flow", "coupling_flow", **WIDE),
    _family(
        "coupling flow (splines)",
        "coupling_flow",
        transformer=_splines,
        nn_width=128,
        nn_depth=3,
    ),
    _family("autoregressive flow", "masked_autoregressive_flow", **WIDE),
)
