"""Schedules: rates and their frequency, which depend on seed and step alone."""

import itertools
import math

import jax.numpy as jnp
import numpy as np
import pytest

from mslice_jax import schedules
from mslice_jax.core.errors import RateError
from mslice_jax.schedules import ScheduleError, make_schedule

RATES = (0.25, 0.5, 0.75, 1.0)
DRAWING = (
    schedules.random,
    schedules.random_min,
    schedules.random_max,
    schedules.random_min_max,
)
MAKERS = (*DRAWING, schedules.static, schedules.cyclic)


def close_to(probability: float, count: int) -> object:
    """A frequency over `count` independent draws that a correct schedule passes.

    Hoeffding: a mean of n independent values in [0, 1] is further than t from its
    expectation with probability at most 2 exp(-2 n t^2). Solved for one in a million.
    The seeds are fixed, so that a test passes always or never.
    """
    return pytest.approx(probability, abs=math.sqrt(math.log(2e6) / (2 * count)))


@pytest.mark.parametrize(
    ("make", "always", "drawn_from"),
    [
        (schedules.random, (), RATES),
        (schedules.random_min, (0.25,), (0.5, 0.75, 1.0)),
        (schedules.random_max, (1.0,), (0.25, 0.5, 0.75)),
        (schedules.random_min_max, (0.25, 1.0), (0.5, 0.75)),
    ],
)
def test_fixed_rates_are_always_there_and_others_equally_often(
    make, always, drawn_from
):
    for k in range(1, len(drawn_from) + 1):
        schedule = make(RATES, k=k, seed=5)
        steps = [schedule(step) for step in range(4000)]
        for rates in steps:
            assert list(rates) == sorted(set(rates), reverse=True)
            assert set(always) <= set(rates) <= set(RATES)
            assert len(rates) == len(always) + k
        for rate in drawn_from:
            often = np.mean([rate in rates for rates in steps])
            # Every set of k is equally likely, so each rate is in k / n of them.
            assert often == close_to(k / len(drawn_from), 4000)


def test_weights_set_how_often_a_rate_is_drawn():
    weights = {0.5: 1.0, 1.0: 5.0, 0.25: 2.0, 0.75: 2.0}  # in no order
    schedule = schedules.random(tuple(weights), weights=tuple(weights.values()), seed=2)
    steps = [schedule(step) for step in range(20_000)]
    for rate, weight in weights.items():
        assert np.mean([rates == (rate,) for rates in steps]) == close_to(
            weight / 10, 20_000
        )


def test_weighted_draws_of_two_follow_draws_without_replacement():
    shares = {0.25: 0.1, 0.5: 0.2, 0.75: 0.3, 1.0: 0.4}
    schedule = schedules.random(RATES, k=2, weights=(1, 2, 3, 4), seed=7)
    steps = [schedule(step) for step in range(20_000)]
    for one, other in itertools.combinations(RATES, 2):
        p, q = shares[one], shares[other]
        # One first, then the other from the rest; or the other way round.
        expected = p * q / (1 - p) + q * p / (1 - q)
        often = np.mean([set(rates) == {one, other} for rates in steps])
        assert often == close_to(expected, 20_000)


def test_the_weight_of_a_fixed_rate_has_no_effect():
    some = schedules.random_min_max(RATES, weights=(0, 1, 3, 0), seed=4)
    others = schedules.random_min_max(RATES, weights=(9, 1, 3, 5), seed=4)
    assert [some(s) for s in range(200)] == [others(s) for s in range(200)]
    middle = np.mean([some(step)[1] == 0.75 for step in range(20_000)])
    assert middle == close_to(3 / 4, 20_000)


def test_a_rate_of_weight_zero_is_never_drawn():
    schedule = schedules.random(RATES, k=3, weights=(1, 0, 1, 1))
    assert {schedule(step) for step in range(500)} == {(1.0, 0.75, 0.25)}


def test_steps_are_independent():
    schedule = schedules.random((0.5, 1.0), seed=3)
    pairs = [(schedule(s)[0], schedule(s + 1)[0]) for s in range(0, 40_000, 2)]
    for first, second in itertools.product((0.5, 1.0), repeat=2):
        assert pairs.count((first, second)) / 20_000 == close_to(1 / 4, 20_000)


@pytest.mark.parametrize("make", DRAWING)
def test_a_step_depends_on_seed_and_step_alone(make):
    in_order = [make(RATES, seed=11)(step) for step in range(1001)]
    resumed = make(RATES, seed=11)
    assert resumed(1000) == in_order[1000]  # earlier steps do not matter
    assert [resumed(step) for step in range(990, 1001)] == in_order[990:]
    assert resumed(np.int64(7)) == resumed(jnp.int32(7)) == in_order[7]
    assert [make(RATES, seed=12)(step) for step in range(1001)] != in_order
    # The order of the given rates does not matter either.
    assert [make(RATES[::-1], seed=11)(step) for step in range(1001)] == in_order


def test_draws_fall_where_numpys_own_uniform_numbers_do():
    # Derived another way: the same key, but NumPy's Generator; then by hand.
    for step in range(300):
        key = np.random.SeedSequence(6, spawn_key=(1, step))
        first, second = np.random.Generator(np.random.Philox(key)).random(2)
        left = list(RATES[::-1])
        expected = {left.pop(int(first * 4)), left.pop(int(second * 3))}
        assert set(schedules.random(RATES, k=2, seed=6)(step)) == expected


