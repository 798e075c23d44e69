"""Blocks that leave the shape as it is: activations, reductions, norms."""

import random

from tests.fuzz.builder import Builder, block

ACTIVATIONS = (
    "jax.nn.relu(x)",
    "jax.nn.gelu(x)",
    "jax.nn.silu(x)",
    "jnp.tanh(x)",
    "softsign(x)",
    "clipped(x)",
    "jnp.where(x > 0, x, 0.1 * x)",
    "jnp.maximum(x, 0) ** 2 / 4",
    "lax.optimization_barrier(jax.nn.relu(x))",
    "jax.checkpoint(jax.nn.softplus)(x)",
    "jnp.clip(x, -1, 1)",
    "jnp.square(x) - jnp.log1p(jnp.abs(x))",
)


@block(2, 3, 4, often=6)
def activation(n: Builder, r: random.Random) -> None:
    n.emit(f"x = {r.choice(ACTIVATIONS)}")


@block(2, 3, 4)
def scaled(n: Builder, r: random.Random) -> None:
    n.emit(f"x = x * row({n.vector('s')}, x)")


@block(2, 3, 4)
def chosen(n: Builder, r: random.Random) -> None:
    """A learnt choice between two values for each channel."""
    other = r.choice(("jnp.tanh(x)", "jnp.zeros_like(x)", "-x"))
    n.emit(f"x = jnp.where(row({n.vector('b')}, x) > 0, x, {other})")


@block(2, 3, 4, often=1)
def soft(n: Builder, r: random.Random) -> None:
    """A reduction over the channels by which each is divided."""
    n.emit(
        r.choice(
            (
                "x = 5 * jax.nn.softmax(x, -1)",
                "x = x / (1e-3 + largest(jnp.abs(x), -1)[..., None])",
                "x = x / jnp.sqrt(1e-3 + jnp.square(x).sum(-1, keepdims=True))",
                "x = x - jax.nn.logsumexp(x, -1, keepdims=True)",
                "x = x - x.mean(-1, keepdims=True)",
                "x = x / jnp.sqrt(1e-3 + x.var(-1, keepdims=True, ddof=1))",
                "x = x * jax.nn.sigmoid(jnp.average(x, axis=-1))[..., None]",
            )
        )
    )
    n.not_maskable = "a reduction over channels"


@block(2, 3, 4, often=3)
def norm(n: Builder, r: random.Random) -> None:
    kind = r.choice(("layer", "rms", "group", "batch", "batch", "over the batch"))
    scale = n.vector("s")
    if kind == "over the batch":
        axes = tuple(range(len(n.shape) - 1))
        statistics = f"x.mean({axes}), jnp.sqrt(x.var({axes}) + 1e-3)"
        n.emit(f"x = batch_norm(x, {scale}, {n.vector('b')}, {statistics})")
    elif kind == "rms":
        n.emit(f"x = rms_norm(x, {scale})")
    elif kind == "layer":
        n.emit(f"x = layer_norm(x, {scale}, {n.vector('b')})")
    elif kind == "group":
        c = n.channels
        sizes = [size for size in (1, 2, 4) if c % size == 0 and c > size]
        size = str(r.choice(sizes)) if r.random() < 0.9 else "x.shape[-1]"
        n.emit(f"x = group_norm(x, {scale}, {n.vector('b')}, size={size})")
    else:
        arrays = ", ".join((scale, n.vector("b"), n.vector("b"), n.vector("s")))
        n.emit(f"x = batch_norm(x, {arrays})")
    if kind in ("layer", "rms") or n.lines[-1].endswith("size=x.shape[-1])"):
        n.not_maskable = "a mean over channels"
