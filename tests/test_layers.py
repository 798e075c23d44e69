"""Costs layer by layer, against numbers derived by hand."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

import mslice_jax as ms
from mslice_jax.profile import profile_layers
from mslice_jax.profile.measure import _differ, _flops, count
from tests.networks import CITIZENS

TOP = "(top)"


def rows(net, rate, *inputs):
    """Name -> (shape, parameters, FLOPs, bytes)."""
    return {
        row.name: (row.shape, row.parameters, row.flops, row.activation_bytes)
        for row in profile_layers(net, rate, *inputs)
    }


def upgraded(model, *inputs, rates=(0.5, 1.0), **more):
    variables = model.init(jax.random.key(0), *inputs)
    return ms.upgrade(model, variables, *inputs, rates=rates, **more)


def xla_flops(net, rate, x):
    small = ms.extract(net, rate)
    return _flops(jax.jit(lambda net, x: net(rate, x)).lower(small, x))


class Perceptron(nn.Module):
    """5 inputs, 8 hidden units, 3 outputs."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, name="out")(nn.relu(nn.Dense(8, name="hidden")(x)))


class PerceptronNnx(nnx.Module):
    """The same in NNX, whose programs have no names."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.hidden = nnx.Linear(5, 8, rngs=rngs)
        self.out = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        return self.out(nnx.relu(self.hidden(x)))


def perceptron(p, x):
    """The same as a function."""
    h = jnp.maximum(x @ p["hidden"]["w"] + p["hidden"]["b"][None], 0)
    return h @ p["out"]["w"] + p["out"]["b"][None]


def of_each_framework(x):
    yield upgraded(Perceptron(), x)
    yield ms.upgrade(PerceptronNnx(), x, rates=(0.5, 1.0))
    ones = {
        "hidden": {"w": jnp.ones((5, 8)), "b": jnp.ones(8)},
        "out": {"w": jnp.ones((8, 3)), "b": jnp.ones(3)},
    }
    yield ms.upgrade(perceptron, ones, x, rates=(0.5, 1.0))


def test_a_perceptron_of_each_framework():
    x = jnp.ones((2, 5))
    for net in of_each_framework(x):
        for rate, w in ((0.5, 4), (1.0, 8)):
            assert rows(net, rate, x) == {
                # 5 products and additions for each unit of each example, and a bias
                "hidden": ((2, w), 5 * w + w, 2 * (2 * 5 * w + w), 4 * 2 * w),
                TOP: ((2, w), 0, 2 * w, 4 * 2 * w),  # a maximum
                "out": ((2, 3), 3 * w + 3, 2 * (2 * 3 * w + 3), 4 * 2 * 3),
            }


class Convolutional(nn.Module):
    """6 x 6 pixels; a stride that is taken and given back; one norm."""

    @nn.compact
    def __call__(self, x):
        x = nn.max_pool(nn.Conv(8, (3, 3), name="conv")(x), (2, 2), (2, 2))
        x = nn.ConvTranspose(8, (3, 3), (2, 2), name="up")(x)
        x = nn.BatchNorm(use_running_average=True, name="norm")(x)
        return nn.Dense(3, name="out")(x.reshape(x.shape[0], -1))


@pytest.mark.parametrize("norm", ["shared", "switchable"])
def test_convolutions_do_not_multiply_zeros(norm):
    """3 places of a kernel at 6 positions less the 2 on the padding are 16.

    The transposed one is laid at 3 positions, 2 apart, and 1 of the 9 places is outside
    of the 6 that come out: 8.
    """
    x = jnp.ones((1, 6, 6, 3))
    net = upgraded(Convolutional(), x, norm=norm)
    for rate, w in ((0.5, 4), (1.0, 8)):
        found = rows(net, rate, x)
        area, small = 4 * 36 * w, 4 * 9 * w
        conv = 2 * 16 * 16 * 3 * w + 36 * w
        assert found["conv"] == ((1, 6, 6, w), 27 * w + w, conv, area)
        assert found[TOP] == ((1, 3, 3, w), 0, 3 * 9 * w, small)
        up = 2 * 8 * 8 * w * w + 36 * w
        assert found["up"] == ((1, 6, 6, w), 9 * w * w + w, up, area)
        # less the mean, times, plus; and for each channel an addition and a product
        assert found["norm"] == ((1, 6, 6, w), 2 * w, 3 * 36 * w + 2 * w, area)
        out = 2 * 36 * w * 3 + 3
        assert found["out"] == ((1, 3), 108 * w + 3, out, 12)
        assert list(found) == ["conv", TOP, "up", "norm", "out"]
        assert xla_flops(net, rate, x) == sum(row[2] for row in found.values())
        # The parameters are those that the report counts.
        assert net.definition.parameters(rate) == sum(row[1] for row in found.values())


def attention(p, x):
    """Attention between t tokens; the weights are by layer, and have no names."""
    p = p["attention"]
    q, k, v = (jnp.einsum("btd,dhe->bthe", x, p[name]["w"]) for name in "qkv")
    scores = jnp.exp(jnp.einsum("bthe,bshe->bhts", q, k))
    shares = scores / scores.sum(-1, keepdims=True)
    mixed = jnp.einsum("bhts,bshe->bthe", shares, v)
    return jnp.einsum("bthe,hed->btd", mixed, p["o"]["w"])


def test_attention_without_names():
    r = np.random.default_rng(0)
    shapes = {**dict.fromkeys("qkv", (5, 4, 2)), "o": (4, 2, 3)}
    p = {name: {"w": r.normal(size=shape)} for name, shape in shapes.items()}
    x = np.ones((2, 3, 5), np.float32)
    net = ms.upgrade(attention, {"attention": p}, x, rates=(0.5, 1.0))
    seen = []
    for rate in net.rates:
        small = ms.extract(net, rate).variables["attention"]
        h, e = small["q"]["w"].shape[1:]  # heads, and entries of each
        seen.append(h * e)
        found = rows(net, rate, x)
        for name in "qkv":
            expected = (2, 3, h, e), 5 * h * e, 2 * 2 * 3 * 5 * h * e, 4 * 2 * 3 * h * e
            assert found[f"attention/{name}"] == expected
        products = 2 * (2 * 2 * h * 3 * 3 * e)  # of queries and keys, shares and values
        sums, divisions = 2 * h * 3 * (3 - 1), 2 * h * 3 * 3
        _, parameters, flops, _ = found["attention"]
        assert (parameters, flops) == (0, products + sums + divisions)
        out = (2, 3, 3), 3 * h * e, 2 * 2 * 3 * 3 * h * e, 4 * 2 * 3 * 3
        assert found["attention/o"] == out
        assert xla_flops(net, rate, x) == sum(row[2] for row in found.values())
    assert seen[0] < seen[1] == 8


class Block(nn.Module):
    @nn.compact
    def __call__(self, h, _):
        return h + nn.relu(nn.Dense(8, name="dense")(h)), None


class Stack(nn.Module):
    @nn.compact
    def __call__(self, x):
        h = nn.Dense(8, name="enter")(x)
        blocks = nn.scan(
            Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3
        )
        h, _ = blocks(name="blocks")(h, None)
        return nn.remat(nn.Dense)(2, name="out")(h)


def test_loops_count_by_their_length_under_the_names_inside():
    x = jnp.ones((1, 5))
    net = upgraded(Stack(), x)
    for rate, w in ((0.5, 4), (1.0, 8)):
        assert rows(net, rate, x) == {
            "enter": ((1, w), 6 * w, 11 * w, 4 * w),
            "blocks/dense": ((1, w), 3 * (w * w + w), 3 * (2 * w * w + w), 3 * 4 * w),
            # a maximum that stays inside, and a sum that goes on, in each turn
            "blocks": ((1, w), 0, 3 * 2 * w, 3 * 4 * w),
            "out": ((1, 2), 2 * w + 2, 4 * w + 2, 8),
        }


def test_branches_and_loops_of_unknown_length():
    def net(p, x):
        h = x @ p["enter"]
        h = jax.lax.cond(x[0, 0] > 0, lambda h: h @ p["long"], lambda h: h + 1, h)
        h = jax.lax.while_loop(lambda h: h.sum() < 0, lambda h: h @ p["turn"], h)
        return h @ p["leave"]

    shapes = {"enter": (5, 8), "long": (8, 8), "turn": (8, 8), "leave": (8, 3)}
    p = {name: jnp.ones(shape) for name, shape in shapes.items()}
    x = jnp.ones((1, 5))
    sliced = ms.upgrade(net, p, x, rates=(0.5, 1.0))
    for rate, w in ((0.5, 4), (1.0, 8)):
        found = rows(sliced, rate, x)
        flops = {name: row[2] for name, row in found.items() if name != TOP}
        assert flops == {
            "enter": 2 * 5 * w, "long": 2 * w * w, "turn": 2 * w * w, "leave": 6 * w,
        }  # fmt: skip
        # A comparison and a conversion for the branch; a sum and a comparison.
        assert found[TOP][2] == pytest.approx(w + 1, abs=2)
    counts = count(sliced, 1.0, (x,), {})
    assert _differ(counts, counts.flops) == ""
    assert "only the run knows counts once" in _differ(counts, 2 * counts.flops)


def turns(length, name):
    def branch(p, h):
        return lax.scan(lambda h, _: (h @ p[name], None), h, length=length)[0]

    return branch


def nested(p, h):
    """One product or two."""
    return lax.cond(h.sum() > 1, lambda h: h @ p["a"], lambda h: h @ p["b"] @ p["b"], h)


# Two branches, and the products of that with more of them, by weight.
BRANCHES = {
    "a loop": (turns(3, "a"), lambda p, h: h @ p["b"] @ p["b"], {"a": 3}),
    "a short loop": (turns(1, "a"), lambda p, h: h @ p["b"] @ p["b"], {"b": 2}),
    "two loops": (turns(3, "a"), turns(4, "b"), {"b": 4}),
    "a branch": (nested, lambda p, h: h @ p["a"], {"b": 2}),
    "a jitted one": (
        lambda p, h: jax.jit(lambda h: h @ p["a"] @ p["a"])(h),
        lambda p, h: h @ p["b"], {"a": 2},
    ),
    "constants": (  # that are made once, and are no work
        lambda p, h: h + jnp.cumsum(jnp.arange(h.shape[1]) ** 2 * 1.0)[None],
        lambda p, h: h @ p["b"], {"b": 1},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BRANCHES)
def test_of_branches_that_with_the_most_work(name):
    *branches, products = BRANCHES[name]

    def apply(p, x):
        h = x @ p["in"]
        one, two = (lambda h, f=f: f(p, h) for f in branches)
        return lax.cond(h.sum() > 0, one, two, h) @ p["out"]

    shapes = {"in": (5, 8), "a": (8, 8), "b": (8, 8), "out": (8, 3)}
    p = {name: jnp.ones(shape) for name, shape in shapes.items()}
    x = jnp.ones((2, 5))
    net = ms.upgrade(apply, p, x, rates=(0.5, 1.0), check=False)
    found = rows(net, 0.5, x)
    for weight in "ab":
        assert found[weight][2] == products.get(weight, 0) * 2 * 2 * 4 * 4


def looked_up(mode):
    numbers = lax.GatherDimensionNumbers((1,), (0,), (0,))

    def rows(h, at):
        return lax.gather(h, at, numbers, (1, h.shape[1]), mode=mode)

    return rows


def added(h, at):
    numbers = lax.ScatterDimensionNumbers((1,), (0,), (0,))
    rows = jnp.broadcast_to(h[:1], (3, h.shape[1]))
    return lax.scatter_add(h, at, rows, numbers, mode="promise_in_bounds")


def of_rows(start, add, window, padding="VALID"):
    return lambda h, at: lax.reduce_window(h, start, add, window, (1, 1), padding)


# Of h (2, w) and three indices: 1 for each operation that XLA counts, and what it
# writes otherwise.
OPERATIONS = {
    "a cube": (lambda h, at: h**3, lambda w: 2 * 2 * w, ()),
    "a power of 7": (lambda h, at: h**7, lambda w: 4 * 2 * w, ()),
    "a power of 8": (lambda h, at: h**8, lambda w: 3 * 2 * w, ()),
    "an inverse square": (lambda h, at: h**-2, lambda w: 2 * 2 * w, ()),
    "an exponential": (lambda h, at: jnp.exp(h), lambda w: 0, ()),
    "a choice": (lambda h, at: jnp.where(h > 0, h, -h), lambda w: 3 * 2 * w, ()),
    "a largest": (lambda h, at: h + h.max(0, keepdims=True), lambda w: 3 * w, ()),
    # Not less than 0, not above, and both; then each entry or NaN.
    "rows or NaN": (looked_up("fill"), lambda w: 3 * 3 + 3 * w, ()),
    "rows nearby": (looked_up("clip"), lambda w: 3, ()),
    "rows that are there": (looked_up("promise_in_bounds"), lambda w: 0, ()),
    "rows added": (added, lambda w: 3 * w, ("scatter-add",)),
    "a sum of two rows": (of_rows(0.0, lax.add, (2, 1)), lambda w: w, ()),
    "a largest of two": (
        of_rows(-jnp.inf, lax.max, (2, 1), "SAME"), lambda w: 2 * w, ()
    ),
    "sorted rows": (lambda h, at: jnp.sort(h, 0), lambda w: 0, ("sort",)),
}  # fmt: skip


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_between_layers(name):
    f, flops, uncounted = OPERATIONS[name]

    def apply(p, x, at):
        return f(x @ p["a"], at) @ p["b"]

    p = {"a": jnp.ones((5, 8)), "b": jnp.ones((8, 3))}
    inputs = jnp.ones((2, 5)), jnp.array([[0], [1], [1]])
    net = ms.upgrade(apply, p, *inputs, rates=(0.5, 1.0), check=False)
    for rate, w in ((0.5, 4), (1.0, 8)):
        found = count(net, rate, inputs, {}).layers
        assert sum(row.flops for row in found.rows if row.name == TOP) == flops(w)
        assert found.uncounted == uncounted


def test_constants_are_made_once_and_counted_nowhere():
    def apply(p, x):
        table = jnp.stack([jnp.arange(4.0), jnp.arange(4.0) ** 2], -1).reshape(1, 8)
        return (x @ p["a"] + table) @ p["b"]

    p = {"a": jnp.ones((5, 8)), "b": jnp.ones((8, 3))}
    net = ms.upgrade(apply, p, jnp.ones((2, 5)), rates=(0.5, 1.0), check=False)
    found = count(net, 0.5, (jnp.ones((2, 5)),), {})
    assert found.layers.constants
    assert [row.flops for row in found.layers.rows if row.name == TOP] == [2 * 4 + 4]
    words = "constants that the program makes are counted by XLA alone"
    assert _differ(found, 2 * found.flops) == words
    assert _differ(found, 0.5 * found.flops) != words


def test_weights_that_no_call_reads_have_a_row():
    x = jnp.ones((1, 5))
    p = {"a": jnp.ones((5, 8)), "b": jnp.ones((8, 3)), "unread": jnp.ones((2, 2))}
    net = ms.upgrade(lambda p, x: x @ p["a"] @ p["b"], p, x, rates=(0.5, 1.0))
    assert rows(net, 0.5, x)["unread"] == (None, 4, 0, 0)


def test_reasons_name_what_xla_writes_otherwise():
    def net(p, x):
        return jnp.sort(x @ p["a"], axis=0) @ p["b"]

    p = {"a": jnp.ones((5, 8)), "b": jnp.ones((8, 3))}
    x = jnp.ones((4, 5))
    sliced = ms.upgrade(net, p, x, rates=(0.5, 1.0))
    counts = count(sliced, 0.5, (x,), {})
    assert counts.flops == 2 * 4 * 4 * (5 + 3)
    assert _differ(counts, 2 * counts.flops) == "XLA makes other operations of sort"
    assert _differ(counts, 1.01 * counts.flops) == ""
    assert _differ(counts, float("nan")) == ""


def test_the_table_has_a_row_for_each_layer_and_their_sums():
    x = jnp.ones((1, 5))
    net = upgraded(Perceptron(), x)
    cost = ms.profile.profile(net, x, rates=(0.5,), repeats=1)[0.5]
    lines = [line.split() for line in cost.table().splitlines()]
    assert lines == [
        ["layer", "output", "parameters", "FLOPs", "activations", "share"],
        ["hidden", "(1,", "4)", "24", "44", "16", "B", "58.7%"],  # 44 / 75
        ["(top)", "(1,", "4)", "0", "4", "16", "B", "5.3%"],
        ["out", "(1,", "3)", "15", "27", "12", "B", "36.0%"],
        ["total", "39", "75", "44", "B", "100.0%"],
    ]


def test_types_are_enough_and_nothing_is_compiled(compilations):
    x = jax.ShapeDtypeStruct((2, 5), jnp.float32)
    net = upgraded(Perceptron(), jnp.ones((2, 5)))
    types = jax.eval_shape(lambda: net)
    with compilations() as names:
        found = profile_layers(types, {"*": 0.5}, x)
    assert names == []
    assert [row.flops for row in found] == [88, 8, 54]


UNEXPLAINED = {"position_table", "state_space"}
"""Networks of which XLA writes the program otherwise, for no reason that is named."""


@pytest.mark.nightly
@pytest.mark.parametrize("citizen", CITIZENS, ids=str)
def test_counts_are_those_of_xla_or_say_why(citizen):
    call = dict(citizen.call)
    net = ms.upgrade(
        *citizen.arguments(), rates=(0.5, 1.0), norm=citizen.norm, call=call
    )
    small = ms.extract(net, 0.5)
    found = count(small, 0.5, citizen.inputs, call)
    assert found.parameters == net.definition.parameters(0.5)
    run = jax.jit(lambda net, *xs: net(0.5, *xs, **call))
    expected = _flops(run.lower(small, *citizen.inputs))
    why = _differ(found, expected)
    if abs(found.flops - expected) <= 0.02 * expected:
        assert why == ""
    elif citizen.name not in UNEXPLAINED:
        assert why and why != "XLA writes the program with other operations"
