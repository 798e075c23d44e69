"""Back to NNX: the narrow model of the user's class, and the one with a static rate."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import mslice_jax as ms
from mslice_jax.adapters.nnx import module as nnx_module
from mslice_jax.adapters.nnx import sizes as nnx_sizes
from mslice_jax.core.axes import Product, Unit, Whole
from tests.citizens.citizen import Citizen, compiled, variables_of
from tests.networks import CITIZENS
from tests.test_proofs import assert_close, assert_trees_equal, output, upgraded

RATES = (0.25, 0.5, 1.0)
MODELS = [c for c in CITIZENS if isinstance(c.model, nnx.Module)]
NAMED = {citizen.name: citizen for citizen in MODELS}
X = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)


def says(*words: str) -> str:
    """A pattern: all the words, in any order, upper or lower case."""
    return "(?is)" + "".join(f"(?=.*{re.escape(word)})" for word in words)


def sizes(model: nnx.Module) -> dict[str, Any]:
    """Every integer, and tuple of them, that a module of the model has."""
    return {
        f"{'/'.join(map(str, path))}.{name}": value
        for path, module in nnx.iter_modules(model)
        for name, value in vars(module).items()
        if isinstance(value, int)
        or (isinstance(value, tuple) and all(isinstance(x, int) for x in value))
    }


# The narrow model.


@pytest.mark.parametrize("citizen", MODELS, ids=str)
def test_the_narrow_model_is_the_one_built_by_hand(citizen: Citizen):
    rate, net = 0.25, upgraded(citizen)
    small = net.to_nnx(rate)
    by_hand: Any = citizen.by_hand(rate)
    assert type(small) is type(citizen.model)
    wanted = sizes(by_hand)
    assert {
        name: size for name, size in sizes(small).items() if name in wanted
    } == wanted
    arrays = citizen.narrow_by_hand(net.variables, rate)
    assert_trees_equal(variables_of(small), arrays)
    assert_close(compiled(small, *citizen.inputs), output(citizen, rate))


def test_rate_one_is_the_model_that_was_given():
    citizen = NAMED["nnx_cnn_shared"]
    full = ms.upgrade(*citizen.arguments(), rates=RATES, norm="shared").to_nnx(1.0)
    assert nnx.graphdef(full) == nnx.graphdef(citizen.model)
    assert_trees_equal(variables_of(full), variables_of(citizen.model))  # type: ignore


class Chain(nnx.Module):
    """Layers one after the other."""

    def __init__(self, *layers: Any):
        self.layers = nnx.List(layers)

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in self.layers:
            x = layer(x)
        return x


class Cell(nnx.Module):
    """A recurrent cell, one step."""

    def __init__(self, cell: Any):
        self.cell = cell

    def __call__(self, x: jax.Array) -> jax.Array:
        carry = self.cell.initialize_carry(x.shape, nnx.Rngs(0))
        return self.cell(carry, x)[1]


IMAGES = np.random.default_rng(1).normal(size=(2, 4, 4, 3)).astype(np.float32)
R = nnx.Rngs(0)
# (input, layers at a width); `in` and `out` have fixed sizes.
LAYERS: dict[str, tuple[np.ndarray, Callable[[int], list[Any]]]] = {
    "depthwise": (
        IMAGES,
        lambda w: [
            nnx.Conv(3, w, (3, 3), rngs=R),
            nnx.Conv(w, 2 * w, (3, 3), feature_group_count=w, rngs=R),
            nnx.Conv(2 * w, 2, (1, 1), rngs=R),
        ],
    ),
    "grouped convolution": (
        IMAGES,
        lambda w: [
            nnx.Conv(3, w, (3, 3), rngs=R),
            nnx.Conv(w, w, (3, 3), feature_group_count=w // 4, rngs=R),
            nnx.Conv(w, 2, (1, 1), rngs=R),
        ],
    ),
    "groups of the input": (
        IMAGES,
        lambda w: [
            nnx.Conv(3, 3 * w, (3, 3), feature_group_count=3, rngs=R),
            nnx.Conv(3 * w, 2, (1, 1), rngs=R),
        ],
    ),
    "transposed": (
        IMAGES,
        lambda w: [
            nnx.ConvTranspose(3, w, (2, 2), (2, 2), rngs=R),
            nnx.ConvTranspose(w, w, (2, 2), (2, 2), transpose_kernel=True, rngs=R),
            nnx.Conv(w, 2, (1, 1), rngs=R),
        ],
    ),
    "einsum": (
        X,
        lambda w: [
            nnx.Einsum("bi,ih->bh", (6, w), (w,), rngs=R),
            nnx.Einsum("bh,ho->bo", (w, 2), rngs=R),
        ],
    ),
    "linear general": (
        X,
        lambda w: [
            nnx.LinearGeneral(6, (w, 3), rngs=R),
            nnx.LinearGeneral((w, 3), 2, axis=(-2, -1), rngs=R),
        ],
    ),
    "norms": (
        IMAGES,
        lambda w: [
            nnx.Conv(3, w, (1, 1), rngs=R),
            nnx.GroupNorm(w, num_groups=w // 2, rngs=R),
            nnx.RMSNorm(w, rngs=R),
            nnx.InstanceNorm(w, rngs=R),
            nnx.BatchNorm(w, use_running_average=True, use_scale=False, rngs=R),
            nnx.Conv(w, 2, (1, 1), rngs=R),
        ],
    ),
    "lstm": (
        X,
        lambda w: [Cell(nnx.LSTMCell(6, w, rngs=R)), nnx.Linear(w, 2, rngs=R)],
    ),
    "simple cell": (
        X,
        lambda w: [Cell(nnx.SimpleCell(6, w, rngs=R)), nnx.Linear(w, 2, rngs=R)],
    ),
    "lora": (
        X,
        lambda w: [
            nnx.LoRALinear(6, w, lora_rank=w // 4, rngs=R),
            nnx.Linear(w, 2, rngs=R),
        ],
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_have_the_sizes_of_narrow_ones(name: str):
    x, layers = LAYERS[name]
    net = ms.upgrade(Chain(*layers(16)), x, rates=RATES, norm="shared")
    small = net.to_nnx(0.5)  # to_nnx compares it with slice_apply
    assert sizes(small) == sizes(Chain(*layers(8)))


def test_norms_without_parameters():
    layers = [
        nnx.Linear(6, 16, use_bias=False, rngs=R),
        nnx.LayerNorm(16, use_scale=False, use_bias=False, rngs=R),
        nnx.Linear(16, 2, use_bias=False, rngs=R),
    ]
    net = ms.upgrade(Chain(*layers), X, rates=RATES)
    a, b = (np.asarray(layers[i].kernel[...]) for i in (0, 2))
    h = X @ a[:, :8]
    h = (h - h.mean(1, keepdims=True)) / np.sqrt(h.var(1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(net.to_nnx(0.5)(X), h @ b[:8], rtol=1e-4, atol=1e-5)


def test_a_hard_coded_size():
    class Heads(nnx.Module):
        def __init__(self):
            self.first = nnx.Linear(6, 16, rngs=R)
            self.head = nnx.Linear(16, 3, rngs=R)
            self.heads = 4

        def __call__(self, x: jax.Array) -> jax.Array:
            x = self.first(x).reshape(len(x), self.heads, -1)
            x = x / (1 + jnp.sum(x * x, -1, keepdims=True))
            return self.head(x.reshape(len(x), -1))

    net = ms.upgrade(Heads(), X, rates=RATES)
    with pytest.raises(ValueError, match=says("Heads", "0.5", "written", "net.module")):
        net.to_nnx(0.5)
    np.testing.assert_array_equal(net.module(X, rate=0.5), ms.slice_apply(net, X, 0.5))


def test_zeros_do_not_hide_a_hard_coded_size():
    class Mean(nnx.Module):
        def __init__(self):
            self.first = nnx.Linear(6, 16, rngs=R)
            self.head = nnx.Linear(16, 3, kernel_init=jax.nn.initializers.zeros, rngs=R)

        def __call__(self, x: jax.Array) -> jax.Array:
            x = nnx.relu(self.first(x))
            return self.head(x / jnp.sqrt(jnp.sum(x, -1, keepdims=True) / 16 + 1))

    net = ms.upgrade(Mean(), X, rates=RATES)
    with pytest.raises(ValueError, match=says("Mean", "off by", "written")):
        net.to_nnx(0.5)


def test_a_network_that_is_not_nnx():
    weights = {"a": np.ones((6, 16), np.float32), "b": np.ones((16, 3), np.float32)}
    net = ms.upgrade(
        lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"], weights, X, rates=RATES
    )
    with pytest.raises(ValueError, match=says("NNX", "PlainFunction", "extract")):
        net.to_nnx(0.5)


def test_the_narrow_model_of_an_extracted_network():
    citizen = NAMED["nnx_decoder"]
    net = upgraded(citizen)
    (tokens,) = citizen.inputs
    small = ms.extract(net, 0.5).to_nnx(0.25)
    assert_close(compiled(small, tokens), output(citizen, 0.25))
    (heads,) = (name for name, group in net.plan.groups.items() if group.size == 4)
    mixed = {"*": 0.5, heads: 1.0}
    model = net.to_nnx(mixed)
    assert model.attention.num_heads == 4
    assert model.attention.in_features == 8
    assert_close(compiled(model, tokens), ms.slice_apply(net, tokens, mixed))


# The model with a static rate.


def test_the_model_with_a_rate_has_the_gradients_of_slice_apply():
    citizen = NAMED["nnx_decoder"]
    net = upgraded(citizen)
    (tokens,) = citizen.inputs
    model = net.module

    @nnx.jit(static_argnames="rate")
    def gradient(model: Any, rate: float) -> Any:
        return nnx.grad(lambda model: jnp.sum(model(tokens, rate=rate) ** 2))(model)

    wanted = jax.jit(
        jax.grad(lambda net: jnp.sum(ms.slice_apply(net, tokens, 0.5) ** 2))
    )(net)
    got = nnx.to_pure_dict(gradient(model, 0.5))["variables"]
    jax.tree.map(assert_close, got, wanted.variables)
    np.testing.assert_array_equal(model(tokens), output(citizen, 1.0))


def test_training_the_model_with_a_rate(compilations):
    citizen = NAMED["nnx_cnn_shared"]
    net = upgraded(citizen)
    x = jnp.asarray(citizen.inputs[0])
    model = net.module
    model.train()
    optimizer = nnx.Optimizer(model, optax.sgd(0.01), wrt=nnx.Param)

    @nnx.jit(static_argnames="rate")
    def step(model: Any, optimizer: Any, x: jax.Array, rate: float) -> jax.Array:
        def loss(model: Any) -> jax.Array:
            return jnp.mean((model(x, rate=rate) - 1) ** 2)

        value, gradient = nnx.value_and_grad(loss)(model)
        optimizer.update(model, gradient)
        return value

    first = [float(step(model, optimizer, x, rate)) for rate in (0.5, 1.0)]
    with compilations() as names:
        for _ in range(9):
            last = [float(step(model, optimizer, x, rate)) for rate in (0.5, 1.0)]
    assert names == []
    assert sum(last) < 0.9 * sum(first)
    trained = model.sliceable()
    # The statistics are updated; those that rate 0.5 drops are updated at rate 1 alone.
    before = net.variables["batch_stats"]["norms"]["0"]["mean"]
    after = trained.variables["batch_stats"]["norms"]["0"]["mean"]
    assert np.all(np.asarray(before) != np.asarray(after))
    # Back in evaluation mode: no dropout, running statistics.
    model.eval()
    expected = ms.slice_apply(trained, x, 0.5)
    np.testing.assert_allclose(model(x, rate=0.5), expected, atol=1e-6)
    np.testing.assert_allclose(compiled(trained.to_nnx(0.5), x), expected, atol=1e-5)


def test_statistics_at_a_rate_are_updated_in_their_part():
    citizen = NAMED["nnx_cnn_shared"]
    net = upgraded(citizen)
    model = net.module
    model.train()
    model(*citizen.inputs, rate=0.5)
    old = np.asarray(net.variables["batch_stats"]["norms"]["1"]["var"])
    new = np.asarray(model.variables["batch_stats"]["norms"]["1"]["var"])
    np.testing.assert_array_equal(old[16:], new[16:])
    assert np.all(old[:16] != new[:16])


def test_every_call_draws_anew():
    citizen = NAMED["nnx_cnn_group"]
    net = upgraded(citizen)
    model = net.module
    (x,) = citizen.inputs
    still = [model(x, rate=0.5) for _ in range(2)]  # upgraded in evaluation mode
    np.testing.assert_array_equal(*still)
    model.train()
    draws = [np.asarray(model(x, rate=0.5)) for _ in range(3)]
    assert np.any(draws[0] != draws[1])
    assert np.any(draws[1] != draws[2])
    key = {"default": jax.random.key(0)}
    np.testing.assert_array_equal(
        model(x, rate=0.5, rngs=key),
        ms.slice_apply(net, x, 0.5, train=True, rngs=key),
    )


def test_the_model_with_a_rate_is_a_submodule():
    class Two(nnx.Module):
        def __init__(self, net: ms.Sliceable):
            self.body = net.module
            self.head = nnx.Linear(10, 2, rngs=R)

        def __call__(self, x: jax.Array, rate: float) -> jax.Array:
            return self.head(self.body(x, rate=rate))

    citizen = NAMED["nnx_cnn_group"]
    model = Two(upgraded(citizen))
    graphdef, state = nnx.split(model)
    again: Any = nnx.merge(graphdef, state)
    (x,) = citizen.inputs
    expected = output(citizen, 0.5) @ np.asarray(model.head.kernel)
    assert_close(again(x, 0.5), expected)
    kinds = {type(v) for _, v in nnx.to_flat_state(nnx.state(model.body, nnx.Param))}
    assert kinds == {nnx.Param}


def test_the_narrow_model_of_a_calibrated_network():
    """Its batch norms have the statistics that were measured at the rate."""
    layers = [
        nnx.Linear(6, 16, rngs=R),
        nnx.BatchNorm(16, use_running_average=True, rngs=R),
        nnx.Linear(16, 2, rngs=R),
    ]
    net = ms.upgrade(Chain(*layers), X, rates=(0.5, 1.0), norm="shared")
    small = ms.calibrate(net, [X]).to_nnx(0.5)
    h = X @ np.asarray(layers[0].kernel[...])[:, :8]
    assert_close(small.layers[1].mean[...], h.mean(0))
    h = (h - h.mean(0)) / np.sqrt(h.var(0) + 1e-5)
    expected = h @ np.asarray(layers[2].kernel[...])[:8]
    np.testing.assert_allclose(small(X), expected, rtol=1e-4, atol=1e-4)


# What an axis keeps of its outer factor: (axis, factor) -> that factor when narrow.
H, D, G = Unit(4, "h"), Whole(3), Unit(6, "g")
LEADING = [
    (Product((H, D)), 4, 2),
    (Product((H, D)), 12, 6),  # all of it
    (Product((H, D)), 1, 1),
    (Product((D, H)), 3, 3),  # whole groups stay
    (Product((D, H)), 12, 6),
    (Product((H, D, G)), 12, 6),
    (Product((H, G)), 24, 6),
    (H, 4, 2),
    (H, 2, 1),  # groups of two each
    (Product((H, D)), 6, 3),
    (D, 3, 3),
    (D, 1, 1),
]


@pytest.mark.parametrize(("axis", "count", "expected"), LEADING)
def test_what_remains_of_a_leading_factor(axis, count, expected):
    assert nnx_sizes._leading(axis, count, {"h": 2, "g": 3}) == expected


def test_outputs_that_are_compared():
    """Up to rounding, relative to the largest entry; integers are not compared."""
    ones = np.ones(3, np.float32)
    same = [(ones, ones), (ones, ones + 3e-4), (np.arange(3), np.arange(3) + 1)]
    same += [(np.zeros(0, "f"), np.zeros(0, "f")), (None, None)]
    same += [({"a": 1e4 * ones}, {"a": 1e4 * ones + 3})]
    for a, b in same:
        nnx_module._check_close(a, b)
    with pytest.raises(ValueError, match=r"has shape \(3,\), not \(2,\)"):
        nnx_module._check_close([ones], [ones[:2]])
    nan = np.array([1, np.nan, 1], np.float32)
    for a, b, words in (
        (ones, ones + 1e-3, r"off by 0\.001, its largest entry is 1\."),
        (1e4 * ones, 1e4 * ones + 4, r"off by 4, its largest entry is 1e\+04\."),
        (ones, -4 * ones, r"off by 5, its largest entry is 4\."),
        (nan, ones, "off by nan"),
        ([np.arange(3), ones], [np.arange(3), 2 * ones], "off by 1"),
    ):
        with pytest.raises(ValueError, match=words):
            nnx_module._check_close(a, b)


def test_arrays_with_which_outputs_are_compared():
    number = nnx_module._random(jax.ShapeDtypeStruct((50,), jnp.bfloat16))
    assert number.shape == (50,) and number.dtype == jnp.bfloat16
    assert number.min() < -0.5 and number.max() > 0.5
    whole = nnx_module._random(jax.ShapeDtypeStruct((50,), jnp.int32))
    assert set(np.asarray(whole)) == {0, 1} and whole.dtype == jnp.int32
    keys = nnx_module._random(
        jax.eval_shape(lambda: jax.random.split(jax.random.key(0)))
    )
    assert keys.shape == (2,) and jnp.issubdtype(keys.dtype, jax.dtypes.prng_key)
    shaken = np.asarray(nnx_module._shaken(jnp.zeros(50)))
    assert 0.1 <= shaken.min() < 0.2 < 0.4 < shaken.max() <= 0.5
    assert nnx_module._shaken(whole) is whole


def test_types_of_variables():
    assert nnx_module._variable_type("params") is nnx.Param
    assert nnx_module._variable_type("batch_stats") is nnx.BatchStat
    assert nnx_module._variable_type("no such") is nnx.Variable
