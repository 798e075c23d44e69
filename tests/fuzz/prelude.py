"""What the source of a random network may use: layers as functions of arrays.

All of them take their sizes from their arguments, so the same source, run on narrow
weights, is the network written narrow by hand.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tests.spellings import FOLLOWS

EPSILON = 1e-3


def row(vector: Any, x: Any) -> Any:
    """A vector along the last axis of x."""
    return vector.reshape((1,) * (x.ndim - 1) + vector.shape)


def dense(x: Any, w: Any, b: Any) -> Any:
    y = x @ w
    return y + row(b, y)


def conv(x: Any, w: Any, *, stride: int = 1, dilation: int = 1, groups: int = 1) -> Any:
    """(b, h, w, c) with (kh, kw, c / groups, o)."""
    return lax.conv_general_dilated(
        x,
        w,
        (stride, stride),
        "SAME",
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def conv_transpose(x: Any, w: Any) -> Any:
    """(b, h, w, c) -> (b, 2 h, 2 w, o)."""
    return lax.conv_transpose(
        x, w, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def max_pool(x: Any) -> Any:
    windows = (1, 2, 2, 1)
    return lax.reduce_window(x, -jnp.inf, lax.max, windows, windows, "VALID")


def avg_pool(x: Any) -> Any:
    windows = (1, 2, 2, 1)
    return lax.reduce_window(x, 0.0, lax.add, windows, windows, "VALID") / 4


def largest(x: Any, axes: Any) -> Any:
    """A smooth maximum.

    The gradient of the true one asks which entries are equal to it. XLA may compute
    them a second time, with other rounding: then none is, and the gradient is 0 / 0.
    """
    return jax.nn.logsumexp(x, axes)


def layer_norm(x: Any, scale: Any, bias: Any) -> Any:
    mean = x.mean(-1, keepdims=True)
    var = x.var(-1, keepdims=True)
    y = (x - mean) * lax.rsqrt(var + EPSILON)
    return y * row(scale, x) + row(bias, x)


def rms_norm(x: Any, scale: Any) -> Any:
    square = jnp.mean(x * x, -1, keepdims=True)
    return x * lax.rsqrt(square + EPSILON) * row(scale, x)


def group_norm(x: Any, scale: Any, bias: Any, *, size: int) -> Any:
    """Groups of `size` channels."""
    grouped = x.reshape(x.shape[0], -1, x.shape[-1] // size, size)
    mean = grouped.mean((1, 3), keepdims=True)
    var = jnp.square(grouped - mean).mean((1, 3), keepdims=True)
    y = ((grouped - mean) / jnp.sqrt(var + EPSILON)).reshape(x.shape)
    return y * row(scale, x) + row(bias, x)


def batch_norm(x: Any, scale: Any, bias: Any, mean: Any, spread: Any) -> Any:
    """In evaluation mode; the spread is squared to a variance."""
    factor = row(scale / jnp.sqrt(spread * spread + EPSILON), x)
    return (x - row(mean, x)) * factor + row(bias, x)


def heads(x: Any, size: int) -> Any:
    """(b, t, h x size) -> (b, t, h, size)."""
    return x.reshape(*x.shape[:-1], x.shape[-1] // size, size)


def attend(query: Any, key: Any, value: Any, *, causal: bool = False) -> Any:
    """(b, t, h, d) -> (b, t, h x d)."""
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) / query.shape[-1] ** 0.5
    if causal:
        time = query.shape[1]
        past = jnp.tril(jnp.ones((1, 1, time, time), bool))
        scores = jnp.where(past, scores, -1e9)
    y = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores, -1), value)
    return y.reshape(*y.shape[:2], -1)


def rotate(x: Any) -> Any:
    """Rotary embedding of (b, t, h, d)."""
    half = x.shape[-1] // 2
    angles = jnp.arange(x.shape[1])[:, None] / 10.0 ** jnp.arange(half)[None]
    sin, cos = jnp.sin(angles)[None, :, None], jnp.cos(angles)[None, :, None]
    left, right = x[..., :half], x[..., half:]
    return jnp.concatenate([left * cos - right * sin, right * cos + left * sin], -1)


def shuffle(x: Any, size: int) -> Any:
    """Deals channels out: groups of `size` next to each other become a stride."""
    split = x.reshape(*x.shape[:-1], x.shape[-1] // size, size)
    return jnp.swapaxes(split, -1, -2).reshape(x.shape)


def depth_to_space(x: Any) -> Any:
    """(b, h, w, 4 c) -> (b, 2 h, 2 w, c); channels are the outer factor."""
    b, h, w, c = x.shape
    x = x.reshape(b, h, w, c // 4, 2, 2).transpose(0, 1, 4, 2, 5, 3)
    return x.reshape(b, 2 * h, 2 * w, c // 4)


def space_to_depth(x: Any) -> Any:
    """(b, 2 h, 2 w, c) -> (b, h, w, 4 c)."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, h // 2, w // 2, 4 * c)


def along_time(step: Any, start: Any, xs: Any) -> Any:
    """Scans (b, t, c) along t, and returns what each step gives as (b, t, c')."""
    _, ys = lax.scan(step, start, jnp.swapaxes(xs, 0, 1))
    return jnp.swapaxes(ys, 0, 1)


def linear_recurrence(decay: Any, x: Any) -> Any:
    """h = decay h + x along the second axis, by an associative scan."""

    def combine(left: Sequence[Any], right: Sequence[Any]) -> Any:
        return left[0] * right[0], right[0] * left[1] + right[1]

    return lax.associative_scan(combine, (decay, x), axis=1)[1]


