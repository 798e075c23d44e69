"""Numbers that count the terms of a sum follow its width; others stay.

The functions take every size from their arguments, so the narrow network by hand is the
function itself on weights that NumPy sliced. H is the hidden axis.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import mslice_jax as ms

H, KEPT = 24, 6
MASK = np.array([[1], [1], [0], [1]], bool)


def ones_dot(h):
    """A mean written as a product with ones, times 1 / n."""
    n = h.shape[-1]
    return h - (h @ jnp.ones((n, 1))) * (1 / n)


def ones_dot_over(h):
    return h - (h @ jnp.ones((h.shape[-1], 1))) / h.shape[-1]


def captured_ones(h):
    """The ones are a constant of the function, made outside of it."""
    return h - (h @ np.ones((h.shape[-1], 1), np.float32)) * (1 / h.shape[-1])


def averages_dot(h):
    """The vector itself holds 1 / n."""
    n = h.shape[-1]
    return h - (h @ jnp.full((n,), 1 / n))[:, None]


def averages_first(h):
    n = h.shape[-1]
    return h - jnp.einsum("h,bh->b", jnp.ones(n) / n, h)[:, None]


def root_mean_square(h):
    return h / jnp.linalg.norm(h, axis=-1, keepdims=True) * h.shape[-1] ** 0.5


def norm_scaled_first(h):
    return h / (jnp.linalg.norm(h, axis=-1, keepdims=True) * h.shape[-1] ** -0.5 + 1e-6)


def norm_guarded(h):
    """torch.nn.functional.normalize, as in RMS norms of many repositories."""
    norm = jnp.maximum(jnp.linalg.norm(h, axis=-1, keepdims=True), 1e-12)
    return h / norm * jnp.cos(h) * jnp.sqrt(jnp.float32(h.shape[-1]))


def norm_where(h):
    square = jnp.sum(h * h, -1, keepdims=True)
    norm = jnp.sqrt(jnp.where(square == 0, 1.0, square))
    return h * (h.shape[-1] ** 0.5 / norm)


def reciprocal_root(h):
    scale = lax.rsqrt(jnp.sum(h**2, -1, keepdims=True) + 1e-6)
    return h * scale * h.shape[-1] ** 0.5


def square_of_mean(h):
    """Var[h] = E[h^2] - E[h]^2, with E[h]^2 = sum^2 / n^2."""
    n = h.shape[-1]
    total = h.sum(-1, keepdims=True)
    variance = jnp.sum(h * h, -1, keepdims=True) / n - total**2 / n**2
    return h * lax.rsqrt(variance + 1e-5)


def masked_mean(h):
    return h - jnp.mean(h, -1, keepdims=True, where=jnp.asarray(MASK) | (h > 0))


def masked_over_all(h):
    return h - jnp.mean(h, where=jnp.asarray(MASK))


def masked_variance(h):
    return h * jnp.var(h, -1, keepdims=True, ddof=1, where=jnp.asarray(MASK) | True)


def masked_rows(h):
    """An empty row counts as one."""
    mask = jnp.broadcast_to(jnp.asarray(MASK), h.shape).astype(h.dtype)
    total = jnp.sum(h * mask, -1, keepdims=True)
    return h - total / jnp.maximum(mask.sum(-1, keepdims=True), 1.0)


def unbiased_variance(h):
    return h * jnp.var(h, -1, ddof=1, keepdims=True)


def deviation(h):
    return h * jnp.std(h, -1, keepdims=True)


def two_axes(h):
    image = h.reshape(2, 2, -1)
    return (image - image.mean((1, 2), keepdims=True)).reshape(h.shape)


def all_axes(h):
    return (h - h.mean()) / jnp.std(h, ddof=1)


def one_axis_after_the_other(h):
    """Summed over features and rows; divided by the rows, then by the features."""
    total = h.sum(-1).sum(0)
    return h - total / h.shape[0] / h.shape[1]


def half_precision(h):
    """bfloat16 cannot represent 1 / 24."""
    low = h.astype(jnp.bfloat16)
    mean = low.sum(-1, keepdims=True) * jnp.asarray(1 / h.shape[-1], jnp.bfloat16)
    return h - mean.astype(jnp.float32)


def softmax_times_count(h):
    """Attention over the features with a mean of one."""
    return h * jax.nn.softmax(h, -1) * h.shape[-1]


def whole_numbers(h):
    """Integers are truncated: (24 + 1) // 2 * 2 is 24, and (6 + 1) // 2 * 2 is 6."""
    halved = lax.div(jnp.asarray(h.shape[-1] + 1), 2) * 2
    return h - h.sum(-1, keepdims=True) / halved.astype(h.dtype)


def complex_numbers(h):
    """A complex number is no count."""
    z = jnp.fft.fft(h, axis=0)
    return h + (z.sum(-1, keepdims=True) * jnp.full((1, 1), 2.0).astype(z.dtype)).imag


def rows_only(h):
    """The mean over rows has its own number, which stays."""
    return h - jnp.sum(h, 0, keepdims=True) / h.shape[0]


def temperature(h):
    """A number that counts nothing stays."""
    return h * jnp.sum(h, -1, keepdims=True) / 17.0


