"""How many replicas, from what they tell; without Ray."""

import math
import pickle
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from mslice_jax.serve import Elastic, LatencyTable, poisson, simulate
from mslice_jax.serve.recent import Recent
from mslice_jax.serve.scaling import BUSY, REQUESTS, SHARE, ByMeanRate, Scaling, Told
from tests.serve.fakes import Clock

RULE = Scaling(least=1, most=10)


def told(share, busy, requests=100.0):
    return Told(requests=requests, share=share, busy=busy)


@pytest.mark.parametrize(
    ("replicas", "wanted"),
    [
        # Narrow: the work at full width is busy / share².
        ([told(0.5, 0.7)], 2),  # 2.8, but twice is the most
        ([told(0.5, 1.0)] * 2, 4),  # 8
        ([told(0.75, 0.9)] * 4, 7),  # 3.6 / .5625 = 6.4
        ([told(0.75, 0.3)] * 4, 5),  # 2.1: one more all the same
        ([told(0.0, 1.0)] * 3, 6),  # all were shed
        # Of all requests, not of all replicas: .99 · 1 + .01 · .25
        ([told(1.0, 0.9, 990), told(0.25, 0.9, 10)], 2),
        ([told(1.0, 0.9, 10), told(0.25, 0.9, 990)], 4),
        # Neither narrow nor wide enough.
        ([told(0.8, 1.0)] * 2, 2),
        ([told(0.97, 0.0)] * 2, 2),
        # Wide: the others would be busy for n · busy / (n - 1).
        ([told(1.0, 0.3)] * 2, 1),  # .6
        ([told(1.0, 0.31)] * 2, 2),
        ([told(0.98, 0.39)] * 3, 2),  # .585
        ([told(1.0, 0.0)] * 10, 9),  # one at a time
        ([told(1.0, 0.0, 0)] * 2, 1),  # no request at all
        ([told(1.0, 0.0)], 1),
        ([told(0.5, 1.0)] * 9, 10),
        ([], 1),
    ],
)
def test_how_many(replicas, wanted):
    assert RULE.wanted(replicas) == wanted


def test_never_fewer_or_more_than_there_may_be():
    rule = Scaling(least=2, most=3)
    assert rule.wanted([]) == 2
    assert rule.wanted([told(1.0, 0.0)] * 2) == 2
    assert rule.wanted([told(0.1, 1.0)] * 2) == 3


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"least": 0}, "expected integers from 1, got least 0"),
        ({"most": 2.0}, "expected integers from 1, got most 2.0"),
        ({"most": True}, "got most True"),
        ({"least": 3, "most": 2}, "the least first, got 3 to 2"),
        ({"narrow": 0.99}, "expected 0 < narrow < wide <= 1, got narrow 0.99"),
        ({"wide": 1.5}, "wide 1.5"),
        ({"busy": 1.0}, "busy 1.0"),
        ({"window_s": 0}, "window_s 0"),
        ({"up_s": -1.0}, "expected up_s and down_s from 0, got -1.0"),
        ({"down_s": math.nan}, "nan"),
    ],
)
def test_what_contradicts_itself(settings, says):
    with pytest.raises(ValueError, match=says):
        Scaling(**settings)


def test_the_number_settles():
    """Under `Elastic`, at any load, as the docstring of the rule says.

    What replicas tell comes from the simulator, each with its part of the load: a load
    of 1 is what one does at full width.
    """
    rates, took = (0.25, 0.5, 0.75, 1.0), 0.01
    table = LatencyTable(
        {
            (r, b): (1e3 * took * r**2 * b**0.9,) * 2
            for r in rates
            for b in (1, 2, 4, 8, 16)
        }
    )

    def tells(load, slo_s):
        done = simulate(
            Elastic(slo_s=slo_s),
            poisson(load / took, seconds=10, seed=3),
            table,
            slo_s=slo_s,
        )
        begun, first = np.unique(done.started, return_index=True)
        seconds = [
            table.median_ms(done.rate[i], int(done.batch[i])) / 1e3 for i in first
        ]
        assert not done.shed.any() and len(begun) == len(seconds)
        return told(float(done.rate.mean()), min(sum(seconds) / 10, 1.0))

    for slo_s in (5 * took, 20 * took):
        assert tells(0.6, slo_s).share >= RULE.wide
        assert tells(1.0, slo_s).share >= 0.9
        assert tells(1.7, slo_s).share < RULE.narrow + 0.03
        for load in (0.3, 1.3, 3.5):
            for n in (1, 8):
                counts = [n]
                for _ in range(10):
                    one = tells(load / counts[-1], slo_s)
                    counts.append(RULE.wanted([one] * counts[-1]))
                assert counts[-1] == counts[-2], counts
                # Not so few that they are narrow, nor one that would not be missed.
                assert tells(load / counts[-1], slo_s).share >= RULE.narrow
                assert counts[-1] <= load / RULE.busy + 1.01, counts


