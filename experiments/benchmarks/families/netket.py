"""Wave functions of NetKet, in Linen: most of their numbers are complex."""

import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from experiments.benchmarks.families.family import Family, Network, load
from experiments.benchmarks.families.frameworks import from_linen

SITES, SPIN = 10, 0.5


def netket() -> Any:
    """The package; by default it sets JAX to double precision."""
    os.environ.setdefault("NETKET_ENABLE_X64", "0")
    return load("netket")


def wave_function(make: Callable[[Any], Any], sites: int = SITES) -> Network:
    """A model of the amplitudes of a batch of configurations of spins."""
    spins = jnp.sign(jax.random.normal(jax.random.key(3), (4, sites)))
    return from_linen(make(netket().models), spins, own=True)


def boltzmann() -> Network:
    """A restricted Boltzmann machine with complex weights."""
    return wave_function(lambda models: models.RBM(alpha=8, param_dtype=complex))


def perceptron() -> Network:
    """A perceptron with complex weights."""
    return wave_function(
        lambda models: models.MLP(
            hidden_dims=(64, 64),
            param_dtype=complex,
            hidden_activations=load("netket").nn.activation.reim_selu,
        )
    )


def deep_set() -> Network:
    """A set of sites: one perceptron for each, one for their sum."""
    return wave_function(
        lambda models: models.DeepSetMLP(
            features_phi=(64, 64), features_rho=(64,), param_dtype=jnp.float32
        )
    )


def group_convolution(mode: str) -> Network:
    """A network that is invariant under translations and reflections of a chain."""
    package = netket()
    chain = package.graph.Chain(SITES)
    return wave_function(
        lambda models: models.GCNN(
            symmetries=chain, layers=3, features=16, mode=mode, param_dtype=complex
        )
    )


def autoregressive(kind: str, **sizes: Any) -> Network:
    """Amplitudes as a product of conditional ones, each given the sites before."""
    space = netket().hilbert.Spin(SPIN, SITES)
    return wave_function(
        lambda models: getattr(models, kind)(
            hilbert=space, layers=3, param_dtype=jnp.float32, **sizes
        )
    )


def _family(name: str, build: Callable[[], Network], **settings: Any) -> Family:
    return Family(name=name, package="netket", module="netket", build=build, **settings)


FAMILIES = (
    # One layer of units between the sites and their sum.
    _family("RBM (complex)", boltzmann, maskable=True, at_most=0.55),
    _family("MLP (complex)", perceptron, maskable=True),
    _family("DeepSet", deep_set, maskable=True),
    _family("GCNN irrep (complex)", lambda: group_convolution("irreps")),
    _family("GCNN FFT (complex)", lambda: group_convolution("fft")),
    _family("ARNN dense", lambda: autoregressive("ARNNDense", features=32)),
    _family(
        "ARNN convolution",
        lambda: autoregressive("ARNNConv1D", features=32, kernel_size=3),
    ),
)