def sum_of_squares_over_rows(h):
    return h + jnp.sum(h * h) / h.shape[0]


FUNCTIONS = [
    ones_dot, ones_dot_over, captured_ones, averages_dot, averages_first,
    root_mean_square, norm_scaled_first, norm_guarded, norm_where, reciprocal_root,
    square_of_mean, masked_mean, masked_over_all, masked_variance, masked_rows,
    unbiased_variance, deviation, two_axes, all_axes, one_axis_after_the_other,
    softmax_times_count, rows_only, temperature, sum_of_squares_over_rows,
    whole_numbers, complex_numbers,
]  # fmt: skip


def weights(size=H):
    rng = np.random.default_rng(0)
    first = rng.normal(size=(5, H)).astype(np.float32)
    return {
        "w1": first[:, :size],
        "w2": rng.normal(size=(H, 3)).astype(np.float32)[:size],
    }


def compare(hidden, **tolerance):
    def apply(p, x):
        return hidden(x @ p["w1"]) @ p["w2"]

    x = np.random.default_rng(1).normal(size=(4, 5)).astype(np.float32)
    net = ms.upgrade(apply, weights(), x, rates=(0.25, 1.0))
    assert [group.size for group in net.plan.groups.values()] == [H]
    for rate, size in ((0.25, KEPT), (1.0, H)):
        by_hand = jax.jit(apply)(weights(size), x)
        np.testing.assert_allclose(ms.slice_apply(net, x, rate), by_hand, **tolerance)


@pytest.mark.parametrize("hidden", FUNCTIONS, ids=lambda f: f.__name__)
def test_counts_follow_the_width(hidden):
    compare(hidden, rtol=3e-6, atol=3e-6)


def test_counts_of_half_precision():
    # Rounding: 8 bits of the mean, times the weights of a sum over 24.
    compare(half_precision, rtol=2e-2, atol=2e-1)


def test_a_number_of_two_meanings_stays():
    """A sum over 4 rows and 4 features, over 4: it counts the rows, if anything."""

    def apply(p, x):
        h = x @ p["w1"]
        return (h + jnp.sum(h * h) / x.shape[0]) @ p["w2"]

    p = {name: w[:, :4] if name == "w1" else w[:4] for name, w in weights().items()}
    x = np.random.default_rng(1).normal(size=(4, 5)).astype(np.float32)
    net = ms.upgrade(apply, p, x, rates=(0.5, 1.0))
    half = {"w1": p["w1"][:, :2], "w2": p["w2"][:2]}
    np.testing.assert_allclose(
        ms.slice_apply(net, x, 0.5), apply(half, x), rtol=3e-6, atol=3e-6
    )


@pytest.mark.parametrize("hidden", [root_mean_square, averages_dot])
def test_gradients_are_those_of_the_narrow_network(hidden):
    def apply(p, x):
        return hidden(x @ p["w1"]) @ p["w2"]

    def loss(y):
        return jnp.sum(jnp.cos(y))

    x = np.random.default_rng(1).normal(size=(4, 5)).astype(np.float32)
    net = ms.upgrade(apply, weights(), x, rates=(0.25, 1.0))
    grads = jax.grad(lambda net: loss(ms.slice_apply(net, x, 0.25)))(net).variables
    by_hand = jax.grad(lambda p: loss(apply(p, x)))(weights(KEPT))
    np.testing.assert_allclose(
        grads["w1"][:, :KEPT], by_hand["w1"], rtol=1e-5, atol=1e-5
    )
    np.testing.assert_allclose(grads["w2"][:KEPT], by_hand["w2"], rtol=1e-5, atol=1e-5)
    assert not np.any(grads["w1"][:, KEPT:])


def test_a_norm_of_sums_over_tokens():
    """Two sums meet in the quotient; its other factor belongs to the norm."""

    def apply(p, x):
        h = jnp.tanh(x @ p["w1"]).sum(1)
        h = h / jnp.sqrt(jnp.sum(h * h, -1, keepdims=True)) * h.shape[-1] ** 0.5
        return h @ p["w2"]

    p = weights()
    x = np.random.default_rng(1).normal(size=(4, 3, 5)).astype(np.float32)
    net = ms.upgrade(apply, p, x, rates=(0.5, 1.0))
    half = ms.extract(net, 0.5).variables
    assert half["w1"].shape[1] == p["w1"].shape[1] // 2
    np.testing.assert_allclose(
        ms.slice_apply(net, x, 0.5), apply(half, x), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("tokens", [3, 8])
def test_a_mean_of_sums_over_tokens(tokens):
    """Also with as many tokens as features: the number is that of the last sum."""

    def apply(p, x):
        h = (x @ p["w1"]).sum(1)
        return (h - h.mean(-1, keepdims=True)) @ p["w2"]

    p = {name: w[:, :8] if name == "w1" else w[:8] for name, w in weights().items()}
    x = np.random.default_rng(1).normal(size=(4, tokens, 5)).astype(np.float32)
    net = ms.upgrade(apply, p, x, rates=(0.5, 1.0))
    half = {"w1": p["w1"][:, :4], "w2": p["w2"][:4]}
    np.testing.assert_allclose(
        ms.slice_apply(net, x, 0.5), apply(half, x), rtol=1e-5, atol=1e-5
    )
