"""Two processes of two devices train as one process of two does."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest

PROGRAM = pathlib.Path(__file__).with_name("two_hosts.py")
ROOT = PROGRAM.parents[2]


def free_port() -> str:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return str(found.getsockname()[1])


def run(count: int, fsdp: int, folder: pathlib.Path) -> list[dict]:
    """What each of `count` processes prints."""
    port = free_port()
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, PROGRAM, port, *map(str, (number, count, fsdp, folder))],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=environment,
        )
        for number in range(count)
    ]
    printed = []
    for process in processes:
        out, error = process.communicate(timeout=300)
        assert process.returncode == 0, error
        printed.append(json.loads(out.splitlines()[-1]))
    return printed


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict:
    return run(1, fsdp=1, folder=tmp_path_factory.mktemp("alone"))[0]


@pytest.mark.parametrize("fsdp", [1, 4])
def test_two_processes_have_the_losses_of_one(alone, fsdp, tmp_path):
    # fsdp=4 deals the weights out over the devices of both processes.
    first, second = run(2, fsdp, tmp_path)
    assert first == second  # no host knows other losses, rates or weights
    assert first["rates"] == alone["rates"]
    assert first["restores"]  # a checkpoint that both wrote
    for name in ("losses", "accuracy", "weights"):
        np.testing.assert_allclose(first[name], alone[name], rtol=1e-6, atol=1e-6)
