"""Loops on CPU: products with weights outside of the loop, the same numbers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.extend.core import jaxprs_in_params
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import mslice_jax as ms
from mslice_jax.core.forms import active
from mslice_jax.cpu import barriers, loop_parts, work
from mslice_jax.cpu.table import EIGEN

TURNS, ROWS, CHANNELS = 5, 3, 8


def gated(p, state, x):
    """A cell whose kernels are put together in every turn."""
    h, c = state
    both = x @ jnp.concatenate([p["xa"], p["xb"]], 1) + h @ p["h"] + p["bias"][None]
    a, b = jnp.split(both, 2, axis=-1)
    c = jax.nn.sigmoid(a) * c + jnp.tanh(b)
    return (jnp.tanh(c), c), h


def kernel_first(p, state, x):
    """Weights are on the left, of shape (out, in), as in PyTorch and Equinox."""
    h, c = state

    def one(h, x):
        return jnp.tanh(p["xa"].T @ x + p["hh"] @ h)

    h = jax.vmap(one)(h, x)
    return (h, c + h), c


def heads(p, state, x):
    """Products with an axis of heads; one that is summed over two axes."""
    h, c = state
    split = (h + x @ p["xa"]).reshape(ROWS, 4, 2)
    h = jnp.einsum("bnd,nde->bne", split, p["heads"])
    mixed = jnp.einsum("bne,neh->bh", h, p["mix"])
    return (jnp.tanh(mixed), c), c


def looked_up(p, state, x):
    """Rows of a table, which the loop runs along, and which it finds itself."""
    h, c = state
    at = (jnp.arange(ROWS) + (x[:, 0] > 0)) % 4
    mine = (h[:, 0] > 0).astype(int)
    return (
        jnp.tanh(p["table"][at] @ p["square"] + p["table"][mine] + h @ p["hh"]),
        c,
    ), h


def noisy(p, state, x):
    """Carries a key and a count; dropout in the turn, on what the product takes in."""
    h, key, count = state
    key, now = jax.random.split(key)
    kept = jax.random.bernoulli(now, 0.5, x.shape)
    h = jnp.tanh((x * kept) @ p["xa"] + h @ p["hh"])
    return (h, key, count + 1), (h, count)


def drawn(p, state, x):
    """Random numbers of which each turn has its own key."""
    h, c = state
    key = jax.random.fold_in(jax.random.key(0), (100 * x[0, 0]).astype(int))
    h = jnp.tanh(jax.random.normal(key, x.shape) @ p["xa"] + h @ p["hh"])
    return (h, c), h


def twice(p, state, x):
    """A weight in two products and in a sum; a product of what a product gave."""
    h, c = state
    h = jnp.tanh(h @ p["hh"]) @ p["hh"] + p["hh"].sum(0)[None]
    h = h + jax.nn.relu(x @ p["xa"]) @ p["hh"]
    return (jnp.tanh(h), c), h


def nested(p, state, x):
    """A loop in the loop."""
    h, c = state

    def turn(h, _):
        return jnp.tanh(h @ p["hh"] + x @ p["xa"]), None

    h, _ = lax.scan(turn, h, None, length=3)
    return (h, c), h


def again(p, state, x):
    """The turn is computed again in the backward pass."""
    return jax.checkpoint(functools.partial(gated, p))(state, x)


def no_product(p, state, x):
    h, c = state
    return (h * jnp.tanh(x @ x.T @ x).sum() + p["hh"][:1], c), h


CELLS = [
    gated,
    kernel_first,
    heads,
    looked_up,
    twice,
    nested,
    again,
    no_product,
    noisy,
    drawn,
]


def rnn(cell, p, x, reverse=False):
    first = jnp.zeros_like(x[0] @ p["xa"])
    state = (first, first)
    if cell is noisy:
        state = (first, jax.random.key(3), jnp.array(0))
    state, seen = lax.scan(functools.partial(cell, p), state, x, reverse=reverse)
    outs = jax.tree.leaves((state[0], seen))
    return [out @ p["out"] if out.dtype == x.dtype else out for out in outs]


def weights():
    shapes = {
        "xa": (6, CHANNELS),
        "xb": (6, CHANNELS),
        "h": (CHANNELS, 2 * CHANNELS),
        "hh": (CHANNELS, CHANNELS),
        "bias": (2 * CHANNELS,),
        "heads": (4, 2, 2),
        "mix": (4, 2, CHANNELS),
        "table": (4, CHANNELS),
        "square": (CHANNELS, CHANNELS),
        "out": (CHANNELS, 2),
    }
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return {
        name: 0.5 * jax.random.normal(key, shape)
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


X = jax.random.normal(jax.random.key(1), (TURNS, ROWS, 6))


RATES = (0.5, 1.0)


@functools.cache
def network(cell, **options):
    """The loop as a network, upgraded."""
    run = functools.partial(rnn, cell, **options)
    return ms.upgrade(run, weights(), X, rates=RATES)


def ours(net, x, rate):
    """A sub-network in the forms of `ms.jit`."""
    with active(EIGEN):
        return ms.slice_apply(net, x, rate)


def value(run, net, x, rate):
    """A number that depends on all that a loop gives."""
    outs = run(net, x, rate)
    return sum(jnp.sum(jnp.sin(out)) for out in outs if out.dtype == x.dtype)


def results(run, net, rate=0.5, x=X):
    """What a loop gives, and the gradients of its number."""

    def number(net, x):
        outs = jax.tree.leaves(run(net, x, rate))
        floats = [out for out in outs if out.dtype == x.dtype]
        return sum(jnp.sum(jnp.sin(out)) for out in floats), outs

    step = jax.grad(number, argnums=(0, 1), has_aux=True)
    (of_weights, of_x), outs = jax.jit(step)(net, x)
    return outs, of_weights.variables, of_x


def assert_close(found, expected):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * (1 + np.abs(b).max()))


def _in_loops(jaxpr, inside=False):
    for eqn in jaxpr.eqns:
        if inside:
            yield eqn.primitive.name, eqn.outvars[0].aval.shape
        loop = inside or eqn.primitive.name == "scan"
        for called in jaxprs_in_params(eqn.params):
            yield from _in_loops(called, loop)


def in_loops(fun, *args):
    """What the loops of a program compute: primitives and shapes of their results."""
    *static, net = args
    return list(_in_loops(jax.make_jaxpr(functools.partial(fun, *static))(net).jaxpr))


def products(fun, *args):
    """Shapes of the products in the loops of a program."""
    return sorted(
        shape for name, shape in in_loops(fun, *args) if name == "dot_general"
    )


def forward(run, net):
    return run(net, X, 1.0)


def backward(run, net):
    return jax.grad(functools.partial(value, run))(net, X, 1.0)


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.__name__)
def test_values_and_gradients_are_those_of_the_loop(cell):
    net = network(cell)
    assert_close(results(ours, net), results(ms.slice_apply, net))


@pytest.mark.parametrize("options", [{}, {"reverse": True}], ids=["on", "back"])
def test_at_full_width(options):
    net = network(gated, **options)
    assert_close(results(ours, net, 1.0), results(ms.slice_apply, net, 1.0))


def test_forward_mode_second_derivatives_and_vmap():
    net = network(gated)

    def moved(run):
        return jax.jvp(lambda net: run(net, X, 0.5), (net,), (net,))

    assert_close(moved(ours), moved(ms.slice_apply))

    def slope(run, x):
        _, *gradients = results(run, net, x=x)
        return sum(jnp.sum(g * g) for g in jax.tree.leaves(gradients))

    def second(run):
        slopes = jax.vmap(jax.grad(functools.partial(slope, run)))
        return jax.jit(slopes)(jnp.stack([X, 2 * X]))

    assert_close(second(ours), second(ms.slice_apply))


@pytest.mark.parametrize("cell", [gated, kernel_first], ids=lambda cell: cell.__name__)
def test_second_derivatives_by_the_weights(cell):
    net = network(cell)

    def along(run):
        """The derivative of the gradient in a direction."""
        slope = functools.partial(backward, run)
        return jax.jit(lambda net: jax.jvp(slope, (net,), (net,))[1])(net).variables

    assert_close(along(ours), along(ms.slice_apply))

    def of_squares(run):
        def squares(net):
            return sum(jnp.sum(g * g) for g in jax.tree.leaves(backward(run, net)))

        return jax.jit(jax.grad(squares))(net).variables

    assert_close(of_squares(ours), of_squares(ms.slice_apply))


def test_gradients_of_some_weights_alone():
    """The others, of the same products, have none."""
    net = network(gated)

    def gradient(run):
        def number(bias):
            p = {**net.variables, "bias": bias}
            return value(run, net.replace(variables=p), X, 1.0)

        return jax.jit(jax.grad(number))(net.variables["bias"])

    assert_close(gradient(ours), gradient(ms.slice_apply))


INPUTS, STATE = (2 * CHANNELS, 6), (2 * CHANNELS, CHANNELS)
"""Shapes of the gradients of [xa, xb] and h, as JAX adds them up: transposed."""


def test_what_is_left_in_the_loops():
    """By hand: h @ p["h"], and in the backward loop the gradient of its h."""
    net = network(gated)
    assert products(forward, ours, net) == [(ROWS, 2 * CHANNELS)]
    assert products(backward, ours, net) == [(ROWS, CHANNELS), (ROWS, 2 * CHANNELS)]
    assert {INPUTS, STATE} <= set(products(backward, ms.slice_apply, net))


def test_the_rows_of_a_turn_are_copied_before_they_are_read(monkeypatch):
    """Those of numbers: of three arrays that the loop runs along, one is of keys."""

    def run(p, x):
        def turn(h, xs):
            x, count, key = xs
            here = x[:, :1] + x[:, 1:2] + jax.random.uniform(key, (ROWS, 1)) + count
            return jnp.tanh(h @ p["hh"] + here), None

        counts, keys = jnp.arange(TURNS), jax.random.split(jax.random.key(0), TURNS)
        first = jnp.zeros((ROWS, len(p["hh"])))
        return lax.scan(turn, first, (x, counts, keys))[0] @ p["out"]

    monkeypatch.setattr(barriers, "_SMALL", 0)
    p = {name: weights()[name] for name in ("hh", "out")}
    net = ms.upgrade(run, p, X, rates=RATES)
    copied = [
        shape
        for name, shape in in_loops(forward, ours, net)
        if name == "optimization_barrier"
    ]
    assert copied == [(ROWS, 6)]
    assert_close(results(ours, net), results(ms.slice_apply, net))


def test_what_memory_does_not_hold_stays_in_the_loop(monkeypatch):
    """Enough for x @ [xa, xb], and not for what h @ p["h"] would keep."""
    monkeypatch.setattr(loop_parts, "BYTES", TURNS * ROWS * 2 * CHANNELS * 4)
    net = network.__wrapped__(gated)  # JAX has no trace of it
    found = products(backward, ours, net)
    assert STATE in found and INPUTS not in found
    monkeypatch.setattr(loop_parts, "BYTES", 0)
    net = network.__wrapped__(gated)
    assert products(forward, ours, net) == [(ROWS, 2 * CHANNELS)] * 2
    assert_close(results(ours, net), results(ms.slice_apply, net))


def test_a_product_whose_sharding_the_user_says_stays():
    if jax.device_count() < 2:
        pytest.skip("needs two devices")
    mesh = jax.make_mesh((2,), ("rows",), axis_types=(AxisType.Explicit,))

    def net_of(p, x):
        def turn(h, x):
            back = dot(p["hh"], h, (1, 1), P(None, "rows")).T
            return jnp.tanh(back + dot(x, p["xa"], (1, 0), P("rows"))), None

        h = jax.device_put(jnp.zeros((4, p["hh"].shape[0])), by_rows)
        return dot(lax.scan(turn, h, x)[0], p["out"], (1, 0), P("rows"))

    def dot(a, b, axes, spec):
        numbers = ((axes[:1], axes[1:]), ((), ()))
        return lax.dot_general(a, b, numbers, out_sharding=spec)

    with jax.set_mesh(mesh):
        by_rows = NamedSharding(mesh, P("rows", None))
        x = jax.random.normal(jax.random.key(2), (TURNS, 4, 6))
        x = jax.device_put(x, NamedSharding(mesh, P(None, "rows", None)))
        net = ms.upgrade(net_of, weights(), x, rates=RATES)
        run = functools.partial(jax.jit, static_argnums=2)
        found, expected = (run(f)(net, x, 0.5) for f in (ours, ms.slice_apply))
    assert found.sharding == expected.sharding
    assert_close(found, expected)


def test_random_bits_stay_turn_by_turn():
    """vmap may draw other ones, as it does with JAX's generator "rbg"."""
    names = {name for name, _ in in_loops(forward, ours, network(drawn))}
    assert names & {"random_bits", "threefry2x32"}


