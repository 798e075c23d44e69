"""Requests to several replicas, of this process: deadlines, and replicas that die."""

import asyncio
import dataclasses
import gc
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest

import mslice_jax as ms
from mslice_jax.serve import (
    Elastic,
    Engine,
    Failed,
    Full,
    InvalidRequest,
    Late,
    LatencyTable,
    PolicyError,
    Refused,
    Watcher,
)
from mslice_jax.serve.attempts import Lost, answered
from mslice_jax.serve.handle import Handle
from mslice_jax.serve.options import options
from mslice_jax.serve.recent import Recent
from mslice_jax.serve.replica import (
    Described,
    Replica,
    Sent,
    described,
    machine,
    network_of,
)
from mslice_jax.serve.scaling import REQUESTS, SHARE
from mslice_jax.serve.signature import Signature, Tensor
from tests.serve.fakes import F32, Clock, FakeExecutor, X, Y, x_of
from tests.serve.networks import RATES, expected, request, two_inputs_net

ABOUT = Described(
    signature=Signature(None, (X,), (Y,), (1, 2, 4), (None,), frozenset(), None),
    rates=(0.5, 1.0),
    table=LatencyTable({(r, b): (10, 10) for r in (0.5, 1.0) for b in (1, 2, 4)}),
    slo_s=60.0,
    accuracy={},
)


# -- attempts, on a clock that is set by hand


class Asked:
    """Attempts: each takes so long, and then gives what it gives."""

    def __init__(self, *each):
        self.clock, self.each, self.left, self.paused = Clock(), list(each), [], []

    async def attempt(self, left):
        self.left.append(left)
        took, found = self.each.pop(0)
        self.clock.now += took
        if isinstance(found, Exception):
            raise found
        return found

    async def sleep(self, seconds):
        self.paused.append(seconds)
        self.clock.now += seconds

    def run(self, due):
        return asyncio.run(
            answered(self.attempt, 100.0 + due, clock=self.clock, sleep=self.sleep)
        )


def test_an_attempt_is_given_what_is_left():
    asked = Asked((1.0, Lost()), (2.0, Lost()), (0.5, "answer"))
    assert asked.run(10.0) == "answer"
    np.testing.assert_allclose(asked.left, [10.0, 9.0, 9.0 - 2.0 - 0.01])


def test_pauses_double_up_to_a_fifth_of_a_second():
    asked = Asked(*[(0.0, Lost())] * 8, (0.0, "answer"))
    asked.run(10.0)
    np.testing.assert_allclose(asked.paused, [0.01, 0.02, 0.04, 0.08, 0.16, 0.2, 0.2])


def test_nobody_is_asked_after_the_deadline():
    asked = Asked((0.4, Lost("it died")), (0.7, Lost("it died")), (0.0, "answer"))
    with pytest.raises(Late, match="lost 2 times; the last time it died"):
        asked.run(1.0)
    assert len(asked.left) == 2 and asked.paused == []
    with pytest.raises(Late, match=r"its deadline passed\.$"):
        Asked().run(0.0)


def test_a_pause_ends_at_the_deadline():
    asked = Asked(*[(0.0, Lost())] * 9)
    with pytest.raises(Late):
        asked.run(0.05)
    np.testing.assert_allclose(asked.paused, [0.01, 0.02, 0.02])


def test_another_error_is_raised_at_once():
    asked = Asked((0.0, Full("full")), (0.0, "answer"))
    with pytest.raises(Full):
        asked.run(1.0)
    with pytest.raises(TimeoutError):  # of its own, with time left
        Asked((0.0, TimeoutError())).run(10.0)


def test_who_never_answers_is_left_at_the_deadline():
    ended = []

    async def attempt(left):
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(left)

    began = time.monotonic()
    with pytest.raises(Late):
        asyncio.run(answered(attempt, began + 0.05, clock=time.monotonic))
    assert 0.05 <= time.monotonic() - began < 10
    assert len(ended) == 1


# -- replicas, without a network


class Dead(Exception):
    """What a replica that is gone gives."""


class Busy(Exception):
    """No replica takes more."""


def replica(executor=None, slo_s=60.0, most_waiting=1000):
    """A `Replica` around an executor that is there."""
    made = object.__new__(Replica)
    made.executor = executor or FakeExecutor()
    made.recent = Recent(1e6)
    made.engine = Engine(
        made.executor,
        Elastic(slo_s=slo_s),
        ABOUT.table,
        slo_s=slo_s,
        most_waiting=most_waiting,
        watcher=made.recent,
    ).start()
    made._machine, made._about, made._drain_s = machine(), ABOUT, 10.0
    made._network = network_of(ABOUT.signature)
    return made


