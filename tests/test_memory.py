"""Memory: a deleted network leaves nothing, and weights have one copy."""

import gc
import weakref

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mslice_jax as ms

RNG = np.random.default_rng(0)
X = RNG.normal(size=(4, 5)).astype(np.float32)
W1 = RNG.normal(size=(5, 12)).astype(np.float32)
W2 = RNG.normal(size=(12, 3)).astype(np.float32)


def by_hand(w1, w2, width=6):
    return np.tanh(X @ w1[:, :width]) @ w2[:width]


def upgraded(function=None):
    def mlp(p, x):
        return jnp.tanh(x @ p["w1"]) @ p["w2"]

    params = {"w1": jnp.array(W1), "w2": jnp.array(W2)}
    return ms.upgrade(function or mlp, params, X, rates=(0.25, 0.5, 1.0))


def close(found, want):
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-5)


@pytest.fixture(autouse=True)
def _collected():
    """A collection looks through what a test made, not through all that is imported."""
    gc.collect()
    gc.freeze()


USES = {
    "nothing": lambda net: None,
    "called": lambda net: [ms.slice_apply(net, X, r) for r in (0.25, 0.5, 1.0)],
    "called in other ways": lambda net: [net(0.5, X[:2]), net({"*": 0.5}, X)],
    "extracted": lambda net: ms.slice_apply(ms.extract(net, 0.5), X, 0.25),
    "reordered": lambda net: ms.slice_apply(ms.reorder(net), X, 0.5),
    "gradients": lambda net: jax.grad(lambda n: ms.slice_apply(n, X, 0.5).sum())(net),
    "vmap": lambda net: jax.vmap(lambda x: net(0.5, x))(jnp.stack([X, X])),
    "closed over": lambda net: jax.jit(lambda x: ms.slice_apply(net, x, 0.5))(X),
    "reported": lambda net: ms.report(net).details(),
    "profiled": lambda net: jax.jit(lambda x: net(0.5, x)).lower(X).compile(),
    "failed": lambda net: pytest.raises(ValueError, ms.slice_apply, net, X[None], 0.5),
}


@pytest.mark.parametrize("use", USES)
def test_a_deleted_network_leaves_nothing_in_memory(use):
    """Neither its programs nor its captured arrays."""

    def once():
        captured = jnp.full((1000,), 2.0)

        def function(p, x):
            return jnp.tanh(x @ p["w1"]) @ p["w2"] * captured[0]

        net = upgraded(function)
        USES[use](net)
        return [weakref.ref(x) for x in (captured, function, net.definition)]

    gone = once()
    gc.collect()
    assert [ref() for ref in gone] == [None, None, None]


def test_a_network_is_freed_without_the_garbage_collector():
    gc.collect()
    gc.disable()
    try:
        net = upgraded()
        ms.slice_apply(net, X, 0.5)
        definition = weakref.ref(net.definition)
        del net
        assert definition() is None
    finally:
        gc.enable()


def test_many_upgrades_hold_no_memory():
    def once(i):
        captured = jnp.full((1000, 250), float(i))  # a megabyte

        def function(p, x):
            return jnp.tanh(x @ p["w1"]) @ p["w2"] + captured[0, 0]

        close(ms.slice_apply(upgraded(function), X, 0.5), by_hand(W1, W2) + i)

    def megabytes():
        gc.collect()
        return sum(x.nbytes for x in jax.live_arrays()) / 1e6

    once(0)
    before = megabytes()
    for i in range(1, 6):
        once(i)
    assert megabytes() < before + 0.5


# -- kept weights


def test_a_leaf_replaced_in_place_is_noticed():
    net = upgraded()
    close(ms.slice_apply(net, X, 0.5), by_hand(W1, W2))
    net.variables["w1"] = jnp.asarray(2 * W1)
    close(ms.slice_apply(net, X, 0.5), by_hand(2 * W1, W2))
    net.variables["w1"] = 3 * W1  # a NumPy array, which may change at any time
    close(ms.slice_apply(net, X, 0.5), by_hand(3 * W1, W2))
    net.variables["w1"] *= 2
    close(ms.slice_apply(net, X, 0.5), by_hand(6 * W1, W2))
    net.variables = {"w1": jnp.asarray(W1), "w2": jnp.asarray(4 * W2)}
    close(ms.slice_apply(net, X, 0.5), by_hand(W1, 4 * W2))


def test_nested_leaves_replaced_in_place():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            h = nn.tanh(nn.Dense(12, use_bias=False)(x))
            return nn.Dense(3)(h)

    net = ms.upgrade(Net(), Net().init(jax.random.key(0), X), X, rates=(0.5, 1.0))
    ms.slice_apply(net, X, 0.5)
    params = net.variables["params"]
    params["Dense_0"]["kernel"] = jnp.asarray(W1)
    params["Dense_1"] = {"kernel": jnp.asarray(W2), "bias": jnp.ones(3)}
    close(ms.slice_apply(net, X, 0.5), by_hand(W1, W2) + 1)


@pytest.mark.parametrize("rate", (0.25, 0.5, 1.0))
def test_donated_weights_are_an_error(rate):
    net = upgraded()
    ms.slice_apply(net, X, 0.5)  # kept; 0.25 is not
    grown = jax.jit(lambda n: jax.tree.map(lambda a: a + 1, n), donate_argnums=0)(net)
    with pytest.raises((RuntimeError, ValueError), match="deleted"):
        ms.slice_apply(net, X, rate)
    if rate != 1.0:
        with pytest.raises(RuntimeError, match="given away"):
            ms.extract(net, rate)
    close(ms.slice_apply(grown, X, 0.5), by_hand(W1 + 1, W2 + 1))


def test_a_deleted_leaf_is_an_error():
    net = upgraded()
    ms.slice_apply(net, X, 0.5)
    net.variables["w2"].delete()
    with pytest.raises(RuntimeError, match="deleted"):
        ms.slice_apply(net, X, 0.5)


def test_narrow_weights_are_held_once():
    """The network does not keep the weights that `extract` returns."""

    def count():
        gc.collect()
        return sum(leaf.shape == (5, 6) for leaf in jax.live_arrays())

    before, net = count(), upgraded()
    ms.slice_apply(net, X, 0.5)
    small = ms.extract(net, 0.5)
    assert count() == before + 1
    # So the extracted ones can be donated, and the network cuts them anew.
    jax.jit(lambda n: jax.tree.map(lambda a: a + 1, n), donate_argnums=0)(small)
    close(ms.slice_apply(net, X, 0.5), by_hand(W1, W2))


def test_replaced_weights_are_not_held():
    net = upgraded()
    ms.slice_apply(net, X, 0.5)
    old = weakref.ref(net.variables["w1"])
    net.variables["w1"] = jnp.asarray(2 * W1)
    gc.collect()
    assert old() is None