def test_ms_jit_has_the_forms_where_a_loop_is_work():
    net = network(gated)
    step = ms.jit(functools.partial(backward, ms.slice_apply))
    program = step.trace(net).jaxpr
    assert work.share(program) > 0.5
    found = [shape for name, shape in _in_loops(program) if name == "dot_general"]
    assert sorted(found) == products(backward, ours, net)

    # A loop over layers has no weight that is the same at every turn.
    def layers(x, stacked):
        return lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, stacked)[0]

    program = jax.make_jaxpr(layers)(X[0], jnp.ones((4, 6, 6)))
    assert work.share(program) == 0


def small_loop(p, x):
    """A tanh layer along x (t, b, 3), and sums (2,) of a product of its states."""

    def step(h, row):
        h = jnp.tanh(row @ p["in"] + h @ p["state"])
        return h, h

    start = jnp.zeros((x.shape[1], p["state"].shape[0]))
    states = jax.lax.scan(step, start, x)[1]
    return (states @ p["out"]).sum((0, 1))


@pytest.mark.parametrize(
    ("units", "rows", "turns"), [(4, 1, 2), (8, 4, 2), (16, 1, 4), (64, 1, 1)]
)
def test_small_loops_compile(units, rows, turns):
    """XLA makes one kernel of a loop of a few bytes, and cannot have barriers there."""
    rng = np.random.default_rng(0)
    shapes = {"in": (3, units), "state": (units, units), "out": (units, 2)}
    p = {
        name: rng.normal(size=shape).astype(np.float32)
        for name, shape in shapes.items()
    }
    x = rng.normal(size=(turns, rows, 3)).astype(np.float32)
    net = ms.upgrade(small_loop, p, x, rates=(0.5, 1.0))
    half = units // 2
    h, total = np.zeros((rows, half)), 0.0
    for row in x.astype(float):
        h = np.tanh(row @ p["in"][:, :half] + h @ p["state"][:half, :half])
        total += (h @ p["out"][:half]).sum()

    def loss(net):
        return ms.slice_apply(net, x, 0.5).sum()

    found, grads = ms.jit(jax.value_and_grad(loss))(net)
    np.testing.assert_allclose(found, total, rtol=1e-4, atol=1e-4)
    assert_close(grads, jax.jit(jax.grad(loss))(net))
