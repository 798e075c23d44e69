"""Values that no result needs tie no axes: arrays used for their shape, or empty.

The narrow network by hand is the function itself on weights that NumPy cut.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import mslice_jax as ms
from mslice_jax.core.rules.live import live

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


X = normal(5, 4)
FULL = {"a": normal(4, 16), "b": normal(16, 16), "c": normal(16, 3), "u": normal(16)}
HALF = {
    "a": FULL["a"][:, :8],
    "b": FULL["b"][:8, :8],
    "c": FULL["c"][:8],
    "u": FULL["u"],
}


def zeros_of_a_column(h, p):
    return h + jnp.zeros_like(h[:, 0])[:, None]


def result_nobody_reads(h, p):
    sorted_, _ = jnp.sort(h, -1), jnp.cumsum(h, -1)
    del sorted_
    return h


def loop_with_a_column(h, p):
    def step(total, row):
        return total + row.sum(), None

    total, _ = lax.scan(step, jnp.zeros_like(h[0, 0]), h)
    return h * total


def inside_of_a_call(h, p):
    @jax.jit
    def call(h):
        return jnp.sin(h) * jnp.zeros_like(h[:, :3]).size

    return call(h)


def inside_of_a_branch(h, p):
    def double(h):
        return h + jnp.ones_like(h[:, ::5]).sum() / 20 * h

    return lax.cond(h.sum() > -1e6, double, lambda h: h, h)


def derivative_of_one(h, p):
    """The transpose of an unread value is dead, too."""
    return jax.grad(lambda h: (jnp.sin(h) + 0 * jnp.ones_like(h[:, :1])).sum())(h)


def unread_parameter(h, p):
    return h + jnp.zeros_like(p["u"][:1])


def padded(mode):
    def pad(h, p):
        h = jnp.pad(h, ((1, 2), (0, 0)), mode=mode)
        return h[1:-2] * h.mean(0)

    return pad


def empty_parts(h, p):
    return jnp.concatenate([h[:, :0], h, jnp.repeat(h[:, :1], 0, axis=1)], 1)


DEAD = {
    "column": zeros_of_a_column,
    "results": result_nobody_reads,
    "loop": loop_with_a_column,
    "call": inside_of_a_call,
    "branch": inside_of_a_branch,
    "derivative": derivative_of_one,
    "parameter": unread_parameter,
    "reflect": padded("reflect"),
    "edge": padded("edge"),
    "wrap": padded("wrap"),
    "symmetric": padded("symmetric"),
    "mean": padded("mean"),
    "ramp": padded("linear_ramp"),
    "empty": empty_parts,
}


@pytest.mark.parametrize("name", DEAD)
def test_unneeded_values_tie_nothing(name):
    def f(p, x):
        h = DEAD[name](jnp.tanh(x @ p["a"]), p)
        return jnp.tanh(h @ p["b"]) @ p["c"]

    with jax.numpy_rank_promotion("allow"):
        net = ms.upgrade(f, FULL, X, rates=(0.5, 1.0))
        small = dict(ms.extract(net, 0.5).variables)
        jax.tree.map(np.testing.assert_array_equal, small, HALF)
        wanted = f(HALF, X), f(FULL, X)
        for rate, want in zip((0.5, 1.0), wanted, strict=True):
            got = ms.slice_apply(net, X, rate)
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
        orders = {n: RNG.permutation(g.size) for n, g in net.plan.groups.items()}
        got = ms.slice_apply(net.permute(orders), X, 1.0)
        np.testing.assert_allclose(got, wanted[1], rtol=1e-4, atol=1e-4)
    assert net.definition.agreement.comparable


def test_a_channel_for_the_time_is_concatenated():
    """As in neural ODEs: ones in the shape of a column."""
    full = {"a": normal(4, 16), "b": normal(17, 16), "c": normal(16, 3)}

    def f(p, x, t):
        h = jnp.tanh(x @ p["a"])
        h = jnp.concatenate([jnp.ones_like(h[:, :1]) * t, h], 1)
        return jnp.tanh(h @ p["b"]) @ p["c"]

    narrow = {"a": full["a"][:, :8], "b": full["b"][:9, :8], "c": full["c"][:8]}
    t = np.float32(0.3)
    net = ms.upgrade(f, full, X, t, rates=(0.5, 1.0))
    jax.tree.map(
        np.testing.assert_array_equal, dict(ms.extract(net, 0.5).variables), narrow
    )
    got = ms.slice_apply(net, X, 0.5, t)
    np.testing.assert_allclose(got, f(narrow, X, t), rtol=1e-4, atol=1e-4)


def test_effects_are_kept():
    seen = []

    def f(p, x):
        h = jnp.tanh(x @ p["a"])
        jax.debug.callback(lambda s: seen.append(float(s)), h.sum())
        return jnp.tanh(h @ p["b"]) @ p["c"]

    net = ms.upgrade(f, FULL, X, rates=(0.5, 1.0))
    jax.block_until_ready(ms.slice_apply(net, X, 0.5))
    jax.effects_barrier()
    np.testing.assert_allclose(seen[-1], np.tanh(X @ HALF["a"]).sum(), rtol=1e-4)


def names(function, *args):
    """The primitives that are left of a function."""
    jaxpr = jax.make_jaxpr(function)(*args).jaxpr
    return [eqn.primitive.name for eqn in live(jaxpr).eqns]


def test_an_input_that_nothing_else_reads_keeps_what_is_made_of_it():
    # As running statistics do, whose update nobody asks for.
    assert names(lambda x, s: (s + 1.0, x * 2.0)[1], 1.0, 2.0) == ["add", "mul"]
    assert names(lambda x, s: (s + 1.0, x * s)[1], 1.0, 2.0) == ["mul"]
