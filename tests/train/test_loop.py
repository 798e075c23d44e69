"""The loop: a stopped and resumed run ends as an uninterrupted one, bit for bit."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mslice_jax import data
from mslice_jax.schedules import make_schedule
from mslice_jax.train import (
    Checkpoints,
    MetricsFile,
    TrainState,
    Watcher,
    make_evaluate,
    make_train_step,
    multi_step,
    sgd,
    train,
)

EPOCHS = 3


class Interrupter(Watcher):
    """Sends a signal when the given step is reported; records all reports."""

    def __init__(self, at: int | None = None, sent: signal.Signals = signal.SIGINT):
        self.at, self.sent = at, sent
        self.steps, self.epochs, self.restored_at = [], [], None
        self.losses, self.mean_losses = [], []

    def restored(self, step, progress):
        self.restored_at = step

    def stepped(self, step, losses, examples_per_second):
        self.steps.append(step)
        self.losses.append(losses[max(losses)])
        if step == self.at:
            signal.raise_signal(self.sent)

    def evaluated(self, epoch, accuracy, loss):
        self.epochs.append(epoch)
        self.mean_losses.append(loss)


@pytest.fixture(scope="module")
def run(build_net, small):
    """run(directory, epochs=..., at=..., ...) -> (outcome, watcher)."""
    net = build_net(norm="switchable")
    rate = multi_step(0.1, epochs=EPOCHS, steps_per_epoch=small.steps_per_epoch)
    optimizer = sgd(rate)

    def transform(key, images):
        return images + 0.1 * jax.random.normal(key, images.shape)

    step = make_train_step(optimizer, transform=transform)
    defaults = {
        "train_step": step,
        "batches": small.batches,
        "evaluate": make_evaluate(small.x, small.y),
        "epochs": EPOCHS,
    }

    def run(directory, *, at=None, sent=signal.SIGINT, average=None, **settings):
        watcher = Interrupter(at, sent)
        watcher.given = TrainState.create(
            net, optimizer, key=jax.random.key(3), average=average is not None
        )
        if average is not None:
            settings["train_step"] = make_train_step(optimizer, average=average)
        with Checkpoints(directory / "checkpoints") as checkpoints:
            outcome = train(
                watcher.given,
                schedule=make_schedule("random", net.rates, seed=5),
                steps_per_epoch=small.steps_per_epoch,
                checkpoints=checkpoints,
                metrics=MetricsFile(directory / "metrics.jsonl"),
                learning_rate=rate,
                log_every=1,
                watcher=watcher,
                **{**defaults, **settings},
            )
        return outcome, watcher

    return run


@pytest.fixture(scope="module")
def whole(run, tmp_path_factory):
    """An uninterrupted run, and its directory."""
    directory = tmp_path_factory.mktemp("whole")
    return run(directory)[0], directory


def lines(directory):
    """The lines of metrics.jsonl without values of the clock."""
    text = (directory / "metrics.jsonl").read_text()
    found = [json.loads(line) for line in text.splitlines()]
    for line in found:
        line.pop("examples_per_second", None)
        line.pop("waiting_for_data", None)
        line.pop("train_seconds", None)
    return found


def assert_same_run(outcome, directory, whole):
    expected, expected_directory = whole
    jax.tree.map(
        np.testing.assert_array_equal,
        (outcome.state.step, outcome.state.net, outcome.state.opt_state),
        (expected.state.step, expected.state.net, expected.state.opt_state),
    )
    assert outcome.accuracy == expected.accuracy
    assert outcome.progress.best_accuracy == expected.progress.best_accuracy
    assert lines(directory) == lines(expected_directory)


def test_epoch_by_epoch_equals_a_single_run(run, whole, tmp_path):
    for epochs in (1, 2, 3):
        outcome, watcher = run(tmp_path, epochs=epochs)
        assert watcher.epochs == [epochs]
    assert_same_run(outcome, tmp_path, whole)


@pytest.mark.parametrize(
    ("at", "sent"), [(1, signal.SIGINT), (6, signal.SIGINT), (6, signal.SIGTERM)]
)
def test_a_signal_saves_and_the_resumed_run_is_the_same(run, whole, tmp_path, at, sent):
    handler = signal.getsignal(sent)
    outcome, watcher = run(tmp_path, at=at, sent=sent)
    assert outcome.interrupted is sent
    assert outcome.accuracy == {}
    # A step is reported during the next one, which is kept.
    assert int(outcome.state.step) == watcher.steps[-1] == at + 1
    assert signal.getsignal(sent) is handler

    outcome, watcher = run(tmp_path)
    assert watcher.restored_at == at + 1
    assert watcher.steps == list(range(at + 2, 13))
    assert outcome.interrupted is None
    assert_same_run(outcome, tmp_path, whole)


def test_ctrl_c_at_the_end_of_an_epoch_still_evaluates_it(run, whole, tmp_path):
    outcome, watcher = run(tmp_path, at=3)  # reported when step 4, the last, is begun
    assert outcome.interrupted is signal.SIGINT
    assert watcher.epochs == [1]
    outcome, watcher = run(tmp_path)
    assert watcher.restored_at == 4
    assert_same_run(outcome, tmp_path, whole)


@pytest.mark.parametrize(
    ("seed", "count"), [(0, 1), pytest.param(3, 20, marks=pytest.mark.nightly)]
)
def test_a_killed_run_is_the_same_when_it_is_resumed(tmp_path, seed, count):
    script = pathlib.Path(__file__).with_name("killed.py")
    root = script.parents[2]
    command = [sys.executable, str(script), str(tmp_path), str(seed), str(count)]
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert len(result["killed"]) == count
    for killed in result["killed"]:
        assert killed["signal"] == signal.SIGKILL, killed["at"]
        assert killed["again"] == 0, killed["at"]
        for what in ("weights", "accuracy", "steps"):
            assert killed[what] == result["whole"][what], killed["at"]


def test_a_checkpoint_replaces_the_state(run, tmp_path):
    run(tmp_path, epochs=1)
    outcome, watcher = run(tmp_path, epochs=1)  # nothing is trained, nothing donated
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(watcher.given))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(outcome.state))


def test_lines_have_the_learning_rate_of_their_step(whole):
    rates = [x["learning_rate"] for x in lines(whole[1]) if "learning_rate" in x]
    # Of three epochs of four steps: drops after int(3 / 2) and int(3 * 3 / 4).
    assert rates == pytest.approx([0.1] * 4 + [0.01] * 4 + [0.001] * 4)


def test_the_best_epoch_is_that_of_the_widest_rate(run, tmp_path):
    found = iter([{0.5: 0.1, 1.0: 0.3}, {0.5: 0.2, 1.0: 0.6}, {0.5: 0.9, 1.0: 0.5}])
    outcome, _ = run(tmp_path, evaluate=lambda net: next(found))
    assert outcome.progress.best_accuracy == 0.6
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        best, _ = checkpoints.restore_best(outcome.state)
    assert int(best.step) == 8


def test_averaged_weights_are_those_evaluated(run, tmp_path):
    def evaluate(net):  # different for every network
        kernel = net.variables["params"]["logits"]["kernel"]
        return dict.fromkeys(net.rates, float(jnp.abs(kernel).mean()))

    outcome, _ = run(tmp_path, average=0.9, evaluate=evaluate)
    assert outcome.accuracy == evaluate(outcome.state.eval_net)
    assert outcome.accuracy != evaluate(outcome.state.net)


def test_the_loss_of_an_epoch_is_the_mean_of_its_steps(run, tmp_path):
    _, watcher = run(tmp_path, epochs=2)
    expected = np.reshape(watcher.losses, (2, 4)).mean(axis=1)
    np.testing.assert_allclose(watcher.mean_losses, expected, rtol=1e-6)
    assert min(watcher.losses) > 0


def test_a_finished_run_is_only_evaluated(run, whole):
    expected, directory = whole
    before = lines(directory)
    outcome, watcher = run(directory)
    assert watcher.steps == []
    assert outcome.accuracy == expected.accuracy
    assert lines(directory) == before


def test_a_damaged_last_checkpoint_costs_one_epoch_only(run, whole, tmp_path):
    run(tmp_path, epochs=2)
    for path in (tmp_path / "checkpoints" / "8").rglob("d/*"):
        path.write_bytes(b"")
    with pytest.warns(UserWarning, match="checkpoint 8 .* is damaged"):
        outcome, watcher = run(tmp_path)
    assert watcher.restored_at == 4
    assert_same_run(outcome, tmp_path, whole)


def test_the_network_learns(whole, small):
    outcome, directory = whole
    losses = [line["loss"] for line in lines(directory) if "loss" in line]
    first = np.mean([v for loss in losses[:4] for v in loss.values()])
    last = np.mean([v for loss in losses[-4:] for v in loss.values()])
    assert last < first
    assert len(losses) == EPOCHS * data.steps_per_epoch(32, 8)


def test_the_time_of_data_is_measured_separately(run, whole, small, tmp_path):
    """Every batch takes a tenth of a second, a step of this network far less."""

    def slow(step):
        for batch in small.batches(step):
            time.sleep(0.1)
            yield batch

    run(tmp_path, epochs=1, batches=slow)

    def shares(directory):
        text = (directory / "metrics.jsonl").read_text()
        found = map(json.loads, text.splitlines())
        return [x["waiting_for_data"] for x in found if "waiting_for_data" in x]

    assert 0.5 < shares(tmp_path)[-1] <= 1
    assert 0 <= shares(whole[1])[-1] < shares(tmp_path)[-1]
