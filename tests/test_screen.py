"""Output and files of recipes: on any screen, with correct numbers."""

import io
import json
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

import mslice_jax as ms
from experiments import screen
from experiments.measure import (
    FlatMetricsFile,
    HeldOut,
    Numbers,
    flatten,
    measure_on,
    over_epochs,
)
from experiments.process import print_anything
from mslice_jax.data import eval_batches
from mslice_jax.profile import RateProfile
from mslice_jax.train import Progress

COST = RateProfile(parameters=1000, flops=2e6, latency_ms=0.5)
NUMBERS = Numbers({0.5: 0.25, 1.0: 0.5}, {0.5: 1.25, 1.0: 0.75})


def show_everything(console):
    """All output of a recipe during training."""
    screen.show_settings(console, {"rates": [1.0, 0.5], "lr": 0.1, "depth": None})
    with screen.busy(console, "Compiling"):
        pass
    bar = screen.Bar(console, epochs=2, steps_per_epoch=10, every=0.0)
    with bar:
        bar.restored(3, Progress(epoch=1, batch=0, train_seconds=5.0))
        bar.stepped(4, {0.5: 1.5, 1.0: 0.5}, 100.0)
        bar.stepped(5, {0.5: 1.5, 1.0: 0.5}, 100.0)
        bar.evaluated(1, NUMBERS.accuracy, 0.5)
    costs = dict.fromkeys(NUMBERS.accuracy, COST)
    screen.show_table(console, "title", NUMBERS, costs, device="cpu")


@pytest.mark.parametrize("terminal", [False, True])
def test_an_ascii_screen_is_enough(terminal):
    shown = io.BytesIO()
    file = io.TextIOWrapper(shown, encoding="ascii")  # errors are raised
    show_everything(Console(file=file, force_terminal=terminal, width=80))
    file.flush()
    text = shown.getvalue().decode("ascii")
    assert "50.00 %" in text
    assert "rates 1.0 0.5, lr 0.1" in text


def test_names_that_the_screen_cannot_encode_are_escaped(monkeypatch):
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding="ascii"))
    print_anything()
    print("runs/caf\u00e9")
    sys.stdout.flush()
    assert shown.getvalue() == b"runs/caf\\xe9\n"


def test_without_a_terminal_a_line_a_minute(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(screen.time, "monotonic", lambda: now[0])
    file = io.StringIO()
    bar = screen.Bar(Console(file=file, width=200), epochs=4, steps_per_epoch=100)
    with bar:
        for step in range(1, 201):  # ten seconds a step
            now[0] += 10
            bar.stepped(step, {1.0: 0.5, 0.5: 1.25}, 12.0)
    lines = file.getvalue().splitlines()
    assert len(lines) == 200 * 10 // 60
    # 394 steps of ten seconds are left: 65.67 minutes.
    assert lines[0] == (
        "step 6 of 400, epoch 1 of 4  loss r1 0.50 r0.5 1.25  12 images/s  66 min left"
    )
    assert lines[-1].startswith("step 198 of 400, epoch 2 of 4")


def test_the_table_names_device_and_batch():
    file = io.StringIO()
    costs = dict.fromkeys(NUMBERS.accuracy, COST)
    console = Console(file=file, width=100)
    screen.show_table(console, "title", NUMBERS, costs, device="TPU v5e")
    text = " ".join(file.getvalue().split())
    assert "latency on TPU v5e, batch of 1" in text
    (row,) = [x for x in file.getvalue().splitlines() if "25.00 %" in x]
    assert [x.strip() for x in row.strip("│").split("│")] == [
        "0.5", "25.00 %", "1.250", "1,000", "2.00 M", "0.500 ms"
    ]  # fmt: skip


def test_held_out_accuracy_and_loss_are_those_of_numpy():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(10, 4)).astype(np.float32)
    y = rng.integers(0, 3, 10).astype(np.int32)
    weights = {
        "first": rng.normal(size=(4, 8)).astype(np.float32),
        "second": rng.normal(size=(8, 3)).astype(np.float32),
    }

    def network(weights, x):
        return jnp.tanh(x @ weights["first"]) @ weights["second"]

    net = ms.upgrade(network, weights, x, rates=(0.5, 1.0))
    # Batches of 4: the last one is padded with two examples that do not count.
    measure = measure_on(lambda: eval_batches(x, y, 4), 10, normalize=lambda x: 2 * x)
    found = measure(net)
    for rate, width in ((0.5, 4), (1.0, 8)):
        hidden = np.tanh(2 * x.astype(np.float64) @ weights["first"][:, :width])
        logits = hidden @ weights["second"][:width]
        of_label = logits[np.arange(10), y]
        loss = np.mean(np.log(np.exp(logits).sum(axis=1)) - of_label)
        assert found.loss[rate] == pytest.approx(loss, rel=1e-5)
        right = (logits.argmax(axis=1) == y).mean()
        assert found.accuracy[rate] == pytest.approx(right)


def test_a_line_of_metrics_has_one_number_per_key(tmp_path):
    held_out = HeldOut(lambda net: Numbers({0.5: 0.25}, {0.5: float("nan")}))
    heard = []
    path = tmp_path / "metrics.jsonl"
    file = FlatMetricsFile(path, held_out, [lambda *line: heard.append(line)])
    file.write(step=10, loss={"0.5": float("inf")}, accuracy_train={"0.5": 0.5})
    assert held_out(None) == {0.5: 0.25}
    file.write(step=20, epoch=2, accuracy={"0.5": 0.25})
    first, second = map(json.loads, path.read_text().splitlines())
    assert first == {"step": 10, "train_loss/0.5": None, "train_accuracy/0.5": 0.5}
    expected = {"epoch": 2, "test_accuracy/0.5": 0.25, "test_loss/0.5": None}
    assert second == {"step": 20, **expected}
    assert heard[1] == (20, expected)
    assert over_epochs(path, "accuracy") == {2: {0.5: 0.25}}


def test_flat_metrics_are_unchanged():
    flat = {"test_accuracy/0.5": 0.25, "examples_per_second": 3.0}
    assert flatten(flat) == flat
