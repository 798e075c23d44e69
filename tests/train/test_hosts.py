"""Two and four processes train as one does, resume each other's run, stop together.

Each process has two devices. These tests support the statements of docs/pods.md.
"""

import json
import os
import pathlib
import re
import socket
import subprocess
import sys

import numpy as np
import pytest

from tests.compiling import xla_flags

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parents[1]


def free_port() -> str:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return str(found.getsockname()[1])


def run(program: str, count: int, *arguments: object) -> list[tuple[int, str, str]]:
    """Exit code, output and errors of each of `count` processes."""
    port = free_port()
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": xla_flags(2),
    }
    processes = [
        subprocess.Popen(
            [
                sys.executable,
                str(HERE / program),
                *map(str, (port, number, count, *arguments)),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=environment,
        )
        for number in range(count)
    ]
    try:
        printed = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:  # if one failed the others may wait for it
            process.kill()
    return [
        (process.returncode, *texts)
        for process, texts in zip(processes, printed, strict=True)
    ]


def train(count: int, fsdp: int, *folders: pathlib.Path) -> list[dict]:
    """The output of each of `count` processes of `two_hosts`."""
    ended = run("two_hosts.py", count, fsdp, *folders)
    assert [code for code, *_ in ended] == [0] * count, ended
    return [json.loads(out.splitlines()[-1]) for _, out, _ in ended]


def assert_trains_as(alone: dict, hosts: list[dict]) -> None:
    first, *others = hosts
    # All hosts have the same losses, rates and weights.
    assert others == [first] * len(others)
    assert first["rates"] == alone["rates"]
    assert first["restores"]  # a checkpoint written by all
    assert first["stays"]
    for name in ("losses", "accuracy", "weights"):
        np.testing.assert_allclose(first[name], alone[name], rtol=1e-6, atol=1e-6)


@pytest.mark.nightly
def test_two_processes_have_the_losses_of_one(tmp_path):
    (alone,) = train(1, 1, tmp_path / "one")
    # The weights are sharded over devices of both processes.
    assert_trains_as(alone, train(2, 4, tmp_path / "two"))


# One test, so that no process is started twice.
@pytest.mark.nightly
def test_two_and_four_processes_have_the_losses_of_one(tmp_path):
    (alone,) = train(1, 1, tmp_path / "one")
    # The weights are sharded over devices of two processes, and the batch over all.
    four = train(4, 4, tmp_path / "four")
    assert_trains_as(alone, four)
    # These have replicated weights, and restore those that the four had sharded.
    two = train(2, 1, tmp_path / "two", tmp_path / "four")
    assert_trains_as(alone, two)
    for host in two:
        np.testing.assert_allclose(host["others"], four[0]["weights"], rtol=1e-6)


@pytest.mark.nightly
def test_a_recipe_on_four_hosts_is_stopped_by_one_and_continues_on_two(tmp_path):
    (tmp_path / "summary.json").write_text("of an earlier run")
    flags = "--rates 1.0 --schedule static --epochs 1 --batch-size 16"  # 90 steps
    flags = [*flags.split(), "--workdir", tmp_path]
    ended = run("recipe_host.py", 4, 2, *flags, "--no-resume")
    assert [code for code, *_ in ended] == [143] * 4, ended
    said = [
        re.findall(r"Interrupted. Step (\d+) is saved in (.*)/checkpoints", out)
        for _, out, _ in ended
    ]
    ((step, workdir),) = said[0]
    assert said == said[:1] * 4
    assert workdir == str(tmp_path)
    assert 2 < int(step) < 90
    assert [path.name for path in tmp_path.glob("previous-*")] == ["previous-1"]

    ended = run("recipe_host.py", 2, 0, *flags)
    assert [code for code, *_ in ended] == [0, 0], ended
    assert f"Resumed at step {step}" in ended[0][1]
    assert "Resumed" not in ended[1][1]  # only the first one prints
    assert json.loads((tmp_path / "summary.json").read_text())["epochs"] == 1
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines]
    assert steps == [*range(10, 91, 10), 90]