class Remote:
    """Replicas in turn; an error in place of one is what asking it gives."""

    def __init__(self, *replicas):
        self.replicas, self.left, self.cancelled = list(replicas), [], 0

    def __call__(self, rows, left, sent, wishes):
        one = self.replicas.pop(0) if len(self.replicas) > 1 else self.replicas[0]
        self.left.append(left)
        return Pending(self, one, (rows, left, sent, wishes))


class Pending:
    def __init__(self, remote, one, args):
        self.remote, self.one, self.args = remote, one, args

    def __await__(self):
        async def found():
            if isinstance(self.one, Exception):
                raise self.one
            return await self.one.ask(*self.args)

        return found().__await__()

    def cancel(self):
        self.remote.cancelled += 1


class Ended(Watcher):
    def __init__(self):
        self.outcomes = []

    def ended(self, outcome, rate, seconds):
        self.outcomes.append((outcome, rate))


def handle(*replicas):
    remote, watcher = Remote(*replicas), Ended()
    made = Handle(remote, ABOUT, gone=(Dead,), full=(Busy,), watcher=watcher)
    return made, remote, watcher


def test_an_answer_with_its_rate():
    made, remote, watcher = handle(replica())
    answer = made.ask({"x": x_of(1, 2)}, rate=0.5)
    assert answer.rate == 0.5
    np.testing.assert_array_equal(answer.outputs["y"], [[0.5, -0.5], [1, -1]])
    assert watcher.outcomes == [("answered", 0.5)]
    assert 59 < remote.left[0] <= 60  # T
    made.ask({"x": x_of(1)}, timeout_s=7.0)
    assert 6 < remote.left[1] <= 7
    assert made.inputs == (X,) and made.outputs == (Y,) and made.rates == (0.5, 1.0)
    assert made.waiting == 0


def test_another_replica_answers_for_one_that_is_gone():
    made, remote, watcher = handle(Dead(), Dead(), replica())
    assert made.ask({"x": x_of(1)}).rate == 1.0
    assert len(remote.left) == 3 and made.lost == 2
    assert remote.left[0] > remote.left[1] > remote.left[2]
    assert watcher.outcomes == [("answered", 1.0)]


def test_a_replica_that_stops_sends_to_another():
    stopping = replica()
    assert stopping.engine.drain(10)
    made, remote, _ = handle(stopping, replica())
    assert made.ask({"x": x_of(1)}).rate == 1.0
    assert len(remote.left) == 2


def of_another(arrays, outputs=(Y,)):
    """What a handle knows of another network."""
    signature = dataclasses.replace(ABOUT.signature, arrays=arrays, outputs=outputs)
    return dataclasses.replace(ABOUT, signature=signature)


@pytest.mark.parametrize(
    "about",
    [
        of_another((Tensor("z", F32, (-1, 2)),)),  # as many numbers of the same type
        of_another((X,), (Tensor("z", F32, (-1, 2)),)),
        of_another((Tensor("x", F32, (-1, 3)),)),
    ],
)
def test_while_another_network_takes_its_place_each_is_asked_for_its_own(about):
    name, size = about.signature.inputs[0].name, about.signature.inputs[0].shape[1]
    old, new = replica(), replica()
    new._network = network_of(about.signature)
    made, remote, _ = handle(new, new, old)
    assert made.ask({"x": x_of(1)}).rate == 1.0
    assert len(remote.left) == 3
    assert new.executor.ran == [] and old.executor.ran == [(1.0, [1])]
    made = Handle(Remote(old), about, gone=(), full=())
    with pytest.raises(Late, match="the replica serves another network"):
        made.ask({name: np.zeros((1, size), np.float32)}, timeout_s=0.1)
    assert len(old.executor.ran) == 1


def test_all_are_gone_until_the_deadline():
    made, remote, watcher = handle(Dead())
    began = time.monotonic()
    with pytest.raises(Late, match="the replica is gone: Dead"):
        made.ask({"x": x_of(1)}, timeout_s=0.2)
    assert 0.2 <= time.monotonic() - began < 10
    assert 3 <= len(remote.left) <= 7  # 0, 0, 10, 30, 70, 150 ms
    assert watcher.outcomes == [("shed", None)]


def test_a_replica_that_hangs_is_left_and_its_queue_too():
    executor = FakeExecutor()
    executor.gate.clear()
    one = replica(executor)
    made, remote, watcher = handle(one)
    first = made.submit(made.check({"x": x_of(1)}))  # runs, and does not end
    assert executor.begun.wait(60)
    with pytest.raises(Late):
        made.ask({"x": x_of(2)}, timeout_s=0.1)
    assert remote.cancelled == 1
    end = time.monotonic() + 60
    while one.engine.waiting and time.monotonic() < end:
        time.sleep(0.001)
    assert one.engine.waiting == 0
    executor.gate.set()
    assert first.result(60).rate == 1.0
    assert [rows for _, rows in executor.ran] == [[1]]
    assert watcher.outcomes == [("shed", None), ("answered", 1.0)]


