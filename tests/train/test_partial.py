"""Partial restore: correct numbers, and no more bytes than they need."""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import mslice_jax as ms
from experiments.benchmarks import restore_narrow as benchmark
from mslice_jax.core.errors import RateError
from mslice_jax.train import (
    CheckpointError,
    Checkpoints,
    Placement,
    Progress,
    TrainState,
    blocks,
    restore_narrow,
    sgd,
)
from mslice_jax.train.blocks import choose_blocks
from mslice_jax.train.integrity import seal
from mslice_jax.train.runs import LayoutError, read_blocks
from tests.citizens import attention, branches, convolution, modern, recurrent
from tests.citizens.citizen import RATES

CITIZENS = (
    attention.decoder("split"),  # fused QKV: three runs are kept
    attention.decoder("reshape"),
    attention.decoder("interleaved"),
    branches.inception(),
    convolution.vgg("group"),
    modern.scanned_decoder(),
    recurrent.lstm(optimized=False),
)


@pytest.fixture
def all_in_blocks(monkeypatch):
    """Small leaves too, as if a block cost nothing: this test has no larger ones."""
    monkeypatch.setattr(blocks, "_IN_INDEX", 0)
    monkeypatch.setattr(blocks, "_PER_BLOCK", 0)
    blocks._cheapest.cache_clear()
    yield
    blocks._cheapest.cache_clear()


def state_of(net, *, step: int = 0, average: bool = False) -> TrainState:
    state = TrainState.create(net, sgd(0.1), key=jax.random.key(0), average=average)
    return dataclasses.replace(state, step=jnp.int32(step))


def save(directory: pathlib.Path, *states: TrainState, **options) -> None:
    with Checkpoints(directory, **options) as checkpoints:
        for state in states:
            checkpoints.save(state, Progress())


def assert_same_trees(found, expected) -> None:
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("citizen", CITIZENS, ids=str)
def test_it_equals_the_network_cut_by_hand(citizen, tmp_path, all_in_blocks):
    net = ms.upgrade(*citizen.arguments(), rates=RATES, **citizen.call)
    save(tmp_path, state_of(net))
    types = jax.eval_shape(lambda: net)
    for rate in RATES:
        small = restore_narrow(tmp_path, types, rate)
        assert small.rate == rate
        assert_same_trees(small.variables, citizen.narrow_by_hand(net.variables, rate))
        for leaf in jax.tree.leaves(small.variables):
            assert isinstance(leaf, jax.Array)


@pytest.mark.parametrize("norm", ["switchable", "shared"])
def test_norms_of_other_rates_are_left_out(build_net, tmp_path, norm, all_in_blocks):
    net = build_net(norm=norm)
    save(tmp_path, state_of(net))
    for rate in net.rates:
        small = restore_narrow(tmp_path, net, rate)
        assert_same_trees(small.variables, ms.extract(net, rate).variables)


def test_a_rate_for_each_group(build_net, tmp_path, all_in_blocks):
    net = build_net()
    first, second = net.plan.groups
    save(tmp_path, state_of(net))
    small = restore_narrow(tmp_path, net, {first: 0.5, second: 1.0})
    kernel = np.asarray(net.variables["params"]["hidden2"]["kernel"])
    np.testing.assert_array_equal(
        small.variables["params"]["hidden2"]["kernel"], kernel[:4]
    )


def test_keys_among_the_variables(tmp_path):
    def network(variables, x):
        return jax.nn.relu(x @ variables["params"]["in"]) @ variables["params"]["out"]

    weights = {"in": jnp.ones((3, 8)), "out": jnp.ones((8, 2))}
    variables = {"params": weights, "keys": jax.random.key(5)}
    net = ms.upgrade(network, variables, np.ones((1, 3)), rates=(0.5, 1.0))
    save(tmp_path, state_of(net))
    small = restore_narrow(tmp_path, jax.eval_shape(lambda: net), 0.5)
    found = small.variables["keys"]
    assert found.dtype == jax.random.key(5).dtype
    np.testing.assert_array_equal(
        jax.random.key_data(found), jax.random.key_data(jax.random.key(5))
    )


# -- which checkpoint


def test_averaged_weights_are_restored(net, tmp_path, all_in_blocks):
    state = state_of(net, average=True)
    averaged = jax.tree.map(lambda x: x + 1, state.averaged)
    save(tmp_path, dataclasses.replace(state, averaged=averaged))
    small = restore_narrow(tmp_path, net, 0.5)
    expected = jax.tree.map(lambda x: x + 1, ms.extract(net, 0.5).variables["params"])
    assert_same_trees(small.variables["params"], expected)


def moved(net, by: float) -> ms.Sliceable:
    return net.replace(jax.tree.map(lambda x: x + by, net.variables))


