"""The widest rate within a budget, against costs that are known by hand."""

import json

import jax
import jax.numpy as jnp
import pytest

import mslice_jax as ms
from mslice_jax.profile import Profile, RateProfile

RATES = (0.25, 0.5, 1.0)
X = jnp.ones((2, 3))


def mlp(p, x):
    """3 inputs, 16 hidden units, 2 outputs: 5 weights, 10 FLOPs an example, a unit."""
    return jnp.tanh(x @ p["w1"]) @ p["w2"]


P = {"w1": jnp.ones((3, 16)), "w2": jnp.ones((16, 2))}


@pytest.fixture(scope="module")
def net():
    return ms.upgrade(mlp, P, X, rates=RATES)


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({"parameters": 80}, 1.0),  # 5 * 16: a limit that is met exactly is met
        ({"parameters": 79}, 0.5),
        ({"parameters": 20}, 0.25),
        ({"flops": 320}, 1.0),  # of both examples
        ({"flops": 319.5}, 0.5),
        ({"flops": 100}, 0.25),
        ({"flops": 1e9, "parameters": 40}, 0.5),
        ({"flops": 100, "parameters": 1e9}, 0.25),
        ({"flops": float("inf")}, 1.0),
    ],
)
def test_counts_are_held_without_compiling(net, compilations, limits, expected):
    with compilations() as names:
        assert ms.choose_rate(net, X, **limits) == expected
    assert names == []


def test_parameters_need_no_inputs_and_no_arrays(net):
    assert ms.choose_rate(net, parameters=40) == 0.5
    types = jax.eval_shape(lambda: net)
    assert ms.choose_rate(types, parameters=40) == 0.5
    assert ms.choose_rate(ms.extract(net, 0.5), parameters=1e9) == 0.5
    assert ms.choose_rate(net, parameters=40, rates=[1, 0.25]) == 0.25


def test_time_and_memory_are_measured(net):
    assert ms.choose_rate(net, X, latency_ms=1e5, repeats=1) == 1.0
    assert ms.choose_rate(net, X, latency_ms=1e5, parameters=79, repeats=1) == 0.5
    # Weights are 20 bytes a unit; no rate can do without them.
    temporary = {
        rate: ms.profile.profile(net, X, rates=(rate,), repeats=1)[rate].temporary_bytes
        for rate in (0.25, 0.5)
    }
    enough = 20 * 8 + temporary[0.5]
    assert ms.choose_rate(net, X, memory_bytes=enough) == 0.5
    assert ms.choose_rate(net, X, memory_bytes=enough - 1) == 0.25
    needed = int(20 * 4 + temporary[0.25])
    with pytest.raises(ms.RateError, match=f"memory_bytes: {needed} bytes are needed"):
        ms.choose_rate(net, X, memory_bytes=10)


def test_an_error_tells_of_every_limit_at_the_narrowest_rate(net):
    with pytest.raises(ms.RateError) as error:
        ms.choose_rate(net, X, latency_ms=1e-9, flops=40, parameters=1000, repeats=1)
    first, *lines = str(error.value).splitlines()
    assert "the narrowest, 0.25, does not" in first
    assert lines[0].startswith("  latency_ms: ") and " ms are needed" in lines[0]
    assert (
        lines[1]
        == "  flops: 80 flops are needed, 40 flops are allowed, 2 times as much"
    )
    assert len(lines) == 3 and "parameters" not in str(error.value)


def costs(**latency):
    """A profile of this network, on a device where a narrow rate is slow."""
    return Profile(
        costs={
            rate: RateProfile(
                parameters=int(80 * rate),
                flops=320 * rate,
                latency_ms=time,
                weight_bytes=int(320 * rate),
                temporary_bytes=100,
            )
            for rate, time in zip(RATES, (3.0, 2.0, 5.0), strict=True)
        },
        device="another device",
    )


def test_a_profile_stands_for_measuring(net, tmp_path, compilations):
    costs().save(tmp_path / "costs.json")
    with compilations() as names:
        for known in (costs(), tmp_path / "costs.json", str(tmp_path / "costs.json")):
            assert ms.choose_rate(net, profile=known, latency_ms=5) == 1.0
            assert ms.choose_rate(net, profile=known, latency_ms=4) == 0.5
            assert ms.choose_rate(net, profile=known, latency_ms=4, flops=100) == 0.25
            assert ms.choose_rate(net, profile=known, memory_bytes=260) == 0.5
            with pytest.raises(ms.RateError, match=r"3.000 ms .* 1.500 ms .*, 2 times"):
                ms.choose_rate(net, profile=known, latency_ms=1.5)
            # The narrowest keeps all that a wider one does not: it is the only one.
            assert (
                ms.choose_rate(net, profile=known, latency_ms=3, parameters=30) == 0.25
            )
    assert names == []


