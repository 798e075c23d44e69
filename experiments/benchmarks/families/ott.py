"""Networks of optimal transport of OTT, in Linen and NNX."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.benchmarks.families.family import Family, Network, image, load
from experiments.benchmarks.families.frameworks import from_linen, from_nnx

VELOCITIES = "ott.neural.networks.velocity_field"


def convex() -> Network:
    """A potential that is convex in its input, and its gradient, the transport."""
    model = load("ott.neural.networks.icnn").ICNN(
        dim_data=4, dim_hidden=(128, 128, 128), pos_weights=True
    )
    x = image(6, 4)
    variables = from_linen(model, x[0], own=True).variables

    def function(variables: Any, x: jax.Array) -> Any:
        return jax.vmap(jax.value_and_grad(lambda x: model.apply(variables, x)))(x)

    return Network(model=function, variables=variables, inputs=(x,))


def velocity() -> Network:
    """The velocity of a flow that moves points, by a perceptron."""
    model = load(f"{VELOCITIES}.mlp").MLP(4, hidden_dims=[64, 64, 64], rngs=nnx.Rngs(0))
    return from_nnx(model, image(6), image(6, 4))


def unet() -> Network:
    """The velocity of a flow that moves images, by a U-Net with attention."""
    model = load(f"{VELOCITIES}.unet").UNet(
        shape=(8, 8, 3),
        model_channels=32,
        num_res_blocks=1,
        attention_resolutions=(2,),
        channel_mult=(1, 2),
        num_heads=4,
        rngs=nnx.Rngs(0),
    )
    return from_nnx(model, jnp.asarray([0.2, 0.7]), image(2, 8, 8, 3))


def _family(name: str, build: Callable[[], Network], **settings: Any) -> Family:
    return Family(name=name, package="ott-jax", module="ott", build=build, **settings)


FAMILIES = (
    _family("ICNN", convex, maskable=True),
    _family("velocity (MLP)", velocity, maskable=True),
    # Groups of its norms straddle the parts of a skip connection, which fixes them.
    _family("velocity (U-Net)", unet, at_most=0.4),
)
