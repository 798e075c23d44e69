"""Blocks that are complex inside."""

import random

from tests.fuzz.blocks.numbers import count
from tests.fuzz.builder import WIDTHS, Builder, block


@block(2, 3, 4, often=3)
def complex_layer(n: Builder, r: random.Random) -> None:
    """Real and imaginary part, something complex, and back to real numbers."""
    width, z = r.choice(WIDTHS), n.name("z")
    real, imaginary = n.kernel(n.channels, width), n.kernel(n.channels, width)
    if r.random() < 0.5:
        n.emit(f"{z} = lax.complex(x @ {real}, x @ {imaginary})")
    else:
        n.emit(f"{z} = x @ ({real} + 1j * {imaginary})")
    n.emit(f"x = {z}.real", width)  # so that the count is that of z
    inside = r.choice(("turned", "normed", "mean", "spectrum", "recurrent"))
    if inside == "turned":
        n.emit(f"{z} = {z} * jnp.exp(1j * row({n.vector('b')}, {z}))")
    elif inside == "normed":
        square = f"({z} * {z}.conj()).real.sum(-1, keepdims=True) / {count(n, r)}"
        n.emit(f"{z} = {z} / jnp.sqrt({square} + 1e-3)")
    elif inside == "mean":
        n.emit(f"{z} = {z} - {z}.sum(-1, keepdims=True) * (1 / {count(n, r)})")
    elif inside == "spectrum" and len(n.shape) > 2:
        n.emit(f"{z} = jnp.fft.fft({z}, axis=1) / {z}.shape[1]")
    elif len(n.shape) == 3:
        decay = f"jnp.exp(-jnp.exp({n.vector('b')}) + 1j * {n.vector('b')})"
        n.emit(
            f"{z} = linear_recurrence({decay}[None, None] * jnp.ones_like({z}), {z})"
        )
    if inside in ("normed", "mean"):
        n.not_maskable = "a mean over channels"
    back = r.choice(
        (
            f"{z}.real + {z}.imag",
            f"jnp.sqrt({z}.real ** 2 + {z}.imag ** 2 + 1e-3)",
            f"({z} * jnp.sin({z})).imag / 4",
            f"jnp.real({z} / (1 + {z} * {z}.conj()))",
        )
    )
    n.emit(f"x = {back}", width)
