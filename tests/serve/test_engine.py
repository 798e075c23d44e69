"""The engine: with an executor that only multiplies, and mostly a clock set by hand."""

import numpy as np
import pytest

from mslice_jax.serve import (
    Decision,
    Draining,
    Elastic,
    Engine,
    Failed,
    Full,
    Late,
    LatencyTable,
    PolicyError,
    Watcher,
)
from tests.serve.fakes import Clock, FakeExecutor, x_of

# Ten milliseconds at half width and forty at full width, whatever the batch.
TABLE = LatencyTable(
    {(r, b): (ms, ms) for r, ms in ((0.5, 10), (1.0, 40)) for b in (1, 2, 4)}
)


class Notes(Watcher):
    def __init__(self):
        self.outcomes, self.batches = [], []

    def ended(self, outcome, rate, seconds):
        self.outcomes.append((outcome, rate, round(seconds, 6)))

    def ran(self, rate, rows, seconds, factor):
        self.batches.append((rate, rows, factor))


class Made:
    """An engine whose turns are taken by hand."""

    def __init__(self, slo_s=0.1, took=0.01, policy=None, **more):
        self.clock, self.notes = Clock(), Notes()
        self.executor = FakeExecutor(self.clock, took)
        self.engine = Engine(
            self.executor,
            policy or Elastic(slo_s=slo_s),
            TABLE,
            slo_s=slo_s,
            watcher=self.notes,
            clock=self.clock,
            **more,
        )

    def submit(self, *rows, **wishes):
        return self.engine.submit(self.executor.check({"x": x_of(*rows)}), **wishes)


def test_rows_come_back_to_their_callers():
    made = Made()
    futures = [made.submit(*rows) for rows in ((1,), (2, 3), (4,), (5, 6, 7))]
    while made.engine.waiting:
        made.engine.turn()
    for future, rows in zip(futures, ((1,), (2, 3), (4,), (5, 6, 7)), strict=True):
        answer = future.result(0)
        np.testing.assert_array_equal(answer.outputs["y"], x_of(*rows) * answer.rate)
    assert sum(sum(rows) for _, rows in made.executor.ran) == 7
    assert [outcome for outcome, *_ in made.notes.outcomes] == ["answered"] * 4


@pytest.mark.parametrize(("waiting", "rate"), [(1, 1.0), (4, 1.0), (5, 0.5)])
def test_the_policy_chooses_the_rate(waiting, rate):
    # T/2 is 50 ms: one batch of four at full width fits, two do not.
    made = Made()
    for _ in range(waiting):
        made.submit(1)
    made.engine.turn()
    assert made.executor.ran[0][0] == rate


def test_wishes():
    made = Made()
    least = made.submit(1, min_rate=0.7, timeout_s=0.045)
    alone = made.submit(1, rate=0.5)
    while made.engine.waiting:
        made.engine.turn()
    assert (least.result(0).rate, alone.result(0).rate) == (1.0, 0.5)
    for wrong in ({"rate": 0.6}, {"min_rate": 2.0}, {"rate": 0.5, "min_rate": 1.0}):
        with pytest.raises(PolicyError):
            made.submit(1, **wrong)
    assert made.engine.waiting == 0


def test_times_are_told():
    made = Made(took=0.25)
    made.clock.now += 7
    future = made.submit(1)
    made.clock.now += 0.03
    made.engine.turn()
    answer = future.result(0)
    assert answer.waited_s == pytest.approx(0.03)
    assert answer.late  # after 0.28 s, of 0.1
    assert made.notes.outcomes == [("late", 1.0, 0.28)]


def test_who_cannot_be_met_is_refused_and_nobody_else():
    made = Made()
    late = made.submit(1, timeout_s=0.009)  # the narrowest takes 0.010
    good = made.submit(2, timeout_s=0.0101)
    made.engine.turn()
    made.engine.turn()
    with pytest.raises(Late, match="deadline"):
        late.result(0)
    assert good.result(0).rate == 0.5
    assert [each[0] for each in made.notes.outcomes] == ["shed", "answered"]


def test_the_margin_is_part_of_the_time():
    made = Made(margin_s=0.004)
    made.submit(1, timeout_s=0.0139)
    made.engine.turn()
    assert made.notes.outcomes[0][0] == "shed"  # 0.0139 - 0.004 < 0.010
    made.submit(1, timeout_s=0.0141)
    made.engine.turn()
    assert made.notes.outcomes[1][0] == "answered"


def test_a_full_queue_refuses():
    made = Made(most_waiting=2)
    made.submit(1), made.submit(2)
    with pytest.raises(Full, match="2 requests wait"):
        made.submit(3)
    made.engine.turn()
    made.submit(3)


def test_who_hangs_up_leaves_the_queue():
    made = Made()
    kept, gone = made.submit(1), made.submit(2)
    assert gone.cancel()
    assert made.engine.waiting == 1
    made.engine.turn()
    assert made.executor.ran == [(1.0, [1])]
    assert kept.done()
    assert made.notes.outcomes[0][:2] == ("gone", None)


