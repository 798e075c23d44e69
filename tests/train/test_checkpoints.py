"""Checkpoints: exact, pruned, refused, or skipped if damaged."""

import dataclasses
import errno
import pathlib
import resource
import shutil
import threading

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from mslice_jax.train import CheckpointError, Checkpoints, Progress, TrainState, sgd
from mslice_jax.train.integrity import damage, seal


def state_at(net, step: int) -> TrainState:
    """A state whose every number depends on `step`."""
    state = TrainState.create(net, sgd(0.1), key=jax.random.key(step))
    leaves, tree = jax.tree.flatten((state.net, state.opt_state))
    leaves = [leaf + np.asarray(step, leaf.dtype) for leaf in leaves]
    moved, opt_state = jax.tree.unflatten(tree, leaves)
    number = np.int32(step) + state.step
    return TrainState(step=number, net=moved, opt_state=opt_state, key=state.key)


def same(a: TrainState, b: TrainState) -> bool:
    a, b = (jax.tree.leaves((s.step, s.net, s.opt_state)) for s in (a, b))
    return all(map(np.array_equal, a, b))


def files_of(step_directory: pathlib.Path) -> list[pathlib.Path]:
    """Files of a checkpoint, the largest (with the arrays) first."""
    files = [path for path in step_directory.rglob("*") if path.is_file()]
    return sorted(files, key=lambda path: -path.stat().st_size)


