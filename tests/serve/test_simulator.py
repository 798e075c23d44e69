"""The virtual clock, by hand."""

import json

import numpy as np
import pytest

from mslice_jax.serve import traces
from mslice_jax.serve.elastic import Elastic, fixed
from mslice_jax.serve.latency import LatencyTable
from mslice_jax.serve.policy import Decision, PolicyError
from mslice_jax.serve.shared_core import Core, Http
from mslice_jax.serve.simulator import simulate

# 10 ms at full width, r² of it at others; a batch of eight takes as long as five rows.
TABLE = LatencyTable(
    {
        (r, b): (10 * r * r * n,) * 2
        for r in (0.25, 0.5, 1.0)
        for b, n in ((1, 1), (8, 5))
    }
)
ONE = LatencyTable({(1.0, 1): (10, 10)})
ACCURACY = {0.25: 0.9, 0.5: 0.92, 1.0: 0.95}


def test_one_batch_after_the_other():
    arrived = [0.0, 0.001, 0.002, 0.1]
    done = simulate(fixed(1.0, slo_s=0.05), arrived, TABLE, slo_s=0.05)
    assert np.allclose(done.started, [0.0, 0.01, 0.02, 0.1])
    assert np.allclose(done.finished, [0.01, 0.02, 0.03, 0.11])
    assert np.allclose(done.latency_s, [0.01, 0.019, 0.028, 0.01])
    assert done.batch.tolist() == [1, 1, 1, 1] and done.in_time.all()


def test_http_takes_its_part_of_the_deadline():
    done = simulate(fixed(1.0, slo_s=0.02), [0.0], TABLE, slo_s=0.02, overhead_s=0.004)
    assert np.allclose([done.started, done.finished], [[0.002], [0.014]])
    # Of 13 ms, 4 are HTTP's: nothing that takes 10 is in time, and the policy knows.
    policy = fixed(1.0, slo_s=0.013)
    done = simulate(policy, [0.0], TABLE, slo_s=0.013, overhead_s=0.004)
    assert done.shed.all() and not done.in_time.any()


def test_http_takes_its_part_of_the_core():
    # The way takes 1 ms. The first is read for 3, until 4 ms. The second is there at 5
    # ms: 3 ms of work again, at half speed beside the network, until 11. Of the batch 1
    # ms is done at 5, 4 at 11, and 10 at 17. Its answer takes 2, at half speed beside
    # the second batch, until 21; that has 8 ms left, until 29, and its answer takes 2.
    http = dict.fromkeys(TABLE.rates, Http(read_s=0.003, answer_s=0.002))
    done = simulate(
        fixed(1.0, slo_s=1), [0, 0.004], TABLE, slo_s=1, http=http, overhead_s=0.002
    )
    np.testing.assert_allclose(done.started, [0.004, 0.017])
    np.testing.assert_allclose(done.finished, [0.022, 0.032])


def test_requests_that_are_shed_cost_those_that_are_not():
    # Each is read and refused for a millisecond, and there are 500 a second: the other
    # half of the core is the network's.
    arrived = np.arange(0, 2, 0.002)
    http = {1.0: Http(0.0005, 0.0005)}
    served = [
        (~simulate(fixed(1.0, slo_s=0.03), arrived, ONE, slo_s=0.03, http=it).shed)
        for it in (None, http)
    ]
    assert served[0].sum() == pytest.approx(200, abs=4)
    assert served[1].sum() == pytest.approx(100, abs=4)


def test_what_http_takes_depends_on_the_rate_that_runs():
    # Before the first batch it is that of the narrowest: 2 ms until 1.0 runs. Then 4
    # for the second, which comes at 3: until 11, while the batch gets from 1 ms to 5.
    http = {0.25: Http(0.002, 0), 1.0: Http(0.004, 0)}
    wishes = [{"rate": 1.0}, {"rate": 0.25}]
    policy = Elastic(slo_s=1)
    done = simulate(policy, [0, 0.003], TABLE, slo_s=1, options=wishes, http=http)
    np.testing.assert_allclose(done.finished, [0.016, 0.016 + 0.000625])


def test_a_core_is_shared_in_halves():
    core = Core()
    core.tell("a", 1.0)
    core.tell("b", 1.0)
    core.run("batch", 1.5)
    seen = [(core.until(10.0), core.now) for _ in range(4)]
    # a until 2 s; b and the batch, which has half a second left, until 3; b alone.
    assert seen == [("a", 2.0), ("batch", 3.0), ("b", 3.5), (None, 10.0)]
    core.tell("c", 0.0)
    core.run("d", 0.0)
    assert [core.until(10.0) for _ in range(3)] == ["c", "d", None]
    with pytest.raises(ValueError, match="expected seconds"):
        Http(read_s=-1.0)


