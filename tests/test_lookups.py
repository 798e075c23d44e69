"""Windows at positions known only at run time: the axes that they span narrow.

vmap turns them into gathers and scatters, with windows of full size along the units.
The narrow network by hand is the function itself on weights that NumPy cut.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

import mslice_jax as ms

RNG = np.random.default_rng(0)
ROWS, TIME, UNITS, KEPT = 3, 5, 24, 6


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


X = normal(ROWS, TIME, 4)
STARTS = np.array([0, 2, 1], np.int32)
FULL = {"a": normal(4, UNITS), "b": normal(UNITS, UNITS), "c": normal(UNITS, 3)}
NARROW = {
    "a": FULL["a"][:, :KEPT],
    "b": FULL["b"][:KEPT, :KEPT],
    "c": FULL["c"][:KEPT],
}


def update_window(h, start):
    """Writes two steps of all units."""
    return lax.dynamic_update_slice(h, jnp.sin(h[:2]), (start, jnp.int32(0)))


def update_cache(h, start):
    cache = jnp.zeros((8, h.shape[-1]))
    return lax.dynamic_update_slice_in_dim(cache, h, start, axis=0)[1:6]


def add_window(h, start):
    numbers = lax.ScatterDimensionNumbers((0, 1), (), (0, 1))
    where = jnp.stack([start, 0 * start])
    return lax.scatter_add(h, where, jnp.cos(h[:2]), numbers, mode="clip")


def past_the_end(mode):
    """A window of all units that starts at unit 1: clamped to 0, or filled."""

    def look_up(h, start):
        numbers = lax.GatherDimensionNumbers((0, 1), (), (0, 1))
        where = jnp.stack([start, 0 * start + 1])
        sizes = (2, h.shape[-1])
        got = lax.gather(h, where, numbers, sizes, mode=mode, fill_value=0.5)
        return jnp.tanh(h[:2] + got)

    return look_up


MOVES = {
    "roll": lambda h, n: jnp.roll(h, n, axis=0),
    "flip": lambda h, n: jnp.roll(h[::-1], n, axis=0),
    "slice": lambda h, n: lax.dynamic_slice_in_dim(h, n, 2, axis=0),
    "slice of both": lambda h, n: lax.dynamic_slice(h, (n, 0), (2, h.shape[1])),
    "index": lambda h, n: lax.dynamic_index_in_dim(h, n, axis=0),
    "update": update_window,
    "cache": update_cache,
    "at": lambda h, n: h.at[n].set(2 * h[0]),
    "scatter": add_window,
    "clamped": past_the_end("clip"),
    "filled": past_the_end("fill"),
}


@pytest.mark.parametrize("name", MOVES)
def test_a_window_for_each_row(name):
    def f(p, x, starts):
        h = jax.vmap(MOVES[name])(jnp.tanh(x @ p["a"]), starts)
        return jnp.tanh(h @ p["b"]) @ p["c"]

    net = ms.upgrade(f, FULL, X, STARTS, rates=(0.25, 1.0))
    assert {g.width(0.25) for g in net.plan.groups.values()} == {KEPT}
    assert jax.tree.map(np.shape, net.plan.slice(FULL, 0.25)) == jax.tree.map(
        np.shape, NARROW
    )
    got = ms.slice_apply(net, X, 0.25, STARTS)
    np.testing.assert_allclose(got, f(NARROW, X, STARTS), rtol=1e-5, atol=1e-5)

    def loss(net):
        return (ms.slice_apply(net, X, 0.25, STARTS) ** 2).sum()

    grads = net.plan.slice(jax.grad(loss)(net).variables, 0.25)
    by_hand = jax.grad(lambda p: (f(p, X, STARTS) ** 2).sum())(NARROW)
    for key, expected in by_hand.items():
        np.testing.assert_allclose(grads[key], expected, rtol=1e-4, atol=1e-4)
    orders = {n: RNG.permutation(g.size) for n, g in net.plan.groups.items()}
    permuted = ms.slice_apply(net.permute(orders), X, 1.0, STARTS)
    np.testing.assert_allclose(permuted, f(FULL, X, STARTS), rtol=1e-5, atol=1e-5)


def test_a_window_along_the_units_fixes_them():
    def f(p, x, starts):
        h = jnp.tanh(x @ p["a"])
        move = lambda h, n: lax.dynamic_slice_in_dim(h, n, 6, axis=1)  # noqa: E731
        return jax.vmap(move)(h, starts) @ p["c"][:6]

    with pytest.raises(ms.PlanError, match="looked up by an index"):
        ms.upgrade(f, FULL, X, STARTS, rates=(0.5, 1.0))


ROWS_OF_UNITS = {
    "gather": (
        lambda row, i: row[i],
        lambda t, ids: t[np.arange(len(t)), ids],
    ),
    "scatter": (
        lambda row, i: row.at[i].add(2.0).max(),
        lambda t, ids: (t + 2.0 * (np.arange(5) == ids[:, None])).max(1),
    ),
}


@pytest.mark.parametrize("name", ROWS_OF_UNITS)
def test_a_row_for_each_unit(name):
    """Each unit has a row of a table, at an index of its own: one axis of units."""
    of_unit, by_hand = ROWS_OF_UNITS[name]
    full = {"a": normal(4, UNITS), "t": normal(UNITS, 5), "c": normal(UNITS, 3)}
    x = normal(4, 4)

    def f(p, x):
        h = x @ p["a"]
        found = jax.vmap(of_unit)(p["t"], (h > 0).sum(0))
        return (h * found.sum()) @ p["c"]  # nothing else makes them one

    net = ms.upgrade(f, full, x, rates=(0.25, 1.0))
    (group,) = net.plan.groups.values()
    assert group.size == UNITS
    a, t, c = full["a"][:, :KEPT], full["t"][:KEPT], full["c"][:KEPT]
    want = (x @ a * by_hand(t, (x @ a > 0).sum(0)).sum()) @ c
    np.testing.assert_allclose(ms.slice_apply(net, x, 0.25), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("cell", [nn.GRUCell, nn.LSTMCell])
def test_recurrent_both_ways_with_lengths(cell):
    class Net(nn.Module):
        width: int

        @nn.compact
        def __call__(self, x, lengths):
            def one():
                return nn.RNN(cell(self.width))

            x = nn.Bidirectional(one(), one())(x, seq_lengths=lengths)
            (_, last), x = nn.Bidirectional(one(), one(), return_carry=True)(
                x, seq_lengths=lengths
            )
            return nn.Dense(3)(x.mean(1) + jax.tree.leaves(last)[0].mean())

    lengths = STARTS + 2
    variables = Net(16).init(jax.random.key(0), X, lengths)
    net = ms.upgrade(Net(16), variables, X, lengths, rates=(0.5, 1.0))
    kept = ms.report(net).to_dict()["parameters"]
    assert kept["0.5"] / kept["1.0"] < 0.36
    small = net.plan.slice(variables, 0.5)
    expected = jax.tree.map(np.shape, Net(8).init(jax.random.key(0), X, lengths))
    assert jax.tree.map(np.shape, small) == expected
    np.testing.assert_allclose(
        ms.slice_apply(net, X, 0.5, lengths),
        Net(8).apply(small, X, lengths),
        rtol=1e-5,
        atol=1e-5,
    )
