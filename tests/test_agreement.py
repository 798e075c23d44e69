"""The ninth proof: the function's own program at narrow shapes is the narrow program.

Where it is comparable it decides which numbers follow; otherwise the reason is stated.
Where it is another program, upgrade names the equation.
"""

import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import mslice_jax as ms
from mslice_jax.core.errors import PlanError
from mslice_jax.core.rules import RULES
from mslice_jax.core.rules.base import Rule

H, K = 24, 6


def weights(units=H):
    """Weights of a network 5 -> 24 -> 3, cut by NumPy to the leading units."""
    rng = np.random.default_rng(0)
    w1, w2, s = (rng.normal(size=size) for size in ((5, H), (H, 3), (H,)))
    cut = {"w1": w1[:, :units], "w2": w2[:units], "s": s[:units]}
    return {name: w.astype(np.float32) for name, w in cut.items()}


X = np.random.default_rng(1).normal(size=(4, 5)).astype(np.float32)


def network(hidden):
    return lambda p, x: hidden(x @ p["w1"], p["s"]) @ p["w2"]


def upgraded(hidden, **options):
    return ms.upgrade(network(hidden), weights(), X, rates=(K / H, 1.0), **options)


def assert_like_by_hand(net, hidden):
    expected = network(hidden)(weights(K), X)
    np.testing.assert_allclose(
        ms.slice_apply(net, X, K / H), expected, rtol=1e-4, atol=1e-4
    )


