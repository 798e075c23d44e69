"""Costs of each rate, against counts by hand."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import mslice_jax as ms
from mslice_jax.plots import (
    plot_accuracy_over_epochs,
    plot_accuracy_vs_flops,
    plot_costs,
    plot_perplexity_over_epochs,
    plot_perplexity_vs_flops,
)
from mslice_jax.profile import Profile, RateProfile, count_parameters, measure, profile
from mslice_jax.profile.timing import in_turn


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


def test_profile_measures_every_rate(tmp_path):
    net, x = build()
    found = profile(net, x, repeats=3)
    assert list(found) == [0.5, 1.0]
    for rate, width in ((0.5, 4), (1.0, 8)):
        cost = found[rate]
        products = 2 * (5 * width + width * 3)  # a multiplication and an addition
        others = width + 3 + width  # two biases, one relu
        assert cost.flops == cost.xla_flops == products + others
        assert cost.contraction_flops == products
        assert cost.parameters == 5 * width + width + width * 3 + 3
        assert cost.weight_bytes == 4 * cost.parameters
        assert cost.temporary_bytes == temporary_bytes(width)
        assert cost.memory_bytes == cost.weight_bytes + cost.temporary_bytes
        assert cost.activation_bytes == 4 * (width + width + 3)
        assert 0 < cost.latency_ms <= cost.latency_p99_ms < 1e3
        assert cost.flops_differ == ""
    assert (found.device, found.platform, found.batch) == ("cpu", "cpu", 1)
    assert (found.inputs, found.repeats) == (("float32[1,5]",), 3)
    assert found.jax == jax.__version__
    assert list(profile(net, x, rates=(0.5,), repeats=1)) == [0.5]

    found.save(tmp_path / "costs.json")
    again = Profile.load(tmp_path / "costs.json")
    assert again == found and str(again) == str(found)
    found.plot(tmp_path / "costs.png")
    assert (tmp_path / "costs.png").read_bytes().startswith(b"\x89PNG")


def temporary_bytes(width):
    """What XLA plans for the network that is written narrow by hand."""

    def narrow(w, x):
        return jnp.maximum(x @ w["a"] + w["b"][None], 0) @ w["c"] + w["d"][None]

    shapes = {"a": (5, width), "b": (width,), "c": (width, 3), "d": (3,)}
    weights = {name: jnp.ones(shape) for name, shape in shapes.items()}
    compiled = jax.jit(narrow).lower(weights, jnp.ones((1, 5))).compile()
    return compiled.memory_analysis().temp_size_in_bytes


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
        assert found[rate].contraction_flops == found[rate].flops - 5 == products
        # XLA has a multiplication and an addition of every product that stands there.
        once = 2 * (5 * w + 2 * w * w + w * w + w * 3)
        assert once <= found[rate].xla_flops < products
        assert "a loop once, not 3, 5, 7 times" in found[rate].flops_differ


def test_rates_take_turns():
    calls = []
    runs = {rate: lambda rate=rate: calls.append(rate) for rate in (0.5, 1.0)}
    seconds = in_turn(runs, 3)
    assert calls == [0.5, 1.0] * 5
    assert [len(each) for each in seconds.values()] == [3, 3]


def test_what_comes_before_a_call_is_not_timed():
    told = []
    runs = {key: lambda key=key: told.append(f"ran {key}") for key in "ab"}

    def before(key):
        told.append(key)
        time.sleep(0.05)

    seconds = in_turn(runs, 2, warm=0, before=before)
    assert told == ["a", "ran a", "b", "ran b"] * 2
    assert max(map(min, seconds.values())) < 0.05
    with pytest.raises(ValueError, match="at least one repeat, got 0"):
        in_turn(runs, 0)


def test_of_fewer_than_100_times_the_longest_is_the_99th_percentile():
    found = measure._latency([1.0, 4.0, 2.0])
    assert found == {"latency_ms": 2000.0, "latency_p99_ms": 4000.0}
    assert measure._latency(range(1, 1002))["latency_p99_ms"] == 991e3


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


def test_costs_have_a_picture(tmp_path):
    path = tmp_path / "picture.png"
    plot_costs(path, {"a": {0.5: 1.0, 1.0: 4.0}, "b": {0.5: 2, 1.0: 3}}, title="costs")
    assert path.read_bytes().startswith(b"\x89PNG")
    wrong = {"a": {0.5: 1.0}, "b": {1.0: 1.0}}, {}, {"a": {}}
    for costs in wrong:
        with pytest.raises(ValueError, match="costs of the same rates"):
            plot_costs(path, costs, title="")
    with pytest.raises(ValueError, match="above 0, got a"):
        plot_costs(path, {"a": {0.5: 0.0, 1.0: 1.0}}, title="")


def made_up(**more):
    """Costs of three rates: latency goes with r, FLOPs with the square and a bit."""
    costs = {
        rate: RateProfile(parameters=8, flops=64 * rate**2 + 1, latency_ms=rate, **more)
        for rate in (1.0, 0.25, 0.5)
    }
    return Profile(costs=costs, device="a device")


def test_a_profile_is_a_mapping_in_ascending_order():
    found = made_up()
    assert list(found) == [0.25, 0.5, 1.0] and len(found) == 3
    assert found[1].flops == 65 and 0.75 not in found
    assert found.all_of("parameters") == {0.25: 8.0, 0.5: 8.0, 1.0: 8.0}


def test_exponents_are_least_squares_of_logarithms():
    found = made_up()
    assert found.exponent().value == 1.0
    fitted = found.exponent("flops")
    x, y = np.log([0.25, 0.5, 1]), np.log([5.0, 17.0, 65.0])
    slope, start = np.polyfit(x, y, 1)
    assert fitted.value == pytest.approx(slope)
    assert fitted.worst == pytest.approx(np.exp(abs(slope * x + start - y).max()))
    assert fitted.rates == (0.25, 0.5, 1.0)
    assert "flops ~ r^1.85" in str(fitted) and "r = 0.25, 0.5, 1" in str(fitted)
    assert found.exponent("temporary_bytes") is None  # nobody knows them
    with pytest.raises(ValueError, match="'speed' is no cost; expected one of"):
        found.exponent("speed")


def test_what_is_unknown_is_null_in_a_file(tmp_path):
    path = tmp_path / "new" / "costs.json"
    found = made_up(flops_differ="so it is")
    found.save(path)
    assert '"temporary_bytes": null' in path.read_text()
    assert str(Profile.load(path)) == str(found)
    assert repr(Profile.load(path).costs[0.5]) == repr(found[0.5])
    assert "unknown" in str(found) and "FLOPs differ: so it is" in str(found)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        found.save(path)
    found.save(path, overwrite=True)
    assert [file.name for file in path.parent.iterdir()] == ["costs.json"]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda text: text[: len(text) // 2], "damaged .it is not JSON"),
        (lambda text: "[]", "no file of mslice_jax.profile.save"),
        (lambda text: text.replace('"version": 1', '"version": 2'), "version 2"),
        (lambda text: text.replace('"flops": 65.0', '"flops": -1'), "flops is -1"),
        (lambda text: text.replace('"flops": 65.0', '"flops": "1"'), "flops is '1'"),
        (lambda text: text.replace('"flops": 65.0', '"flops": NaN'), "flops is nan"),
        (lambda text: text.replace('"device": "a device",', ""), "no 'device'"),
        (lambda text: text.replace('"0.25"', '"1.25"'), "slice rate lies in"),
        (lambda text: text.replace('"parameters": 8', '"parameters": 8.5'), "is 8.5"),
    ],
)
def test_a_damaged_profile_is_an_error(tmp_path, edit, message):
    path = tmp_path / "costs.json"
    made_up().save(path)
    changed = edit(path.read_text())
    assert changed != path.read_text()
    path.write_text(changed)
    with pytest.raises(ms.StorageError, match=message):
        Profile.load(path)


def test_a_profile_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(ms.StorageError, match="cannot read .*No such file"):
        ms.profile.load(tmp_path / "costs.json")


def test_variables_need_be_no_dict():
    x = jnp.ones((2, 6))
    layers = [jnp.ones((6, 16)), jnp.ones((16, 3))]
    net = ms.upgrade(lambda p, x: x @ p[0] @ p[1], layers, x, rates=(0.5, 1.0))
    costs = profile(net, x, repeats=1)
    assert {rate: cost.parameters for rate, cost in costs.items()} == {0.5: 72, 1: 144}
