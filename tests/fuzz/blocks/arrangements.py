"""Blocks that lay channels side by side, add them, cut, pad or shuffle them."""

import random

from tests.fuzz.builder import WIDTHS, Builder, add_block, block


@block(2, 3, 4, often=3)
def branches(n: Builder, r: random.Random) -> None:
    """Concatenates two or three layers, and perhaps `x` itself."""
    widths = [r.choice((8, 16)) for _ in range(r.choice((2, 3)))]
    parts = [n.dense(width) for width in widths]
    if n.channels <= 24 and r.random() < 0.5:
        at = r.randrange(len(parts) + 1)
        parts.insert(at, "x")
        widths.insert(at, n.channels)
    n.emit(f"x = jnp.concatenate([{', '.join(parts)}], axis=-1)", sum(widths))


@block(2, 3, 4, often=4)
def residual(n: Builder, r: random.Random) -> None:
    """Blocks inside, a layer back, and the sum (or the two side by side)."""
    before, shape = n.name("y"), n.shape
    n.emit(f"{before} = x")
    for _ in range(r.choice((1, 1, 2))):
        add_block(n, r)
    if n.shape[:-1] != shape[:-1]:
        return
    if r.random() < 0.2 and n.channels + shape[-1] <= 48:
        joined = f"x = jnp.concatenate([x, {before}], axis=-1)"
        n.emit(joined, n.channels + shape[-1])
    else:
        n.emit(f"x = {n.dense(shape[-1])}", shape[-1])
        n.emit(f"x = x + {before}")


@block(2, 3, 4)
def part(n: Builder, r: random.Random) -> None:
    """Only a part of the channels, or parts in another order."""
    if n.channels < 16:
        return
    half = "x.shape[-1] // 2"
    kind = r.choice(("first", "swapped", "one of two"))
    if kind == "first":
        n.emit(f"x = x[..., : {half}]", n.channels // 2)
        n.not_by_hand = "what a slice leaves out stays whole, so half is elsewhere"
    elif kind == "swapped":
        n.emit(f"x = jnp.concatenate([x[..., {half} :], x[..., : {half}]], axis=-1)")
    else:
        changed = f"jnp.tanh(x[..., : {half}])"
        n.emit(f"x = jnp.concatenate([{changed}, x[..., {half} :]], axis=-1)")


@block(2, 3, 4, often=1)
def padded(n: Builder, r: random.Random) -> None:
    """A shortcut padded with zeros to the width of what it is added to."""
    if n.channels > 16:
        return
    y, width = n.name("y"), 2 * n.channels
    n.emit(f"{y} = {n.dense(width)}")
    more = ", ".join(["(0, 0)"] * (len(n.shape) - 1))
    added = f"{y}.shape[-1] - x.shape[-1]"
    both = f"({added}) // 2"
    last = r.choice((f"(0, {added})", f"({both}, {both})"))
    n.emit(f"x = {y} + jnp.pad(x, [{more}, {last}])", width)


@block(2, 3, 4, often=1)
def shuffled(n: Builder, r: random.Random) -> None:
    size = r.choice([s for s in (2, 4) if n.channels % s == 0] or [1])
    n.emit(f"x = shuffle(x, {size})")
    n.not_by_hand = "which factor is `size` afterwards depends on which one narrows"


@block(2, 3, 4, often=1)
def ordered(n: Builder, r: random.Random) -> None:
    """Something that depends on the order of the channels: they stay whole."""
    n.emit(
        r.choice(
            (
                "x = jnp.cumsum(x, axis=-1) / 4",
                "x = jnp.roll(x, 1, axis=-1)",
                "x = x[..., ::-1]",
                "x = jnp.sort(x, axis=-1)",
                "x = jnp.concatenate([x[..., ::2], x[..., 1::2]], axis=-1)",
                "x = jnp.take(x, jnp.arange(x.shape[-1])[::-1], axis=-1)",
            )
        )
    )
    n.emit(f"x = {n.dense(width := r.choice(WIDTHS))}", width)


@block(2, 3, 4, often=1)
def copied(n: Builder, r: random.Random) -> None:
    """Channels more than once."""
    if n.channels > 16:
        return
    times = ", ".join(["1"] * (len(n.shape) - 1))
    lines = (
        "x = jnp.repeat(x, 2, axis=-1)",
        f"x = jnp.tile(x, ({times}, 2))",
        "x = jnp.concatenate([x, -x], axis=-1)",
        "x = jnp.concatenate([x, jnp.zeros_like(x)], axis=-1)",
    )
    n.emit(r.choice(lines), 2 * n.channels)
