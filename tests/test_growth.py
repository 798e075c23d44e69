"""Which numbers cancel how a value grows, and how they follow: by hand, on numbers.

`A` has 16 units, `B` has 9 and `C` again 16; `W` is whole.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from mslice_jax.core import growth
from mslice_jax.core.axes import Unit, Whole
from mslice_jax.core.counts import numbers
from mslice_jax.core.counts.decisions import Asked, power_of, unmatched
from mslice_jax.core.growth import Follow, Pending, Sizes

A, B, C, W = Unit(16, "a"), Unit(9, "b"), Unit(16, "c"), Whole(7)
NARROW = {"a": 4, "b": 3, "c": 2}


def one(axis, exponent, **how):
    return Follow(((axis, exponent),), **how)


def test_growths_multiply():
    grown = {A: 1.0}
    assert growth.times(grown, {A: 1.0}) == {A: 2.0}
    assert growth.times(grown, {A: 1.0}, -1) == {}
    assert growth.times(grown, {B: 0.5}, -2) == {A: 1.0, B: -1.0}
    assert growth.times(grown, {A: -1.0 + 1e-12}) == {}
    assert growth.times(grown, {}) is grown  # a sum over nothing is told by that
    assert growth.to_power({A: 0.5, B: 1.0}, 2.0) == {A: 1.0, B: 2.0}


def test_what_narrows():
    assert growth.narrows(A) and not growth.narrows(W)
    assert growth.narrowing({W: 1.0, A: 1.0})
    assert not growth.narrowing({W: 1.0}) and not growth.narrowing({})
    assert Follow(((W, 1.0), (A, 1.0))).narrows and not one(W, 1.0).narrows


@pytest.mark.parametrize(
    ("a", "b", "rounding", "expected"),
    [
        (1.0, 1.0 + 1e-6, 0.0, True),
        (1.0, 1.0 + 3e-6, 0.0, False),
        (1.0, 1.0015, 1e-3, True),
        (1.0, 1.003, 1e-3, False),
    ],
)
def test_equal(a, b, rounding, expected):
    assert growth.equal(a, b, rounding) is expected


def cancelled(value, power, grown, rounding=0.0, **options):
    """(what is gone, how the number follows), for each way."""
    found = growth.matches(Pending((), value, power), grown, rounding, **options)
    return [tuple(match) for match in found]


@pytest.mark.parametrize(
    ("value", "power", "grown", "follow"),
    [
        (16, -1, {A: 1.0}, one(A, 1.0)),  # sum / n
        (1 / 16, 1, {A: 1.0}, one(A, -1.0)),  # sum * (1 / n)
        (-16, -1, {A: 1.0}, one(A, 1.0)),
        (4, -1, {A: 0.5}, one(A, 0.5)),  # norm / sqrt(n)
        (16, -0.5, {A: 0.5}, one(A, 1.0)),  # norm / sqrt(n), the root taken later
        (4, 1, {A: -0.5}, one(A, 0.5)),  # unit vector * sqrt(n)
        (256, -1, {A: 2.0}, one(A, 2.0)),
        (144, -1, {A: 1.0, B: 1.0}, Follow(((A, 1.0), (B, 1.0)))),
        (7, -1, {W: 1.0}, one(W, 1.0)),
        # with one factor less one
        (15, -1, {A: 1.0}, one(A, 1.0, less=1)),
        (1 / 15, 1, {A: 1.0}, one(A, -1.0, less=1)),
        (16 * 15, -1, {A: 2.0}, one(A, 2.0, less=1)),  # all pairs
        (16 * 15 / 2, -1, {A: 2.0}, one(A, 2.0, less=1)),
        (16 * 15 * 2, -1, {A: 2.0}, one(A, 2.0, less=1)),
    ],
)
def test_a_number_cancels_all_of_a_growth(value, power, grown, follow):
    assert cancelled(value, power, grown) == [(grown, follow)]


def test_a_number_cancels_a_part_of_a_growth():
    both = {A: 1.0, B: 1.0}
    assert cancelled(9, -1, both) == [({B: 1.0}, one(B, 1.0))]
    assert cancelled(16, -1, {A: 2.0}) == [({A: 1.0}, one(A, 1.0))]
    assert cancelled(16, 1, {A: -2.0}) == [({A: -1.0}, one(A, 1.0))]
    assert cancelled(4, -1, both) == []
    assert cancelled(4, -1, both, partly=True) == [({A: 0.5}, one(A, 0.5))]
    # the most first: all of the 9 units, or a root of 81
    square = cancelled(9, -1, {B: 2.0, A: 1.0}, partly=True)
    assert square == [({B: 1.0}, one(B, 1.0))]


def test_of_two_ways_the_one_that_leaves_least():
    """9 is all units of B, or the square of 3; so is a root of the one by the other."""
    three = Unit(3, "d")
    ways = [
        ({three: 2.0}, one(three, 2.0)),
        ({B: 0.5, three: 1.0}, Follow(((B, 0.5), (three, 1.0)))),
        ({B: 1.0}, one(B, 1.0)),
    ]
    grown = {B: 1.0, three: 2.0}
    assert cancelled(9, -1, grown) == ways[:1]
    assert cancelled(9, -1, grown, partly=True) == ways


def test_a_number_of_two_meanings():
    ways = cancelled(16, -1, {A: 1.0, C: 1.0})
    assert [cancels for cancels, _ in ways] == [{C: 1.0}, {A: 1.0}]
    # all of the growth, though a part would do as well
    small = Unit(4, "d"), Unit(3, "e")
    (way,) = cancelled(11, -1, dict.fromkeys(small, 1.0))
    assert way == (dict.fromkeys(small, 1.0),
                   Follow(tuple((s, 1.0) for s in small), less=1))  # fmt: skip


@pytest.mark.parametrize(
    ("value", "power", "grown"),
    [
        (17, -1, {A: 1.0}),
        (16, 1, {A: 1.0}),  # the wrong way
        (0.0, -1, {A: 1.0}),
        (math.inf, -1, {A: 1.0}),
        (1.0, -1, {Unit(2, "d"): 1.0}),
        (15, 1, {A: -1.0}),  # nobody scales a unit vector by n - 1
        (math.sqrt(15), -1, {A: 0.5}),
        (120, -1, {A: 1.0, B: 1.0}),
        (16.01, -1, {A: 1.0}),
        (32, -1, {A: 1.0}),
        (16, -1, {}),
    ],
)
def test_a_number_that_cancels_nothing(value, power, grown):
    assert cancelled(value, power, grown) == []


def test_rounding_of_a_dtype():
    assert cancelled(16.01, -1, {A: 1.0}, 1e-3) == [({A: 1.0}, one(A, 1.0))]


def test_of_two_entries_nothing_is_less_one():
    two = Unit(2, "d")
    assert cancelled(2, -1, {two: 2.0}) == [({two: 1.0}, one(two, 1.0))]
    three = Unit(3, "d")
    assert cancelled(2, -1, {three: 1.0}) == [({three: 1.0}, one(three, 1.0, less=1))]


@pytest.mark.parametrize(
    ("size", "value", "found"),
    [
        (24, 48, True),
        (24, 12, True),
        (24, 72, True),
        (24, 8, True),
        (24, 96, True),
        (24, 6, True),
        (24, 120, False),
        (16, 8, False),  # twice the root
        (16, 2, False),  # half of it
        (6, 12, False),  # of few units it is a number of many meanings
        (7, 14, True),
        (12, 36, False),
        (13, 39, True),
    ],
)
def test_multiples_of_a_size(size, value, found):
    axis = Unit(size, "d")
    ways = cancelled(value, -1, {axis: 1.0}, multiples=True)
    assert ways == ([({axis: 1.0}, one(axis, 1.0))] if found else [])


def test_multiples_of_roots_are_none():
    axis = Unit(24, "d")
    assert cancelled(2 * math.sqrt(24), -1, {axis: 0.5}, multiples=True) == []


@pytest.mark.parametrize(
    ("follow", "number", "expected"),
    [
        (one(A, 1.0), 16, 4),
        (one(A, 1.0), -16, -4),
        (one(A, -1.0), 1 / 16, 1 / 4),
        (one(A, 0.5), 4, 2),
        (Follow(((A, 1.0), (B, 1.0))), 144, 12),
        (Follow(((A, 1.0), (W, 1.0))), 112, 28),
        # multiples stay what they are
        (one(A, 1.0), 32, 8),
        (one(A, 1.0), 8, 2),
        (one(A, 1.0), 4, 1),
        (one(A, 1.0), 17.6, 4.4),
        (one(A, 1.0), 16.05, 4),  # but rounding does not
        (one(A, 1.0, less=1), 15, 3),
        (one(A, -1.0, less=1), 1 / 15, 1 / 3),
        (one(A, 2.0, less=1), 240, 12),
        (one(A, 2.0, less=1), 120, 6),
        (one(A, -2.0, less=1), 1 / 240, 1 / 12),
        (one(A, 1.0, log=True), math.log(16), math.log(4)),
        (one(A, -1.0, log=True), 1 / math.log(16), 1 / math.log(4)),
        (Follow(((A, 1.0), (B, 1.0)), log=True), math.log(144), math.log(12)),
        (one(W, 1.0), 7, 7),
    ],
)
def test_a_number_at_narrow_widths(follow, number, expected):
    assert follow.at(number, NARROW) == pytest.approx(expected, rel=1e-12)
    assert follow.at(number, {"a": 16, "b": 9, "c": 16}) == number


def test_one_unit_has_no_variance_and_no_entropy():
    assert one(A, -1.0, less=1).at(1 / 15, {"a": 1}) == math.inf
    assert one(A, -1.0, log=True).at(1 / math.log(16), {"a": 1}) == math.inf
    assert one(A, -1.0, log=True).at(-1 / math.log(16), {"a": 1}) == -math.inf
    assert one(A, 1.0, log=True).at(math.log(16), {"a": 1}) == 0


@pytest.mark.parametrize(
    ("value", "logs", "expected"),
    [
        (math.log(16), {A: 1.0}, one(A, 1.0, log=True)),
        (-math.log(16), {A: 1.0}, one(A, 1.0, log=True)),
        (1 / math.log(16), {A: 1.0}, one(A, -1.0, log=True)),
        (2 * math.log(16), {A: 2.0}, one(A, 1.0, log=True)),
        (math.log(144), {A: 1.0, B: 1.0}, Follow(((A, 1.0), (B, 1.0)), log=True)),
        (math.log(16), {A: 1.0, B: 2.0}, None),
        (math.log(17), {A: 1.0}, None),
        (1.0, {Whole(1): 1.0}, None),
        (1.0, {}, None),
    ],
)
def test_logarithms_of_sizes(value, logs, expected):
    assert growth.log_match(value, logs, 0.0) == expected


@pytest.mark.parametrize("value", [16, -16, 1 / 16, 4, 0.25, 15, math.log(16)], ids=str)
def test_powers_of_a_size(value):
    assert growth.sizes_in(value, (W, B, A), 0.0) == A
    assert growth.sizes_in(value, (C, A), 0.0) == C
    assert growth.sizes_in(value, (W, B), 0.0) is None


def test_numbers_that_stand_everywhere_are_no_sizes():
    two, four = Unit(2, "d"), Unit(4, "e")
    for value in (0.0, 0.5, 1.0, 2.0, math.inf, math.nan):
        assert growth.sizes_in(value, (two, four), 0.0) is None
    assert growth.sizes_in(math.sqrt(2), (two,), 0.0) == two
    assert growth.sizes_in(16.01, (A,), 0.0) is None
    assert growth.sizes_in(16.01, (A,), 1e-3) == A


@pytest.mark.parametrize(
    ("size", "value", "found"),
    [
        (24, 8 / 24, True),
        (24, -8 / 24, True),
        (24, math.log(10000) / 24, True),
        (24, math.log(10000) / 48, True),
        (24, 5 / 48, True),
        (24, 3 / 24, True),
        (24, 16 / 24, True),
        (24, 1 / 24, False),
        (24, math.log(17) / 48, True),
        (24, math.log(4) / 24, False),  # a turn of 4, or of 16
        (24, math.log(500_000) / 24, True),
        (24, 0.3, False),  # exp(48 * 0.3) is near some whole number, as any is
        (24, 0.5, False),
        (4, 3 / 4, False),
        (5, 3 / 5, True),
    ],
)
def test_frequencies_of_positions(size, value, found):
    axis = Unit(size, "d")
    assert growth.frequency_of(value, (axis,), 0.0) == (axis if found else None)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (16, (A, one(A, 1.0))),
        (-16, (A, one(A, 1.0))),
        (1 / 16, (A, one(A, -1.0))),
        (4, (A, one(A, 0.5))),
        (1 / 3, (B, one(B, -0.5))),
        (15, (A, one(A, 1.0, less=1))),
        (math.log(9), (B, one(B, 1.0, log=True))),
        (144, (B, Follow(((B, 1.0), (A, 1.0))))),
        (1 / 12, (B, Follow(((B, -0.5), (A, -0.5))))),
        (81, (B, one(B, 2.0))),
        (16 * (1 + 1e-6), (A, one(A, 1.0))),
        (16 * (1 - 1e-6), (A, one(A, 1.0))),
        (16.1, None),
        (2.0, None),
        (7, None),  # that of W
        (math.inf, None),
    ],
)
def test_a_table_of_sizes(value, expected):
    assert Sizes([W, A, B, C, Unit(1, "d")]).find(value) == expected


def test_products_of_the_largest_sizes():
    axes = [Unit(n, str(n)) for n in (3, 5, 7, 11, 13, 17, 19, 23, 29)]
    sizes = Sizes(axes)
    assert sizes.find(3 * 29) is None
    found = sizes.find(5 * 29)
    assert found == (axes[1], Follow(((axes[1], 1.0), (axes[-1], 1.0))))
    assert Sizes([]).find(16) is None


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (16, one(A, 1.0)),
        (32, one(A, 1.0)),
        (8, one(A, 1.0)),
        (-1 / 8, one(A, -1.0)),
        (4, one(A, 0.5)),
        (0.25, one(A, -0.5)),
        (15, one(A, 1.0, less=1)),
        (math.log(16), one(A, 1.0, log=True)),
    ],
)
def test_how_a_number_follows_that_the_user_names(value, expected):
    assert power_of(value, A) == expected


def test_what_the_user_says_of_a_line():
    asked = Asked(follow=("net.py:*",), stay=("net.py:12", "*Old*"))
    assert asked.of("net.py:11 (Net.__call__)") is True
    assert asked.of("net.py:12 (Net.__call__)") is False
    assert asked.of("net.py:11 (Old.__call__)") is False
    assert asked.of("other.py:12 (Net.__call__)") is None
    known = ["net.py:11 (Net.__call__)"]
    assert unmatched(("net.py:11", "*Net*", "net.py:12"), known) == ["net.py:12"]


# -- numbers that a program computes from numbers

FLOAT, WHOLE, FLAG = jnp.float32(0), jnp.int32(0), jnp.bool_(False)
COMPUTED = {
    "abs": (jnp.abs, [-3.0], 3),
    "add": (lax.add, [3.0, 4.0], 7),
    "and": (lax.bitwise_and, [6, 3], 2),
    "div": (lax.div, [3.0, 4.0], 0.75),
    "eq": (lax.eq, [3.0, 4.0], False),
    "exp": (lax.exp, [0.0], 1),
    "cube": (lambda x: lax.integer_pow(x, 3), [2.0], 8),
    "inverse": (lambda x: lax.integer_pow(x, -1), [4.0], 0.25),
    "ge": (lax.ge, [4.0, 4.0], True),
    "gt": (lax.gt, [4.0, 4.0], False),
    "le": (lax.le, [4.0, 4.0], True),
    "log": (lax.log, [1.0], 0),
    "lt": (lax.lt, [4.0, 4.0], False),
    "max": (lax.max, [3.0, 4.0], 4),
    "min": (lax.min, [3.0, 4.0], 3),
    "mul": (lax.mul, [3.0, 4.0], 12),
    "ne": (lax.ne, [3.0, 4.0], True),
    "neg": (lax.neg, [3.0], -3),
    "or": (lax.bitwise_or, [6, 3], 7),
    "pow": (lax.pow, [2.0, 5.0], 32),
    "rsqrt": (lax.rsqrt, [16.0], 0.25),
    "sign": (lax.sign, [-3.0], -1),
    "sqrt": (lax.sqrt, [16.0], 4),
    "square": (lax.square, [3.0], 9),
    "sub": (lax.sub, [3.0, 4.0], -1),
    "cast": (lambda x: lax.convert_element_type(x, jnp.int32), [3.7], 3),
    "view": (lambda x: lax.reshape(x, (1,)), [3.0], 3),
    "first of two": (lambda c, x, y: lax.select(c, y, x), [False, 3.0, 4.0], 3),
    "second of two": (lambda c, x, y: lax.select(c, y, x), [True, 3.0, 4.0], 4),
    "over zero": (lax.div, [3.0, 0.0], math.inf),
    "not known": (lax.sin, [0.0], None),
    "of what is not known": (lax.add, [3.0, None], None),
}


@pytest.mark.parametrize("name", COMPUTED)
def test_numbers_of_numbers(name):
    f, values, expected = COMPUTED[name]
    examples = {bool: FLAG, int: WHOLE}
    example = [examples.get(type(value), FLOAT) for value in values]
    (eqn,) = jax.make_jaxpr(f)(*example).eqns
    found = numbers.fold(eqn, values)
    assert found == expected and type(found) is not float
    if found is not None:
        assert found.dtype == eqn.outvars[0].aval.dtype


def test_complex_numbers_count_where_they_are_real():
    (eqn,) = jax.make_jaxpr(lax.neg)(jnp.complex64(0)).eqns
    assert numbers.fold(eqn, [3 + 0j]) == -3
    assert numbers.fold(eqn, [3 + 1j]) is None


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (4.0, 4),
        (np.full((2, 3), 4), 4),
        (np.full((2, 3), True), True),
        (jnp.full((2,), 4, jnp.bfloat16), 4),
        (np.full(2, 4 + 0j), 4),
        (np.full(2, 4 + 1j), None),
        (np.array([4, 4, 5]), None),
        (np.zeros((0,)), None),
        (np.ones(65536), 1),
        (np.ones(65537), None),
        (np.array(["a"]), None),
        (jax.random.key(0), None),
    ],
)
def test_the_number_that_every_entry_is(value, expected):
    assert numbers.scalar(value) == expected
