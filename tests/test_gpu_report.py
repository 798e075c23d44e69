"""The GPU report on a small network: it stops in time, continues, and is complete."""

import json
import signal

import pytest
from flax import linen as nn

from experiments import gpu_report
from mslice_jax.train import CheckpointError


class Tiny(nn.Module):
    """A convolution, a norm and a classifier, quick to compile."""

    classes: int

    @nn.compact
    def __call__(self, x, *, train: bool = False):
        x = nn.Conv(8, (3, 3))(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        return nn.Dense(self.classes)(x.mean(axis=(1, 2)))


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(gpu_report, "network", lambda name, classes: Tiny(classes))
    monkeypatch.setattr(gpu_report, "RATES", (0.5, 0.75, 1.0))


@pytest.mark.nightly
def test_it_stops_in_time_and_continues(small, tmp_path, capsys):
    flags = ["--models", "tiny", "--epochs", "1", "--float32", "--out", str(tmp_path)]
    assert gpu_report.main([*flags, "--minutes", "0.001"]) == 3
    screen = capsys.readouterr().out
    assert "Still to do: tiny-sliced, tiny-1.0, tiny-0.75, tiny-0.5." in screen
    assert list((tmp_path / "tiny-sliced" / "checkpoints").glob("[0-9]*"))
    assert gpu_report.main([*flags, "--minutes", "9"]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert set(report["rows"]) == {"tiny-sliced", "tiny-1.0", "tiny-0.75", "tiny-0.5"}
    assert set(report["rows"]["tiny-sliced"]["accuracy"]) == {"0.5", "0.75", "1.0"}
    assert set(report["rows"]["tiny-0.5"]["accuracy"]) == {"0.5"}
    table = (tmp_path / "report.md").read_text()
    assert "| | r = 0.5 | r = 0.75 | r = 1 | images/s | seconds |" in table
    assert "| tiny, one network |" in table
    assert "| tiny, each width alone |" in table


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_whole_call(small, tmp_path, capsys, monkeypatch, number):
    stepped = gpu_report.Clock.stepped

    def press(self, step, losses, examples_per_second):
        stepped(self, step, losses, examples_per_second)
        if step == 1:
            signal.raise_signal(number)

    monkeypatch.setattr(gpu_report.Clock, "stepped", press)
    flags = ["--models", "tiny", "--epochs", "1", "--float32", "--out", str(tmp_path)]
    assert gpu_report.main(flags) == 3
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [
        "tiny-sliced"
    ]
    assert "Still to do: tiny-sliced, tiny-1.0" in capsys.readouterr().out


def test_a_folder_of_other_settings_is_refused(small, tmp_path, capsys):
    flags = ["--models", "tiny", "--float32", "--out", str(tmp_path)]
    flags += ["--minutes", "0.001"]
    assert gpu_report.main([*flags, "--epochs", "1"]) == 3
    before = (tmp_path / "report.json").read_text()
    other = [*flags, "--epochs", "2", "--lr", "9"]
    with pytest.raises(SystemExit) as refused:
        gpu_report.main(other)
    assert refused.value.code == 2
    assert "epochs was 1 and is 2; lr was 0.1 and is 9.0" in capsys.readouterr().err
    assert (tmp_path / "report.json").read_text() == before
    # A call that was killed leaves checkpoints and no report.
    (tmp_path / "report.json").unlink()
    with pytest.raises(CheckpointError, match="epochs 1 there, 2 here"):
        gpu_report.main(other)


def test_the_sliced_networks_come_first():
    names = [job.name for job in gpu_report.jobs(["vgg13", "resnet56"])]
    assert names[:4] == ["vgg13-sliced", "resnet56-sliced", "vgg13-1.0", "resnet56-1.0"]
    assert len(names) == 10
