"""Batches, against every way to cut a queue."""

import itertools
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mslice_jax.serve.batches import Batches

FEW = settings(max_examples=60, deadline=None, derandomize=True)


@st.composite
def costs(draw):
    """bucket -> seconds, not falling; whole numbers, so that sums are exact."""
    sizes = sorted(draw(st.sets(st.sampled_from([2, 3, 4, 8]), max_size=3)) | {1})
    times = sorted(draw(st.lists(st.integers(1, 12), min_size=4, max_size=4)))
    return {size: float(time) for size, time in zip(sizes, times, strict=False)}


def every_cut(count):
    """All ways to write a number as an ordered sum."""
    for cuts in itertools.product([False, True], repeat=max(count - 1, 0)):
        parts, size = [], 1
        for cut in cuts:
            if cut:
                parts.append(size)
                size = 0
            size += 1
        yield [*parts, size]


def ends(parts, seconds):
    """When each batch ends, or None if one is in no bucket."""
    at, found = 0.0, []
    for part in parts:
        fitting = [took for size, took in seconds.items() if size >= part]
        if not fitting:
            return None
        at += min(fitting)
        found.append(at)
    return found


@FEW
@given(costs(), st.integers(1, 8))
def test_the_least_time_and_the_least_mean_latency(seconds, count):
    plans = [(p, e) for p in every_cut(count) if (e := ends(p, seconds))]
    batches = Batches(seconds)
    assert batches.least(count) == min(e[-1] for _, e in plans)

    def latencies(plan):
        return sum(part * end for part, end in zip(*plan, strict=True))

    gentle, left = [], count
    while left:
        gentle.append(batches.first(left, gentle=True))
        left -= gentle[-1]
    assert latencies((gentle, ends(gentle, seconds))) == min(map(latencies, plans))


def most_in_time(deadlines, seconds):
    """The most that can be on time, over all sets as batches in all orders."""
    deadlines = tuple(deadlines)

    @cache
    def most(left, now):
        best = 0
        for count in range(1, min(len(left), max(seconds)) + 1):
            took = min(t for size, t in seconds.items() if size >= count)
            # Which of equal deadlines is meant makes no difference.
            for batch in set(itertools.combinations(left, count)):
                if now + took <= min(batch):
                    rest = list(left)
                    for it in batch:
                        rest.remove(it)
                    best = max(best, count + most(tuple(rest), now + took))
        return best

    return most(deadlines, 0.0)


queues = st.lists(st.integers(1, 20), min_size=1, max_size=5).map(sorted)


@FEW
@given(costs(), queues)
def test_the_latest_start_is_exact(seconds, slack):
    latest = Batches(seconds).latest(slack)
    count = len(slack)
    for at in range(count):
        # Begun at the latest start all are on time, and a little later not.
        for later, all_on_time in ((0.0, True), (0.5, False)):
            start = latest[at] + later
            moved = [it - start for it in slack[at:]]
            assert (most_in_time(moved, seconds) == count - at) is all_on_time
    # The most that can be met are those with the latest deadlines.
    reachable = sum(start >= 0 for start in latest[:-1])
    assert reachable == most_in_time(slack, seconds)


@FEW
@given(costs(), queues, st.integers(1, 20))
def test_what_begins_leaves_every_later_one_its_chance(seconds, slack, within):
    size = Batches(seconds).begin(slack, within)
    clipped = [min(it, within) for it in slack]
    assert (size > 0) is (most_in_time(clipped, seconds) == len(slack))
    if size:
        took = min(time for bucket, time in seconds.items() if bucket >= size)
        rest = [it - took for it in clipped[size:]]
        assert took <= clipped[0]
        assert most_in_time(rest, seconds) == len(rest)


def test_a_bucket_that_smaller_ones_replace_is_left_out():
    batches = Batches({1: 1.0, 2: 2.0, 4: 3.0, 8: 7.0})
    assert batches.sizes == (1, 4)
    assert batches.took(2) == 2.0 and batches.took(8) == 7.0  # one batch, all the same
    assert batches.most(2, 6.9) == 4 and batches.most(5, 6.9) == 0
    assert batches.first(8) == 4


def test_short_queues_run_one_by_one_where_a_batch_saves_little():
    saves_little = Batches({1: 1.0, 2: 1.9})
    assert saves_little.first(2) == 2 and saves_little.first(2, gentle=True) == 1
    saves_much = Batches({1: 1.0, 2: 1.2})
    assert saves_much.first(2, gentle=True) == 2
    assert saves_much.least(3) == pytest.approx(2.2)