def context(replicas, values, *, target=None, now=100.0, state=None):
    """What Ray Serve gives a policy, as far as it is read."""
    names = (REQUESTS, SHARE, BUSY)
    metrics = {
        name: {
            each: [SimpleNamespace(value=-1.0), SimpleNamespace(value=numbers[i])]
            for each, numbers in values.items()
        }
        for i, name in enumerate(names)
    }
    return SimpleNamespace(
        running_replicas=replicas,
        target_num_replicas=len(replicas) if target is None else target,
        raw_metrics=metrics,
        current_time=now,
        policy_state=state,
    )


def test_the_policy_waits_for_a_window_after_each_change():
    policy = ByMeanRate(least=1, most=4, window_s=2.0)
    narrow = {"a": (10.0, 0.5, 1.0)}
    count, state = policy(context(["a"], narrow, now=100.0, state={}))
    assert count == 1  # it may have been another a moment ago
    count, state = policy(context(["a"], narrow, now=101.9, state=state))
    assert count == 1
    count, state = policy(context(["a"], narrow, now=102.0, state=state))
    assert count == 2
    # One starts: its target stays, whatever the other tells.
    count, state = policy(context(["a"], narrow, target=2, now=103.0, state=state))
    assert count == 2
    both = {**narrow, "b": (10.0, 0.5, 1.0)}
    count, state = policy(context(["a", "b"], both, now=104.0, state=state))
    assert count == 2
    count, state = policy(context(["b", "a"], both, now=106.0, state=state))
    assert count == 4
    # Of the same number, but one is new.
    count, state = policy(context(["a", "c"], both, now=107.0, state=state))
    assert count == 2
    # Who has not told yet is waited for.
    count, state = policy(context(["a", "c"], narrow, now=120.0, state=state))
    assert count == 2


def test_the_policy_before_anyone_has_told():
    policy = ByMeanRate(least=1, most=4)
    empty = context(["a"], {}, target=3)
    empty.raw_metrics = None
    assert policy(empty)[0] == 3
    assert policy(context([], {}, target=1, state={}))[0] == 1


def test_the_file_stands_alone():
    """Ray hands it to its controller, which should not load JAX for it."""
    assert pickle.loads(pickle.dumps(RULE)) == RULE
    path = sys.modules["mslice_jax.serve.scaling"].__file__
    script = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("alone", {path!r})
module = importlib.util.module_from_spec(spec)
sys.modules["alone"] = module
spec.loader.exec_module(module)
print(module.Scaling(most=3).most, "jax" in sys.modules, "mslice_jax" in sys.modules)
"""
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert run.stdout.split() == ["3", "False", "False"]


def test_a_replica_tells_of_its_last_seconds():
    clock = Clock()
    recent = Recent(2.0, clock)
    assert recent.told() == {REQUESTS: 0.0, SHARE: 1.0, BUSY: 0.0}
    for share in (1.0, 0.5):
        recent.ended_at(share)
    recent.ran(0.5, 2, 0.5, 1.0)
    assert recent.told() == {REQUESTS: 2.0, SHARE: 0.75, BUSY: 0.25}
    clock.now += 1.5
    recent.ended_at(0.0)
    assert recent.told() == {REQUESTS: 3.0, SHARE: 0.5, BUSY: 0.25}
    clock.now += 0.6  # what was first is older than two seconds
    assert recent.told() == {REQUESTS: 1.0, SHARE: 0.0, BUSY: 0.0}
    recent.ran(1.0, 1, 5.0, 1.0)
    assert recent.told()[BUSY] == 1.0
