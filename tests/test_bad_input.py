"""Bad input: one clear error, before any work, that says what to do.

Every message says what was expected, what came, and what to do; the tests match the
words of these three.
"""

import re
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import pytest
from jax.interpreters import mlir

import mslice_jax as ms
from tests.citizens.dense import Mlp

X = np.ones((2, 12), np.float32)


def variables() -> Any:
    """Weights of the MLP, full width."""
    return Mlp().init(jax.random.key(0), X)


def upgraded(**options: Any) -> ms.Sliceable:
    """The MLP, upgraded."""
    return ms.upgrade(Mlp(), variables(), X, **{"rates": (0.5, 1.0), **options})


def says(*words: str) -> str:
    """A pattern: all the words, in any order, upper or lower case."""
    return "(?is)" + "".join(f"(?=.*{re.escape(word)})" for word in words)


# Rates.


@pytest.mark.parametrize("rate", (0.0, -0.5, 1.5, float("nan"), float("inf")))
def test_rates_outside_zero_to_one(rate: float) -> None:
    with pytest.raises(ValueError, match=says("(0, 1]", repr(rate))):
        upgraded(rates=(rate, 1.0))


@pytest.mark.parametrize("rates", ((), [], iter(())))
def test_no_rates(rates: Any) -> None:
    with pytest.raises(ValueError, match=says("empty", "at least one")):
        upgraded(rates=rates)


@pytest.mark.parametrize("rates", ((0.5, 0.5, 1.0), (1, 1.0)))
def test_repeated_rates(rates: Any) -> None:
    with pytest.raises(ValueError, match=says("once", repr(float(rates[0])))):
        upgraded(rates=rates)


@pytest.mark.parametrize("rates", ("0.5", 0.5, ("half", 1.0), (None, 1.0), (True,)))
def test_rates_that_are_not_numbers(rates: Any) -> None:
    with pytest.raises(ValueError, match=says("(0, 1]")):
        upgraded(rates=rates)


CALLS_WITH_A_RATE: dict[str, Callable[[ms.Sliceable], Any]] = {
    "slice_apply": lambda net: ms.slice_apply(net, X, 0.75),
    "extract": lambda net: ms.extract(net, 0.75),
    "module": lambda net: net.module.apply(net.variables, X, rate=0.75),
}


@pytest.mark.parametrize("call", CALLS_WITH_A_RATE)
def test_a_rate_that_was_not_declared(call: str) -> None:
    net = upgraded(rates=(0.25, 0.5, 1.0))
    with pytest.raises(ValueError, match=says("0.75", "0.25, 0.5, 1.0", "upgrade")):
        CALLS_WITH_A_RATE[call](net)


def test_a_rate_above_the_extracted() -> None:
    small = ms.extract(upgraded(), 0.5)
    with pytest.raises(ValueError, match=says("rate 1", "0.5", "extract")):
        ms.slice_apply(small, X, 1.0)
    with pytest.raises(ValueError, match=says("rate 1", "0.5", "extract")):
        ms.extract(small, 1.0)


def test_a_traced_rate() -> None:
    net = upgraded()
    with pytest.raises(ValueError, match=says("static")):
        jax.jit(lambda rate: ms.slice_apply(net, X, rate))(0.5)


@pytest.mark.parametrize("norm", ("batch", "", 0))
def test_an_unknown_norm(norm: Any) -> None:
    with pytest.raises(ValueError, match=says("group", "switchable", "shared")):
        upgraded(norm=norm)


@pytest.mark.parametrize("groups", (0, -1, 2.5))
def test_groups_that_are_no_positive_integer(groups: Any) -> None:
    with pytest.raises(ValueError, match=says("groups", repr(groups))):
        upgraded(groups=groups)


# Variables and inputs.


def test_variables_of_another_width() -> None:
    other = Mlp(widths=(32, 20)).init(jax.random.key(0), X)
    with pytest.raises(ValueError, match=says("Dense_1", "kernel", "16", "20")):
        ms.upgrade(Mlp(), other, X, rates=(0.5, 1.0))


def test_variables_that_lack_a_layer() -> None:
    lacking = {"params": dict(variables()["params"])}
    del lacking["params"]["Dense_1"]
    with pytest.raises(ValueError, match=says("Dense_1")):
        ms.upgrade(Mlp(), lacking, X, rates=(0.5, 1.0))


def test_variables_with_a_layer_too_many() -> None:
    more = {"params": {**variables()["params"], "Dense_7": {"bias": np.ones(3)}}}
    with pytest.raises(ValueError, match=says("Dense_7", "expected nothing")):
        ms.upgrade(Mlp(), more, X, rates=(0.5, 1.0))


def test_params_instead_of_variables() -> None:
    with pytest.raises(ValueError, match=says("params")):
        ms.upgrade(Mlp(), variables()["params"], X, rates=(0.5, 1.0))