def test_draws_do_not_change():
    # If this changes, a run of an older version resumes with other rates: say so in
    # CHANGELOG.md, and only then write the new ones here.
    schedule = schedules.random_min_max(RATES, weights=(1, 1, 2, 1), seed=2**40)
    middle = [schedule(step)[1] for step in (0, 1, 2, 3, 4, 5, 10**6, 2**33)]
    assert middle == [0.75, 0.75, 0.5, 0.75, 0.5, 0.5, 0.75, 0.75]


def test_seeds_that_share_digits_differ():
    # A key made by joining words would take (1, 0) for 1, or 2**32 + 1 for (1, 1).
    draws = {
        tuple(schedules.random(RATES, seed=seed)(step) for step in range(64))
        for seed in (0, 1, 2**32, 2**32 + 1, 2**64 + 1)
    }
    assert len(draws) == 5


def test_static_is_every_rate_and_cyclic_one_in_turn():
    rates = (0.5, 1.0, 0.25)
    assert [schedules.static(rates)(step) for step in (0, 9)] == [(1.0, 0.5, 0.25)] * 2
    turns = [schedules.cyclic(rates)(step) for step in range(5)]
    assert turns == [(1.0,), (0.5,), (0.25,), (1.0,), (0.5,)]


def test_one_rate_is_both_the_widest_and_the_narrowest():
    assert schedules.random_min_max((0.5,), k=0)(3) == (0.5,)


@pytest.mark.parametrize("make", DRAWING)
def test_make_schedule_passes_settings_on(make):
    weights = (1, 1, 5, 1)
    named = make_schedule(make.__name__, RATES, num_random=2, weights=weights, seed=8)
    same = make(RATES, k=2, weights=weights, seed=8)
    assert [named(step) for step in range(50)] == [same(step) for step in range(50)]


@pytest.mark.parametrize("make", [schedules.static, schedules.cyclic])
def test_make_schedule_knows_those_that_draw_nothing(make):
    named, same = make_schedule(make.__name__, RATES), make(RATES)
    assert [named(step) for step in range(9)] == [same(step) for step in range(9)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "round_robin"}, "no schedule 'round_robin'.*random_min_max.*cyclic"),
        ({"weights": (1, 2, 3)}, r"each of the 4 rates .* got 3: \(1, 2, 3\)"),
        ({"weights": (1, -2, 3, 1)}, "not negative; got -2"),
        ({"weights": (1, math.nan, 3, 1)}, "finite number .* got nan"),
        ({"weights": (1, math.inf, 3, 1)}, "finite number .* got inf"),
        ({"weights": (1, "2", 3, 1)}, "finite number .* got '2'"),
        ({"weights": (0, 0, 0, 0)}, "at least one weight is positive"),
        ({"num_random": 5}, r"k = 5 rates a step, but only 4 .* Lower k"),
        ({"weights": (1, 0, 0, 1), "num_random": 3}, r"only 2 .*\(0.75, 0.5\) have"),
        ({"name": "random_min_max", "num_random": 3}, r"only 2 .*\(1.0, 0.25\) come"),
        ({"num_random": 0}, "at least one rate"),
        ({"num_random": -1}, "not negative; got -1"),
        ({"num_random": 1.5}, "whole number; got 1.5 of type float"),
        ({"seed": -3}, "seed is not negative; got -3"),
        ({"seed": "x"}, "seed is a whole number; got 'x'"),
        ({"name": "static", "weights": (1, 1, 1, 1)}, "draws nothing.*random_min"),
    ],
)
def test_settings_that_do_not_fit(settings, message):
    settings = {"name": "random", **settings}
    with pytest.raises(ScheduleError, match=message):
        make_schedule(rates=RATES, **settings)


def test_the_names_are_those_of_the_functions():
    assert [make.__name__ for make in MAKERS] == list(schedules.NAMES)


@pytest.mark.parametrize("make", MAKERS)
def test_invalid_rates(make):
    for rates in ((), (0.5, 0.5), (0.5, 1.5), (0.0, 1.0)):
        with pytest.raises(RateError):
            make(rates)


@pytest.mark.parametrize("make", MAKERS)
def test_invalid_steps(make):
    schedule = make(RATES)
    for step, message in ((-1, "not negative; got -1"), (0.5, "whole number; got 0.5")):
        with pytest.raises(ScheduleError, match=message):
            schedule(step)


def test_progressive_lets_narrower_rates_enter():
    drawn = schedules.random_min_max(RATES, seed=3)
    shrinking = schedules.progressive(drawn, RATES, every=5)
    assert {shrinking(step) for step in range(5)} == {(1.0,)}
    assert {shrinking(step) for step in range(5, 10)} == {(1.0, 0.75)}
    for step in range(10, 15):  # 0.25 has not entered, so 0.5 is the narrowest
        assert shrinking(step) == tuple(sorted({*drawn(step)[:2], 0.5}, reverse=True))
    assert [shrinking(step) for step in range(15, 40)] == [
        drawn(step) for step in range(15, 40)
    ]


@pytest.mark.parametrize("every", [0, -1, 2.5])
def test_progressive_needs_steps(every):
    with pytest.raises(ScheduleError, match="every"):
        schedules.progressive(schedules.static(RATES), RATES, every=every)