def test_the_last_the_best_and_the_one_before_a_damaged_one(net, tmp_path):
    expected = {step: ms.extract(moved(net, step), 0.5).variables for step in (1, 2, 3)}
    with Checkpoints(tmp_path, keep=3) as checkpoints:
        for step, accuracy in ((1, 0.5), (2, 0.9), (3, None)):
            state = state_of(moved(net, step), step=step)
            checkpoints.save(state, Progress(), accuracy=accuracy)
    found = restore_narrow(tmp_path, net, 0.5)
    assert_same_trees(found.variables, expected[3])
    found = restore_narrow(tmp_path, net, 0.5, best=True)
    assert_same_trees(found.variables, expected[2])
    files = (tmp_path / "3" / "weights").rglob("d/*")
    largest = max(files, key=lambda path: path.stat().st_size)
    largest.write_bytes(b"")
    with pytest.warns(UserWarning, match="checkpoint 3 .* is damaged"):
        found = restore_narrow(tmp_path, net, 0.5)
    assert_same_trees(found.variables, expected[2])


def test_types_are_those_of_the_checkpoint(net, tmp_path, all_in_blocks):
    half = net.replace(jax.tree.map(lambda x: x.astype(jnp.bfloat16), net.variables))
    save(tmp_path, state_of(half))
    small = restore_narrow(tmp_path, half, 0.5)
    assert_same_trees(small.variables, ms.extract(half, 0.5).variables)
    for leaf in jax.tree.leaves(small.variables):
        assert leaf.dtype == jnp.bfloat16
    with pytest.raises(
        CheckpointError, match=r"bfloat16\[8\] there, float32\[8\] here"
    ):
        restore_narrow(tmp_path, net, 0.5)


def test_errors_of_restore_narrow(net, build_net, tmp_path):
    with pytest.raises(CheckpointError, match="no whole checkpoint in"):
        restore_narrow(tmp_path, net, 0.5)
    save(tmp_path, state_of(net))
    with pytest.raises(CheckpointError, match="no whole checkpoint with an accuracy"):
        restore_narrow(tmp_path, net, 0.5, best=True)
    with pytest.raises(RateError, match="not declared"):
        restore_narrow(tmp_path, net, 0.3)
    with pytest.raises(ValueError, match="expects the full network"):
        restore_narrow(tmp_path, ms.extract(net, 0.5), 0.5)
    with pytest.raises(CheckpointError, match=r"rates \[0.5, 1.0\] there, \[0.25"):
        restore_narrow(tmp_path, build_net(rates=(0.25, 1.0)), 0.25)
    with pytest.raises(CheckpointError, match="scale absent there, float32.8. here"):
        restore_narrow(tmp_path, build_net(norm="group"), 0.5)
    (name, group), *_ = net.plan.groups.items()
    with pytest.raises(CheckpointError, match="order of units"):
        restore_narrow(tmp_path, net.permute({name: np.arange(group.size)[::-1]}), 0.5)


# -- how much is read


class Wide(nn.Module):
    """64 numbers, two hidden layers, 10 classes."""

    width: int = 1024

    @nn.compact
    def __call__(self, x):
        for _ in range(2):
            x = nn.relu(nn.Dense(self.width)(x))
        return nn.Dense(10)(x)


counted = pytest.mark.skipif(
    not pathlib.Path("/proc/self/io").exists(), reason="Linux counts what is read"
)


def wide(rates=(0.25, 0.5, 1.0), **settings) -> ms.Sliceable:
    x = np.zeros((1, 64), np.float32)
    types = jax.eval_shape(Wide().init, jax.random.key(0), x)
    random = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda t: random.normal(size=t.shape).astype(t.dtype), types
    )
    return ms.upgrade(Wide(), variables, x, rates=rates, **settings)


@counted
@pytest.mark.parametrize("shards", [1, 4])  # with 4, the prefix of each part is kept
def test_it_reads_few_bytes_more_than_the_narrow_network(tmp_path, shards):
    net = wide(shards=shards)
    save(tmp_path, state_of(net))
    restore_narrow(tmp_path, net, 0.25)  # imports are read as well
    for rate, width in ((0.25, 256), (0.5, 512), (1.0, 1024)):
        numbers = 64 * width + width + width * width + width + width * 10 + 10
        before = benchmark.bytes_read()
        small = restore_narrow(tmp_path, net, rate)
        read = benchmark.bytes_read() - before
        # Less would be impossible: random mantissas hardly compress.
        assert 0.85 * 4 * numbers < read < 1.15 * 4 * numbers
        assert_same_trees(small.variables, ms.extract(net, rate).variables)


def test_blocks_end_at_the_widths_of_the_rates():
    found = choose_blocks(wide().plan, wide().variables)
    # A quarter of 1024 is 256. For a bias that is 1024 bytes; so small a block is in
    # the index, which is read in any case.
    assert found == {
        "params/Dense_0/bias": [512],
        "params/Dense_1/bias": [512],
        "params/Dense_0/kernel": [64, 256],
        "params/Dense_1/kernel": [256, 256],
        "params/Dense_2/kernel": [256, 10],
    }


