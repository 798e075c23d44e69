"""Rates and widths, with expected numbers by hand."""

import dataclasses

import jax
import pytest

from mslice_jax.core.errors import RateError
from mslice_jax.core.rates import (
    SubNetwork,
    check_rate,
    check_rates,
    is_exact,
    rate_key,
    width,
)


@pytest.mark.parametrize(
    ("size", "rate", "unit", "kept"),
    [
        (64, 1.0, 1, 64),
        (64, 0.25, 1, 16),
        (10, 0.25, 1, 2),  # 2.5, half to even
        (6, 0.25, 1, 2),  # 1.5, half to even
        (64, 0.3, 8, 16),  # 8 units, 2.4 of them
        (64, 0.32, 8, 24),  # 2.56 units
        (4, 0.1, 1, 1),  # at least one
        (12, 0.01, 6, 6),  # at least one unit
    ],
)
def test_width(size, rate, unit, kept):
    assert width(size, rate, unit) == kept


def test_width_never_falls_with_the_rate():
    for unit, size in [(1, 7), (4, 24), (3, 27)]:
        widths = [width(size, k / 100, unit) for k in range(1, 101)]
        assert widths == sorted(widths)
        assert widths[-1] == size


def test_exact():
    assert is_exact(64, 0.25)
    assert is_exact(64, 0.25, 8)
    assert not is_exact(10, 0.25)
    assert not is_exact(64, 0.3, 8)


def test_rates_ascend():
    assert check_rates([1, 0.25, 0.5]) == (0.25, 0.5, 1.0)


@pytest.mark.parametrize("rate", [0, -0.5, 1.01, float("nan"), "0.5", None, True])
def test_bad_rate(rate):
    with pytest.raises(RateError, match=r"\(0, 1\]"):
        check_rate(rate)


def test_traced_rate_says_static():
    with pytest.raises(RateError, match="static"):
        jax.jit(check_rate)(0.5)


@pytest.mark.parametrize(
    ("rates", "word"),
    [([], "empty"), ([0.5, 0.5], "more than once"), (0.5, "sequence")],
)
def test_bad_rates(rates, word):
    with pytest.raises(RateError, match=word):
        check_rates(rates)


def test_a_sub_network_is_a_value():
    """It is a key of kept programs: equal rate and widths are equal, and immutable."""
    half = SubNetwork(0.5, (("a", 8), ("b", 4)))
    assert half == SubNetwork(0.5, (("a", 8), ("b", 4)))
    assert hash(half) == hash(SubNetwork(0.5, (("a", 8), ("b", 4))))
    assert half != SubNetwork(None, half.widths)
    assert half != SubNetwork(0.5, (("a", 8), ("b", 5)))
    with pytest.raises(dataclasses.FrozenInstanceError):
        half.rate = 0.25  # type: ignore[misc]
    assert f"{half:g}" == "0.5"
    mixed = [
        SubNetwork(None, tuple((n, 1) for n in names)) for names in ("abcd", "abcde")
    ]
    assert list(map(str, mixed)) == [
        "{a: 1, b: 1, c: 1, d: 1}",
        "{a: 1, b: 1, c: 1, d: 1, ...}",
    ]


def test_a_minimum_is_whole_units():
    assert width(64, 0.1, 8, minimum=12) == 16  # 6.4 is one unit of 8, and 12 two
    assert width(64, 0.1, minimum=12) == 12
    assert width(10, 0.1, 4, minimum=100) == 10  # the full size
    assert width(4, 0.1) == 1
    assert not is_exact(64, 0.1, 8, minimum=12)
    assert is_exact(64, 0.25, 8, minimum=16)


def test_keys_of_rates():
    assert [rate_key(rate) for rate in (1, 0.25)] == ["1.0", "0.25"]
