"""The recipes as commands: the files that they write, and their errors."""

import dataclasses
import errno
import json
import pathlib
import re
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import linen as nn
from rich.console import Console

from experiments import (
    cifar_resnet,
    cifar_vgg,
    evaluate,
    inputs,
    optimizers,
    prepare,
    profile,
)
from experiments.recipe import Recipe, main
from experiments.screen import Bar, TensorBoard
from experiments.settings import (
    Defaults,
    Settings,
    as_json,
    changed,
    parse,
    read_settings,
    resolve,
)
from mslice_jax import data
from mslice_jax.schedules import make_schedule
from mslice_jax.serve import starting
from mslice_jax.serve.options import options
from mslice_jax.serve.same_model import SameModel

ROOT = pathlib.Path(__file__).resolve().parents[1]
SMALL = "--depth 8 --widen 1 --rates 0.5 1.0 --num-random 0 --batch-size 64"
SMALL = [*SMALL.split(), "--train-examples", "200"]


class Tiny(nn.Module):
    """A convolution, a norm and a classifier, quick to compile."""

    num_classes: int

    @nn.compact
    def __call__(self, x, *, train: bool = False):
        x = nn.Conv(8, (3, 3))(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        return nn.Dense(self.num_classes)(x.mean(axis=(1, 2)))


TINY = Recipe(
    name="tiny",
    description="",
    model=lambda depth, widen, num_classes: Tiny(num_classes),
    digits=Defaults(depth=1, epochs=1, batch_size=64),
    cifar=Defaults(depth=1),
)


def run(capsys, workdir, *args, recipe=cifar_resnet.RECIPE):
    """(exit code, standard output, standard error)."""
    code = main(recipe, [*map(str, args), "--workdir", str(workdir)])
    return code, *capsys.readouterr()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The workdir of a run of one epoch, in its own process, and its output."""
    workdir = tmp_path_factory.mktemp("finished")
    command = [sys.executable, "-m", "experiments.cifar_resnet", *SMALL]
    command += ["--epochs", "1", "--workdir", str(workdir)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return workdir, done.stdout


def test_the_server_takes_a_workdir(finished, tmp_path):
    workdir, _ = finished
    rates = json.loads((workdir / "summary.json").read_text())["rates"]
    accuracy = {float(rate): values["accuracy"] for rate, values in rates.items()}
    model = ["--model-from", "experiments.evaluate:model"]
    for place, more in ((workdir, model), (workdir / "network.mslice", [])):
        flags = ["--checkpoint", str(place), "--output-names", "logits", *more]
        flags = options(flags)
        source = starting.network(flags)
        executor = starting.executor(flags, source.net)
        assert source.modelled == bool(more) and source.accuracy == accuracy
        assert executor.rates == (0.5, 1.0)
        (x,), (y,) = executor.inputs, executor.outputs
        assert (x.name, x.shape) == ("x", (-1, 8, 8, 1))
        assert (y.name, y.shape) == ("logits", (-1, 10))
        if more:
            SameModel(workdir, (0.5,), pytest.fail).check(source.net)
    # What a client has to do with its images, and the model to be built.
    kept = json.loads((workdir / "images.json").read_text())
    digits = data.load("digits")
    assert kept == {
        "image_shape": [8, 8, 1],
        "num_classes": 10,
        "mean": list(digits.mean),
        "std": list(digits.std),
    }
    (tmp_path / "settings.json").write_text((workdir / "settings.json").read_text())
    with pytest.raises(ValueError, match=r"images\.json.*The command of the run"):
        evaluate.model(tmp_path)


def test_a_run_ends_with_a_table_a_summary_and_a_picture(finished):
    workdir, screen = finished
    rows = [line.split() for line in screen.splitlines() if "%" in line and "│" in line]
    assert [row[1] for row in rows] == ["1", "0.5"]

    summary = json.loads((workdir / "summary.json").read_text())
    rates = summary.pop("rates")
    seconds = summary.pop("train_seconds")
    assert summary == {
        "recipe": "cifar_resnet",
        "dataset": "digits",
        "model": "CifarResNet-8",
        "schedule": "random_min_max",
        "optimizer": "sgd",
        "seed": 0,
        "epochs": 1,
        # Three steps of 64.
        "examples": {"1.0": 192, "0.5": 192},
        "latency_device": "cpu",
        "latency_batch": 1,
    }
    assert seconds > 0
    assert list(rates) == ["1.0", "0.5"]
    for values in rates.values():
        assert list(values) == [
            "accuracy", "loss", "parameters", "flops", "latency_ms"
        ]  # fmt: skip
        assert 0 <= values["accuracy"] <= 1
    # Stem, three basic blocks (the shortcuts of the last two 1 x 1), norms, classifier.
    blocks = 2 * 9 * 16**2 + 9 * (16 * 32 + 32**2) + 16 * 32
    blocks += 9 * (32 * 64 + 64**2) + 32 * 64
    norms = 2 * (16 + 16 + 16 + 32 + 32 + 32 + 64 + 64 + 64)
    assert rates["1.0"]["parameters"] == 9 * 16 + blocks + norms + 64 * 10 + 10
    assert rates["0.5"]["flops"] < 0.35 * rates["1.0"]["flops"]

    for picture in ("accuracy_vs_flops.png", "accuracy_over_epochs.png"):
        assert (workdir / picture).read_bytes().startswith(b"\x89PNG")
    assert json.loads((workdir / "settings.json").read_text())["lr"] == 0.05
    lines = [
        json.loads(x) for x in (workdir / "metrics.jsonl").read_text().splitlines()
    ]
    assert lines[-1]["step"] == 3  # 200 examples are three batches of 64
    for rate, values in rates.items():  # one number per key, the same as in the summary
        assert lines[-1][f"test_accuracy/{rate}"] == pytest.approx(values["accuracy"])
        assert lines[-1][f"test_loss/{rate}"] == pytest.approx(values["loss"], rel=1e-5)
    assert not any(isinstance(value, dict) for line in lines for value in line.values())
    assert (workdir / "checkpoints" / "3").is_dir()
    # The output is no terminal: lines, and no bar.
    assert "Compiling a program for each rate ..." in screen
    assert "━" * 4 not in screen.split("epoch   1")[0]


def test_again_with_the_same_settings_shows_the_same_table(finished, capsys):
    workdir, screen = finished
    before = json.loads((workdir / "summary.json").read_text())
    code, again, _ = run(capsys, workdir, *SMALL, "--epochs", 1)
    assert code == 0
    assert "Resumed at step 3" in again
    after = json.loads((workdir / "summary.json").read_text())
    for summary in (before, after):
        for values in summary["rates"].values():
            del values["latency_ms"]
    assert after == before


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--widen", "0.5"], "is of another network"),
        (["--norm", "switchable"], "norm group there, switchable here"),
        (["--groups", "4"], "groups 8 there, 4 here"),
        (["--rates", "0.25", "1.0"], "rates [0.5, 1.0] there, [0.25, 1.0]"),
        (["--lr", "0.01"], "--lr was 0.05 and is 0.01"),
        (["--seed", "3", "--batch-size", "32"], "--batch-size was 64 and is 32"),
    ],
)
def test_a_workdir_of_another_run_is_refused(finished, capsys, args, message):
    workdir, _ = finished
    before = sorted(workdir.rglob("*"))
    code, _, error = run(capsys, workdir, *SMALL, "--epochs", 1, *args)
    assert code == 2
    assert message in error
    assert error.count("\n") == 1
    assert sorted(workdir.rglob("*")) == before


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--rates", "0", "1"], "(0, 1]"),
        (["--rates", "0.5", "0.5"], "once"),
        (["--rates", "0.5", "1.5"], "(0, 1]"),
        (["--num-random", "7"], "--num-random"),
        (["--num-random", "-1"], "--num-random of at least 0"),
        (["--rates", "1", "--num-random", "1"], "(--num-random) to 0"),
        (["--rate-weights", "1", "2"], "weight"),
        (["--schedule", "static", "--rate-weights", "1", "2", "3", "4"], "weights"),
        (["--depth", "10"], "expected a depth of 9n + 2"),
        (["--widen", "0.3"], "widen=0.3"),
        (["--groups", "0"], "groups"),
        (["--epochs", "0"], "--epochs of at least 1, got 0"),
        (["--lr", "0"], "--lr above 0, got 0"),
        (["--weight-decay", "-1"], "--weight-decay of at least 0"),
        (["--warmup-epochs", "99"], "warm-up"),
        (["--batch-size", "5000"], "--batch-size"),
        (["--seed", "-1", "--schedule", "static"], "--seed"),
        (["--train-examples", "0"], "--train-examples"),
        (["--label-smoothing", "1.5"], "--label-smoothing"),
        (["--dataset", "npz"], "--data-dir"),
        (["--dataset", "npz", "--data-dir", "nowhere.npz"], "nowhere.npz"),
        (["--dataset", "cifar10", "--data-dir", "nowhere"], "not prepared"),
        (["--dataset", "cifar10", "--data-dir", __file__], "and .* is a file"),
        (
            ["--accumulate", "3"],
            "divide the batch of 32 .*, got 3. 2 and 4 do",
        ),
        (["--max-test-examples", "0"], "--max-test-examples of at least 1"),
        (["--distill", "1.5"], "--distill from 0 to 1, got 1.5"),
        (["--clip", "0"], "--clip above 0"),
        (["--average", "1"], "--average between 0 and 1"),
        (["--shards", "0"], "--shards of at least 1"),
        (["--progressive-epochs", "6"], "enters after 18 epochs, and the run has 16"),
        (["--distributed"], "leave --distributed out"),
        # Flags without effect.
        (["--temperature", "2"], "--temperature has no effect: .* --distill"),
        (["--teacher", "runs"], "--teacher has no effect: .* --distill"),
        (["--distill-from", "2"], "--distill-from has no effect: .* --distill"),
        (["--distill", "0.5", "--rates", "1"], "--distill has no effect"),
        (
            ["--distill", "0.5", "--distill-from", "16"],
            "fewer than 16 epochs .*, got 16",
        ),
        (["--distill", "0.5", "--teacher", "nobody"], "--teacher: there is no nobody"),
        (["--loss-weights", "1", "2"], "for each of the 4 rates, got .1.0, 2.0."),
        (["--loss-weights", "1", "2", "3", "-1"], "at least 0 for each of the 4"),
        (["--schedule", "cyclic", "--num-random", "1"], "--num-random has no effect"),
        (["--optimizer", "adam", "--weight-decay", "0.1"], "has no effect: .* adamw"),
        (["--image-size", "64"], "--image-size has no effect: .* imagenet or folder"),
        (["--workers", "2"], "--workers has no effect: .* imagenet or folder"),
        (["--data-dir", "mine.npz"], "--data-dir has no effect: .* --dataset"),
        (["--rates", "1", "--progressive-epochs", "1"], "has no effect: .* one rate"),
        # Files of other machines.
        (["--dataset", "npz", "--data-dir", "gs://b/x.npz"], "got gs://b/x.npz. Mount"),
    ],
)
def test_settings_that_do_not_fit_end_with_one_line(
    capsys, tmp_path, monkeypatch, args, message
):
    monkeypatch.chdir(tmp_path)
    code, screen, error = run(capsys, tmp_path / "some" / "work", *args)
    assert code == 2
    assert message in error or re.search(message, error), error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert screen == ""
    assert list(tmp_path.iterdir()) == []  # no folder is left


def test_a_workdir_on_another_machine_is_refused_at_once(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, error = run(capsys, "gs://bucket/run", recipe=TINY)
    assert code == 2
    assert "as --workdir, got gs://bucket/run. Mount the bucket" in error
    assert list(tmp_path.iterdir()) == []


def test_an_error_after_reading_the_data_leaves_no_folder(capsys, tmp_path):
    code, _, error = run(capsys, tmp_path / "work", "--fsdp", "3", recipe=TINY)
    assert code == 2
    assert "fsdp to divide the 4 devices, got 3" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "work").exists()


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    settings = Settings(
        workdir=pathlib.Path("~/run"), data_dir=pathlib.Path("~/x.npz"), dataset="npz"
    )
    found = resolve(settings, "name", Defaults(depth=1))
    assert found.workdir == tmp_path / "run"
    assert found.data_dir == tmp_path / "x.npz"
    lost = dataclasses.replace(settings, workdir=pathlib.Path("~nobody-of-that-name/x"))
    with pytest.raises(ValueError, match="which folder ~nobody-of-that-name is"):
        resolve(lost, "name", Defaults(depth=1))


@pytest.mark.parametrize(
    ("schedule", "rates", "drawn"),
    [
        ("random_min_max", (1, 0.5), 0),  # both are in every step
        ("random_min_max", (1.0,), 0),
        ("random_min_max", (1, 0.75, 0.5), 1),
        ("random_min", (1, 0.5), 1),
        ("random_max", (1.0,), 0),
        ("random", (1.0,), 1),
        ("static", (1, 0.5), None),
    ],
)
def test_the_default_number_of_drawn_rates(schedule, rates, drawn):
    settings = Settings(schedule=schedule, rates=rates)
    found = resolve(settings, "name", Defaults(depth=1))
    assert found.num_random == drawn
    make_schedule(schedule, rates, num_random=1 if drawn is None else drawn)(0)


def test_two_rates_need_no_other_flag(tmp_path):
    settings = parse("tiny", "", ["--rates", "1", ".5", "--workdir", str(tmp_path)])
    made = prepare.prepare(TINY, settings, Console(quiet=True))
    with made.checkpoints:
        assert made.schedule(0) == (1.0, 0.5)


def test_a_workdir_that_cannot_be_written_ends_with_one_line(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, error = run(capsys, tmp_path / "file" / "work")
    assert code == 2
    assert "expected a folder to write to as --workdir" in error
    assert error.count("\n") == 1


def test_an_npz_without_labels_ends_with_one_line(capsys, tmp_path):
    images = np.zeros((4, 8, 8, 1))
    np.savez(tmp_path / "data.npz", x_train=images, x_test=images)
    args = ["--dataset", "npz", "--data-dir", tmp_path / "data.npz"]
    code, _, error = run(capsys, tmp_path / "work", *args)
    assert code == 2
    assert "y_train, y_test missing" in error


def test_flags_that_do_not_exist_exit_with_code_2(capsys, tmp_path):
    with pytest.raises(SystemExit) as exit:
        run(capsys, tmp_path, "--schedule", "none")
    assert exit.value.code == 2


@pytest.mark.parametrize(
    ("norm", "number", "exit_code"),
    [
        ("switchable", signal.SIGINT, 130),
        pytest.param("shared", signal.SIGTERM, 143, marks=pytest.mark.nightly),
    ],
)
def test_a_signal_reports_the_saved_step_and_how_to_continue(
    capsys, tmp_path, monkeypatch, norm, number, exit_code
):
    stepped = Bar.stepped

    def press(self, step, losses, examples_per_second):
        stepped(self, step, losses, examples_per_second)
        if step == 1:
            signal.raise_signal(number)

    args = ["--norm", norm, "--cosine", "--rates", "0.5", "1.0", "--num-random", "0"]
    with monkeypatch.context() as patched:
        patched.setattr(Bar, "stepped", press)
        code, screen, _ = run(capsys, tmp_path, *args, recipe=TINY)
    assert code == exit_code
    assert f"Step 2 is saved in {tmp_path}/checkpoints" in screen
    command = f"python -m experiments.tiny {' '.join(args)} --workdir {tmp_path}"
    assert screen.splitlines()[-1].strip() == command

    code, screen, _ = run(capsys, tmp_path, *args, recipe=TINY)
    assert code == 0
    assert "Resumed at step 2" in screen


def test_a_full_disk_ends_with_one_line_and_code_1(capsys, tmp_path, monkeypatch):
    def fail(manager, step, *args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(ocp.CheckpointManager, "save", fail)
    args = ["--rates", "1.0", "--schedule", "static"]
    code, _, error = run(capsys, tmp_path, *args, recipe=TINY)
    assert code == 1
    assert "the disk is full" in error
    assert error.count("\n") == 1


def test_without_resume_an_earlier_run_is_moved_not_lost(capsys, tmp_path):
    (tmp_path / "summary.json").write_text("of an earlier run")
    args = ["--rates", "1.0", "--schedule", "static", "--no-resume"]
    code, screen, _ = run(capsys, tmp_path, *args, recipe=TINY)
    assert code == 0
    assert "previous-1" in screen
    old = tmp_path / "previous-1" / "summary.json"
    assert old.read_text() == "of an earlier run"
    assert json.loads((tmp_path / "summary.json").read_text())["dataset"] == "digits"


def test_a_setting_that_does_not_fit_moves_nothing(capsys, tmp_path):
    (tmp_path / "summary.json").write_text("of an earlier run")
    args = ["--accumulate", "0", "--no-resume"]
    code, _, error = run(capsys, tmp_path, *args, recipe=TINY)
    assert code == 2
    assert "--accumulate of at least 1" in error
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]


def test_of_several_hosts_the_first_moves_and_the_others_wait(tmp_path, monkeypatch):
    (tmp_path / "summary.json").write_text("of an earlier run")
    moved = []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(
        prepare.multihost_utils,
        "sync_global_devices",
        lambda name: moved.append((tmp_path / "previous-1").exists()),
    )
    for number in (1, 0):
        monkeypatch.setattr(jax, "process_index", lambda number=number: number)
        prepare._move_aside(tmp_path, Console(quiet=True))
    assert moved == [False, True]


def test_the_state_of_a_run_is_on_its_devices_from_the_start(tmp_path):
    args = ["--fsdp", "2", "--rates", "1.0", "--schedule", "static"]
    settings = parse("tiny", "", [*args, "--workdir", str(tmp_path)])
    made = prepare.prepare(TINY, settings, Console(quiet=True))
    with made.checkpoints:
        leaves = jax.tree.leaves(made.state)
        assert {len(leaf.sharding.device_set) for leaf in leaves} == {4}


def test_shared_norms_are_measured_on_images_of_all_classes(tmp_path):
    labels = np.repeat(np.arange(4), 300)  # sorted, as in folders of images
    images = np.broadcast_to(labels[:, None, None, None], (1200, 2, 2, 3))
    images = images.astype(np.uint8)
    examples = {"x_train": images, "y_train": labels}
    examples |= {"x_test": images[::300], "y_test": labels[::300]}
    np.savez(tmp_path / "sorted.npz", **examples)
    parts = inputs.calibration_batches(data.load("npz", tmp_path / "sorted.npz"))
    assert [part.shape for part in parts] == [(128, 2, 2, 3)] * 8
    for part in parts:
        _, often = np.unique(part[:, 0, 0, 0], return_counts=True)
        assert len(often) == 4
        assert often.min() > 10  # of 32 expected


def test_npz_with_images_of_its_own(capsys, tmp_path):
    random = np.random.default_rng(0)
    np.savez(
        tmp_path / "mine.npz",
        x_train=random.integers(0, 256, (40, 6, 6, 3), np.uint8),
        y_train=np.arange(40) % 2,
        x_test=random.integers(0, 256, (10, 6, 6, 3), np.uint8),
        y_test=np.arange(10) % 2,
    )
    args = "--rates 1.0 --schedule static --epochs 1 --batch-size 20 --dataset npz"
    args = [*args.split(), "--data-dir", tmp_path / "mine.npz"]
    code, _, _ = run(capsys, tmp_path / "work", *args, recipe=TINY)
    assert code == 0
    summary = json.loads((tmp_path / "work" / "summary.json").read_text())
    assert summary["dataset"] == "npz"
    # Convolution 9·3·8 with bias, scale and bias of the norm, two classes.
    assert summary["rates"]["1.0"]["parameters"] == 216 + 8 + 16 + 16 + 2


EVERYTHING = """
    --rates 0.5 0.75 1.0 --schedule random_min_max --progressive-epochs 1
    --distill 0.5 --temperature 2 --label-smoothing 0.1 --clip 1 --average 0.9
    --bfloat16 --accumulate 2 --remat --fsdp 2 --tensorboard --epochs 4
    --train-examples 200 --norm switchable
"""


def test_all_options_of_training(capsys, tmp_path):
    pytest.importorskip("tensorboardX", reason="needs the extra tensorboard")

    def table():
        code, out, _ = run(capsys, tmp_path, *EVERYTHING.split(), recipe=TINY)
        assert code == 0, out
        rows = [line.split("│")[1:3] for line in out.splitlines() if line[:1] == "│"]
        return out, rows

    out, rows = table()
    assert "Compiled 3 rates" in out
    assert len(rows) == 3
    assert list((tmp_path / "tensorboard").iterdir())
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    (tenth,) = [line for line in map(json.loads, lines) if "train_loss/1.0" in line]
    assert tenth["step"] == 10  # of 12: four epochs of three batches of 64
    assert 0 <= tenth["waiting_for_data"] <= 1
    # Again: nothing is left to train, and the averaged weights give the same table.
    out, same = table()
    assert "Compiled" not in out
    assert same == rows


def test_tensorboard_is_written_to_the_end(tmp_path):
    pytest.importorskip("tensorboardX", reason="needs the extra tensorboard")
    with TensorBoard(tmp_path) as board:
        board.write(10, {"train_loss/0.5": 1.0, "test_loss/0.5": None})
    (file,) = tmp_path.iterdir()
    assert b"train_loss/0.5" in file.read_bytes()


def test_a_batch_that_the_devices_do_not_divide_ends_with_one_line(capsys, tmp_path):
    code, _, error = run(capsys, tmp_path, "--batch-size", "30", recipe=TINY)
    assert code == 2
    assert "that the 4 devices divide; got 30" in error


@pytest.mark.nightly
def test_vgg_is_a_recipe_too(capsys, tmp_path):
    args = "--widen 0.125 --groups 4 --rates 1.0 --schedule static --epochs 1"
    args = [*args.split(), "--train-examples", "64"]
    code, _, _ = run(capsys, tmp_path, *args, recipe=cifar_vgg.RECIPE)
    assert code == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["model"] == "CifarVGG-11 x0.125"


def test_cifar_defaults_are_the_originals():
    for recipe, depth in ((cifar_resnet.RECIPE, 164), (cifar_vgg.RECIPE, 13)):
        assert recipe.cifar == Defaults(
            depth=depth, widen=1, epochs=300, batch_size=128, lr=0.1
        )


def test_flags_win_over_defaults():
    defaults = Defaults(depth=11, epochs=7)
    found = resolve(Settings(epochs=2), "name", defaults)
    assert (found.depth, found.epochs, found.batch_size) == (11, 2, 128)
    assert found.workdir == pathlib.Path("runs/name")


def test_warm_up_is_at_most_a_fifth_of_a_run_by_default():
    defaults = Defaults(depth=11, epochs=20, warmup_epochs=4)
    for settings, expected in (
        (Settings(), 4),
        (Settings(epochs=12), 2),
        (Settings(epochs=1), 0),
        (Settings(epochs=12, warmup_epochs=7), 7),
    ):
        assert resolve(settings, "name", defaults).warmup_epochs == expected


def test_settings_that_may_change_when_a_run_continues():
    settings = resolve(Settings(), "name", Defaults(depth=11))
    saved = as_json(settings)
    free = resolve(
        Settings(epochs=999, workdir=pathlib.Path("x"), resume=False, fsdp=2, shards=1),
        "name",
        Defaults(depth=11),
    )
    assert changed(saved, free) == []
    assert changed({**saved, "seed": 5}, settings) == ["--seed was 5 and is 0"]
    # A run older than the flag, and one that kept a number without effect.
    before = {name: value for name, value in saved.items() if name != "optimizer"}
    assert changed({**before, "temperature": 1.0}, settings) == []


@pytest.mark.nightly
def test_the_sharding_of_weights_may_change_when_a_run_continues(capsys, tmp_path):
    args = ["--rates", "1", "0.5", "--shards", "2", "--train-examples", "64"]
    for epochs, fsdp in ((1, 2), (2, 4)):
        more = ["--epochs", epochs, "--fsdp", fsdp]
        code, screen, error = run(capsys, tmp_path, *args, *more, recipe=TINY)
        assert code == 0, error
    assert "Resumed at step 1" in screen
    code, _, error = run(capsys, tmp_path, *args, "--shards", 1, *more, recipe=TINY)
    assert code == 2
    assert "--shards was 2 and is 1" in error


def test_settings_of_a_run_are_a_config(finished, capsys, tmp_path):
    workdir, _ = finished
    file = workdir / "settings.json"
    saved = json.loads(file.read_text())
    found = parse("cifar_resnet", "", ["--config", str(file), "--lr", "0.5"])
    assert (found.rates, found.epochs, found.batch_size) == ((0.5, 1.0), 1, 64)
    assert found.lr == 0.5  # a flag wins
    again = resolve(read_settings(file, "cifar_resnet"), "x", cifar_resnet.RECIPE.cifar)
    assert changed(saved, again) == []
    with pytest.raises(ValueError, match="settings of experiments.cifar_resnet"):
        parse("tiny", "", ["--config", str(file)])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.toml", "epoch = 3", "no setting 'epoch'. Did you mean 'epochs'?"),
        ("a.toml", "epochs = 1.5", "1.5 is no value for 'epochs'"),
        ("a.toml", "cosine = 1", "1 is no value for 'cosine'"),
        ("a.json", '{"rates": "all"}', "'all' is no value for 'rates'"),
        ("a.json", "[1]", "expected settings by name"),
        ("a.json", "{", "is not valid JSON"),
        ("a.toml", "epochs", "is not valid TOML"),
        ("a.yaml", "epochs: 1", "ends in .json or .toml"),
        ("a.json", None, "cannot read the settings"),
        ("a.toml", "accumulate = 0", "--accumulate of at least 1"),
    ],
)
def test_a_bad_config_ends_with_one_line(capsys, tmp_path, name, text, message):
    if text is not None:
        (tmp_path / name).write_text(text)
    args = ["--config", tmp_path / name]
    code, screen, error = run(capsys, tmp_path / "work", *args, recipe=TINY)
    assert code == 2
    assert message in error
    assert error.count("\n") == 1
    assert screen == ""
    assert not (tmp_path / "work").exists()


def test_a_config_equals_flags(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text(
        'rates = [1, 0.5]\nbatch-size = 20\ncosine = true\nnorm = "shared"\n'
    )
    found = parse("tiny", "", ["--config", str(file)])
    expected = parse(
        "tiny",
        "",
        ["--rates", "1", ".5", "--batch-size", "20", "--cosine", "--norm", "shared"],
    )
    assert dataclasses.replace(found, config=None) == expected


def test_evaluate_shows_the_table_again_and_writes_nothing(finished, capsys, tmp_path):
    workdir, _ = finished
    before = sorted(workdir.rglob("*"))
    for which in ("last", "best"):
        output = tmp_path / f"{which}.json"
        args = [str(workdir), "--checkpoint", which, "--output", str(output)]
        assert evaluate.main(args) == 0
        rows = [x.split() for x in capsys.readouterr().out.splitlines() if "│" in x]
        assert [row[1] for row in rows] == ["1", "0.5"]
        found = json.loads(output.read_text())["rates"]
        expected = json.loads((workdir / "summary.json").read_text())["rates"]
        for values in (*found.values(), *expected.values()):
            del values["latency_ms"]
        assert found == expected
    assert sorted(workdir.rglob("*")) == before
    few = [str(workdir), "--max-test-examples", "1", "--output", str(output)]
    assert evaluate.main(few) == 0
    found = json.loads(output.read_text())["rates"]
    assert found["1.0"]["accuracy"] in (0.0, 1.0)


def test_a_profile_is_shown_layer_by_layer_and_again(finished, capsys, tmp_path):
    workdir, _ = finished
    before = sorted(workdir.rglob("*"))
    output = tmp_path / "costs.json"
    picture = tmp_path / "costs.png"
    args = [str(workdir), "--per-layer", "--repeats", "1", "--batch", "2"]
    args += ["--output", str(output), "--picture", str(picture)]
    assert profile.main(args) == 0
    screen = capsys.readouterr().out
    assert sorted(workdir.rglob("*")) == before
    assert picture.read_bytes().startswith(b"\x89PNG")
    expected = json.loads((workdir / "summary.json").read_text())["rates"]
    found = json.loads(output.read_text())
    assert found["batch"] == 2
    for rate, cost in found["rates"].items():
        assert cost["parameters"] == expected[rate]["parameters"]
        assert cost["flops"] == pytest.approx(2 * expected[rate]["flops"], rel=0.01)
        assert cost["flops"] == pytest.approx(cost["xla_flops"], rel=0.02)
        for name in ("parameters", "flops", "activation_bytes"):
            assert sum(row[name] for row in cost["layers"]) == cost[name]
        assert f"{cost['flops']:,.0f}" in screen
    assert profile.main([str(output), "--per-layer"]) == 0
    assert capsys.readouterr().out == screen[screen.index("r = 1") :]
    wrong = {
        "settings.json": [str(tmp_path)],
        "has the rates": [str(output), "--rates", ".3"],
        "--batch is at least 1": [str(workdir), "--batch", "0"],
        "the JSON file of a profile": [str(picture)],
    }
    for message, args in wrong.items():
        assert profile.main(args) == 2
        assert message in capsys.readouterr().err


def test_evaluate_without_a_run_ends_with_one_line(capsys, tmp_path):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "settings.json").write_text('{"dataset": "digits"}')
    for place, message in (
        (tmp_path / "none", "none is not a folder"),
        (tmp_path, "has no settings.json"),
        (tmp_path / "old", "names no recipe"),
    ):
        assert evaluate.main([str(place)]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert evaluate.main(["gs://bucket/run"]) == 2
    assert "got gs://bucket/run. Mount" in capsys.readouterr().err


def test_the_test_examples_do_not_depend_on_the_seed():
    def labels(count, seed):
        return inputs.load(Settings(max_test_examples=count, seed=seed)).y_test

    few = labels(100, 0)
    assert len(few) == 100
    assert len(set(few.tolist())) == 10  # of all classes
    np.testing.assert_array_equal(few, labels(100, 1))
    assert len(labels(10**6, 0)) == 355


@pytest.mark.parametrize("name", [name for name in optimizers.USUAL if name != "sgd"])
def test_an_optimizer_equals_that_of_optax(name):
    usual = optimizers.USUAL[name]
    decay = {} if usual.weight_decay is None else {"weight_decay": 0.5}
    built = optimizers.build(
        name, 0.1, weight_decay=decay.get("weight_decay"), clip=1.0
    )
    plain = optimizers.build(
        name, 0.1, weight_decay=decay.get("weight_decay"), clip=None
    )
    expected = getattr(optax, name)(0.1, **decay)
    weights, gradient = jnp.array([1.0, -2.0]), jnp.array([30.0, 40.0])
    # Of norm 50; clipped to 1 it is [0.6, 0.8].
    for optimizer, seen in ((plain, gradient), (built, jnp.array([0.6, 0.8]))):
        found, _ = optimizer.update(gradient, optimizer.init(weights), weights)
        wanted, _ = expected.update(seen, expected.init(weights), weights)
        np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_the_usual_numbers_belong_to_the_optimizer():
    def numbers(**flags):
        found = resolve(Settings(**flags), "name", Defaults(depth=1, lr=0.3))
        return found.lr, found.weight_decay

    assert numbers() == (0.3, 1e-4)
    assert numbers(optimizer="adam") == (1e-3, None)
    assert numbers(optimizer="adamw") == (1e-3, 1e-2)
    assert numbers(optimizer="lion", lr=2.0, weight_decay=0.5) == (2.0, 0.5)


def test_a_run_with_another_optimizer(capsys, tmp_path):
    args = ["--optimizer", "adamw", "--rates", "1", "--train-examples", "64"]
    code, _, error = run(capsys, tmp_path, *args, recipe=TINY)
    assert code == 0, error
    assert json.loads((tmp_path / "settings.json").read_text())["lr"] == 1e-3
    code, _, error = run(capsys, tmp_path, *args, "--optimizer", "sgd", recipe=TINY)
    assert code == 2
    assert "another network" in error or "--optimizer was adamw" in error
