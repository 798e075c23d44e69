"""Random numbers from a key that is no argument are constants.

The narrow network has the kept part of the full network's draw, and permutations apply
to it. The expected draws are computed outside of the network, and cut by NumPy.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import mslice_jax as ms

RNG = np.random.default_rng(0)
N, KEPT = 16, 4
KEY = jax.random.key(7)
TIMES = np.linspace(0, 1, 5).astype(np.float32)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


FULL = {"w": normal(N, 24), "c": normal(24, 3)}
NARROW = {"w": FULL["w"][:KEPT, :6], "c": FULL["c"][:6]}


def in_a_loop():
    """The key is inside of the body, and changes in every iteration."""

    def turn(total, i):
        mine = jax.random.fold_in(jax.random.key(3), i)
        return total + jax.random.normal(mine, (N,)), None

    return lax.scan(turn, jnp.zeros(N), jnp.arange(3))[0]


def key_handed_on():
    def turn(_, carry):
        key, total = carry
        key, mine = jax.random.split(key)
        return key, total + jax.random.uniform(mine, (N,))

    return lax.fori_loop(0, 3, turn, (jax.random.PRNGKey(1), jnp.zeros(N)))[1]


def keys_gone_through():
    def turn(total, key):
        return total + jax.random.normal(key, (N,)), None

    return lax.scan(turn, jnp.zeros(N), jax.random.split(jax.random.key(5), 3))[0]


def in_a_branch():
    return lax.cond(
        jnp.ones(3).sum() > 2,
        lambda: jax.random.normal(jax.random.key(2), (N,)),
        lambda: jnp.zeros(N),
    )


DRAWS = {
    "key": lambda: jax.random.normal(jax.random.key(42), (N,)),
    "raw key": lambda: jax.random.normal(jax.random.PRNGKey(0), (N,)),
    "rbg": lambda: jax.random.normal(jax.random.key(0, impl="rbg"), (N,)),
    "captured key": lambda: jax.random.normal(KEY, (N,)),
    "uniform": lambda: jax.random.uniform(jax.random.key(1), (N,), minval=-2),
    "bernoulli": lambda: 1.0 * jax.random.bernoulli(jax.random.key(1), 0.5, (N,)),
    "integers": lambda: 1.0 * jax.random.randint(jax.random.key(1), (N,), 1, 9),
    "truncated": lambda: jax.random.truncated_normal(jax.random.key(1), -1, 1, (N,)),
    "gumbel": lambda: jax.random.gumbel(jax.random.key(1), (N,)),
    "permutation": lambda: 1.0 * jax.random.permutation(jax.random.key(1), N),
    "orthogonal": lambda: jax.random.orthogonal(jax.random.key(1), N)[0],
    "gamma": lambda: jax.random.gamma(KEY, 2.0, (N,)),
    "gamma of many": lambda: jax.random.gamma(KEY, jnp.full(N, 1.5)),
    "beta": lambda: jax.random.beta(KEY, 2.0, 3.0, (N,)),
    "t": lambda: jax.random.t(KEY, 3.0, (N,)),
    "poisson": lambda: jax.random.poisson(KEY, 3.0, (N,)).astype(jnp.float32),
    "gamma by vmap": lambda: jax.vmap(lambda k: jax.random.gamma(k, 2.0, (N,)))(
        jax.random.split(KEY, 2)
    ).sum(0),
    "split": lambda: sum(
        jax.random.normal(k, (N,)) for k in jax.random.split(jax.random.key(1))
    ),
    "fold in": lambda: jax.random.normal(jax.random.fold_in(KEY, 9), (N,)),
    "vmap": lambda: jax.vmap(lambda k: jax.random.normal(k, (N,)))(
        jax.random.split(KEY, 2)
    ).sum(0),
    "jit": lambda: jax.jit(lambda k: jax.random.normal(k, (N,)))(jax.random.key(4)),
    "remat": lambda: jax.checkpoint(lambda k: jax.random.normal(k, (N,)))(KEY),
    "loop": in_a_loop,
    "handed on": key_handed_on,
    "gone through": keys_gone_through,
    "branch": in_a_branch,
}


@pytest.mark.parametrize(
    "name",
    [  # every second draw, and all that are of another make
        pytest.param(name, marks=[pytest.mark.nightly] * (at % 2 and at < 22))
        for at, name in enumerate(DRAWS)
    ],
)
def test_a_draw_is_cut_like_a_constant(name):
    def f(p, t):
        features = jnp.sin(t[:, None] * 3 * DRAWS[name]())
        return jnp.tanh(features @ p["w"]) @ p["c"]

    def by_hand(p, drawn):
        return np.tanh(np.sin(TIMES[:, None] * 3 * drawn) @ p["w"]) @ p["c"]

    with jax.numpy_rank_promotion("allow"):
        drawn = np.asarray(jax.jit(DRAWS[name])())
        net = ms.upgrade(f, FULL, TIMES, rates=(0.25, 1.0))
        small = dict(ms.extract(net, 0.25).variables)
        jax.tree.map(np.testing.assert_array_equal, small, NARROW)
        np.testing.assert_allclose(
            ms.slice_apply(net, TIMES, 0.25),
            by_hand(NARROW, drawn[:KEPT]),
            rtol=1e-4,
            atol=1e-4,
        )
        orders = {n: RNG.permutation(g.size) for n, g in net.plan.groups.items()}
        moved = net.permute(orders)
        assert (np.asarray(moved.variables["w"]) != FULL["w"]).any()
        np.testing.assert_allclose(
            ms.slice_apply(moved, TIMES, 1.0),
            by_hand(FULL, drawn),
            rtol=1e-4,
            atol=1e-4,
        )


def test_noise_on_units_is_that_of_the_units_kept():
    full = {"a": normal(1, N), "b": normal(N, 3)}

    def f(p, t):
        noise = jax.random.normal(jax.random.key(0), (len(t), p["a"].shape[1]))
        return jnp.tanh(t[:, None] @ p["a"] + noise) @ p["b"]

    noise = np.asarray(jax.random.normal(jax.random.key(0), (len(TIMES), N)))
    net = ms.upgrade(f, full, TIMES, rates=(0.25, 1.0))
    want = np.tanh(TIMES[:, None] @ full["a"][:, :KEPT] + noise[:, :KEPT])
    np.testing.assert_allclose(
        ms.slice_apply(net, TIMES, 0.25), want @ full["b"][:KEPT], rtol=1e-4, atol=1e-4
    )

    def loss(net):
        return ms.slice_apply(net, TIMES, 0.25).sum()

    grad = jax.grad(loss)(net).variables["b"]
    by_hand = want.sum(0)[:, None] * np.ones((1, 3))
    np.testing.assert_allclose(grad[:KEPT], by_hand, rtol=1e-4, atol=1e-4)
    assert not np.any(grad[KEPT:])


def test_a_key_that_is_an_argument_draws_for_the_narrow_shape():
    full = {"a": normal(1, N), "b": normal(N, 3)}

    def f(p, t, key):
        def turn(key, _):
            key, mine = jax.random.split(key)
            return key, jax.random.normal(mine, (len(t), p["a"].shape[1]))

        noise = lax.scan(turn, key, None, length=2)[1].sum(0)
        return jnp.tanh(t[:, None] @ p["a"] + noise) @ p["b"]

    key = jax.random.key(3)
    net = ms.upgrade(f, full, TIMES, key, rates=(0.25, 1.0))
    narrow = {"a": full["a"][:, :KEPT], "b": full["b"][:KEPT]}
    np.testing.assert_allclose(
        ms.slice_apply(net, TIMES, 0.25, key),
        f(narrow, TIMES, key),
        rtol=1e-4,
        atol=1e-4,
    )


def test_the_work_of_making_constants_is_not_counted():
    def f(p, t):
        table = lax.scan(lambda c, i: (0.9 * c, c * i), jnp.ones(N), jnp.arange(2.0))[1]
        mixed = table @ jax.random.orthogonal(jax.random.key(0), N)
        return jnp.sin(t[:, None] * mixed[1]) @ p["w"] @ p["c"]

    with jax.numpy_rank_promotion("allow"):
        net = ms.upgrade(f, FULL, TIMES, rates=(0.25, 1.0))
        flops = ms.report(net).to_dict()["flops"]
    by_hand = {
        str(rate): 2 * len(TIMES) * (n * h + h * 3)
        for rate, n, h in ((0.25, KEPT, 6), (1.0, N, 24))
    }
    assert flops == by_hand


def test_a_draw_with_a_parameter_for_each_unit():
    """The shape of a gamma distribution depends on units, the key is a constant."""
    full = {"a": normal(1, N), "b": normal(N, 3)}

    def f(p, t):
        h = jax.nn.softplus(t[:, None] @ p["a"])
        return jnp.tanh(jax.random.gamma(KEY, h)) @ p["b"]

    net = ms.upgrade(f, full, TIMES, rates=(0.25, 1.0))
    wide = np.asarray(jax.nn.softplus(TIMES[:, None] @ full["a"]))
    drawn = np.asarray(jax.random.gamma(KEY, wide))
    want = np.tanh(drawn[:, :KEPT]) @ full["b"][:KEPT]
    np.testing.assert_allclose(
        ms.slice_apply(net, TIMES, 0.25), want, rtol=1e-4, atol=1e-4
    )
    orders = {n: RNG.permutation(g.size) for n, g in net.plan.groups.items()}
    np.testing.assert_allclose(
        ms.slice_apply(net.permute(orders), TIMES, 1.0),
        np.tanh(drawn) @ full["b"],
        rtol=1e-4,
        atol=1e-4,
    )
