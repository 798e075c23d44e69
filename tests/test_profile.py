"""Costs of each rate, against counts by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import mslice_jax as ms
from mslice_jax import profile as costs
from mslice_jax.plots import (
    plot_accuracy_over_epochs,
    plot_accuracy_vs_flops,
    plot_perplexity_over_epochs,
    plot_perplexity_vs_flops,
)
from mslice_jax.profile import count_parameters, profile


class Perceptron(nn.Module):
    """One hidden layer of 8 units, 5 inputs and 3 outputs."""

    norm: bool = False

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(8)(x)
        if self.norm:
            x = nn.BatchNorm(use_running_average=True)(x)
        return nn.Dense(3)(nn.relu(x))


def build(*, norm=None):
    model, x = Perceptron(norm=norm is not None), np.ones((1, 5), np.float32)
    variables = model.init(jax.random.key(0), x)
    return ms.upgrade(model, variables, x, rates=(0.5, 1.0), norm=norm or "group"), x


# 5·w + w + w·3 + 3 for the dense layers; scale and bias are 2·w.
@pytest.mark.parametrize(
    ("norm", "expected"),
    [
        (None, {0.5: 39, 1.0: 75}),
        ("group", {0.5: 39 + 8, 1.0: 75 + 16}),
        ("switchable", {0.5: 39 + 8, 1.0: 75 + 16}),
        ("shared", {0.5: 39 + 8, 1.0: 75 + 16}),
    ],
)
def test_parameters_of_each_rate(norm, expected):
    net, _ = build(norm=norm)
    found = {rate: count_parameters(ms.extract(net, rate), rate) for rate in net.rates}
    assert found == expected


def test_profile_measures_every_rate():
    net, x = build()
    found = profile(net, x, repeats=3)
    assert list(found) == [0.5, 1.0]
    for rate, width in ((0.5, 4), (1.0, 8)):
        products = 2 * (5 * width + width * 3)  # a multiplication and an addition
        others = width + 3 + width  # two biases, one relu
        assert found[rate].flops == pytest.approx(products + others, rel=0.05)
        assert found[rate].parameters == 5 * width + width + width * 3 + 3
        assert 0 < found[rate].latency_ms < 1e3
    assert list(profile(net, x, rates=(0.5,), repeats=1)) == [0.5]


def test_loops_count_by_their_length():
    """A loop of 7 steps, and in each step one of 3; a product takes 2 w²."""

    def net(p, x):
        def turn(h, _):
            h, _ = jax.lax.scan(lambda h, _: (h @ p["b"], None), h, length=3)
            return h @ p["a"], None

        h = jax.lax.scan(turn, x @ p["i"], length=7)[0]
        h = jax.lax.fori_loop(0, 5, lambda i, h: h @ p["a"], h)
        return h @ p["o"]

    r = np.random.default_rng(0)
    shapes = {"i": (5, 8), "a": (8, 8), "b": (8, 8), "o": (8, 3)}
    p = {name: r.normal(size=shape) for name, shape in shapes.items()}
    x = np.ones((1, 5), np.float32)
    found = profile(ms.upgrade(net, p, x, rates=(0.5, 1.0)), x, repeats=1)
    for rate, w in ((0.5, 4), (1.0, 8)):
        products = 2 * (5 * w + 7 * (3 + 1) * w * w + 5 * w * w + w * 3)
        assert found[rate].contraction_flops == products
        assert found[rate].flops == pytest.approx(products, rel=0.1)


def test_rates_take_turns():
    calls = []
    runs = {rate: lambda rate=rate: calls.append(rate) for rate in (0.5, 1.0)}
    costs._interleaved_medians(runs, 3)
    assert calls == [0.5, 1.0] * 5


def test_no_repeats_is_an_error():
    net, x = build()
    with pytest.raises(ValueError, match="at least one repeat"):
        profile(net, x, repeats=0)


def test_the_picture_is_a_png(tmp_path):
    path = tmp_path / "picture.png"
    accuracy, flops = {0.5: 0.9, 1.0: 0.95}, {0.5: 1e6, 1.0: 4e6}
    plot_accuracy_vs_flops(path, accuracy, flops, title="a network")
    assert path.read_bytes().startswith(b"\x89PNG\r\n")


def test_a_picture_of_other_rates_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="same rates"):
        plot_accuracy_vs_flops(tmp_path / "x.png", {0.5: 1.0}, {1.0: 1.0}, title="")


def test_the_curves_are_a_png(tmp_path):
    path = tmp_path / "curves.png"
    each = {epoch: {0.5: 0.1 * epoch, 1.0: 0.2 * epoch} for epoch in range(1, 4)}
    plot_accuracy_over_epochs(path, each, title="a network")
    assert path.read_bytes().startswith(b"\x89PNG")
    for wrong in ({}, {1: {0.5: 1.0}, 2: {1.0: 1.0}}):
        with pytest.raises(ValueError, match="same rates for each epoch"):
            plot_accuracy_over_epochs(path, wrong, title="")


def test_perplexities_have_pictures_too(tmp_path):
    path = tmp_path / "picture.png"
    values, flops = {0.5: 9.0, 1.0: 7.5}, {0.5: 1e6, 1.0: 4e6}
    plot_perplexity_vs_flops(path, values, flops, title="a network")
    assert path.read_bytes().startswith(b"\x89PNG")
    path.unlink()
    plot_perplexity_over_epochs(path, {1: values, 2: values}, title="a network")
    assert path.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="expected perplexity and flops of the same"):
        plot_perplexity_vs_flops(path, values, {1.0: 1e6}, title="")


def test_variables_need_be_no_dict():
    x = jnp.ones((2, 6))
    layers = [jnp.ones((6, 16)), jnp.ones((16, 3))]
    net = ms.upgrade(lambda p, x: x @ p[0] @ p[1], layers, x, rates=(0.5, 1.0))
    costs = profile(net, x, repeats=1)
    assert {rate: cost.parameters for rate, cost in costs.items()} == {0.5: 72, 1: 144}