def test_the_summary_counts_who_was_answered_in_time(tmp_path):
    # Two begin at .01 after the first; of T = 25 ms the fourth has too little left.
    wishes = [{"rate": 1.0}, {"rate": 1.0}, {"rate": 0.5}, {"rate": 1.0}]
    arrived = [0.0, 0.0, 0.0, 0.0]
    done = simulate(Elastic(slo_s=0.025), arrived, TABLE, slo_s=0.025, options=wishes)
    told = done.summary(ACCURACY)
    assert told["requests"] == 4 and told["in_time"] == 0.75 and told["shed"] == 1
    assert told["accuracy"] == pytest.approx((0.95 + 0.95 + 0.92) / 3)
    assert told["mean_rate"] == pytest.approx(2.5 / 3)
    assert told["max_ms"] == pytest.approx(22.5)
    done.write(tmp_path / "run.json", ACCURACY)
    read = json.loads((tmp_path / "run.json").read_text())
    assert read["summary"] == told
    assert sum(it is None for it in read["records"]["finished"]) == 1
    none = simulate(fixed(1.0, slo_s=1), [0.0], TABLE, slo_s=0.001).summary(ACCURACY)
    assert none["in_time"] == 0 and none["accuracy"] is None and none["p50_ms"] is None


def test_noise_has_the_median_and_the_p99_of_the_table():
    table = LatencyTable({(1.0, 1): (20, 10)})
    arrived = np.arange(4000.0)
    run = [
        simulate(fixed(1.0, slo_s=1), arrived, table, slo_s=1, noise=True, seed=seed)
        for seed in (0, 0, 1)
    ]
    took = run[0].latency_s * 1e3
    assert np.median(took) == pytest.approx(10, rel=0.03)
    assert np.percentile(took, 99) == pytest.approx(20, rel=0.08)
    assert np.array_equal(run[0].finished, run[1].finished)
    assert not np.array_equal(run[0].finished, run[2].finished)


def test_a_machine_that_slows_down_is_noticed():
    # Two and a half times as slow from 2 s on; a plan that does not know promises more
    # than it keeps.
    arrived, share = traces.poisson(200, 6, seed=0), {}
    for correct in (False, True):
        done = simulate(
            Elastic(slo_s=0.06),
            arrived,
            TABLE,
            slo_s=0.06,
            slowdown=lambda now: 2.5 if now > 2 else 1.0,
            correct=correct,
        )
        share[correct] = done.in_time.mean()
        assert done.in_time[arrived < 1.9].all()
    assert share[True] > 0.99 > share[False]


@pytest.mark.parametrize(
    ("says", "message"),
    [
        (lambda now, queue, table: Decision(), "waits for ever"),
        (lambda now, queue, table: Decision(wait=now), "waits for ever"),
        (lambda now, queue, table: Decision((queue[0],) * 2, 1.0), "does not wait"),
    ],
)
def test_a_policy_that_loses_its_way_is_an_error(says, message):
    with pytest.raises(RuntimeError, match=message):
        simulate(says, [0.0], TABLE, slo_s=1)


def test_bad_input_is_an_error_before_anything_runs():
    policy = Elastic(slo_s=1)
    with pytest.raises(traces.TraceError, match="out of order"):
        simulate(policy, [1.0, 0.5], TABLE, slo_s=1)
    with pytest.raises(traces.TraceError, match="1 options for 2"):
        simulate(policy, [0.0, 0.5], TABLE, slo_s=1, options=[{}])
    with pytest.raises(PolicyError, match=r"T is 0.5 ms, .* takes 0.625 ms"):
        simulate(Elastic(slo_s=0.0005), [0.0], TABLE, slo_s=1)
    with pytest.raises(PolicyError, match="rate 0.3 is not one of"):
        simulate(policy, [0.0], TABLE, slo_s=1, options=[{"rate": 0.3}])


# -- what the server is to show, here on the virtual clock: T = 10 t, cost as r²

T = 0.1
CAPACITY = 1600 * 8 / 5  # what the narrowest does a second


def test_step_load_up_to_what_the_narrowest_sustains():
    levels = [(2, CAPACITY / 16), (2, 0.95 * CAPACITY), (2, CAPACITY / 16)]
    done = simulate(Elastic(slo_s=T), traces.step(levels, seed=0), TABLE, slo_s=T)
    assert not done.shed.any() and done.in_time.mean() >= 0.999
    assert set(done.rate) == {0.25, 0.5, 1.0}


def test_half_load_is_answered_as_if_nobody_else_were_there():
    arrived = traces.poisson(50, 20, seed=0)  # half of the 100 a second of batch 1
    done = simulate(Elastic(slo_s=T), arrived, TABLE, slo_s=T)
    assert np.median(done.latency_s) <= 1.5 * 0.010
    assert done.summary()["mean_rate"] > 0.97


@pytest.mark.parametrize("seed", range(2))
def test_bursts_beat_the_best_fixed_width_in_hindsight(seed):
    peak = 0.9 * CAPACITY
    arrived = traces.mmpp(peak / 16, peak, 5, dwell_s=0.5, seed=seed)
    share = {
        rate: simulate(fixed(rate, slo_s=T), arrived, TABLE, slo_s=T).in_time.mean()
        for rate in TABLE.rates[:2]
    }
    assert share[0.25] >= 0.999 > share[0.5]  # so .25 is the best, and .5 the next
    done = simulate(Elastic(slo_s=T), arrived, TABLE, slo_s=T).summary(ACCURACY)
    assert done["in_time"] >= 0.999 and done["accuracy"] > ACCURACY[0.25]
    assert done["in_time"] >= share[0.5] + 0.25
