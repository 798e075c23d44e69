"""Blocks with kernels, on any shape: dense layers in many ways of writing."""

import random

from tests.fuzz.builder import WIDTHS, Builder, block


@block(2, 3, 4, often=4)
def layer(n: Builder, r: random.Random) -> None:
    width = r.choice(WIDTHS)
    n.emit(f"x = {n.dense(width)}", width)


@block(2, 3, 4, often=3)
def gated(n: Builder, r: random.Random) -> None:
    width = r.choice(WIDTHS)
    y = n.name("y")
    n.emit(f"{y} = {n.dense(2 * width)}")
    halves = r.choice(
        (
            f"jnp.split({y}, 2, axis=-1)",
            f"({y}[..., : {y}.shape[-1] // 2], {y}[..., {y}.shape[-1] // 2 :])",
            f"jnp.moveaxis({y}.reshape(*{y}.shape[:-1], 2, {y}.shape[-1] // 2), -2, 0)",
        )
    )
    gate = n.name("y")
    n.emit(f"{y}, {gate} = {halves}")
    n.emit(f"x = {y} * jax.nn.sigmoid({gate})", width)


@block(2, 3, 4)
def tied(n: Builder, r: random.Random) -> None:
    """The same kernel twice, or there and back."""
    if r.random() < 0.5:
        w = n.kernel(n.channels, n.channels, contracted=(0, 1))
        n.emit(f"x = jnp.tanh(x @ {w}) @ {w}")
    else:
        w = n.kernel(n.channels, r.choice(WIDTHS), contracted=(0, 1))
        n.emit(f"x = jax.nn.relu(x @ {w}) @ {w}.T")


@block(2, 3, 4)
def standardised(n: Builder, r: random.Random) -> None:
    """A layer whose kernel is normalised over its inputs; also written otherwise."""
    c, width = n.channels, r.choice(WIDTHS)
    kind = r.choice(("standard", "cosine", "transposed", "dot_general"))
    if kind == "transposed":
        n.emit(f"x = x @ {n.kernel(width, c, contracted=(1,))}.T", width)
    elif kind == "dot_general":
        w = n.kernel(width, c, contracted=(1,))
        last = len(n.shape) - 1
        n.emit(f"x = lax.dot_general(x, {w}, ((({last},), (1,)), ((), ())))", width)
    else:
        w, y = n.kernel(c, width), n.name("y")
        if kind == "cosine":
            n.emit(f"{y} = {w} / jnp.linalg.norm({w}, axis=0, keepdims=True)")
        else:
            n.emit(f"{y} = {w} - {w}.mean(0, keepdims=True)")
            n.emit(f"{y} = {y} / (1e-3 + {w}.std(0, keepdims=True))")
        n.emit(f"x = x @ {y}", width)
        n.not_maskable = "a mean over the inputs of a kernel"


@block(2, 3, 4)
def maxout(n: Builder, r: random.Random) -> None:
    """The largest of several layers, stacked or pieces of one."""
    width = r.choice((8, 16))
    if r.random() < 0.5:
        parts = ", ".join(n.dense(width) for _ in range(3))
        n.emit(f"x = largest(jnp.stack([{parts}]), 0)", width)
    else:
        y = n.dense(3 * width)
        n.emit(f"x = {y}")
        n.emit("x = largest(x.reshape(*x.shape[:-1], x.shape[-1] // 3, 3), -1)", width)


@block(2, 3, 4)
def bilinear(n: Builder, r: random.Random) -> None:
    """Products of channels with channels."""
    a, b, width = n.name("y"), n.name("y"), r.choice((8, 16))
    n.emit(f"{a}, {b} = {n.dense(8)}, {n.dense(r.choice((4, 8)))}")
    n.emit(f"x = {a}[..., :, None] * {b}[..., None, :]")
    size = n.weights[n.lines[-2].split('"')[-2]][0] * 8
    if r.random() < 0.5:
        n.emit("x = x.reshape(*x.shape[:-2], -1)")
        n.emit(f"x = {n.dense_of(size, width, 'x')}", width)
    else:
        w = n.kernel(8, size // 8, width, contracted=(0, 1))
        n.emit(f"x = jnp.tensordot(x, {w}, 2)", width)


@block(2, 3, 4)
def called(n: Builder, r: random.Random) -> None:
    """A layer inside of a function that is transformed."""
    c, width = n.channels, r.choice(WIDTHS)
    w = n.kernel(c, width)
    function = r.choice(
        (
            "jax.checkpoint(lambda x, w: jnp.tanh(x @ w))",
            "jax.jit(lambda x, w: jnp.tanh(x @ w))",
            "jax.vmap(lambda x, w: jnp.tanh(x @ w), (0, None))",
            "jax.vmap(lambda x, w: jnp.tanh(x @ w), (None, 1), -1)",
            "jax.checkpoint(jax.vmap(lambda x, w: softsign(x @ w), (0, None)))",
        )
    )
    n.emit(f"x = {function}(x, {w})", width)


@block(2, 3, 4)
def multilinear(n: Builder, r: random.Random) -> None:
    """Kernels with more than two axes."""
    heads, size = r.choice(((2, 4), (4, 4), (4, 2), (8, 2)))
    c = n.channels
    into = n.kernel(c, heads, size, contracted=(0,))
    back = n.kernel(heads, size, c, contracted=(0, 1))
    n.emit(f"x = jnp.einsum('...c,chd->...hd', x, {into})")
    n.emit(f"x = jnp.einsum('...hd,hdc->...c', jnp.tanh(x), {back})")


@block(2, 3, 4)
def stacked(n: Builder, r: random.Random) -> None:
    """Two or three layers of equal width under one scan, or a loop over one."""
    c = n.channels
    if r.random() < 0.6:
        w = n.kernel(r.choice((2, 3)), c, c)
        n.emit(f"x, _ = lax.scan(lambda x, w: (x + jnp.tanh(x @ w), None), x, {w})")
    else:
        w = n.kernel(c, c)
        n.emit(f"x = lax.fori_loop(0, 2, lambda _, x: x + jnp.tanh(x @ {w}), x)")


@block(2, 3, 4, often=1)
def conditional(n: Builder, r: random.Random) -> None:
    width = r.choice(WIDTHS)
    yes, no = n.dense(width), n.dense(width)
    n.emit(f"x = lax.cond(x.sum() > 0, lambda x: {yes}, lambda x: {no}, x)", width)
    n.not_maskable = "a sum over channels decides"


@block(2, 3, 4, often=1)
def mixture(n: Builder, r: random.Random) -> None:
    """Every expert on every position, weighted by a router; experts stay or go."""
    experts, c, width = r.choice((2, 4)), n.channels, r.choice((8, 16))
    p, y = n.name("y"), n.name("y")
    n.emit(f"{p} = jax.nn.softmax(x @ {n.kernel(c, experts)}, -1)")
    into = n.kernel(experts, c, width, contracted=(1,))
    back = n.kernel(experts, width, c, contracted=(0, 1))
    n.emit(f"{y} = jax.nn.relu(jnp.einsum('...c,ecd->...ed', x, {into}))")
    n.emit(f"x = jnp.einsum('...ed,edc->...c', {y} * {p}[..., None], {back})")
    n.not_maskable = "a softmax over experts, which narrow"