def test_who_hangs_up_while_the_policy_thinks_is_not_run():
    made = Made()

    def policy(now, queue, table):
        futures[0].cancel()
        return Decision(tuple(queue), 0.5)

    made.engine.policy = policy
    futures = [made.submit(1), made.submit(2)]
    made.engine.turn()
    assert made.executor.ran == [(0.5, [1])]
    assert futures[1].done()


def test_a_batch_that_fails_fails_alone():
    made = Made()
    good = made.executor.run
    made.executor.run = lambda rate, requests: 1 / 0
    first = made.submit(1)
    made.engine.turn()
    with pytest.raises(Failed, match="ZeroDivisionError"):
        first.result(0)
    made.executor.run = good
    second = made.submit(1)
    made.engine.turn()
    assert second.result(0).rate == 1.0


def test_a_machine_that_slows_down_is_noticed_and_forgotten():
    made = Made(slo_s=0.15, took=0.12)  # three times the 40 ms of full width
    for _ in range(3):
        made.submit(1)
        made.engine.turn()
    assert made.engine.factor == pytest.approx(3)
    made.executor.took = 0.01
    made.submit(1)
    made.engine.turn()
    assert made.executor.ran[-1][0] == 0.5  # 120 ms are more than T/2, 30 are not
    # So slow that nothing seems to be in time: after a second it is tried again.
    made.engine._slow.factor = 1000.0
    made.submit(1)
    made.engine.turn()
    assert made.notes.outcomes[-1][0] == "shed"
    made.clock.now += 1.01
    made.submit(1)
    made.engine.turn()
    assert made.notes.outcomes[-1][0] == "answered"
    assert made.engine.factor == 1


def test_t_is_not_shorter_than_the_narrowest_program():
    with pytest.raises(PolicyError, match="T is 9 ms, but the narrowest program takes"):
        Made(slo_s=0.009)


# -- with its thread, and the real clock


def running(**more):
    executor = FakeExecutor()
    notes = Notes()
    engine = Engine(
        executor, Elastic(slo_s=60.0), TABLE, slo_s=60.0, watcher=notes, **more
    )
    return executor, engine.start(), notes


def submit(engine, *rows, **wishes):
    return engine.submit(engine.executor.check({"x": x_of(*rows)}), **wishes)


def test_drain_loses_nothing():
    executor, engine, notes = running()
    executor.gate.clear()
    futures = [submit(engine, n) for n in range(40)]
    assert executor.begun.wait(60)
    assert not engine.drain(timeout_s=0.01)
    assert not engine.running and engine.waiting > 30
    with pytest.raises(Draining):
        submit(engine, 1)
    executor.gate.set()
    assert engine.drain(timeout_s=60)
    for n, future in enumerate(futures):
        answer = future.result(0)
        np.testing.assert_array_equal(answer.outputs["y"], x_of(n) * answer.rate)
    assert len(notes.outcomes) == 40


def test_new_weights_are_for_the_next_batch():
    executor, engine, _ = running()
    executor.gate.clear()
    executor.begun.clear()
    old = submit(engine, 1, rate=1.0)
    assert executor.begun.wait(60)
    engine.swap(3.0)
    new = submit(engine, 1, rate=1.0)
    executor.gate.set()
    np.testing.assert_array_equal(old.result(60).outputs["y"], x_of(1))
    np.testing.assert_array_equal(new.result(60).outputs["y"], 3 * x_of(1))
    with pytest.raises(ValueError, match="do not fit"):
        engine.swap(None)
    assert engine.drain(60)


def test_a_policy_that_fails_does_not_stop_the_queue():
    executor, engine, _ = running()

    def wrong(now, queue, table):
        raise KeyError("slip")

    right, engine.policy = engine.policy, wrong
    with pytest.raises(Failed, match="policy"):
        submit(engine, 1).result(60)
    engine.policy = right
    assert submit(engine, 1).result(60).rate == 1.0
    assert engine.drain(60)


def test_a_policy_that_waits_is_asked_in_time():
    # It runs two at a time; one alone only after 20 ms.
    def pairs(now, queue, table):
        if len(queue) > 1 or now >= queue[0].arrived + 0.02:
            return Decision(tuple(queue[:2]), 0.5)
        return Decision(wait=queue[0].arrived + 0.02)

    executor, engine, _ = running()
    engine.policy = pairs
    assert submit(engine, 1).result(60).waited_s >= 0.02
    assert executor.ran == [(0.5, [1])]

    # Who waits for company gets it at once, however long the time.
    def company(now, queue, table):
        return Decision(tuple(queue[:2]), 0.5) if len(queue) > 1 else Decision()

    engine.policy = company
    first, second = submit(engine, 1), submit(engine, 2)
    assert first.result(60).rate == second.result(60).rate == 0.5
    assert executor.ran[-1] == (0.5, [1, 1])
    assert engine.drain(60)
