"""The user's choices: which axes narrow, by how much, and in which order."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mslice_jax as ms
from mslice_jax.core.groups import Parameter
from mslice_jax.core.patterns import matches, no_match
from mslice_jax.core.settings import Settings, choices
from tests.citizens.citizen import Tree, random_inputs, shaken
from tests.networks import CITIZENS
from tests.test_proofs import assert_close, assert_trees_equal, output, run, upgraded


def mlp(p: Tree, x: jax.Array) -> jax.Array:
    h = jnp.tanh(x @ p["first"]["w"])
    h = jnp.tanh(h @ p["second"]["w"])
    return h @ p["third"]["w"]


def weights(*sizes: int) -> Tree:
    names = ("first", "second", "third")
    return shaken(
        {
            name: {"w": np.zeros((a, b), np.float32)}
            for name, a, b in zip(names, sizes[:-1], sizes[1:], strict=True)
        }
    )


X = random_inputs(4, 5)
RATES = (0.25, 0.5, 1.0)
upgrade_mlp = functools.partial(ms.upgrade, mlp, weights(5, 16, 32, 3), X, rates=RATES)


def shapes(net: ms.Sliceable) -> list[tuple[int, ...]]:
    return [net.variables[name]["w"].shape for name in ("first", "second", "third")]


# -- include and exclude


@pytest.mark.parametrize(
    ("chosen", "narrow"),
    [
        ({}, [(5, 8), (8, 16), (16, 3)]),
        ({"exclude": "first"}, [(5, 16), (16, 16), (16, 3)]),
        ({"exclude": "*/w:1"}, None),
        ({"exclude": ["first", "third"]}, None),
        ({"exclude": "second/w:1"}, [(5, 8), (8, 32), (32, 3)]),
        ({"include": ["second", "third"]}, [(5, 16), (16, 16), (16, 3)]),
        ({"include": ["*"], "exclude": "t*"}, [(5, 8), (8, 32), (32, 3)]),
        ({"include": ["first", "second/w:0"]}, [(5, 8), (8, 32), (32, 3)]),
    ],
)
def test_patterns_choose_the_narrowing_axes(chosen, narrow):
    if narrow is None:
        with pytest.raises(ms.PlanError, match="excluded by"):
            upgrade_mlp(**chosen)
    else:
        assert shapes(ms.extract(upgrade_mlp(**chosen), 0.5)) == narrow


def test_report_names_the_option_that_excluded_an_axis():
    fixed = ms.report(upgrade_mlp(exclude="first")).to_dict()["fixed"]
    assert {"first/w:1": "excluded by 'first'"}.items() <= {
        f["axis"]: f["reason"] for f in fixed
    }.items()
    text = str(ms.report(upgrade_mlp(include=["second", "third"])))
    assert "not in include=second, third: first/w:0 (5), first/w:1 (16), sec" in text


@pytest.mark.parametrize("argument", ["include", "exclude", "inner"])
def test_pattern_that_matches_nothing_lists_close_ones(argument):
    with pytest.raises(ms.PlanError, match=rf"{argument}.*'secnd'.*'second") as error:
        upgrade_mlp(**{argument: "secnd"})
    assert "matches nothing" in str(error.value)


def test_pattern_of_another_type():
    with pytest.raises(TypeError, match="path pattern"):
        upgrade_mlp(exclude=[1])


@pytest.mark.parametrize(
    ("pattern", "path", "axis", "expected"),
    [
        ("params/a/kernel", "params/a/kernel", None, True),
        ("a/kernel", "params/a/kernel", None, True),
        ("a", "params/a/kernel", 0, True),
        ("a", "params/ab/kernel", 0, False),
        ("*/kernel:1", "params/a/kernel", 1, True),
        ("*/kernel:1", "params/a/kernel", 0, False),
        ("*/bias", "params/a/kernel", 0, False),
        ("params", "params/a/kernel", 0, True),
        ("A", "params/a/kernel", 0, False),
    ],
)
def test_matching(pattern, path, axis, expected):
    assert matches(pattern, path, axis) == expected


def test_close_matches_name_branches_too():
    assert "'encoder'" in no_match("encodr", ["params/encoder/kernel"], "exclude")


# -- widths


@pytest.mark.parametrize(
    ("chosen", "hidden"),  # widths of the axes of 16 and 32 at the rates
    [
        ({}, {0.25: (4, 8), 0.5: (8, 16), 1.0: (16, 32)}),
        ({"multiple_of": 8}, {0.25: (8, 8), 0.5: (8, 16), 1.0: (16, 32)}),
        ({"multiple_of": 12}, {0.25: (12, 12), 0.5: (12, 12), 1.0: (16, 32)}),
        ({"min_width": 7}, {0.25: (8, 8), 0.5: (8, 16), 1.0: (16, 32)}),
        ({"min_width": 24}, {0.25: (16, 24), 0.5: (16, 24), 1.0: (16, 32)}),
        ({"multiple_of": 128}, {0.25: (16, 32), 0.5: (16, 32), 1.0: (16, 32)}),
    ],
)
def test_widths_are_rounded_as_asked(chosen, hidden):
    net = upgrade_mlp(**chosen)
    for rate, (first, second) in hidden.items():
        small = ms.extract(net, rate)
        assert shapes(small) == [(5, first), (first, second), (second, 3)]
        p = weights(5, 16, 32, 3)
        cut = {
            "first": {"w": p["first"]["w"][:, :first]},
            "second": {"w": p["second"]["w"][:first, :second]},
            "third": {"w": p["third"]["w"][:second]},
        }
        np.testing.assert_allclose(ms.slice_apply(net, X, rate), mlp(cut, X), 1e-5)


@pytest.mark.parametrize("argument", ["groups", "min_width", "multiple_of"])
@pytest.mark.parametrize("value", [0, -8, 2.5])
def test_bad_counts(argument, value):
    with pytest.raises(ValueError, match=rf"{argument} is a positive integer"):
        upgrade_mlp(**{argument: value})


def test_strict_refuses_a_raised_width():
    with pytest.raises(ms.PlanError, match="rate 0.25 keeps 8 of 16"):
        upgrade_mlp(min_width=8, strict=True)


# -- heads or head size


class Attention(nn.Module):
    heads: int
    size: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def project(name: str) -> jax.Array:
            return nn.DenseGeneral((self.heads, self.size), name=name)(x)

        query, key, value = map(project, ("query", "key", "value"))
        # A scale that does not depend on the head size, so that it can narrow.
        scores = jax.nn.softmax(0.1 * jnp.einsum("bthd,bshd->bhts", query, key))
        y = jnp.einsum("bhts,bshd->bthd", scores, value)
        return nn.DenseGeneral(x.shape[-1], axis=(-2, -1), name="out")(y)


def test_what_patterns_say_of_each_axis():
    settings = Settings(
        (0.5, 1.0), include=("a", "c"), exclude=("a:0",), inner=("a:1", "c")
    )
    not_included = "not in include=a, c"
    assert choices(settings, {"a": 2, "b": 2, "c": 1}) == {
        "a": Parameter("a", whole={0: "excluded by 'a:0'"}, inner=frozenset({1})),
        "b": Parameter("b", whole={0: not_included, 1: not_included}),
        "c": Parameter("c", inner=frozenset({0})),
    }


TOKENS = random_inputs(2, 3, 12)


@functools.cache
def attention(**chosen: Any) -> ms.Sliceable:
    model = Attention(4, 8)
    variables = shaken(model.init(jax.random.key(0), TOKENS))
    return ms.upgrade(model, variables, TOKENS, rates=RATES, **chosen)


@pytest.mark.parametrize(
    ("inner", "heads", "size", "value_size"),
    [
        (None, 2, 8, 8),
        ("*/kernel", 4, 4, 4),
        # Query and key share their head size. The heads of all three are one axis, so
        # in value too only the head size is left to narrow.
        ("query/kernel:2", 4, 4, 4),
        ("value/kernel:2", 4, 4, 4),
    ],
)
def test_heads_or_head_size(inner, heads, size, value_size):
    net = attention(inner=inner)
    p = net.variables["params"]

    def cut(name: str, width: int) -> Tree:
        return {
            "kernel": p[name]["kernel"][:, :heads, :width],
            "bias": p[name]["bias"][:heads, :width],
        }

    out = p["out"]["kernel"][:heads, :value_size]
    narrow = {
        "query": cut("query", size),
        "key": cut("key", size),
        "value": cut("value", value_size),
        "out": {"kernel": out, "bias": p["out"]["bias"]},
    }
    small = ms.extract(net, 0.5)
    assert_trees_equal(small.variables["params"], narrow)
    by_hand = jax.jit(Attention(heads, size).apply)({"params": narrow}, TOKENS)
    np.testing.assert_array_equal(ms.slice_apply(net, TOKENS, 0.5), by_hand)


def test_whole_heads_make_up_the_multiple():
    # Heads of 8: a multiple of 16 keeps an even number of them.
    net = attention(multiple_of=16)
    (group,) = net.plan.groups.values()
    assert (group.size, group.unit, group.span) == (4, 2, 8)
    assert [group.width(rate) for rate in RATES] == [2, 2, 4]
    (group,) = attention(min_width=17).plan.groups.values()
    assert [group.width(rate) for rate in RATES] == [3, 3, 4]


def with_heads_of_six(p: Tree, x: jax.Array) -> jax.Array:
    """(4, 5) -> (4, 3); `out` has the number of heads."""
    h = jnp.tanh(x @ p["in"]).reshape(-1, p["out"].shape[0], 6)
    return jnp.einsum("bhd,hdo->bo", h * jax.nn.softmax(h, -1), p["out"])


@pytest.mark.parametrize(
    ("multiple_of", "unit"),
    [
        (4, 2),  # of 6, 12, 18, 24 entries 12 and 24 are multiples of 4
        (9, 3),  # 18 is a multiple of 9
        (5, 4),  # none of them, so all heads stay
        (3, 1),  # each of them
    ],
)
def test_heads_that_share_a_factor_with_the_multiple(multiple_of, unit):
    p = {"in": np.zeros((5, 24), np.float32), "out": np.zeros((4, 6, 3), np.float32)}
    net = ms.upgrade(
        with_heads_of_six, p, X, rates=RATES, multiple_of=multiple_of, groups=4
    )
    (group,) = net.plan.groups.values()
    assert (group.size, group.span, group.unit) == (4, 6, unit)


def test_one_of_two_heads_is_kept():
    """Two heads are the fewest that can narrow; the head size is fixed."""
    p = {"in": np.zeros((5, 12), np.float32), "out": np.zeros((2, 6, 3), np.float32)}
    (group,) = ms.upgrade(with_heads_of_six, p, X, rates=RATES).plan.groups.values()
    assert (group.size, group.span, group.width(0.5)) == (2, 6, 1)


def group_of(function: Any, **sizes: tuple[int, ...]) -> str:
    """The name of the only group of a function of arrays of these sizes."""
    p = {name: np.zeros(size, np.float32) for name, size in sizes.items()}
    (group,) = ms.upgrade(function, p, X, rates=RATES).plan.groups
    return group


def test_a_group_has_the_name_of_the_kernel_that_ends_in_it():
    def bias(p: Tree, x: jax.Array) -> jax.Array:
        return jnp.tanh(x @ p["m"] + p["a"][None] + x @ p["n"]) @ p["z"]

    # Neither the bias, which ends in it too, nor the kernel that begins with it; of two
    # equal candidates the first.
    sizes = {"a": (16,), "m": (5, 16), "n": (5, 16), "z": (16, 3)}
    assert group_of(bias, **sizes) == "m:1"

    def more_axes(p: Tree, x: jax.Array) -> jax.Array:
        h = jnp.tanh(x @ p["m"])
        y = jnp.einsum("bi,xyio->bo", h, p["z"])
        return y + jnp.einsum("bi,xyzi->b", h, p["n"])[:, None] if "n" in p else y

    # Of arrays with more axes only one that ends in it counts.
    assert group_of(more_axes, m=(5, 16), z=(1, 1, 16, 3)) == "m:1"
    sizes = {"m": (5, 16), "n": (1, 1, 1, 16), "z": (1, 1, 16, 3)}
    assert group_of(more_axes, **sizes) == "n:3"

    def within(p: Tree, x: jax.Array) -> jax.Array:
        return x @ jnp.einsum("iao,jip->op", p["a"], p["b"])

    # None ends in it: the array with the axis at the later position.
    assert group_of(within, a=(16, 1, 5), b=(1, 16, 3)) == "b:1"


# -- a rate for each width group


def test_rates_of_single_groups():
    net = upgrade_mlp()
    assert list(net.plan.groups) == ["first/w:1", "second/w:1"]
    p = weights(5, 16, 32, 3)
    cut = {
        "first": {"w": p["first"]["w"][:, :4]},
        "second": {"w": p["second"]["w"][:4, :16]},
        "third": {"w": p["third"]["w"][:16]},
    }
    rates = {"first/w:1": 0.25, "second/w:1": 0.5}
    small = ms.extract(net, rates)
    assert_trees_equal(small.variables, cut)
    y = ms.slice_apply(net, X, rates)
    np.testing.assert_allclose(y, mlp(cut, X), 1e-5)
    np.testing.assert_array_equal(ms.slice_apply(small, X, rates), y)
    # Nesting: the part of rate 0.25 lies in it, that of 0.5 does not.
    assert small.rates == (0.25,)
    np.testing.assert_array_equal(
        ms.slice_apply(small, X, 0.25), ms.slice_apply(net, X, 0.25)
    )
    with pytest.raises(ms.RateError, match="wider than this network"):
        ms.slice_apply(small, X, 0.5)
    with pytest.raises(ms.RateError, match="wider than this network"):
        ms.slice_apply(small, X, {"first": 0.5})


def test_patterns_of_groups_and_the_rest():
    net = upgrade_mlp()
    widths = {"*": 0.25, "second": 1.0}
    assert shapes(ms.extract(net, widths)) == [(5, 4), (4, 32), (32, 3)]
    assert shapes(ms.extract(net, {"second": 0.5})) == [(5, 16), (16, 16), (16, 3)]
    # From a narrow network: an unnamed group keeps its width.
    half = ms.extract(net, 0.5)
    assert shapes(ms.extract(half, {"first": 0.25})) == [(5, 4), (4, 16), (16, 3)]


def test_one_rate_for_all_is_that_rate(compilations):
    net = upgrade_mlp()
    assert ms.extract(net, {"*": 0.5}).rate == 0.5
    ms.slice_apply(net, X, 0.5)
    with compilations() as names:
        ms.slice_apply(net, X, {"first/w:1": 0.5, "second": 0.5})
    assert names == []


def test_single_rates_compile_once_and_have_gradients(compilations):
    net, rates = upgrade_mlp(), {"first": 0.25, "second": 0.5}

    @jax.jit
    def gradient(net: ms.Sliceable) -> ms.Sliceable:
        return jax.grad(lambda net: jnp.sum(ms.slice_apply(net, X, rates)))(net)

    with compilations() as names:
        slopes = gradient(net)
        gradient(net)
    assert len(names) == 1
    second = np.asarray(slopes.variables["second"]["w"])
    assert np.all(second[:4, :16] != 0)
    assert not second[4:].any() and not second[:, 16:].any()


@pytest.mark.parametrize(
    ("rates", "error", "words"),
    [
        ({"frist/w:1": 0.5}, ms.PlanError, "matches nothing.*'first"),
        ({"first": 0.3}, ms.RateError, "0.3 was not declared"),
        ({"first": "0.5"}, ms.RateError, "Python number"),
        ({"first": 2.0}, ms.RateError, r"\(0, 1\]"),
    ],
)
def test_bad_single_rates(rates, error, words):
    with pytest.raises(error, match=words):
        ms.slice_apply(upgrade_mlp(), X, rates)


def test_switchable_norms_refuse_mixed_rates():
    citizen = next(c for c in CITIZENS if c.norm == "switchable")
    net = upgraded(citizen)
    first = next(iter(net.plan.groups))
    with pytest.raises(ms.RateError, match="one set of arrays per rate"):
        ms.slice_apply(net, *citizen.inputs, {first: 0.25})


# -- reordering


def test_reorder_by_hand():
    net = upgrade_mlp()
    p = net.variables
    new = ms.reorder(net, by="l1")
    # All arrays with the axis count the same: each is divided by its mean.
    scores = np.abs(p["first"]["w"]).sum(0), np.abs(p["second"]["w"]).sum(1)
    order = np.argsort(-sum(score / score.mean() for score in scores))
    scores = np.abs(p["second"]["w"]).sum(0), np.abs(p["third"]["w"]).sum(1)
    then = np.argsort(-sum(score / score.mean() for score in scores))
    expected = {
        "first": {"w": p["first"]["w"][:, order]},
        "second": {"w": p["second"]["w"][order][:, then]},
        "third": {"w": p["third"]["w"][then]},
    }
    assert_trees_equal(new.variables, expected)
    assert not np.array_equal(order, np.arange(16))
    assert_close(ms.slice_apply(new, X, 1.0), ms.slice_apply(net, X, 1.0))


def test_reorder_finds_dead_units():
    # Half of the units are dead; in front of the others they would be the only ones
    # kept.
    p = weights(5, 16, 32, 3)
    dead = np.arange(16)[::2], np.arange(32)[:16]
    p["first"]["w"][:, dead[0]] = 0
    p["second"]["w"][:, dead[1]] = 0
    net = ms.upgrade(mlp, p, X, rates=RATES)
    full = np.asarray(ms.slice_apply(net, X, 1.0))
    assert np.max(np.abs(ms.slice_apply(net, X, 0.5) - full)) > 0.1

    def loss(net: ms.Sliceable, batch: np.ndarray) -> jax.Array:
        return jnp.sum(ms.slice_apply(net, batch, 1.0) ** 2)

    for by in (
        {"by": "l1"},
        {"by": "l2"},
        {"by": "taylor", "loss": loss, "batches": [X]},
    ):
        # Dead units send no signal, but only their incoming weights are zero.
        new = ms.reorder(net, **by)
        assert_close(ms.slice_apply(new, X, 1.0), full)
        if by["by"] == "taylor":
            assert_close(ms.slice_apply(new, X, 0.5), full)


def test_taylor_by_hand():
    net = upgrade_mlp()

    def loss(net: ms.Sliceable, batch: np.ndarray) -> jax.Array:
        return jnp.mean(jnp.square(ms.slice_apply(net, batch, 1.0)))

    def plain(p: Tree, batch: np.ndarray) -> jax.Array:
        return jnp.mean(jnp.square(mlp(p, batch)))

    batches = [X, random_inputs(4, 5, seed=1)]
    total = np.zeros(16)
    for batch in batches:
        g = jax.grad(plain)(net.variables, batch)
        incoming = np.square((g["first"]["w"] * net.variables["first"]["w"]).sum(0))
        outgoing = np.square((g["second"]["w"] * net.variables["second"]["w"]).sum(1))
        total += incoming / incoming.mean() + outgoing / outgoing.mean()
    new = ms.reorder(net, "taylor", loss=loss, batches=batches, exclude="second")
    order = np.argsort(-total)
    np.testing.assert_array_equal(
        new.variables["first"]["w"], net.variables["first"]["w"][:, order]
    )
    np.testing.assert_array_equal(
        new.variables["third"]["w"], net.variables["third"]["w"]
    )


def test_scores_of_the_user():
    net = upgrade_mlp()
    new = ms.reorder(net, {"first/w:1": np.arange(16)})
    np.testing.assert_array_equal(
        new.variables["first"]["w"], net.variables["first"]["w"][:, ::-1]
    )
    np.testing.assert_array_equal(
        new.variables["third"]["w"], net.variables["third"]["w"]
    )


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"by": "size"}, ValueError, "'l1', 'l2', 'taylor'"),
        ({"by": "taylor"}, ValueError, "needs loss="),
        ({"by": "taylor", "loss": lambda net, b: 0.0}, ValueError, "needs batches="),
        ({"by": {"first/w:1": np.arange(3)}}, ms.PlanError, r"expected shape \(16,\)"),
        ({"by": {"first/v": np.arange(3)}}, ms.PlanError, "matches nothing"),
        ({"exclude": "fourth"}, ms.PlanError, "matches nothing"),
    ],
)
def test_bad_reorder(arguments, error, words):
    with pytest.raises(error, match=words):
        ms.reorder(upgrade_mlp(), **arguments)


def test_reorder_expects_the_full_network():
    small = ms.extract(upgrade_mlp(), 0.5)
    for change in (ms.reorder, lambda net: net.permute({})):
        with pytest.raises(ValueError, match="full network"):
            change(small)


@pytest.mark.parametrize(
    "citizen", [c for c in CITIZENS if not c.call.get("train")], ids=str
)
def test_reorder_twice_keeps_the_function(citizen):
    net = upgraded(citizen)
    new = ms.reorder(ms.reorder(net, by="l2"), by="l1")
    assert_close(run(new, citizen, 1.0), output(citizen, 1.0))
    assert new.definition.orders.keys() == net.plan.groups.keys()


def test_captured_constants_are_reordered():
    (citizen,) = (c for c in CITIZENS if c.name == "position_table")
    net, rng = upgraded(citizen), np.random.default_rng(0)
    orders = {n: rng.permutation(g.size) for n, g in net.plan.groups.items()}
    new = net.permute(orders).permute(orders)
    assert_close(run(new, citizen, 1.0), output(citizen, 1.0))
    # The narrow network keeps the rows of the table that moved to the front.
    back = {n: np.argsort(order[order]) for n, order in orders.items()}
    again = new.permute(back)
    np.testing.assert_array_equal(run(again, citizen, 0.5), output(citizen, 0.5))


def test_what_is_no_permutation_is_refused():
    (citizen,) = (c for c in CITIZENS if c.name == "position_table")
    net = upgraded(citizen)
    name, group = next(iter(net.plan.groups.items()))
    for order in (np.zeros(group.size, int), np.arange(group.size - 1)):
        with pytest.raises(ms.PlanError, match=f"permutation of 0..{group.size - 1}"):
            net.permute({name: order})


def test_an_iota_along_an_axis_is_reordered():
    """Unit i is multiplied with i + 1, wherever it moves."""

    def fun(p, x):
        h = x @ p["first"]
        return (h * (1 + jax.lax.broadcasted_iota(h.dtype, h.shape, 1))) @ p["second"]

    rng = np.random.default_rng(0)
    p = {"first": rng.normal(size=(3, 8)), "second": rng.normal(size=(8, 2))}
    p = {name: w.astype(np.float32) for name, w in p.items()}
    x = rng.normal(size=(4, 3)).astype(np.float32)
    net = ms.upgrade(fun, p, x, rates=(0.5, 1.0))
    ((group, _),) = net.plan.groups.items()
    order = rng.permutation(8)
    new = net.permute({group: order})
    kept = order[:4]
    by_hand = (x @ p["first"][:, kept] * (1 + kept)) @ p["second"][kept]
    assert_close(ms.slice_apply(new, x, 0.5), by_hand)
    assert_close(ms.slice_apply(new, x, 1.0), fun(p, x))


def test_rates_of_the_same_widths_are_still_two():
    """Norms with a set for each rate use that of the requested rate."""
    net = upgrade_mlp(rates=(0.5, 0.55, 1.0))
    assert net.plan.widths(0.5) == net.plan.widths(0.55)
    assert net.plan.resolve({"*": 0.55}).rate == 0.55


def test_a_pattern_is_a_string():
    with pytest.raises(ms.PlanError, match="name or pattern: rate"):
        ms.slice_apply(upgrade_mlp(), X, {0: 0.5})


def test_a_mapping_resolves_to_the_lowest_rate_of_the_same_widths():
    """Of 16 and 32 units 0.5 and 0.52 keep 8 and 16."""
    plan = upgrade_mlp(rates=(0.5, 0.52, 1.0)).plan
    assert plan.widths(0.52) == {"first/w:1": 8, "second/w:1": 16}
    mixed = plan.resolve({"first": 0.52, "second": 0.5})
    assert mixed.rate == 0.5
    assert mixed == plan.resolve(0.5)
    assert plan.resolve({"first": 0.5, "second": 0.52}) == mixed
    # One rate for all groups is that rate; 1 is none of these.
    assert plan.resolve({"*": 0.52, "first": 0.52}).rate == 0.52
    assert plan.resolve({"first": 0.5}).rate is None


def test_rate_one_in_a_mapping_needs_no_declaration():
    net = upgrade_mlp(rates=(0.25, 0.5))
    with pytest.raises(ms.RateError, match="1 was not declared"):
        net.plan.resolve(1.0)
    assert shapes(ms.extract(net, {"first": 1.0, "second": 0.5})) == [
        (5, 16), (16, 16), (16, 3),
    ]  # fmt: skip
    assert shapes(ms.extract(net, {"*": 1})) == [(5, 16), (16, 32), (32, 3)]
    # Mixed, and as wide as the full network.
    part = net.plan.resolve({"first": 1, "second": 1})
    assert (part.rate, dict(part.widths)) == (1.0, {"first/w:1": 16, "second/w:1": 32})
    # 16 units are fewer than 24, so all of them are kept at any rate.
    plan = upgrade_mlp(rates=(0.25, 0.5), min_width=24).plan
    assert plan.resolve({"first": 0.25, "second": 1}) == plan.full
    # Of the 32 both 0.25 and 0.5 keep 24, and the lowest counts.
    assert plan.resolve({"first": 1, "second": 0.5}) == plan.resolve(0.25)


def test_a_traced_constant_is_reordered():
    """The function closes over an argument of the jitted caller."""
    rng = np.random.default_rng(0)
    p = {"in": rng.normal(size=(5, 8)), "out": rng.normal(size=(8, 3))}
    p = {name: w.astype(np.float32) for name, w in p.items()}
    order = rng.permutation(8)

    def moved(scale: jax.Array, rate: float) -> jax.Array:
        net = ms.upgrade(
            lambda p, x: ((x @ p["in"]) * scale[None]) @ p["out"],
            p, X, rates=(0.5, 1.0), check=False,
        )  # fmt: skip
        (group,) = net.plan.groups
        return ms.slice_apply(net.permute({group: order}), X, rate)

    scale = rng.normal(size=8).astype(np.float32)
    kept = order[:4]
    half = jax.jit(moved, static_argnums=1)(scale, 0.5)
    assert_close(half, (X @ p["in"][:, kept] * scale[kept]) @ p["out"][kept])
    full = jax.jit(moved, static_argnums=1)(scale, 1.0)
    assert_close(full, (X @ p["in"] * scale) @ p["out"])