def test_batch_statistics_that_are_missing() -> None:
    class Normed(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            x = nn.BatchNorm(use_running_average=True)(nn.Dense(16)(x))
            return nn.Dense(4)(x)

    params = {"params": Normed().init(jax.random.key(0), X)["params"]}
    with pytest.raises(ValueError, match=says("batch_stats")):
        ms.upgrade(Normed(), params, X, rates=(0.5, 1.0), norm="shared")


def test_replaced_variables_that_do_not_fit() -> None:
    net = upgraded()
    other = Mlp(widths=(32, 20)).init(jax.random.key(0), X)
    with pytest.raises(ValueError, match=says("Dense_1", "16", "20")):
        ms.slice_apply(net.replace(variables=other), X, 0.5)


@pytest.mark.parametrize("shape", ((8, 3), (8, 8, 3), (1, 2, 8, 8, 3)))
def test_an_input_of_another_rank(shape: tuple[int, ...]) -> None:
    tree = Conv().init(jax.random.key(0), IMAGES)
    net = ms.upgrade(Conv(), tree, IMAGES, rates=(0.5, 1.0))
    with pytest.raises(ValueError, match=says(str(IMAGES.shape[1:])[1:-1], str(shape))):
        ms.slice_apply(net, np.ones(shape, np.float32), 0.5)


def test_an_input_with_other_channels() -> None:
    net = upgraded()
    with pytest.raises(ValueError, match=says("12", "13")):
        ms.slice_apply(net, np.ones((2, 13), np.float32), 0.5)


def test_an_input_is_missing() -> None:
    with pytest.raises(TypeError, match=says("missing", "'x'")):  # Python's own words
        ms.upgrade(Mlp(), variables(), rates=(0.5, 1.0))


def test_another_batch_size_is_fine() -> None:
    assert ms.slice_apply(upgraded(), np.ones((5, 12), np.float32), 0.5).shape == (
        5,
        10,
    )


class Conv(nn.Module):
    """A convolution and a head, for (b, h, w, c)."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.Conv(16, (3, 3))(x))
        return nn.Dense(4)(x.mean((1, 2)))


IMAGES = np.ones((2, 8, 8, 3), np.float32)


# Networks in which nothing can narrow.


def test_a_network_in_which_nothing_can_narrow() -> None:
    model = nn.Dense(10)  # its only axes are the input's and the output's
    with pytest.raises(ValueError, match=says("nothing", "narrow", "output")):
        ms.upgrade(model, model.init(jax.random.key(0), X), X, rates=(0.5, 1.0))


# A primitive that no rule knows. Public JAX only.
mystery_p = jax.extend.core.Primitive("mystery")
mystery_p.def_impl(lambda x: x)
mystery_p.def_abstract_eval(lambda x: x)
mlir.register_lowering(mystery_p, mlir.lower_fun(lambda x: x, multiple_results=False))


def mysterious(weights: Any, x: jax.Array) -> jax.Array:
    """Three layers; the unknown primitive touches the first hidden axis only."""
    x = jnp.tanh(x @ weights["first"])
    x = mystery_p.bind(x)  # the user's line
    x = jnp.tanh(x @ weights["second"])
    return x @ weights["third"]


def only_mystery(weights: Any, x: jax.Array) -> jax.Array:
    """Two layers, and the unknown primitive on the only hidden axis."""
    return mystery_p.bind(x @ weights["first"]) @ weights["last"]


WEIGHTS = {
    "first": np.ones((12, 16), np.float32),
    "second": np.ones((16, 24), np.float32),
    "third": np.ones((24, 5), np.float32),
    "last": np.ones((16, 5), np.float32),
}


def test_a_primitive_without_a_rule_fixes_its_axes() -> None:
    weights = {name: WEIGHTS[name] for name in ("first", "second", "third")}
    net = ms.upgrade(mysterious, weights, X, rates=(0.5, 1.0))
    small = ms.extract(net, 0.5).variables
    shapes = jax.tree.map(np.shape, small)
    assert shapes == {"first": (12, 16), "second": (16, 12), "third": (12, 5)}
    assert ms.slice_apply(net, X, 0.5).shape == (2, 5)
    report = str(ms.report(net))
    assert "mystery" in report
    assert "test_bad_input.py" in report


def test_a_primitive_without_a_rule_under_strict() -> None:
    weights = {name: WEIGHTS[name] for name in ("first", "second", "third")}
    with pytest.raises(ValueError, match=says("mystery", "test_bad_input.py")):
        ms.upgrade(mysterious, weights, X, rates=(0.5, 1.0), strict=True)


def test_nothing_can_narrow_because_of_a_primitive_without_a_rule() -> None:
    weights = {name: WEIGHTS[name] for name in ("first", "last")}
    with pytest.raises(ValueError, match=says("nothing", "narrow", "mystery")):
        ms.upgrade(only_mystery, weights, X, rates=(0.5, 1.0))


# Rates that an axis cannot keep exactly.


def test_a_rate_that_no_axis_keeps_exactly_is_reported() -> None:
    model = Mlp(widths=(32, 5))  # 2.5 units at rate 0.5
    tree = model.init(jax.random.key(0), X)
    net = ms.upgrade(model, tree, X, rates=(0.5, 1.0))
    small = ms.extract(net, 0.5).variables["params"]
    assert small["Dense_1"]["kernel"].shape == (16, 2)  # half to even
    report = str(ms.report(net))
    assert re.search(says("Dense_1", "0.5", "2"), report)
    with pytest.raises(ValueError, match=says("0.5", "5", "Dense_1")):
        ms.upgrade(model, tree, X, rates=(0.5, 1.0), strict=True)


def test_strict_accepts_exact_widths() -> None:
    assert upgraded(strict=True).rates == (0.5, 1.0)


def test_one_key_for_all_random_streams():
    """Flax accepts it, so an unread parameter is no error."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            self.param("unread", nn.initializers.ones, (5,))
            x = nn.Dropout(0.5, deterministic=False)(nn.Dense(8)(x))
            return nn.Dense(3)(x)

    x = jnp.ones((2, 4))
    variables = Net().init(jax.random.key(0), x)
    key = jax.random.key(1)
    net = ms.upgrade(Net(), variables, x, rates=(0.5, 1.0), rngs=key)
    np.testing.assert_array_equal(
        ms.slice_apply(net, x, 1.0, rngs=key), Net().apply(variables, x, rngs=key)
    )