@pytest.mark.parametrize("bad", [0, -1, float("nan"), "5", True, jnp.ones(2)])
def test_a_limit_is_a_number_above_0(net, bad):
    with pytest.raises(ValueError, match="flops is a limit, a number above 0"):
        ms.choose_rate(net, X, flops=bad)


def test_arguments_that_say_nothing_are_errors(net):
    with pytest.raises(ValueError, match="expected a limit"):
        ms.choose_rate(net, X)
    for name in ("latency_ms", "flops", "memory_bytes"):
        with pytest.raises(ValueError, match=f"{name} is of a call"):
            ms.choose_rate(net, parameters=5, **{name: 5})
    with pytest.raises(ValueError, match="got both"):
        ms.choose_rate(net, X, parameters=80, profile=costs())


def test_a_limit_that_is_misspelt_is_not_passed_over(net):
    for more in ({}, {"profile": costs()}):
        with pytest.raises(ValueError, match="the keywords latencyms belong to a call"):
            ms.choose_rate(net, parameters=80, latencyms=5, **more)
    for limits in ({"parameters": 80}, {"flops": 320}):
        with pytest.raises(TypeError, match="latencyms"):
            ms.choose_rate(net, X, latencyms=5, **limits)
    with pytest.raises(ValueError, match=r"inputs of shape \(2, 4\)"):
        ms.choose_rate(net, jnp.ones((2, 4)), parameters=80)


def test_a_small_limit_is_shown_as_it_is(net):
    with pytest.raises(ms.RateError, match=r"2e-06 ms are allowed, 1.5e\+06 times"):
        ms.choose_rate(net, profile=costs(), latency_ms=2e-6)


def test_rates_are_declared_ones(net):
    with pytest.raises(ms.RateError, match=r"0\.3"):
        ms.choose_rate(net, X, flops=100, rates=(0.3,))
    with pytest.raises(ms.RateError, match="wider than this network"):
        ms.choose_rate(ms.extract(net, 0.5), parameters=80, rates=(1.0,))
    with pytest.raises(ms.RateError, match="rates is empty"):
        ms.choose_rate(net, parameters=80, rates=())
    p = [jnp.ones((3, 8)), jnp.ones((8, 16)), jnp.ones((16, 2))]
    deep = ms.upgrade(lambda p, x: x @ p[0] @ p[1] @ p[2], p, X, rates=RATES)
    with pytest.raises(ms.RateError, match="one for all groups"):
        ms.choose_rate(deep, parameters=80, rates=({"0:1": 0.5},))


def test_a_profile_of_something_else_is_an_error(net, tmp_path):
    some = Profile(costs={0.5: costs()[0.5]}, device="")
    with pytest.raises(ms.RateError, match=r"not \[0.25, 1.0\]"):
        ms.choose_rate(net, profile=some, latency_ms=5)
    assert ms.choose_rate(net, profile=some, latency_ms=5, rates=(0.5,)) == 0.5
    other = ms.upgrade(mlp, {"w1": P["w1"][:2], "w2": P["w2"]}, X[:, :2], rates=RATES)
    with pytest.raises(ms.RateError, match="20 parameters at rate 0.25, .* has 16"):
        ms.choose_rate(other, profile=costs(), latency_ms=5)
    damaged = tmp_path / "costs.json"
    damaged.write_text(json.dumps({"format": "mslice_jax.profile", "version": 1}))
    with pytest.raises(ms.StorageError, match="damaged .no 'rates'"):
        ms.choose_rate(net, profile=damaged, latency_ms=5)
    blind = {
        r: RateProfile(parameters=int(80 * r), flops=1, latency_ms=1) for r in RATES
    }
    with pytest.raises(ValueError, match="does not know memory_bytes"):
        ms.choose_rate(net, profile=Profile(costs=blind, device=""), memory_bytes=500)


def test_keywords_of_the_call_go_through():
    def scaled(p, x, *, flops):
        return mlp(p, x) * flops

    x = X[:1]
    net = ms.upgrade(scaled, P, x, rates=RATES, flops=3.0)
    # A product for each of 2 outputs is added.
    assert ms.choose_rate(net, x, flops=162, call={"flops": 3.0}) == 1.0
    assert ms.choose_rate(net, x, flops=161, call={"flops": 3.0}) == 0.5
