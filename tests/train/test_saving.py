"""Times of checkpoints, their writing process, and the mesh of a restore."""

import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import optax
import pytest

from mslice_jax.schedules import static
from mslice_jax.train import (
    CheckpointError,
    Checkpoints,
    MetricsFile,
    Placement,
    Progress,
    TrainState,
    make_train_step,
    restore_narrow,
    train,
)
from tests.train.conftest import build

KEY = jax.random.key(3)
OPTIMIZER = optax.adam(0.01)


def run(net, small, folder, **settings):
    saved = []

    class Watched(Checkpoints):
        def save(self, state, progress, **more):
            super().save(state, progress, **more)
            saved.append((int(state.step), progress.epoch, progress.batch))

    with Watched(folder / "checkpoints") as checkpoints:
        outcome = train(
            TrainState.create(net, OPTIMIZER, key=KEY),
            train_step=make_train_step(OPTIMIZER),
            batches=small.batches,
            schedule=static((0.5, 1.0)),
            evaluate=lambda net: {1.0: 0.5},
            epochs=2,
            steps_per_epoch=small.steps_per_epoch,
            checkpoints=checkpoints,
            metrics=MetricsFile(folder / "metrics.jsonl"),
            **settings,
        )
    return outcome, saved


def test_checkpoints_every_n_steps(net, small, tmp_path):
    _, saved = run(net, small, tmp_path, save_every_steps=3)
    # Epochs end after 4 and 8; the checkpoint of step 3 is at batch 3 of the first.
    assert saved == [(3, 0, 3), (4, 1, 0), (6, 1, 2), (8, 2, 0)]


def test_checkpoints_every_so_many_minutes(net, small, tmp_path, monkeypatch):
    clock = iter(range(0, 10**6, 20))  # every reading advances it by twenty seconds
    monkeypatch.setattr("mslice_jax.train.loop.time.perf_counter", lambda: next(clock))
    _, saved = run(net, small, tmp_path, save_every_minutes=1e-3)
    assert [step for step, _, _ in saved] == [1, 2, 3, 4, 5, 6, 7, 8]
    _, saved = run(net, small, tmp_path / "seldom", save_every_minutes=1e6)
    assert [step for step, _, _ in saved] == [4, 8]


@pytest.mark.parametrize("name", ["save_every_steps", "save_every_minutes"])
def test_a_number_that_is_not_above_0(net, small, tmp_path, name):
    with pytest.raises(ValueError, match=f"{name} above 0, got 0"):
        run(net, small, tmp_path, **{name: 0})


HOLD = """
import pathlib, sys
from mslice_jax.train.lock import lock
lock(pathlib.Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def test_a_second_process_is_refused_and_a_dead_one_holds_nothing(net, tmp_path):
    root = pathlib.Path(__file__).resolve().parents[2]
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(root)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        words = f"in use by another process .process {holder.pid} on"
        with pytest.raises(CheckpointError, match=words):
            Checkpoints(tmp_path)
        holder.kill()
    with Checkpoints(tmp_path) as first, Checkpoints(tmp_path):  # within one process
        first.save(TrainState.create(net, OPTIMIZER, key=KEY), Progress())


def test_fsdp_may_change_between_two_parts_of_a_run(small, tmp_path):
    net = build(small, shards=2)  # another setting, which is fixed

    def stands(fsdp):
        placement = Placement(Placement.over(fsdp=fsdp).mesh, smallest=8)
        state = TrainState.create(net, OPTIMIZER, key=KEY)
        step = make_train_step(OPTIMIZER, placement=placement)
        return placement, placement.state(state), step

    def after(state, placement, step, numbers):
        for number in numbers:
            batch = placement.batch(small.batch(number))
            state, _ = step(state, batch, (1.0, 0.5))
        return state

    placement, state, step = stands(1)
    whole = jax.tree.map(np.asarray, after(state, placement, step, range(4)).net)
    placement, state, step = stands(2)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(after(state, placement, step, range(2)), Progress())
    for fsdp in (1, 4):
        placement, state, step = stands(fsdp)
        with Checkpoints(tmp_path) as checkpoints:
            restored, _ = checkpoints.restore(state)
        assert restored.net.variables["params"]["hidden2"]["kernel"].sharding == (
            state.net.variables["params"]["hidden2"]["kernel"].sharding
        )
        found = after(restored, placement, step, (2, 3)).net
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, whole
        )


def test_restore_narrow_reads_the_evaluated_weights_of_the_optimizer(
    net, small, tmp_path
):
    optimizer = optax.contrib.schedule_free_sgd(0.1)
    state = TrainState.create(net, optimizer, key=KEY)
    step = make_train_step(optimizer)
    for number in range(3):
        state, _ = step(state, small.batch(number), (1.0, 0.5))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, Progress())
        checkpoints.wait()
        restored, _ = checkpoints.restore(
            TrainState.create(net, optimizer, key=jax.random.key(0))
        )
    found = restore_narrow(tmp_path, net, 0.5)
    expected = net.plan.slice(state.eval_net.variables, 0.5)
    jax.tree.map(np.testing.assert_array_equal, found.variables, expected)
    jax.tree.map(
        np.testing.assert_array_equal,
        (restored.net, restored.opt_state),
        (state.net, state.opt_state),
    )
