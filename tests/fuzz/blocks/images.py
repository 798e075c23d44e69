"""Blocks of images (b, h, w, c)."""

import random

from tests.fuzz.builder import WIDTHS, Builder, block


@block(4, often=6)
def convolution(n: Builder, r: random.Random) -> None:
    width, size = r.choice(WIDTHS), r.choice((1, 3, 3))
    option = r.choice(("", "", ", stride=2", ", dilation=2"))
    if "stride" in option:
        _halve(n)
    kernel = n.kernel(size, size, n.channels, width)
    n.emit(f"x = conv(x, {kernel}{option})", width)


@block(4, often=3)
def grouped_convolution(n: Builder, r: random.Random) -> None:
    """Depthwise, or groups of a few channels."""
    c = n.channels
    size = r.choice([s for s in (1, 1, 2, 4) if c % s == 0])
    filters = r.choice((1, 2)) * size if c <= 16 else size
    w = n.kernel(3, 3, size, c // size * filters)
    n.emit(f"x = conv(x, {w}, groups=x.shape[-1] // {size})", c // size * filters)


@block(4, often=1)
def transposed_convolution(n: Builder, r: random.Random) -> None:
    if n.shape[1] > 4:
        return
    width = r.choice((8, 16))
    n.emit(f"x = conv_transpose(x, {n.kernel(2, 2, n.channels, width)})", width)
    n.shape = n.shape[0], 2 * n.shape[1], 2 * n.shape[2], width


@block(4)
def pool(n: Builder, r: random.Random) -> None:
    if n.shape[1] > 1:
        n.emit(r.choice(("x = max_pool(x)", "x = avg_pool(x)")))
        _halve(n)


@block(4, often=1)
def places_and_channels(n: Builder, r: random.Random) -> None:
    b, h, w, c = n.shape
    if c % 4 == 0 and c >= 32 and h <= 4:
        n.emit("x = depth_to_space(x)")
        n.shape = b, 2 * h, 2 * w, c // 4
    elif h > 1 and c <= 8:
        n.emit("x = space_to_depth(x)")
        n.shape = b, h // 2, w // 2, 4 * c


@block(4)
def squeeze_and_excite(n: Builder, r: random.Random) -> None:
    y, width, c = n.name("y"), r.choice((4, 8)), n.channels
    n.emit(f"{y} = jax.nn.relu({n.dense_of(c, width, 'x.mean((1, 2))')})")
    gate = n.dense_of(width, c, y)
    n.emit(f"x = x * jax.nn.sigmoid({gate})[:, None, None, :]")


@block(4)
def to_sequence(n: Builder, r: random.Random) -> None:
    b, h, w, c = n.shape
    n.emit(f"x = x.reshape(x.shape[0], {h * w}, -1)")
    n.shape = b, h * w, c


def _halve(n: Builder) -> None:
    b, h, w, c = n.shape
    n.shape = b, (h + 1) // 2, (w + 1) // 2, c
