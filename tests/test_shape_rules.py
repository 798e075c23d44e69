"""Slices and reshapes whose parts have different sizes, against weights cut by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import mslice_jax as ms

RNG = np.random.default_rng(0)
X = RNG.normal(size=(3, 5)).astype(np.float32)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def check(function, full, narrow_by_rate):
    """The function on sliced weights equals it on weights cut by hand."""
    net = ms.upgrade(function, full, X, rates=(0.25, 0.5, 1.0))
    for rate, narrow in narrow_by_rate.items():
        by_hand = jax.jit(function)(narrow, X)
        np.testing.assert_array_equal(ms.slice_apply(net, X, rate), by_hand)
        small = ms.extract(net, rate).variables
        jax.tree.map(np.testing.assert_array_equal, small, narrow)
    by_hand = jax.jit(function)(full, X)
    np.testing.assert_array_equal(ms.slice_apply(net, X, 1.0), by_hand)
    orders = {n: RNG.permutation(g.size) for n, g in net.plan.groups.items()}
    permuted = ms.slice_apply(net.permute(orders), X, 1.0)
    np.testing.assert_allclose(permuted, by_hand, rtol=1e-5, atol=1e-5)
    return net


@pytest.mark.parametrize("stride", [2, 4])
def test_one_of_every_few_entries(stride):
    # Gate and up projection interleaved, as some decoders have them.
    def gated(p, x):
        h = x @ p["in"]
        gate, *others = (h[:, start::stride] for start in range(stride))
        return sum(jax.nn.silu(gate) * other for other in others) @ p["out"]

    p = {"in": normal(5, 16 * stride), "out": normal(16, 2)}
    check(
        gated,
        p,
        {
            rate: {"in": p["in"][:, : kept * stride], "out": p["out"][:kept]}
            for rate, kept in ((0.25, 4), (0.5, 8))
        },
    )


def test_a_stride_that_does_not_divide_keeps_the_axis():
    def thinned(p, x):
        return (x @ p["in"])[:, ::3] @ p["out"]

    p = {"in": normal(5, 16), "out": normal(6, 2)}
    with pytest.raises(ms.PlanError, match="every n-th entry"):
        ms.upgrade(thinned, p, X, rates=(0.5, 1.0))


def test_a_part_of_nothing():
    def empty_part(p, x):
        h = jnp.tanh(x @ p["in"])
        h = jnp.concatenate([h[:, :8], h[:, 16:16], h[:, 8:8], h[:, 8:]], 1)
        return h @ p["out"]

    p = {"in": normal(5, 16), "out": normal(16, 2)}
    check(
        empty_part,
        p,
        {
            0.5: {
                "in": p["in"][:, [0, 1, 2, 3, 8, 9, 10, 11]],
                "out": p["out"][[0, 1, 2, 3, 8, 9, 10, 11]],
            }
        },  # fmt: skip
    )


def test_a_reshape_after_a_transpose():
    # vmap produces it from a grouped convolution with batched kernels.
    def turned(p, x):
        h = jnp.tanh(x @ p["in"])
        h = lax.reshape(h, (h.shape[1] * 3,), dimensions=(1, 0))
        return h.reshape(-1, 3).T @ p["out"]

    p = {"in": normal(5, 16), "out": normal(16, 2)}
    cut = {
        r: {"in": p["in"][:, :k], "out": p["out"][:k]} for r, k in ((0.25, 4), (0.5, 8))
    }
    check(turned, p, cut)