@jax.custom_jvp
def softsign(x: Any) -> Any:
    """An activation with a derivative of its own (twice the true one)."""
    return x / (1 + jnp.abs(x))


@softsign.defjvp
def _softsign_jvp(primals: Any, tangents: Any) -> Any:
    (x,), (t,) = primals, tangents
    return softsign(x), 2 * t / (1 + jnp.abs(x)) ** 2


@jax.custom_vjp
def clipped(x: Any) -> Any:
    """tanh whose cotangent is clipped."""
    return jnp.tanh(x)


clipped.defvjp(
    lambda x: (clipped(x), x),
    lambda x, g: (jnp.clip(g * (1 - jnp.tanh(x) ** 2), -0.01, 0.01),),
)


def fixed(size: int, axis_size: int) -> int:
    """A size that the function holds fixed, as modules do in their attributes.

    By hand it is the size of the axis, see `Network.function`.
    """
    del axis_size
    return size


def spelt(name: str, x: Any, s: Any, n: int) -> Any:
    """A spelling of `tests.spellings`, of the rows (.., n) of x."""
    h = jnp.tanh(x.reshape(-1, x.shape[-1])) + s[None]
    y = FOLLOWS[name](h, s, n)
    if _is_statistic(name):
        y = h + (y[:, None] if y.ndim == 1 else y)
    return y.reshape(x.shape)


@functools.cache
def _is_statistic(name: str) -> bool:
    """Asked at other shapes: one unit and a statistic of it look alike."""
    h, s = jnp.ones((4, 6)), jnp.ones(6)
    return jax.eval_shape(lambda h, s: FOLLOWS[name](h, s, 6), h, s).shape != h.shape


def energy(x: Any, w: Any) -> Any:
    """Minus the mean over all entries of what a layer makes of x."""
    return -jnp.mean(jnp.square(jnp.tanh(x @ w)))


def own_layer_norm(x: Any, n: int) -> Any:
    """Layer norm with its backward pass written out."""

    def forward(x: Any) -> Any:
        centred = x - x.sum(-1, keepdims=True) / n
        inverse = lax.rsqrt((centred**2).sum(-1, keepdims=True) / n + EPSILON)
        return centred * inverse, (centred * inverse, inverse)

    def backward(kept: Any, g: Any) -> Any:
        y, inverse = kept
        sums = g.sum(-1, keepdims=True) + y * (g * y).sum(-1, keepdims=True)
        return (inverse / n * (n * g - sums),)

    @jax.custom_vjp
    def norm(x: Any) -> Any:
        return forward(x)[0]

    norm.defvjp(forward, backward)
    return norm(x)


def gained(x: Any, s: Any) -> Any:
    """Times an array; the derivative is three times the true one.

    Passes that capture an array while it is traced are more than JAX takes under jit.
    """

    @jax.custom_vjp
    def scale(x: Any, s: Any) -> Any:
        return x * row(s, x)

    scale.defvjp(
        lambda x, s: (x * row(s, x), s),
        lambda s, g: (3 * g * row(s, g), jnp.zeros_like(s)),
    )
    return scale(x, s)


def places(x: Any) -> Any:
    """(b, t, c) -> (b,): a place in time for each row, other than its neighbour's."""
    return jnp.arange(x.shape[0]) % x.shape[1]


def classes(x: Any, count: int) -> Any:
    """(.., c) -> (..): one of `count` classes for each place, from no channel alone."""
    places = x.shape[:-1]
    order = jnp.arange(math.prod(places)).reshape(places)
    # A norm makes the sum itself zero, and rounding would decide.
    return (order + ((x * x * x).sum(-1) > 0)) % count


def coded(ids: Any, count: int, kind: str) -> Any:
    """One-hot codes of classes, in the ways that people write them."""
    wide = ids[..., None]
    line = (1,) * ids.ndim + (count,)
    if kind == "float":
        return (wide.astype(float) == jnp.arange(float(count)).reshape(line)) * 1.0
    if kind == "cast":
        return jnp.where(wide * 1.0 == jnp.arange(count).reshape(line) * 1.0, 1.0, 0.0)
    if kind == "captured":
        return (wide == np.arange(count).reshape(line)).astype(float)
    if kind == "eye":
        return jnp.eye(count)[ids]
    if kind == "captured eye":
        return jnp.asarray(np.eye(count))[ids]
    if kind == "concatenated":
        parts = [jnp.arange(2), jnp.arange(2, count)]
        return (wide == jnp.concatenate(parts).reshape(line)).astype(float)
    if kind == "arithmetic":
        distance = jnp.abs(wide - jnp.arange(count).reshape(line))
        return jnp.maximum(0.0, 1.0 - distance)
    return jax.nn.one_hot(ids, count)


CODES = (
    "float", "cast", "captured", "eye", "captured eye", "concatenated",
    "arithmetic", "one_hot",
)  # fmt: skip


def drawn(kind: str, *shape: int) -> Any:
    """Random numbers from a key that no argument reaches."""
    key = jax.random.key(7)
    if kind == "folded":
        key = jax.random.fold_in(key, 3)
    elif kind == "split":
        key = jax.random.split(key)[1]
    if kind == "uniform":
        return jax.random.uniform(key, shape, minval=-1.0, maxval=1.0)
    if kind == "signs":
        return jax.random.rademacher(key, shape).astype(float)
    return jax.random.normal(key, shape)


DRAWS = ("normal", "folded", "split", "uniform", "signs")
