"""A random network from numbers: an input, blocks, an output."""

import random
from collections.abc import Sequence

from tests.fuzz.blocks import places
from tests.fuzz.builder import BATCH, WIDTHS, Builder, Network, add_block


def generate(recipe: Sequence[int]) -> Network:
    """The network of a recipe: a seed for the input, for each block, for the output."""
    first, *middle, last = recipe
    n = Builder()
    x = _enter(n, random.Random(first))
    for seed in middle:
        add_block(n, random.Random(seed))
    _leave(n, random.Random(last))
    return n.build(x)


def _enter(n: Builder, r: random.Random) -> tuple[int, ...]:
    """The input, and a layer from its features to channels."""
    width = r.choice(WIDTHS)
    kind = r.choice(("vector", "sequence", "tokens", "image", "image"))
    if kind == "tokens":
        n.tokens, x = 7, (BATCH, 6)
        n.emit(f"x = {n.kernel(7, width, contracted=())}[x]")
        n.shape = *x, width
    elif kind == "image":
        size = r.choice((4, 8))
        x = n.shape = (BATCH, size, size, 3)
        n.emit(f"x = conv(x, {n.kernel(3, 3, 3, width)})", width)
    else:
        x = n.shape = (BATCH, 6, 5) if kind == "sequence" else (BATCH, 5)
        n.emit(f"x = {n.dense(width)}", width)
    return x


def _leave(n: Builder, r: random.Random) -> None:
    """From channels to five outputs, perhaps after a mean or a flatten."""
    if len(n.shape) == 4:
        r.choice((places.mean_of_places, places.flatten, places.largest_of_places))(
            n, r
        )
    elif len(n.shape) == 3 and r.random() < 0.5:
        r.choice((places.mean_of_places, places.flatten, places.last_of_places))(n, r)
    n.emit(f"x = {n.dense(5)}", 5)
