"""Blocks with numbers that count: the table of spellings, loops, derivatives."""

import random
import re

from tests.fuzz.builder import WIDTHS, Builder, block
from tests.spellings import FOLLOWS, MAY_BE_WHOLE, ONLY_OWN

# Numbers of half or single precision are coarser than the proofs; integers jump; others
# unroll all rows; hand the number to a loop, where only shapes are compared; or
# divide by it what they multiply by it, where it need not follow, or divide by three
# times it, which of eight units could mean anything.
_LEFT = re.compile(
    "16|precision|_in_turn|tokens_masked|integer|floor|_np_float|count_as|count_in"
    "|correlation_jnp|covariance_jnp|counted_ones|epsilon"
    "|means-convolution|averages_|energy_of_terms|numpy_root|while_loop"
)
# An identity of several parts is made of the kept positions of each; reciprocals are of
# single precision.
_OTHERWISE = re.compile("identity|reciprocal")
SPELLINGS = [
    name
    for name in FOLLOWS
    if not _LEFT.search(name) and name not in {**MAY_BE_WHOLE, **ONLY_OWN}
]


def count(n: Builder, r: random.Random) -> str:
    """How many channels there are: asked of x, or held fixed."""
    if r.random() < 0.5:
        return "x.shape[-1]"
    return f"fixed({n.channels}, x.shape[-1])"


@block(2, 3, 4, often=8)
def spelt(n: Builder, r: random.Random) -> None:
    name = r.choice(SPELLINGS)
    if found := _OTHERWISE.search(name):
        n.not_by_hand = f"{found[0]} is right, and spelt otherwise"
    n.emit(f"x = spelt({name!r}, x, {n.vector('s')}, {count(n, r)})")
    n.not_maskable = "a mean over channels"


@block(2, 3, 4)
def own_norm(n: Builder, r: random.Random) -> None:
    """A layer norm whose backward pass is written out."""
    n.emit(f"x = own_layer_norm(x, {count(n, r)})")
    n.not_maskable = "a mean over channels"


@block(2, 3, 4)
def captured(n: Builder, r: random.Random) -> None:
    """A derivative of its own, of a function that captures a weight."""
    n.emit(f"x = gained(x, lax.stop_gradient({n.vector('s')}))")


@block(2, 3, 4)
def descent(n: Builder, r: random.Random) -> None:
    """A step along the gradient of an energy, in x or in a kernel."""
    width = r.choice(WIDTHS)
    w = n.kernel(n.channels, width, contracted=(0,))
    n.not_maskable = "a mean over channels"
    if r.random() < 0.5:
        n.emit(f"x = x - x.shape[0] * jax.grad(energy)(x, {w})")
    else:
        y = n.name("w")
        n.emit(f"{y} = {w} - jax.grad(energy, argnums=1)(x, {w})")
        n.emit(f"x = x @ {y}", width)


@block(2, 3, 4)
def tangents(n: Builder, r: random.Random) -> None:
    """Products of a layer's derivative, and of a norm's, with vectors."""
    c = n.channels
    w, y = n.kernel(c, c), n.name("y")
    kind = r.choice(("jvp", "vjp", "hessian"))
    if kind == "jvp":
        n.emit(f"{y} = lambda x: layer_norm(x @ {w}, {n.vector('s')}, {n.vector('b')})")
        n.emit(f"x = jax.jvp({y}, (x,), (jnp.tanh(x),))[1]")
        n.not_maskable = "a mean over channels"
    elif kind == "vjp":
        n.emit(f"{y} = lambda x: jnp.tanh(x @ {w})")
        n.emit(f"x = jax.vjp({y}, x)[1](jnp.cos(x))[0]")
        n.not_maskable = "a kernel's output is contracted, too"
    else:
        n.emit(f"{y} = jax.grad(lambda x: energy(x, {w}))")
        n.emit(f"x = x + jax.jvp({y}, (x,), (jnp.cos(x),))[1]")
        n.not_maskable = "a mean over channels"


@block(2, 3, 4)
def summed_in_loop(n: Builder, r: random.Random) -> None:
    """A loop carries a sum over channels."""
    y, many = n.name("y"), count(n, r)
    term = r.choice(("x", "x * x", "jnp.cos(x)"))
    kind = r.choice(("for", "while", "scan", "branch"))
    if kind == "for":
        body = f"lambda i, c: c + ((i + 1.0) * {term}).sum(-1, keepdims=True)"
        n.emit(f"{y} = lax.fori_loop(0, 2, {body}, jnp.zeros((*x.shape[:-1], 1)))")
    elif kind == "while":
        term = f"lax.stop_gradient({term})"  # it has no reverse derivative
        body = f"lambda c: (c[0] + 1, c[1] + {term}.sum(-1, keepdims=True))"
        zeros = "(0, jnp.zeros((*x.shape[:-1], 1)))"
        n.emit(f"{y} = lax.while_loop(lambda c: c[0] < 2, {body}, {zeros})[1]")
    elif kind == "scan":
        body = "lambda c, row: (c + row.sum(-1, keepdims=True), None)"
        n.emit(f"{y} = lax.scan({body}, jnp.zeros((*x.shape[1:-1], 1)), {term})[0]")
    else:
        yes, no = f"({term}).sum(-1, keepdims=True)", "x.sum(-1, keepdims=True)"
        n.emit(f"{y} = lax.cond(x.shape[0] > 1, lambda: {yes}, lambda: {no})")
    if kind == "scan":
        n.emit(f"x = x - {y}[None] / ({many} * x.shape[0])")
    else:
        n.emit(f"x = x - {y} / {many}")
    n.not_maskable = "a mean over channels"
