"""Policies: small cases by hand, and what holds for every queue."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mslice_jax.serve.baselines import SlackFit, Window
from mslice_jax.serve.elastic import Elastic, LatencyFirst, fixed
from mslice_jax.serve.latency import LatencyTable
from mslice_jax.serve.policy import PolicyError, Request
from mslice_jax.serve.simulator import simulate
from tests.serve.test_batches import most_in_time

FEW = settings(max_examples=40, deadline=None, derandomize=True)
# 100 ms at full width, r² of it at others, and a batch costs what its rows cost.
SQUARES = LatencyTable(
    {(r, b): (100 * r * r * b,) * 2 for r in (0.25, 0.5, 0.75, 1.0) for b in (1, 2, 4)}
)


def queue(count, deadline=1.0, **options):
    return [Request(arrived=0.0, deadline=deadline, **options) for _ in range(count)]


# -- elastic


@pytest.mark.parametrize(
    ("count", "rate"),
    # n · 100 ms · r² ≤ 500 ms
    [(1, 1.0), (5, 1.0), (6, 0.75), (8, 0.75), (9, 0.5), (20, 0.5), (21, 0.25)],
)
def test_the_backlog_is_gone_within_half_of_t(count, rate):
    decision = Elastic(slo_s=1.0)(0.0, queue(count), SQUARES)
    assert decision.rate == rate and not decision.shed
    # Twice as slow a machine: as twice the requests.
    slower = Elastic(slo_s=1.0)(0.0, queue(count), SQUARES.scaled(2))
    assert slower.rate == Elastic(slo_s=1.0)(0.0, queue(2 * count), SQUARES).rate


def test_an_urgent_request_narrows_a_short_queue():
    urgent = [Request(arrived=0.0, deadline=0.03)]
    decision = Elastic(slo_s=1.0)(0.0, [*queue(2), *urgent], SQUARES)
    assert decision.rate == 0.5 and decision.requests == tuple(urgent)


def test_who_cannot_be_met_is_shed_and_nobody_else():
    # At .25 one takes 6.25 ms.
    late, just = queue(1, deadline=0.006), queue(1, deadline=0.0063)
    decision = Elastic(slo_s=1.0)(0.0, [*late, *just, *queue(1)], SQUARES)
    assert decision.shed == tuple(late) and decision.requests == tuple(just)
    assert decision.rate == 0.25


def test_who_is_late_anyway_does_not_hold_up_the_others():
    # A batch of four takes 7 ms, singles 6 each; the first has time for a single alone.
    times = {1: 6, 4: 7}
    table = LatencyTable({(1.0, b): (ms, ms) for b, ms in times.items()})
    first, others = queue(1, deadline=0.0061), queue(4, deadline=0.0071)
    decision = Elastic(slo_s=1.0)(0.0, [*first, *others], table)
    assert decision.requests == tuple(others) and not decision.shed
    # With time for both, nobody is passed over.
    others = queue(4, deadline=0.0131)
    decision = Elastic(slo_s=1.0)(0.0, [*first, *others], table)
    assert decision.requests == tuple(first)


def test_a_request_may_ask_for_rates():
    policy = Elastic(slo_s=1.0)
    assert policy(0.0, queue(30, min_rate=0.6), SQUARES).rate == 0.75
    assert policy(0.0, queue(1, rate=0.25), SQUARES).rate == 0.25
    assert fixed(0.25, slo_s=1.0)(0.0, queue(1, min_rate=0.5), SQUARES).rate == 0.5

    wish, others = queue(1, deadline=0.9, min_rate=0.5), queue(28)
    decision = policy(0.0, [*wish, *others], SQUARES)
    assert decision.rate == 0.5 and decision.requests == tuple(wish)
    # At full width all run together, with or without the wish.
    flat = LatencyTable({(r, b): (100 * r,) * 2 for r in (0.5, 1.0) for b in (1, 4)})
    mixed = [*queue(2), *queue(2, min_rate=1.0)]
    decision = policy(0.0, mixed, flat)
    assert decision.rate == 1.0 and len(decision.requests) == 4


def test_a_batch_shares_length_and_signature():
    times = {(b, n): 10.0 * n / 16 for b in (1, 4) for n in (16, 32)}
    table = LatencyTable({(1.0, *key): (ms, ms) for key, ms in times.items()})
    short, long = queue(2, length=16), queue(2, length=32)
    for order in ([*short, *long], [*long, *short]):
        chosen = Elastic(slo_s=1.0)(0.0, order, table).requests
        assert len({it.length for it in chosen}) == 1 and len(chosen) == 2
    other = queue(2, length=16, signature="float64")
    assert len(Elastic(slo_s=1.0)(0.0, [*short, *other], table).requests) == 2


def test_rows_fill_a_batch():
    table = LatencyTable({(1.0, b): (10, 10) for b in (1, 2, 4)})
    three, one = queue(1, rows=3), queue(3)
    chosen = Elastic(slo_s=1.0)(0.0, [*three, *one], table).requests
    assert sum(it.rows for it in chosen) == 4
    assert len(Elastic(slo_s=1.0)(0.0, queue(5, rows=2), table).requests) == 2


def test_the_lower_priority_number_is_served_when_both_cannot_be():
    table = LatencyTable({(1.0, 1): (10, 10)})
    first, urgent = queue(1, 0.015, priority=1), queue(1, 0.016, priority=0)
    assert Elastic(slo_s=1.0)(0.0, [*first, *urgent], table).requests == tuple(urgent)
    # Where both can be, the deadline decides.
    urgent = queue(1, 0.021, priority=0)
    assert Elastic(slo_s=1.0)(0.0, [*first, *urgent], table).requests == tuple(first)


def test_latency_first_narrows_for_the_second_request():
    rates = [LatencyFirst(slo_s=1.0)(0.0, queue(n), SQUARES).rate for n in (1, 2, 5)]
    assert rates == [1.0, 0.5, 0.25]  # 1, 4 and 16 within the time of one


def test_a_rate_that_is_slow_here_is_passed_over():
    times = {(0.25, 1): 30, (0.5, 1): 20, (1.0, 1): 100}
    table = LatencyTable({key: (ms, ms) for key, ms in times.items()})
    assert Elastic(slo_s=1.0)(0.0, queue(40), table).rate == 0.5
    assert fixed(0.25, slo_s=1.0)(0.0, queue(40), table).rate == 0.25


def test_settings_that_cannot_work():
    with pytest.raises(PolicyError, match="T is 5 ms, .* takes 6.25 ms"):
        Elastic(slo_s=0.005).check(SQUARES)
    with pytest.raises(PolicyError, match=r"\[0.3\] of \(0.25, 0.5"):
        fixed(0.3, slo_s=1.0).check(SQUARES)
    with pytest.raises(PolicyError, match="above 0"):
        Elastic(slo_s=0.0)
    for options in (
        {"rate": 0.3},
        {"min_rate": 1.5},
        {"rows": 5},
        {"length": 8},
        {"rate": 0.5, "min_rate": 0.6},
    ):
        with pytest.raises(PolicyError):
            queue(1, **options)[0].check(SQUARES)


# -- the paper's window, and SlackFit


@pytest.mark.parametrize(
    ("count", "rate"), [(5, 1.0), (6, 0.75), (8, 0.75), (9, 0.5), (20, 0.5), (99, 0.25)]
)
def test_window_is_the_formula_of_the_paper(count, rate):
    assert rate == max(
        (r for r in SQUARES.rates if count * r * r * 0.1 <= 1.0 / 2), default=0.25
    )
    came = [Request(arrived=0.3, deadline=1.3) for _ in range(count)]
    policy = Window(slo_s=1.0)
    assert policy(0.3, came, SQUARES) == ((), None, (), 0.5)
    assert policy(0.5, came, SQUARES).rate == rate


def test_window_leaves_who_came_later_for_the_next():
    came, later = queue(2), [Request(arrived=0.6, deadline=1.6)]
    policy = Window(slo_s=1.0)
    decision = policy(0.7, [*later, *came], SQUARES)
    assert decision.requests and set(decision.requests) <= set(came)
    assert policy(0.7, later, SQUARES) == ((), None, (), 1.0)
    # .3 s are left of the window; at full width two take .2.
    assert decision.rate == 1.0
    assert policy(0.85, came, SQUARES).rate == 0.75
    # Five are cut into four and one where a bucket of eight takes longer than both.
    times = {1: 10, 4: 20, 8: 40}
    table = LatencyTable({(1.0, size): (ms, ms) for size, ms in times.items()})
    assert len(policy(0.5, queue(5), table).requests) == 4


def test_slackfit_takes_the_largest_batch_of_the_bucket_of_the_slack():
    times = {(0.5, 1): 10, (0.5, 2): 20, (1.0, 1): 40, (1.0, 2): 50}
    table = LatencyTable({key: (ms, ms) for key, ms in times.items()})
    policy = SlackFit(buckets=4)  # they end at 20, 30, 40 and 50 ms
    for slack, rate, size in (
        (0.055, 1.0, 2),  # of (40, 50]
        (0.045, 1.0, 1),  # of (30, 40]
        (0.035, 0.5, 2),  # (20, 30] is empty; of the one below
        (0.025, 0.5, 2),
        (0.015, 0.5, 1),  # below all of them: the quickest
    ):
        decision = policy(0.0, queue(3, deadline=slack), table)
        assert (decision.rate, len(decision.requests)) == (rate, size), slack
    late = policy(1.0, queue(1, deadline=0.9), table)
    assert late.shed and not late.requests


# -- what holds for every queue


@st.composite
def tables(draw, lengths=(None,)):
    """Whole milliseconds, wider strictly slower, larger batches not quicker."""
    steps = st.integers(1, 6)
    entries = {}
    for length in lengths:
        above = dict.fromkeys((1, 2, 4), 0)
        for rate in (0.25, 0.5, 1.0):
            before = 0
            for batch in (1, 2, 4):
                before = above[batch] = max(before, above[batch] + draw(steps))
                entries[rate, batch, length] = (float(before),) * 2
    return LatencyTable(entries)


@FEW
@given(tables(), st.lists(st.integers(10, 60), min_size=2, max_size=9).map(sorted))
def test_the_rate_never_rises_with_the_length_of_the_queue(table, deadlines):
    policy = Elastic(slo_s=0.04)
    # A little more, as sums of milliseconds round.
    waiting = [Request(arrived=0.0, deadline=ms / 1e3 + 1e-9) for ms in deadlines]
    rates = [
        policy(0.0, waiting[: count + 1], table).rate for count in range(len(waiting))
    ]
    found = [rate for rate in rates if rate is not None]
    assert found == sorted(found, reverse=True)


@FEW
@given(tables(), st.lists(st.integers(1, 40), min_size=1, max_size=5))
def test_nothing_is_late_while_a_narrower_rate_would_do(table, deadlines):
    """Without further arrivals as many are on time as any plan at any rate has."""
    done = simulate(
        Elastic(slo_s=0.05),
        [0.0] * len(deadlines),
        table,
        slo_s=0.05,
        # A little more, as sums of milliseconds round.
        options=[{"timeout_s": ms / 1e3 + 1e-9} for ms in deadlines],
    )
    narrowest = {b: table.entries[0.25, b, None].p99_ms for b in (1, 2, 4)}
    best = most_in_time(sorted(deadlines), narrowest)
    assert done.in_time.sum() == best
    assert done.shed.sum() == len(deadlines) - best


class Watched:
    """Elastic, and a look at everything that it says."""

    def __init__(self, policy):
        self.policy, self.taken = policy, []

    def __call__(self, now, waiting, table):
        decision = self.policy(now, waiting, table)
        for request in decision.shed:
            lowest = request.at(table.rates[0], table.rates)
            took = table.p99_ms(lowest, request.rows, request.length) / 1e3
            assert now + took > request.deadline - 1e-9  # sums of seconds round
        assert decision.requests or len(decision.shed) == len(waiting)
        chosen = decision.requests
        assert len({(it.length, it.signature) for it in chosen}) <= 1
        assert sum(it.rows for it in chosen) <= table.batches[-1]
        for request in chosen:
            assert request.rate in (None, decision.rate)
            assert decision.rate >= request.min_rate
        self.taken += [it.payload for it in (*decision.shed, *chosen)]
        return decision


options = st.fixed_dictionaries(
    {
        "timeout_s": st.integers(1, 80).map(lambda ms: ms / 1e3),
        "length": st.sampled_from([16, 32]),
        "rows": st.sampled_from([1, 1, 2, 3]),
        "priority": st.sampled_from([0, 0, 1]),
    }
)
wishes = st.sampled_from([{}, {}, {"min_rate": 0.5}, {"min_rate": 0.8}, {"rate": 0.5}])
gaps = st.lists(
    st.tuples(st.integers(0, 12), options | st.just({}), wishes),
    min_size=1,
    max_size=14,
)


@FEW
@given(tables(lengths=(16, 32)), gaps)
def test_every_request_leaves_once_and_none_is_served_late(table, gaps):
    arrived, now = [], 0.0
    for gap, _, _ in gaps:
        now += gap / 1e3
        arrived.append(now)
    policy = Watched(Elastic(slo_s=0.06))
    given = [{**options, **wish} for _, options, wish in gaps]
    done = simulate(policy, arrived, table, slo_s=0.06, options=given)
    # The queue is empty at the end, and nobody left it twice.
    assert sorted(policy.taken) == list(range(len(arrived)))
    assert done.in_time.sum() + done.shed.sum() == len(arrived)
    assert (done.started[~done.shed] >= done.arrived[~done.shed]).all()
    assert (done.deadline - done.finished >= -1e-9)[~done.shed].all()


@pytest.mark.parametrize(
    "policy", [Window(slo_s=0.3), SlackFit(), fixed(0.5, slo_s=0.3)], ids=repr
)
def test_every_policy_empties_its_queue(policy):
    wishes = [{}, {"min_rate": 0.75}, {"rate": 0.25}, {"rows": 3}, {"priority": 2}]
    arrived = [0.08 * i for i in range(20)]
    done = simulate(policy, arrived, SQUARES, slo_s=0.3, options=wishes * 4)
    served = ~done.shed
    assert (done.batch[served] > 0).all() and (done.batch[~served] == 0).all()
    assert set(done.rate[2::5][served[2::5]]) == {0.25}
    assert served[1::5].any() and (done.rate[1::5][served[1::5]] >= 0.75).all()