def test_blocks_of_a_flattened_image():
    def network(variables, x):
        x = jnp.einsum("bhwi,io->bhwo", x, variables["params"]["conv"])
        return jax.nn.relu(x).reshape(x.shape[0], -1) @ variables["params"]["out"]

    weights = {"conv": jnp.zeros((3, 64)), "out": jnp.zeros((4 * 4 * 64, 100))}
    net = ms.upgrade(
        network, {"params": weights}, np.zeros((1, 4, 4, 3), np.float32), rates=(0.5, 1)
    )
    # The first 32 of every 64 channels are kept: 4 x 4 runs.
    assert choose_blocks(net.plan, net.variables) == {"params/out": [32, 100]}


def test_rates_that_share_no_divisor_get_blocks_of_some_size():
    # 0.3 and 0.7 of 1024 are 307 and 717: exact blocks would hold a single number.
    net = wide(rates=(0.3, 0.7, 1.0), groups=1024)
    rows, columns = choose_blocks(net.plan, net.variables)["params/Dense_1/kernel"]
    assert rows * columns * 4 > 1024
    for kept in (307, 717):
        touched = np.prod([-(-kept // b) * b for b in (rows, columns)])
        assert touched < 1.15 * kept**2


@counted
def test_the_benchmark_runs(tmp_path, capsys):
    config = benchmark.Config(
        models=("resnet11", "decoder1"), rates=(0.5,), dim=256, out=tmp_path / "out"
    )
    result = benchmark.main(config)
    assert json.loads(config.out.read_text()) == result
    ratios = {(row["model"], row["rate"]): row["ratio"] for row in result["rows"]}
    assert ratios["decoder1", 0.5] < 1.15
    assert "decoder1" in capsys.readouterr().out


# -- all of it, from blocks


@pytest.mark.parametrize("devices", [(1, 1), (1, 4), (4, 1), (4, 2)])
def test_a_full_restore_on_other_devices(tmp_path, devices):
    def on(count: int, net) -> TrainState:
        placement = Placement.over(jax.devices()[:count], fsdp=count)
        return placement.state(state_of(net, average=True))

    before, after = devices
    net = wide(shards=before)
    state = on(before, net)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, Progress())
        like = on(after, moved(net, 1))
        found, _ = checkpoints.restore(like)
    for part in ("net", "opt_state", "averaged"):
        assert_same_trees(getattr(found, part), getattr(state, part))
        for x, y in zip(
            jax.tree.leaves(getattr(found, part)),
            jax.tree.leaves(getattr(like, part)),
            strict=True,
        ):
            assert x.sharding == y.sharding
    small = restore_narrow(tmp_path, net, 0.25)
    assert_same_trees(small.variables, ms.extract(net, 0.25).variables)


# -- readers


def test_orbax_reads_the_leading_parts(tmp_path, monkeypatch):
    net = wide()
    save(tmp_path, state_of(net))

    def nothing(folder, wanted):
        assert not wanted
        return {}

    monkeypatch.setattr("mslice_jax.train.partial.read_blocks", nothing)
    small = restore_narrow(tmp_path, net, 0.25)
    assert_same_trees(small.variables, ms.extract(net, 0.25).variables)


def test_another_layout_is_read_by_orbax_alone(tmp_path, monkeypatch):
    """Orbax reads more then, and the result is the same."""
    net = wide(shards=4)
    save(tmp_path, state_of(net))

    def another(folder, wanted):
        raise LayoutError("no such array")

    monkeypatch.setattr("mslice_jax.train.partial.read_blocks", another)
    small = restore_narrow(tmp_path, net, 0.25)
    assert_same_trees(small.variables, ms.extract(net, 0.25).variables)


def test_a_missing_array_is_another_layout(tmp_path):
    net = wide()
    save(tmp_path, state_of(net))
    with pytest.raises(LayoutError):
        read_blocks(tmp_path / "0" / "weights", {"variables.params.nothing": None})


def test_a_narrower_network_on_disk_is_not_filled_up_with_zeros(tmp_path):
    save(tmp_path, state_of(wide(rates=(0.5, 1.0))))

    class Wider(Wide):
        width: int = 2048

    x = np.zeros((1, 64), np.float32)
    types = jax.eval_shape(Wider().init, jax.random.key(0), x)
    net = ms.upgrade(Wider(), types, x, rates=(0.5, 1.0))
    with pytest.raises(
        CheckpointError, match=r"float32\[1024\] there, .*\[2048\] here"
    ):
        restore_narrow(tmp_path, net, 0.5)


def test_files_of_before_are_read(tmp_path):
    net = wide()
    save(tmp_path, state_of(net))
    brief = tmp_path / "0" / "brief" / "metadata"
    words = json.loads(brief.read_text())
    before = {name: words[name] for name in ("rates", "about", "averaged")}
    brief.write_text(json.dumps(before))
    seal(tmp_path / "0")
    small = restore_narrow(tmp_path, net, 0.25)
    assert_same_trees(small.variables, ms.extract(net, 0.25).variables)