class Failing(FakeExecutor):
    def run(self, rate, requests):
        raise RuntimeError("no memory")


def test_refusals_are_told_apart():
    for one, wishes, kind, says in (
        (replica(), {"min_rate": 2.0}, PolicyError, "above the widest"),
        (replica(), {"rate": 0.7}, PolicyError, "rate 0.7 is not one of"),
        (replica(Failing()), {}, Failed, "no memory"),
        (Busy(), {}, Full, "every queue is full"),
        (replica(), {"timeout_s": 0.001}, Late, "deadline"),
        (ValueError("odd"), {}, Failed, "odd"),
    ):
        made, _, watcher = handle(one)
        with pytest.raises(kind, match=says):
            made.ask({"x": x_of(1)}, **wishes)
        counted = {Failed: "failed", Late: "shed"}.get(kind)
        assert watcher.outcomes == ([(counted, None)] if counted else [])
    with pytest.raises(InvalidRequest, match="missing"):
        made.ask({"z": x_of(1)})


def ask(one, left, sent, **wishes):
    rows = Handle(None, ABOUT, gone=(), full=()).check({"x": x_of(1)})
    return asyncio.run(one.ask(rows, left, sent, wishes))


def test_the_way_counts_where_the_clock_is_the_same():
    one = replica()
    before = time.monotonic() - 5.0
    here = ask(one, 4.0, Sent(machine(), before))
    assert isinstance(here, Late)  # is past by a second
    there = ask(one, 4.0, Sent("another machine", before))
    assert not isinstance(there, Refused) and there.rate == 1.0


def test_what_a_replica_tells_counts_wishes_out():
    one = replica()
    sent = Sent("", 0.0)
    assert ask(one, 60.0, sent).rate == 1.0
    assert ask(one, 60.0, sent, rate=0.5).rate == 0.5  # the widest it accepts
    told = one.record_autoscaling_stats()
    assert (told[REQUESTS], told[SHARE]) == (2.0, 1.0)
    assert isinstance(ask(one, 0.001, sent), Late)  # counts as 0
    ask(one, 60.0, sent, min_rate=3.0)  # is none
    told = one.record_autoscaling_stats()
    assert told[REQUESTS] == 3.0 and told[SHARE] == pytest.approx(2 / 3)


def test_a_narrow_answer_is_a_share_of_the_widest():
    executor = FakeExecutor()
    one = replica(executor)
    one.engine.policy = Elastic(slo_s=60.0, rates=(0.5,))
    assert ask(one, 60.0, Sent("", 0.0)).rate == 0.5
    assert one.record_autoscaling_stats()[SHARE] == 0.5


def test_a_replica_whose_engine_has_ended_is_not_well():
    one = replica()
    one.check_health()
    one.engine.drain(10)
    one.check_health()  # stops as it was told
    ended = SimpleNamespace(running=False, draining=False, drain=one.engine.drain)
    one.engine = ended
    with pytest.raises(RuntimeError, match="the engine has ended"):
        one.check_health()


@pytest.fixture
def as_before():
    """A replica sets how often threads take turns, and what is looked at no more."""
    interval = sys.getswitchinterval()
    yield
    sys.setswitchinterval(interval)
    gc.unfreeze()


def test_a_replica_from_a_saved_network(tmp_path, as_before):
    """As Ray makes it: described first, then made."""
    ms.save(two_inputs_net(), tmp_path / "net.mslice")
    table = LatencyTable({(r, b): (5, 5) for r in RATES for b in (1, 2)})
    table.write(tmp_path / "table.json")
    flags = options(
        ["--checkpoint", str(tmp_path / "net.mslice"), "--batches", "1,2"]
        + ["--table", str(tmp_path / "table.json"), "--slo-ms", "60000"]
    )
    flags.folder = str(tmp_path)
    about = described(flags)
    assert about.rates == RATES and about.slo_s == 60.0
    assert about.table.entries == table.entries
    one = Replica(flags, about, 2.0)
    assert one.describe() is about
    made = Handle(Remote(one), about, gone=(), full=())
    x = request(2, seed=1)
    for rate in RATES:
        answer = made.ask(x, rate=rate)
        np.testing.assert_allclose(answer.outputs["y"], expected(x, rate), atol=1e-5)
    del made
    engine = one.engine
    one.__del__()
    assert engine.draining and not engine.running

    flags.slo_ms = 4.0
    with pytest.raises(PolicyError, match="T is 4 ms, but the narrowest"):
        described(flags)
    flags.rates = (0.3,)
    with pytest.raises(ValueError, match="rate 0.3"):
        described(flags)

    flags.slo_ms, flags.rates = 6e4, None
    narrower = ms.extract(two_inputs_net(), RATES[-2])
    ms.save(narrower, tmp_path / "net.mslice", overwrite=True)
    with pytest.raises(ValueError, match=r"net.mslice has another network by now"):
        Replica(flags, about, 2.0)
