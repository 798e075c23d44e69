"""Two processes of two devices train as one process of two does, and stop together."""

import json
import os
import pathlib
import re
import socket
import subprocess
import sys

import numpy as np
import pytest

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
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
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
        for process in processes:  # where one failed the others may wait for it
            process.kill()
    return [
        (process.returncode, *texts)
        for process, texts in zip(processes, printed, strict=True)
    ]


def train(count: int, fsdp: int, folder: pathlib.Path) -> list[dict]:
    """What each of `count` processes of `two_hosts` prints."""
    ended = run("two_hosts.py", count, fsdp, folder)
    assert [code for code, *_ in ended] == [0] * count, ended
    return [json.loads(out.splitlines()[-1]) for _, out, _ in ended]


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict:
    return train(1, fsdp=1, folder=tmp_path_factory.mktemp("alone"))[0]


@pytest.mark.parametrize("fsdp", [1, 4])
def test_two_processes_have_the_losses_of_one(alone, fsdp, tmp_path):
    # fsdp=4 deals the weights out over the devices of both processes.
    first, second = train(2, fsdp, tmp_path)
    assert first == second  # no host knows other losses, rates or weights
    assert first["rates"] == alone["rates"]
    assert first["restores"]  # a checkpoint that both wrote
    assert first["stays"]
    for name in ("losses", "accuracy", "weights"):
        np.testing.assert_allclose(first[name], alone[name], rtol=1e-6, atol=1e-6)


def test_a_recipe_on_two_hosts_is_stopped_by_one_and_goes_on(tmp_path):
    (tmp_path / "summary.json").write_text("of an earlier run")
    flags = "--rates 1.0 --schedule static --epochs 1 --batch-size 16"  # 90 steps
    flags = [*flags.split(), "--workdir", tmp_path]
    ended = run("recipe_host.py", 2, 2, *flags, "--no-resume")
    assert [code for code, *_ in ended] == [143, 143], ended
    said = [
        re.findall(r"Interrupted. Step (\d+) is saved in (.*)/checkpoints", out)
        for _, out, _ in ended
    ]
    ((step, workdir),) = said[0]
    assert said[1] == said[0]
    assert workdir == str(tmp_path)
    assert 2 < int(step) < 90
    assert [path.name for path in tmp_path.glob("previous-*")] == ["previous-1"]

    ended = run("recipe_host.py", 2, 0, *flags)
    assert [code for code, *_ in ended] == [0, 0], ended
    assert f"Resumed at step {step}" in ended[0][1]
    assert "Resumed" not in ended[1][1]  # the first one shows what there is to show
    assert json.loads((tmp_path / "summary.json").read_text())["epochs"] == 1
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines]
    assert steps == [*range(10, 91, 10), 90]
