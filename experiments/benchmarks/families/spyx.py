"""Spiking networks and state spaces of spyx, in NNX.

A spike is a step with a custom derivative (`custom_jvp` or `custom_vjp`).
"""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from experiments.benchmarks.families.family import Family, Network, image, load
from experiments.benchmarks.families.frameworks import from_nnx

WIDTH, STEPS = 64, 12


def spiking(kind: str) -> Network:
    """Two layers of spiking neurons over time, and a leaky integrator."""
    snn, rngs = load("spyx.nn"), nnx.Rngs(0)
    neuron = getattr(snn, kind)
    model = snn.Sequential(
        nnx.Linear(4, WIDTH, rngs=rngs),
        neuron((WIDTH,), rngs=rngs),
        nnx.Linear(WIDTH, WIDTH, rngs=rngs),
        neuron((WIDTH,), rngs=rngs),
        nnx.Linear(WIDTH, 3, rngs=rngs),
        snn.LI((3,), rngs=rngs),
    )
    return from_nnx(
        model,
        5 * image(STEPS, 2, 4),
        method=lambda model, x: snn.run(model, x)[0],
    )


def state_space(make: Callable[[Any, nnx.Rngs], nnx.Module]) -> Network:
    """Two layers of a state space with norms; time comes first."""
    ssm, rngs = load("spyx.ssm"), nnx.Rngs(0)

    class Layers(nnx.Module):
        def __init__(self) -> None:
            self.first = nnx.Linear(4, WIDTH, rngs=rngs)
            self.norms = nnx.List([nnx.LayerNorm(WIDTH, rngs=rngs) for _ in "12"])
            self.layers = nnx.List([make(ssm, rngs) for _ in "12"])
            self.last = nnx.Linear(WIDTH, 3, rngs=rngs)

        def __call__(self, x: jax.Array) -> jax.Array:
            x = self.first(x)
            for norm, layer in zip(self.norms, self.layers, strict=True):
                x = x + jax.nn.gelu(layer(norm(x)))
            return self.last(x)

    return from_nnx(Layers(), image(STEPS, 2, 4))


def _family(name: str, build: Callable[[], Network], **settings: Any) -> Family:
    return Family(name=name, package="spyx", module="spyx", build=build, **settings)


FAMILIES = (
    _family("LIF", lambda: spiking("LIF"), maskable=True),
    _family("ALIF", lambda: spiking("ALIF"), maskable=True),
    _family("RLIF", lambda: spiking("RLIF"), maskable=True),
    _family("S5", lambda: state_space(lambda s, r: s.S5Diag(WIDTH, 64, rngs=r))),
    _family("LRU", lambda: state_space(lambda s, r: s.LRU(WIDTH, 64, rngs=r))),
    _family("Mamba", lambda: state_space(lambda s, r: s.MambaBlock(WIDTH, rngs=r))),
)