# Numbers without a sum: made of the size, each in its own way.
SIZES = {
    "times a root": lambda h, s: h * jnp.sqrt(h.shape[-1]),
    "a temperature": lambda h, s: jnp.tanh(h / h.shape[-1] ** 0.25),
    "any function": lambda h, s: h * np.sin(h.shape[-1]) + 1 / (3 + h.shape[-1]),
    "frequencies": lambda h, s: (
        h * jnp.exp(-jnp.arange(h.shape[-1])[None] / h.shape[-1])
    ),
    "a range": lambda h, s: h * jnp.linspace(0.1, 1, h.shape[-1])[None],
    "a range of ranges": lambda h, s: (
        h
        * jnp.concatenate(
            [jnp.arange(h.shape[-1] // 2), jnp.arange(h.shape[-1] // 2) ** 2]
        )[None]
    ),
    "ones of a call": lambda h, s: h + jax.jit(jnp.ones_like)(h) * jnp.ones(3).sum(),
    "ones that are counted": lambda h, s: h / jnp.ones(h.shape[-1]).sum(),
    "a table of NumPy": lambda h, s: (
        h + np.full((1, h.shape[-1]), 1 / h.shape[-1], "f")
    ),
    "within a call": lambda h, s: jax.jit(lambda v: v * v.shape[-1])(h),
    "within a loop": lambda h, s: lax.fori_loop(
        0, 3, lambda _, v: jnp.tanh(v) / v.shape[-1] ** 0.1, h
    ),
    "in a branch": lambda h, s: lax.cond(
        h.sum() > 0, lambda v: v * v.shape[-1], lambda v: v / v.shape[-1], h
    ),
}


@pytest.mark.parametrize("name", SIZES)
def test_numbers_are_those_of_the_own_program(name):
    hidden = SIZES[name]
    net = upgraded(hidden)
    assert net.definition.agreement.comparable
    assert_like_by_hand(net, hidden)


def test_gradients_are_those_of_the_own_program():
    @jax.custom_vjp
    def scaled(h):
        return h * jnp.cos(h.shape[-1] * 0.1)

    def backward(size, g):
        return (g * jnp.sqrt(size),)  # custom

    scaled.defvjp(lambda h: (scaled(h), h.shape[-1]), backward)
    hidden = lambda h, s: scaled(jnp.tanh(h))  # noqa: E731
    net = upgraded(hidden)
    assert net.definition.agreement.comparable
    run = jax.grad(lambda n: jnp.sum(ms.slice_apply(n, X, K / H) ** 2))
    by_hand = jax.grad(lambda p: jnp.sum(network(hidden)(p, X) ** 2))(weights(K))
    slopes = net.plan.slice(run(net).variables, K / H)
    np.testing.assert_allclose(slopes["w1"], by_hand["w1"], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(slopes["w2"], by_hand["w2"], rtol=1e-3, atol=1e-3)


def test_mixed_widths():
    def two(p, x):
        h = x @ p["a"]
        h = jnp.tanh(h / h.shape[-1] ** 0.3) @ p["b"]
        return (h * jnp.sqrt(h.shape[-1])) @ p["c"]

    rng = np.random.default_rng(2)
    p = {n: rng.normal(size=s).astype("f") for n, s in
         {"a": (5, 16), "b": (16, 24), "c": (24, 2)}.items()}  # fmt: skip
    net = ms.upgrade(two, p, X, rates=(0.25, 0.5, 1.0))
    cut = {"a": p["a"][:, :4], "b": p["b"][:4, :12], "c": p["c"][:12]}
    mixed = {"a:1": 0.25, "b:1": 0.5}
    np.testing.assert_allclose(
        ms.slice_apply(net, X, mixed), two(cut, X), rtol=1e-4, atol=1e-4
    )


def test_a_batch_as_large_as_the_width_is_distinguished():
    """The same number twice: the batch size, and the number of units."""
    x = np.random.default_rng(1).normal(size=(H, 5)).astype(np.float32)

    def apply(p, x):
        h = x @ p["w1"]
        return (h - h.sum() / h.shape[0] / h.shape[1]) @ p["w2"]

    net = ms.upgrade(apply, weights(), x, rates=(K / H, 1.0))
    for rows in (H, 7):  # the batch size does not matter
        np.testing.assert_allclose(
            ms.slice_apply(net, x[:rows], K / H),
            apply(weights(K), x[:rows]),
            rtol=1e-4,
            atol=1e-4,
        )


TABLE = np.linspace(1, 2, H, dtype="f")[None]
ONE = jnp.ones((1, 1))
REASONS = {
    "a size written out": (
        lambda h, s: jax.nn.softmax(h.reshape(4, 4, -1), -1).reshape(4, -1),
        "reshape",
    ),
    "a captured array": (
        lambda h, s: h * TABLE,
        "TypeError",
    ),
    "an array more": (
        lambda h, s: h + ONE if h.shape[-1] == H else h + 1,
        "captures other arrays",
    ),
    "an array less": (
        lambda h, s: h + 1 if h.shape[-1] == H else h + ONE,
        "captures other arrays",
    ),
    "a size in a slice": (
        lambda h, s: h * jnp.tanh(s)[:4].sum(),
        "slice",
    ),
    "numbers of a fixed key": (
        lambda h, s: h * jax.random.normal(jax.random.key(3), (1, h.shape[-1])),
        "fixed key",
    ),
}


@pytest.mark.parametrize("name", REASONS)
def test_incomparable_functions_give_the_reason(name):
    hidden, words = REASONS[name]
    agreement = upgraded(hidden).definition.agreement
    assert not agreement.comparable
    assert words in agreement.reason
    assert words in ms.report(upgraded(hidden)).to_dict()["own_program"]


def test_a_module_that_holds_its_sizes_is_not_compared():
    model = nn.Sequential([nn.Dense(16), nn.relu, nn.Dense(2)])
    net = ms.upgrade(model, model.init(jax.random.key(0), X), X, rates=(0.5, 1.0))
    assert "ScopeParamShapeError" in net.definition.agreement.reason


def test_another_program_is_an_error_that_names_the_line():
    def hidden(h, s):
        return jnp.tanh(h) if h.shape[-1] == H else jnp.sin(h)

    with pytest.raises(PlanError, match=r"tanh at test_agreement\.py:\d+ "):
        upgraded(hidden)
    net = upgraded(hidden, check=False)
    np.testing.assert_allclose(
        ms.slice_apply(net, X, K / H),
        network(lambda h, s: jnp.tanh(h))(weights(K), X),
        rtol=1e-4,
        atol=1e-4,
    )


def only_of(rows, x):
    """An input of another size does not fit."""
    if x.shape[0] != rows:
        raise ValueError
    return x.shape[0]


# With 24 rows and 24 units: a number held fixed that counts, and what is said of it.
# The number, whether it follows, and why: by what it is when there are 25 rows.
OF_INPUTS = {
    "the rows": (
        lambda h, x: h - h.sum(1, keepdims=True) / x.shape[0],
        (24, False, "it is the size of an input"),
    ),
    "the units": (
        lambda h, x: h - h.sum(1, keepdims=True) / 24,
        (24, True, "it counts what was summed over the axis, though"),
    ),
    "rows times units": (
        lambda h, x: h - h.sum() / (x.shape[0] * 24),
        (576, True, "it counts what was summed over the axis, though"),
    ),
    "rows times rows": (
        lambda h, x: h - h.sum() / x.shape[0] ** 2,
        (576, False, "it is the size of an input"),
    ),
}


@pytest.mark.parametrize("name", OF_INPUTS)
def test_numbers_that_may_be_sizes_of_inputs(name):
    hidden, (value, follows, why) = OF_INPUTS[name]
    x = np.random.default_rng(1).normal(size=(H, 5)).astype(np.float32)

    def apply(p, x):
        return hidden(jnp.tanh(x @ p["w1"]), x) @ p["w2"]

    net = ms.upgrade(apply, weights(), x, rates=(K / H, 1.0))
    assert net.definition.agreement.comparable
    (number,) = net.definition.agreement.numbers
    assert (number.value, number.follows) == (value, follows)
    assert number.why.startswith(why) and number.size == H and not number.open


def test_numbers_are_told_apart_by_their_place():
    """Of two that are 24 on one line, and one on another, the rows alone stay."""
    x = np.random.default_rng(1).normal(size=(H, 5)).astype(np.float32)

    def apply(p, x):
        h = jnp.tanh(x @ p["w1"])
        h = h - (h * h).sum(1, keepdims=True) / 24
        both = (
            h.sum(1, keepdims=True) / x.shape[0],
            jnp.sin(h).sum(1, keepdims=True) / 24,
        )
        return (h - both[0] + both[1]) @ p["w2"]

    net = ms.upgrade(apply, weights(), x, rates=(K / H, 1.0))
    numbers = net.definition.agreement.numbers
    assert [(n.value, n.follows) for n in numbers] == [
        (24, True),
        (24, False),
        (24, True),
    ]
    h = np.tanh(x @ weights(K)["w1"])
    h = h - (h * h).sum(1, keepdims=True) / K
    h = h - h.sum(1, keepdims=True) / 24 + np.sin(h).sum(1, keepdims=True) / K
    got = ms.slice_apply(net, x, K / H)
    np.testing.assert_allclose(got, h @ weights(K)["w2"], rtol=1e-4, atol=1e-4)


def test_a_number_of_which_nothing_can_be_told():
    x = np.ones((H, 5), np.float32)

    def apply(p, x):
        h = jnp.tanh(x @ p["w1"])
        return (h - h.sum(1, keepdims=True) / only_of(H, x)) @ p["w2"]

    with pytest.warns(ms.NumberWarning, match="stays at .* may count what is summed"):
        net = ms.upgrade(apply, weights(), x, rates=(K / H, 1.0))
    (number,) = net.definition.agreement.numbers
    assert (number.value, number.follows, number.why) == (H, False, "")


def end(y, *more):
    """What comes after the network; the units are no part of it."""
    return jnp.concatenate([y, *more], 1)


# At full width, at the narrow one, and what the error says of the two.
DIFFERENT = {
    "shorter": (jnp.tanh, lambda y: y, "tanh at .* is not there; found was nothing"),
    "longer": (lambda y: y, jnp.tanh, "its end is not there; found was tanh"),
    "in place": (jnp.tanh, jnp.sin, "tanh at .* is not there; found was sin"),
    "fewer operands": (
        lambda y: end(y, y, y), lambda y: end(y, y), "concatenate at .* other operands"
    ),
    "other operands": (
        lambda y: y - jnp.cos(y), lambda y: jnp.cos(y) - y, "sub at .* other operands"
    ),
    "a number": (
        lambda y: y * 2 - y, lambda y: y - y * 2, "sub at .* found was other operands"
    ),
    "other results": (
        lambda y: (jnp.cos(y), jnp.sin(y)), lambda y: (jnp.cos(y),) * 2,
        "sin at .* is not there; found was nothing",
    ),
    "results in another order": (
        lambda y: (y, jnp.cos(y)), lambda y: (jnp.cos(y), y)[::1],
        "its end is not there; found was other results",
    ),
    "a parameter": (
        lambda y: lax.cumsum(y, 0), lambda y: lax.cumsum(y, 0, reverse=True),
        "cumsum at .* has reverse=True, at full width False",
    ),
    "a permutation": (
        lambda y: y.reshape(2, 2, 3).transpose(0, 2, 1),
        lambda y: y.reshape(2, 2, 3).transpose(1, 2, 0),
        r"transpose at .* has permutation=\(1, 2, 0\), at full width \(0, 2, 1\)",
    ),
    "a shape": (
        lambda y: y.reshape(2, 2, 3).transpose(0, 2, 1),
        lambda y: y.reshape(2, 2, 3).transpose(2, 0, 1),
        r"transpose at .* gives \(3, 2, 2\), planned was \(2, 3, 2\)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DIFFERENT)
def test_how_the_own_program_differs(name):
    full, narrow, words = DIFFERENT[name]

    def apply(p, x):
        h = jnp.tanh(x @ p["w1"])
        return (full if h.shape[-1] == H else narrow)(h @ p["w2"])

    with pytest.raises(PlanError, match=f"rate 0.25 .*{words}"):
        ms.upgrade(apply, weights(), X, rates=(K / H, 1.0))


def test_results_that_are_numbers():
    """Which of them follow is up to the function: 24 units, 3 outputs, 4 rows."""

    def apply(p, x):
        h = jnp.tanh(x @ p["w1"])
        return h.shape[-1], h @ p["w2"], len(h), 1 / h.shape[-1]

    net = ms.upgrade(apply, weights(), X, rates=(K / H, 1.0))
    units, _, rows, inverse = ms.slice_apply(net, X, K / H)
    assert (int(units), int(rows), float(inverse)) == (K, 4, pytest.approx(1 / K))
    assert int(ms.slice_apply(net, X, 1.0)[0]) == H


def test_without_the_check_nothing_is_traced_again():
    traces = []

    def hidden(h, s):
        traces.append(h.shape)
        return jnp.tanh(h)

    upgraded(hidden, check=False)
    assert traces == [(4, H)]
    traces.clear()
    upgraded(hidden)
    assert traces == [(4, H), (4, K)]  # one more for a rate


def test_a_wrong_equation_is_found(monkeypatch):
    """Tokens are tied to as many units; the own program shows the error."""

    def hidden(h, s):
        tokens = jnp.broadcast_to(h.max(-1, keepdims=True), (4, H))
        return (h + s[None]) * tokens.max(-1, keepdims=True)

    upgraded(hidden)
    units, right = [], RULES["broadcast_in_dim"]
    wrong = Rule(lambda t: _tied(t, right, units), right.narrow)
    monkeypatch.setitem(RULES, "broadcast_in_dim", wrong)
    with pytest.raises(PlanError, match="broadcast_in_dim"):
        upgraded(hidden)


def _tied(t, rule, units):
    (value,) = rule.tie(t)
    units.extend(dim for dim in value.dims if dim.size == H)
    for dim in units[1:]:
        t.equations.equate(units[0], dim)
    return [value]


def test_user_and_own_program():
    hidden = SIZES["times a root"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net = upgraded(hidden, stay="test_agreement.py:*")
    expected = network(lambda h, s: h * np.sqrt(H))(weights(K), X)
    np.testing.assert_allclose(
        ms.slice_apply(net, X, K / H), expected, rtol=1e-4, atol=1e-4
    )
    (number,) = net.definition.agreement.numbers
    assert not number.follows and number.why == "as asked"
