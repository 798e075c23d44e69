"""Plain functions as networks: what a call takes, what is no network of theirs."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mslice_jax as ms
from mslice_jax.adapters.functions import PlainFunction

X = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
P = {
    "a": np.random.default_rng(1).normal(size=(5, 8)).astype(np.float32),
    "b": np.random.default_rng(2).normal(size=(8, 3)).astype(np.float32),
}


def apply(p, x, scale=1.0):
    return jnp.tanh(x @ p["a"]) @ p["b"] * scale


@pytest.fixture(scope="module")
def net():
    return ms.upgrade(apply, P, X, rates=(0.5, 1.0), check=False)


def of_inputs(p, x, /, y, z=1, *, scale=1, **more): ...


def of_any_number(p, *inputs, scale=1): ...


# By function: the inputs by position, keywords that it takes and does not, any others.
SIGNATURES: list[tuple[Any, list[str], set[str], set[str], bool]] = [
    (of_inputs, ["x", "y", "z"], {"y", "z", "scale"}, {"x", "more", "other"}, True),
    (of_any_number, [], {"scale", "p"}, {"inputs"}, False),
    (lambda p: p, [], {"p"}, {"x"}, False),
    (max, [], set(), {"key"}, False),  # does not tell its signature
]


@pytest.mark.parametrize(("function", "inputs", "takes", "others", "any_"), SIGNATURES)
def test_what_a_call_takes(function, inputs, takes, others, any_):
    found = PlainFunction(function=function)
    assert found.positional({}) == inputs
    assert {name for name in takes | others if found.takes(name, {})} == takes
    assert found.takes_any({}) is any_


@pytest.mark.parametrize(
    ("mutable", "updates"),
    [
        (["s"], True),
        ("s", True),
        (True, True),
        (False, False),
        (None, False),
        ([], False),
    ],
)
def test_whether_it_returns_updates(mutable, updates):
    found = PlainFunction(function=apply)
    assert found.updates({"mutable": mutable}) is updates
    assert found.updates({}) is False
    assert found.updates({"mutable": X}) is False  # an input of that name


class Model:
    def __init__(self, scale):
        self.scale = scale

    def __call__(self, p, x):
        return apply(p, x) * self.scale

    def run(self, p, x):
        return self(p, x)


def test_functions_that_are_one():
    """A program that was traced of one is that of the other."""
    model, other = Model(2), Model(2)

    def f(function):
        return PlainFunction(function=function)

    assert f(apply) == f(apply) and hash(f(apply)) == hash(f(apply))
    assert f(model.run) == f(model.run) and hash(f(model.run)) == hash(f(model.run))
    assert f(model.run) != f(other.run)
    assert f(model) == f(model) and f(model) != f(other)
    assert f(apply) != f(lambda p, x: apply(p, x)) and f(apply) != apply


# Each makes another network: of the plan, of its program, or of what is checked.
OPTIONS: list[dict[str, Any]] = [
    {"rates": (0.25, 1.0)},
    {"groups": 4},
    {"multiple_of": 4},
    {"min_width": 5},
    {"shards": 2},
    {"include": "*"},
    {"inner": "a"},
    {"strict": True},
    {"check": True},
    {"call": {"scale": 2.0}},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_networks_that_are_others(net, options):
    """Equal definitions share their compiled programs."""
    settings: dict[str, Any] = {"rates": (0.5, 1.0), "check": False}
    again = ms.upgrade(apply, P, X, **settings).definition
    assert again == net.definition and hash(again) == hash(net.definition)
    other = ms.upgrade(apply, P, X, **{**settings, **options})
    assert (other.definition == net.definition) is False


def test_networks_of_other_calls_and_orders(net):
    more = ms.upgrade(apply, P, X[:2], rates=(0.5, 1.0), check=False)
    assert more.definition != net.definition
    orders = [np.arange(8)[::-1], np.roll(np.arange(8), 1)]
    one, two = (net.permute({"a:1": order}).definition for order in orders)
    assert one != net.definition and one != two
    assert one == net.permute({"a:1": orders[0]}).definition
    back = net.permute({"a:1": orders[0]}).permute({"a:1": orders[0]})
    assert back.definition.orders["a:1"].tolist() == [*range(8)]
    for thing in (net.definition, net.plan, net.definition.function):
        assert (thing == "another") is False


def test_a_function_has_no_initialisation(net):
    with pytest.raises(ValueError, match="plain function has no initialisation"):
        net.definition.function.init(jax.random.key(0), X)
    assert net.definition.function.streams() == ()
    assert not net.definition.function.depends_on_rate


def test_the_module_of_a_function():
    """Of its variables Flax asks that they are collections."""

    def function(variables, x):
        return apply(variables["params"], x)

    net = ms.upgrade(function, {"params": P}, X, rates=(0.5, 1.0), check=False)
    half = np.tanh(X @ P["a"][:, :4]) @ P["b"][:4]
    found = net.module.apply(net.variables, X, rate=0.5)
    np.testing.assert_allclose(found, half, rtol=1e-5, atol=1e-5)


def test_what_is_no_network():
    with pytest.raises(TypeError, match="the Sliceable .*; got dict"):
        ms.slice_apply(P, X, 0.5)  # type: ignore[arg-type]


def test_leaves_that_the_plan_does_not_know(net):
    other = {"c": P["b"]}
    for use in (
        lambda: net.plan.slice(other, 0.5),
        lambda: net.plan.mask(other, 0.5),
        lambda: net.plan.permute(other, {}),
        lambda: net.plan.put_back(other, other, 0.5),
    ):
        with pytest.raises(ms.PlanError, match="no leaf 'c'; .* with a, b"):
            use()
    with pytest.raises(ms.PlanError, match=r"leaf 'b': .* \(8, 3\) .*; got \(4, 3\)"):
        net.plan.slice({"b": P["b"][:4]}, 0.5)
    with pytest.raises(ms.PlanError, match="'c:0'"):
        net.permute({"c:0": np.arange(8)})


def test_variables_that_do_not_fit_under_jit(net):
    """Of every leaf what was expected at the rate that the network is at."""

    def run(net):
        return ms.slice_apply(net, X, 0.5)

    wrong = {"a": P["a"][:, :6], "b": P["b"]}
    with pytest.raises(
        ValueError, match=r"(?s)rate 1:\n  a: .*\(5, 8\), got \(5, 6\)\nP"
    ):
        jax.jit(run)(net.replace(wrong))
    small = ms.extract(net, 0.5)
    with pytest.raises(
        ValueError, match=r"(?s)rate 0.5:\n  b: .*\(4, 3\), got \(8, 3\)"
    ):
        jax.jit(run)(small.replace({"a": small.variables["a"], "b": P["b"]}))
    with pytest.raises(ValueError, match=r"(?s)  c: expected None, got \(8, 3\)"):
        jax.jit(run)(net.replace({"a": P["a"], "c": P["b"]}))


def test_types_are_cut_like_arrays(net):
    types = net.replace(jax.eval_shape(lambda: net.variables))
    shapes = jax.tree.map(np.shape, ms.extract(types, 0.5).variables)
    assert shapes == {"a": (5, 4), "b": (4, 3)}
    found = jax.eval_shape(lambda net: ms.extract(net, 0.5), net).variables
    assert jax.tree.map(np.shape, found) == shapes
