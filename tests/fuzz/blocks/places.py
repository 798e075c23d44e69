"""Blocks that leave one vector: a mean over places, the largest, the last, or all."""

import random

from tests.fuzz.builder import WIDTHS, Builder, block


@block(3, 4)
def mean_of_places(n: Builder, r: random.Random) -> None:
    n.emit("x = x.mean((1, 2))" if len(n.shape) == 4 else "x = x.mean(1)")
    n.shape = n.shape[0], n.channels


@block(4, often=1)
def largest_of_places(n: Builder, r: random.Random) -> None:
    n.emit("x = largest(x, (1, 2))")
    n.shape = n.shape[0], n.channels


@block(3, 4, often=1)
def flatten(n: Builder, r: random.Random) -> None:
    b, *rest = n.shape
    size = 1
    for each in rest:
        size *= each
    if size > 600:
        return mean_of_places(n, r)
    if r.random() < 0.3:  # channels outermost
        n.emit("x = jnp.moveaxis(x, -1, 1)")
    n.emit("x = x.reshape(x.shape[0], -1)")
    n.shape = b, size
    width = r.choice(WIDTHS)
    return n.emit(f"x = {n.dense(width)}", width)


@block(3, often=1)
def last_of_places(n: Builder, r: random.Random) -> None:
    n.emit("x = x[:, -1]")
    n.shape = n.shape[0], n.channels
