"""The code of docs/pods.md runs, and compiled steps have the collectives it names."""

import contextlib
import dataclasses
import importlib.util
import io
import json
import math
import os
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from experiments.benchmarks import tpu_topology
from experiments.benchmarks.collectives import collectives
from experiments.benchmarks.tpu_topology import Config, Row, added
from experiments.settings import Settings
from mslice_jax.models import CifarResNet
from tests.compiling import xla_flags
from tests.train.test_hosts import free_port

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "pods.md").read_text(encoding="utf-8")
PROGRAM, *BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
RESULT = ROOT / "docs" / "results" / "tpu_topology.json"


def parameters(depth: int, rate: float) -> int:
    """Parameters of a ResNet built at that width."""
    model = CifarResNet(depth=depth, widen=rate)
    x = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    leaves = jax.tree.leaves(jax.eval_shape(model.init, jax.random.key(0), x)["params"])
    return sum(math.prod(leaf.shape) for leaf in leaves)


def test_the_program_runs_on_two_hosts(tmp_path):
    (tmp_path / "pod.py").write_text(PROGRAM)
    address = f"localhost:{free_port()}"
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": xla_flags(2),
    }
    hosts = [
        subprocess.Popen(
            [sys.executable, tmp_path / "pod.py", address, "2", number, tmp_path],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for number in "01"
    ]
    try:
        printed = [host.communicate(timeout=300) for host in hosts]
    finally:
        for host in hosts:  # if one failed the other may wait for it
            host.kill()
    assert [host.returncode for host in hosts] == [0, 0], printed
    first, second = (out.splitlines()[-1] for out, _ in printed)
    assert first == second
    assert first.startswith("{0.25: ")
    assert (tmp_path / "checkpoints" / "8").is_dir()


def test_the_other_blocks_run():
    names: dict = {}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        for block in BLOCKS:
            exec(compile(block, "docs/pods.md", "exec"), names)
    refused, shown = printed.getvalue().strip().rsplit("\n", 1)
    assert "0.25" in refused
    assert f"```text\n{shown}\n```" in PAGE


def test_the_flags_are_there():
    flags = set(re.findall(r"\*\*`--([a-z-]+)|`--([a-z-]+)", PAGE))
    named = {(bold or plain).replace("-", "_") for bold, plain in flags}
    others = {"signal", "no_shards", "topology"}  # of SLURM, of the benchmark
    fields = {field.name for field in dataclasses.fields(Settings)}
    assert {"distributed", "fsdp", "shards"} <= named
    assert named - others <= fields


def test_collectives_are_read():
    number, moved = collectives(
        """
        %p = f32[4]{0} parameter(0), metadata={op_name="all-gather"}
        %a.1 = f32[8,4]{1,0:T(8,128)} all-gather(%p), channel_id=7, dimensions={0}
        %a.2 = f32[8,4]{1,0:T(8,128)S(1)} all-gather(%q), channel_id=7, dimensions={0}
        %b = (bf16[2,3]{1,0}, /*index=1*/f32[]) all-reduce(%p, %q), channel_id=1
        %c = (f32[5], f32[5], u32[], u32[]) collective-permute-start(%p), channel_id=2
        %d = f32[5]{0} collective-permute-done(%c)
        %e = (f32[2]{0}, f32[8]{0}) all-gather-start(%p), channel_id=3, dimensions={0}
        ROOT %r = s8[16]{0} reduce-scatter(%p), channel_id=4
        """
    )
    assert number == {
        "all-gather": 2, "all-reduce": 1, "collective-permute": 1, "reduce-scatter": 1,
    }  # fmt: skip
    assert moved == {
        "all-gather": 4 * 32 + 4 * 8,
        "all-reduce": 2 * 6 + 4,
        "collective-permute": 20,
        "reduce-scatter": 16,
    }


def test_added_collectives_are_reported():
    def row(rate, **moved):
        return Row(
            network="net", fsdp=2, rate=rate, moved=moved, arguments=0, temporary=0,
            collectives=dict.fromkeys(moved, 1),
        )  # fmt: skip

    wide = row(1.0, gather=8)
    assert added([wide, row(0.5, gather=8)]) == []
    (more,) = added([wide, row(0.5, gather=9)])
    assert "moves 9 bytes, 8 there" in more
    (other,) = added([wide, row(0.5, gather=1, permute=1)])
    assert "permute is not there" in other


def test_slicing_a_step_adds_no_collective(tmp_path, capsys):
    config = Config(
        topology="cpu", networks=("resnet8",), rates=(1.0, 0.25), batch_size=8,
        out=tmp_path / "out.json",
    )  # fmt: skip
    result = tpu_topology.main(config)
    assert config.out is not None
    assert json.loads(config.out.read_text()) == result
    assert "Slicing adds no collective" in capsys.readouterr().out
    assert result["added"] == []
    rows = {(row["fsdp"], row["rate"]): row for row in result["compiled"]}
    for rate in config.rates:
        # The gradients of the narrow network, the loss and the accuracy.
        size = 4 * parameters(8, rate) + 8
        assert rows[1, rate]["moved"] == {"all-reduce": size}
        assert rows[1, rate]["collectives"] == {"all-reduce": 1}
    narrow, wide = rows[2, 0.25], rows[2, 1.0]
    assert narrow["collectives"] == wide["collectives"]
    assert narrow["moved"]["all-gather"] == wide["moved"]["all-gather"] / 16
    for fsdp in config.fsdp:
        assert rows[fsdp, 0.25]["temporary"] < 0.3 * rows[fsdp, 1.0]["temporary"]


def test_collectives_of_slicing_without_shards_are_found(capsys):
    config = Config(
        topology="cpu", networks=("decoder1",), rates=(1.0, 0.5), fsdp=(2,),
        shards=False, batch_size=8,
    )  # fmt: skip
    result = tpu_topology.main(config)
    assert any("collective-permute is not there" in line for line in result["added"])
    assert result["added"][0] in capsys.readouterr().out


def test_an_unknown_tpu_slice(monkeypatch):
    def refuse(*args):
        raise ValueError("no such slice.")

    monkeypatch.setattr(tpu_topology.topologies, "get_topology_desc", refuse)
    with pytest.raises(RuntimeError, match="v0:9: no such slice. Install the libtpu"):
        tpu_topology.devices_of("v0:9")


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed"
)
def test_a_step_is_compiled_for_a_tpu_slice(tmp_path):
    command = [sys.executable, "-m", "experiments.benchmarks.tpu_topology"]
    command += ["--networks", "decoder1", "--rates", "1", "0.5", "--batch-size", "8"]
    command += ["--out"]
    subprocess.run([*command, tmp_path / "out.json"], cwd=ROOT, check=True)
    result = json.loads((tmp_path / "out.json").read_text())
    assert "TPU v5" in result["device"]
    assert len(result["compiled"]) == 4


def test_the_table_is_that_of_the_result():
    result = json.loads(RESULT.read_text())
    rows = [Row(**row) for row in result["compiled"]]
    assert result["rows"] == [tpu_topology.shown(row) for row in rows]
    assert result["added"] == added(rows)
    # Eight shards of eight norm groups: the page says why.
    assert all(line.startswith("resnet11, fsdp=8") for line in result["added"])
    for row in rows:
        if row.network == "resnet11" and row.fsdp == 1:
            assert row.moved == {"all-reduce": 4 * parameters(11, row.rate) + 8}
