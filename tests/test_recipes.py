"""The recipes as a user meets them: what they write, and how they refuse."""

import errno
import json
import pathlib
import signal
import subprocess
import sys

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import linen as nn
from rich.console import Console

from experiments import cifar_resnet, cifar_vgg, inputs, prepare
from experiments.recipe import Recipe, main
from experiments.screen import Bar, TensorBoard
from experiments.settings import Defaults, Settings, as_json, changed, parse, resolve
from mslice_jax import data

ROOT = pathlib.Path(__file__).resolve().parents[1]
SMALL = "--depth 8 --widen 1 --rates 0.5 1.0 --num-random 0 --batch-size 64"
SMALL = [*SMALL.split(), "--train-examples", "200"]


class Tiny(nn.Module):
    """A convolution, a norm and a classifier: it compiles in no time."""

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
    """(exit code, what stood on the screen, what stood in the error stream)."""
    code = main(recipe, [*map(str, args), "--workdir", str(workdir)])
    return code, *capsys.readouterr()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The workdir of a run of one epoch, by a process of its own, and its screen."""
    workdir = tmp_path_factory.mktemp("finished")
    command = [sys.executable, "-m", "experiments.cifar_resnet", *SMALL]
    command += ["--epochs", "1", "--workdir", str(workdir)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return workdir, done.stdout


def test_a_run_ends_with_a_table_a_summary_and_a_picture(finished):
    workdir, screen = finished
    rows = [line.split() for line in screen.splitlines() if "%" in line and "│" in line]
    assert [row[1] for row in rows] == ["1", "0.5"]

    summary = json.loads((workdir / "summary.json").read_text())
    rates = summary.pop("rates")
    seconds = summary.pop("train_seconds")
    assert summary == {
        "dataset": "digits",
        "model": "CifarResNet-8",
        "schedule": "random_min_max",
        "seed": 0,
        "epochs": 1,
    }
    assert seconds > 0
    assert list(rates) == ["1.0", "0.5"]
    for values in rates.values():
        assert list(values) == ["accuracy", "parameters", "flops", "latency_ms"]
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
    assert set(lines[-1]["accuracy"]) == {"0.5", "1.0"}
    assert (workdir / "checkpoints" / "3").is_dir()


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
        (["--rate-weights", "1", "2"], "weight"),
        (["--schedule", "static", "--rate-weights", "1", "2", "3", "4"], "weights"),
        (["--depth", "10"], "expected a depth of 9n + 2"),
        (["--widen", "0.3"], "widen=0.3"),
        (["--groups", "0"], "groups"),
        (["--epochs", "0"], "at least one epoch"),
        (["--lr", "0"], "learning rate above 0"),
        (["--weight-decay", "-1"], "weight decay"),
        (["--warmup-epochs", "99"], "warm-up"),
        (["--batch-size", "5000"], "--batch-size"),
        (["--seed", "-1", "--schedule", "static"], "--seed"),
        (["--train-examples", "0"], "--train-examples"),
        (["--label-smoothing", "1.5"], "--label-smoothing"),
        (["--dataset", "npz"], "--data-dir"),
        (["--dataset", "npz", "--data-dir", "nowhere.npz"], "nowhere.npz"),
        (["--dataset", "cifar10", "--data-dir", "nowhere"], "not prepared"),
    ],
)
def test_settings_that_do_not_fit_end_with_one_line(capsys, tmp_path, args, message):
    code, screen, error = run(capsys, tmp_path / "work", *args)
    assert code == 2
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert screen == ""


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
    [("switchable", signal.SIGINT, 130), ("shared", signal.SIGTERM, 143)],
)
def test_a_signal_says_what_was_saved_and_how_to_go_on(
    capsys, tmp_path, monkeypatch, norm, number, exit_code
):
    stepped = Bar.stepped

    def press(self, step, losses, images_per_second):
        stepped(self, step, losses, images_per_second)
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
    assert "at least 1 part" in error
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


def test_a_run_s_state_lies_on_its_devices_from_the_start(tmp_path):
    args = ["--fsdp", "2", "--rates", "1.0", "--schedule", "static"]
    settings = parse("tiny", "", [*args, "--workdir", str(tmp_path)])
    made = prepare.prepare(TINY, settings, Console(quiet=True))
    with made.checkpoints:
        leaves = jax.tree.leaves(made.state)
        assert {len(leaf.sharding.device_set) for leaf in leaves} == {4}


def test_shared_norms_are_measured_on_images_of_all_classes(tmp_path):
    labels = np.repeat(np.arange(4), 300)  # sorted, as folders of images are
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


def test_all_that_training_can_do(capsys, tmp_path):
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
    (tenth,) = [line for line in map(json.loads, lines) if "loss" in line]
    assert tenth["step"] == 10  # of 12: four epochs of three batches of 64
    assert 0 <= tenth["waiting_for_data"] <= 1
    # Again: nothing is left to train, and the averaged weights give the same table.
    out, same = table()
    assert "Compiled" not in out
    assert same == rows


def test_tensorboard_is_written_to_the_end(tmp_path):
    pytest.importorskip("tensorboardX", reason="needs the extra tensorboard")
    with TensorBoard(tmp_path) as board:
        board.stepped(10, {0.5: 1.0}, images_per_second=100.0)
    (file,) = tmp_path.iterdir()
    assert b"loss/r0.5" in file.read_bytes()


def test_a_batch_that_the_devices_do_not_divide_ends_with_one_line(capsys, tmp_path):
    code, _, error = run(capsys, tmp_path, "--batch-size", "30", recipe=TINY)
    assert code == 2
    assert "that the 4 devices divide; got 30" in error


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


def test_warm_up_is_at_most_a_fifth_of_a_run_unless_somebody_says_so():
    defaults = Defaults(depth=11, epochs=20, warmup_epochs=4)
    for settings, expected in (
        (Settings(), 4),
        (Settings(epochs=12), 2),
        (Settings(epochs=1), 0),
        (Settings(epochs=12, warmup_epochs=7), 7),
    ):
        assert resolve(settings, "name", defaults).warmup_epochs == expected


def test_what_may_change_between_two_parts_of_a_run():
    settings = resolve(Settings(), "name", Defaults(depth=11))
    saved = as_json(settings)
    free = resolve(
        Settings(epochs=999, workdir=pathlib.Path("x"), resume=False),
        "name",
        Defaults(depth=11),
    )
    assert changed(saved, free) == []
    assert changed({**saved, "seed": 5}, settings) == ["--seed was 5 and is 0"]
