"""Solvers of partial differential equations of PDEquinox, in Equinox."""

from typing import Any

import jax

from experiments.benchmarks.families.family import Family, Network, image, load
from experiments.benchmarks.families.frameworks import from_equinox


def solver(kind: str, **settings: Any) -> Network:
    """Two fields on 32 points to one."""
    make = getattr(load("pdequinox.arch"), kind)
    model = make(1, 2, 1, key=jax.random.key(0), **settings)
    return from_equinox(model, lambda model, x: jax.vmap(model)(x), image(2, 2, 32))


def _family(name: str, kind: str, *, maskable: bool = False, **settings: Any) -> Family:
    return Family(
        name=name,
        package="pdequinox",
        module="pdequinox",
        build=lambda: solver(kind, **settings),
        maskable=maskable,
    )


FAMILIES = (
    # Complex numbers: a Fourier transform over space, and weights for each frequency.
    _family(
        "Fourier neural operator",
        "ClassicFNO",
        maskable=True,
        hidden_channels=32,
        num_modes=8,
        num_blocks=2,
    ),
    _family("U-Net", "ClassicUNet", hidden_channels=16, num_levels=2),
    _family("U-Net (modern)", "ModernUNet", hidden_channels=16, num_levels=2),
    _family("dilated ResNet", "DilatedResNet", hidden_channels=32),
)