def flip_a_bit(path: pathlib.Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def cut_in_half(path: pathlib.Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_everything_comes_back(net, tmp_path):
    state = state_at(net, 5)
    progress = Progress(epoch=2, batch=3, best_accuracy=0.75, train_seconds=1.5)
    with Checkpoints(tmp_path / "deep" / "down") as checkpoints:
        checkpoints.save(state, progress)
    with Checkpoints(tmp_path / "deep" / "down") as checkpoints:
        found, found_progress = checkpoints.restore(state_at(net, 0))
    assert same(found, state)
    assert found_progress == progress
    np.testing.assert_array_equal(
        jax.random.key_data(found.key), jax.random.key_data(state.key)
    )
    assert found.net.definition is net.definition


def test_an_empty_directory_has_no_checkpoint(net, tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore(state_at(net, 0)) is None
        with pytest.raises(CheckpointError, match="no checkpoint with an accuracy"):
            checkpoints.restore_best(state_at(net, 0))


def test_the_last_two_and_the_best_are_kept(net, tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        for step, accuracy in ((1, 0.2), (2, 0.9), (3, 0.5), (4, 0.6), (5, None)):
            checkpoints.save(state_at(net, step), Progress(), accuracy=accuracy)
        assert checkpoints.steps() == (2, 4, 5)
    with Checkpoints(tmp_path) as checkpoints:
        best, _ = checkpoints.restore_best(state_at(net, 0))
        last, _ = checkpoints.restore(state_at(net, 0))
    assert same(best, state_at(net, 2))
    assert same(last, state_at(net, 5))


@pytest.mark.parametrize(
    ("settings", "about", "expected"),
    [
        ({"rates": (0.25, 1.0)}, {}, r"rates \[0.5, 1.0\] there, \[0.25, 1.0\]"),
        ({}, {"groups": 4}, "groups 8 there, 4 here"),
        (
            {"norm": "switchable"},
            {},
            "variables/batch_stats/BatchNorm_0/0.5/mean absent there, float32.8. here",
        ),
    ],
)
def test_a_checkpoint_of_another_network_is_refused(
    net, build_net, tmp_path, settings, about, expected
):
    with Checkpoints(tmp_path, about={"groups": 8}) as checkpoints:
        checkpoints.save(state_at(net, 1), Progress())
    other = state_at(build_net(**settings), 0)
    with Checkpoints(tmp_path, about={"groups": 8, **about}) as checkpoints:
        for use in (checkpoints.check, checkpoints.restore):
            with pytest.raises(CheckpointError, match=expected) as error:
                use(other)
            assert "another network" in str(error.value)
        assert checkpoints.steps() == (1,)


def test_a_checkpoint_of_another_order_of_units_is_refused(net, tmp_path):
    # The shapes are the same, but captured constants would meet other units.
    (name, group), *_ = net.plan.groups.items()
    other = net.permute({name: np.arange(group.size)[::-1]})
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state_at(other, 1), Progress())
        again = net.permute({name: np.roll(np.arange(group.size), 1)})
        for different in (net, again):
            with pytest.raises(CheckpointError, match="order of units"):
                checkpoints.restore(state_at(different, 0))
        restored = checkpoints.restore(state_at(other, 0))
        assert restored is not None
        assert same(restored[0], state_at(other, 1))


def test_a_checkpoint_of_another_optimizer_is_refused(net, tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state_at(net, 1), Progress())
        other = TrainState.create(net, optax.adam(0.1), key=jax.random.key(0))
        with pytest.raises(CheckpointError, match="opt_state"):
            checkpoints.restore(other)


@pytest.mark.parametrize("harm", [flip_a_bit, cut_in_half, pathlib.Path.unlink])
def test_damage_is_reported_and_the_checkpoint_before_is_used(net, tmp_path, harm):
    directory, said = tmp_path / "checkpoints", []
    with Checkpoints(directory) as checkpoints:
        for step in (1, 2):
            checkpoints.save(state_at(net, step), Progress(epoch=step))
    harm(files_of(directory / "2")[0])
    with Checkpoints(directory, report=said.append) as checkpoints:
        found, progress = checkpoints.restore(state_at(net, 0))
        assert same(found, state_at(net, 1))
        assert progress.epoch == 1
        # The step can be saved again, and the damaged files are kept.
        checkpoints.save(state_at(net, 2), Progress(epoch=2))
        assert checkpoints.steps() == (1, 2)
        assert same(checkpoints.restore(state_at(net, 0))[0], state_at(net, 2))
    assert len(said) == 1
    assert "checkpoint 2" in said[0]
    assert "damaged" in said[0]
    assert (tmp_path / "damaged-2").is_dir()


@pytest.mark.parametrize("name", ["_CHECKPOINT_METADATA", "commit_success.txt"])
@pytest.mark.parametrize("content", [b"", b"not JSON"])
def test_files_that_orbax_writes_after_the_seal_are_not_needed(
    net, tmp_path, name, content
):
    with Checkpoints(tmp_path) as checkpoints:
        for step, accuracy in ((1, 0.5), (2, 0.4)):
            checkpoints.save(state_at(net, step), Progress(), accuracy=accuracy)
    (tmp_path / "2" / name).write_bytes(content)
    with Checkpoints(tmp_path) as checkpoints:
        assert same(checkpoints.restore(state_at(net, 0))[0], state_at(net, 2))
        assert same(checkpoints.restore_best(state_at(net, 0))[0], state_at(net, 1))


def test_damage_is_a_warning_without_a_callback(net, tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state_at(net, 1), Progress())
        checkpoints.save(state_at(net, 2), Progress())
        checkpoints.wait()
        cut_in_half(files_of(tmp_path / "2")[0])
        with pytest.warns(UserWarning, match="checkpoint 2 .* is damaged"):
            checkpoints.restore(state_at(net, 0))


def test_damage_of_all_checkpoints_is_an_error(net, tmp_path):
    with Checkpoints(tmp_path, report=lambda text: None) as checkpoints:
        checkpoints.save(state_at(net, 1), Progress(), accuracy=0.5)
        checkpoints.wait()
        flip_a_bit(files_of(tmp_path / "1")[0])
        with pytest.raises(CheckpointError, match="all checkpoints .* are damaged"):
            checkpoints.restore(state_at(net, 0))
        with pytest.raises(CheckpointError, match="best checkpoint, 1 .* is damaged"):
            checkpoints.restore_best(state_at(net, 0))


def test_an_unfinished_save_of_a_killed_process_is_no_checkpoint(net, tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state_at(net, 1), Progress())
    shutil.copytree(tmp_path / "1", tmp_path / "2.orbax-checkpoint-tmp")
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == (1,)
        assert same(checkpoints.restore(state_at(net, 0))[0], state_at(net, 1))


@pytest.fixture
def held(monkeypatch):
    """Blocks a background save just before its seal, until the event is set."""
    event = threading.Event()
    event.reached = threading.Event()

    def wait_and_seal(directory):
        event.reached.set()
        assert event.wait(timeout=60)
        seal(directory)

    monkeypatch.setattr("mslice_jax.train.checkpoints.seal", wait_and_seal)
    yield event
    event.set()


def test_the_caller_continues_while_files_are_written(net, tmp_path, held):
    state = state_at(net, 1)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, Progress())
        # All arrays are written and nothing has the name of a checkpoint.
        assert not (tmp_path / "1").exists()
        held.set()
        checkpoints.wait()
        assert (tmp_path / "1" / "seal.json").exists()
        assert same(checkpoints.restore(state_at(net, 0))[0], state)


def test_a_background_save_has_the_state_of_its_call(net, tmp_path, held):
    expected = state_at(net, 1)
    state = jax.tree.map(lambda leaf: leaf, state_at(net, 1))

    def advance(state):  # as a training step does: donates the old buffers
        net, opt_state = jax.tree.map(lambda x: x * 0 - 7, (state.net, state.opt_state))
        return dataclasses.replace(state, net=net, opt_state=opt_state)

    advance = jax.jit(advance, donate_argnums=0)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, Progress())
        for _ in range(3):
            state = jax.block_until_ready(advance(state))
        held.set()
        found, _ = checkpoints.restore(state_at(net, 0))
    assert same(found, expected)


def test_without_background_writing_a_save_is_complete(net, tmp_path):
    with Checkpoints(tmp_path, asynchronous=False) as checkpoints:
        checkpoints.save(state_at(net, 1), Progress())
        assert (tmp_path / "1" / "seal.json").exists()


def test_a_process_killed_before_the_seal_loses_only_that_checkpoint(
    net, tmp_path, held
):
    copy = tmp_path / "as a kill leaves it"
    with Checkpoints(tmp_path / "run") as checkpoints:
        held.set()
        checkpoints.save(state_at(net, 1), Progress())
        checkpoints.wait()
        held.clear()
        held.reached.clear()
        checkpoints.save(state_at(net, 2), Progress())
        assert held.reached.wait(timeout=60)
        shutil.copytree(tmp_path / "run", copy)
        held.set()
    with Checkpoints(copy) as checkpoints:
        assert checkpoints.steps() == (1,)
        assert same(checkpoints.restore(state_at(net, 0))[0], state_at(net, 1))


FULL = OSError(errno.ENOSPC, "No space left on device")
# The error of Orbax 0.12 when TensorStore cannot write.
WRAPPED = ValueError("RESOURCE_EXHAUSTED: Error writing: No space left on device")


@pytest.mark.parametrize("error", [FULL, WRAPPED])
def test_a_full_disk_is_one_clear_error_and_loses_nothing(
    net, tmp_path, monkeypatch, error
):
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(state_at(net, 1), Progress())

        def fail(manager, step, *args, **kwargs):
            unfinished = tmp_path / f"{step}.orbax-checkpoint-tmp"
            unfinished.mkdir()
            (unfinished / "half").write_text("of it")
            raise error

        with monkeypatch.context() as patched:
            patched.setattr(ocp.CheckpointManager, "save", fail)
            with pytest.raises(CheckpointError, match="the disk is full") as raised:
                checkpoints.save(state_at(net, 2), Progress())
        assert "checkpoint 2" in str(raised.value)
        assert "steps: 1" in str(raised.value)
        assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["1"]
        assert same(checkpoints.restore(state_at(net, 0))[0], state_at(net, 1))
        # With space again, the run continues.
        checkpoints.save(state_at(net, 2), Progress())
        assert checkpoints.steps() == (2,)


@pytest.fixture
def no_seal(monkeypatch):
    """A call makes the disk full when the last file of a checkpoint is written."""

    def fail(directory):
        raise FULL

    return lambda: monkeypatch.setattr("mslice_jax.train.checkpoints.seal", fail)


def test_a_step_is_saved_once(net, tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state_at(net, 1), Progress(batch=1))
        with pytest.raises(CheckpointError, match="step 1 is saved already in"):
            checkpoints.save(state_at(net, 1), Progress(epoch=1), accuracy=0.5)
        restored = checkpoints.restore(state_at(net, 0))
        assert restored is not None
        assert restored[1] == Progress(batch=1)


def test_an_error_in_the_background_is_raised_by_the_next_save(
    net, tmp_path, no_seal, monkeypatch
):
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(state_at(net, 1), Progress())
        checkpoints.wait()
        no_seal()
        checkpoints.save(state_at(net, 2), Progress())  # returns before it fails
        with pytest.raises(CheckpointError, match="checkpoint 2 .* the disk is full"):
            checkpoints.save(state_at(net, 3), Progress())
        assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["1"]
        checkpoints.wait()  # raised only once
        monkeypatch.undo()
        checkpoints.save(state_at(net, 3), Progress())
        assert checkpoints.steps() == (3,)
        assert same(checkpoints.restore(state_at(net, 0))[0], state_at(net, 3))


def test_an_error_in_the_background_is_raised_at_the_end(net, tmp_path, no_seal):
    no_seal()
    with (
        pytest.raises(CheckpointError, match="checkpoint 2 .* the disk is full"),
        Checkpoints(tmp_path) as checkpoints,
    ):
        checkpoints.save(state_at(net, 2), Progress())


def test_an_error_in_the_background_does_not_hide_another_one(net, tmp_path, no_seal):
    no_seal()
    said = []
    with (
        pytest.raises(ZeroDivisionError),
        Checkpoints(tmp_path, report=said.append) as checkpoints,
    ):
        checkpoints.save(state_at(net, 2), Progress())
        raise ZeroDivisionError
    assert len(said) == 1
    assert "the disk is full" in said[0]


# Orbax leaves the other writes of a failed checkpoint with a closed event loop.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_limit_of_the_system_on_files_is_an_error_too(net, tmp_path, capfd):
    # Not a patch: TensorStore itself cannot write.
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state_at(net, 1), Progress())
        checkpoints.wait()
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (64, before[1]))
            with pytest.raises(CheckpointError, match="cannot write checkpoint 2"):
                checkpoints.save(state_at(net, 2), Progress())
                checkpoints.wait()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert checkpoints.steps() == (1,)
        checkpoints.save(state_at(net, 2), Progress())
        assert checkpoints.steps() == (1, 2)
    assert "Traceback" not in capfd.readouterr().err


def test_a_seal_sees_every_kind_of_damage(tmp_path):
    (tmp_path / "sub").mkdir()
    file = tmp_path / "sub" / "data"
    file.write_bytes(b"0123456789")
    assert "seal.json is missing" in damage(tmp_path)
    seal(tmp_path)
    assert damage(tmp_path) is None
    flip_a_bit(file)
    assert "content" in damage(tmp_path)
    assert damage(tmp_path, contents=False) is None
    cut_in_half(file)
    assert "5 bytes, expected 10" in damage(tmp_path, contents=False)
    file.unlink()
    assert "missing" in damage(tmp_path)
    (tmp_path / "seal.json").write_text("not json")
    assert "not readable" in damage(tmp_path)
