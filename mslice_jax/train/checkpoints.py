"""Checkpoints through Orbax: the best and the last ones, checked before they are used.

A checkpoint holds all that a run needs to continue exactly: weights, optimizer state,
step and key (arrays), the position in the data, the best accuracy and the time spent
(`Progress`), and a fingerprint of the network, so that one of another network is
refused with the leaves that differ and not with a shape error further on. Weights are
written in blocks (see `blocks`), for `restore_narrow` to read a part of them.

With several hosts every host calls every method; the directory is one that all see.
"""

import contextlib
import dataclasses
import errno
import logging
import math
import shutil
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn, Self

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from ..core.paths import path_name
from .blocks import choose_blocks, reshape, split_types
from .fingerprint import compare, fingerprint, leaves_digest, order_of_units
from .integrity import damage, seal
from .lock import LockedError, lock
from .optimizer_state import has_evaluation_weights
from .state import TrainState, params_of, with_variables


class CheckpointError(Exception):
    """A checkpoint that cannot be written, read or used; it says what to do."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a run stands, besides its arrays.

    Attributes:
      epoch: epochs completed; also the index of the one to go on with.
      batch: batches of that epoch already used.
      best_accuracy: the highest score so far: the accuracy at the widest rate, in
        [0, 1], unless `train` was given another; -1 before the first evaluation.
      train_seconds: wall time spent so far, all parts of the run together.
    """

    epoch: int = 0
    batch: int = 0
    best_accuracy: float = -1.0
    train_seconds: float = 0.0


class Checkpoints:
    """The checkpoints of one run: the last `keep` and the best one.

    Each is written completely and sealed (see `integrity`) before it takes its name,
    and older ones are removed only after that: a process that is killed, or a disk that
    is full, loses none but the one that was being written.

    Args:
      directory: made if absent, together with its parents. It is locked until the
        `with` block ends: a second process that opens it gets a CheckpointError.
      keep: how many of the last ones stay.
      asynchronous: whether `save` returns as soon as it has copied the state, while the
        files are being written in the background.
      about: what else identifies the network besides its leaves and rates, such as
        ``{"norm": "group", "groups": 8}``; anything that JSON can hold.
      report: hears of damaged checkpoints; warns unless given.

    Example:
      ``with Checkpoints("runs/mine/checkpoints") as checkpoints:`` then
      ``restored = checkpoints.restore(state)`` gives None in a new directory.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        keep: int = 2,
        asynchronous: bool = True,
        about: Mapping[str, Any] | None = None,
        report: Callable[[str], None] = warnings.warn,
    ):
        self._directory = Path(directory).absolute()
        self._asynchronous = asynchronous
        self._about = dict(about or {})
        self._report = report
        self._writing: int | None = None  # the step that is being written
        self._keep = keep
        self._unlock = _locked(self._directory)
        self._manager = self._open()
        logging.getLogger("absl").addFilter(_is_news)

    def _open(self) -> ocp.CheckpointManager:
        managers = ocp.checkpoint_managers
        return ocp.CheckpointManager(
            self._directory,
            options=ocp.CheckpointManagerOptions(
                best_fn=_accuracy,
                preservation_policy=managers.AnyPreservationPolicy(
                    [
                        managers.LatestN(self._keep),
                        managers.BestN(
                            get_metric_fn=_accuracy,
                            n=1,
                            keep_checkpoints_without_metrics=False,
                        ),
                    ]
                ),
                cleanup_tmp_directories=True,  # what a killed run left unfinished
                # Also where `save` waits: only so can the seal come before the name.
                enable_async_checkpointing=True,
                async_options=ocp.options.AsyncOptions(
                    post_finalization_callback=self._seal
                ),
            ),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        try:
            self.wait()
        except CheckpointError as lost:
            if error is None:
                raise
            self._report(str(lost))  # what ended the block is what counts
        finally:
            self._manager.close()
            self._unlock()
            logging.getLogger("absl").removeFilter(_is_news)

    def steps(self) -> tuple[int, ...]:
        """Steps of the checkpoints on disk, ascending. Waits as `wait` does."""
        self.wait()
        return self._steps()

    def save(
        self, state: TrainState, progress: Progress, *, accuracy: float | None = None
    ) -> None:
        """Write a checkpoint of `state`.

        One at a time: the one before is waited for. The buffers of the state may be
        given away (donated) as soon as this returns.

        Args:
          state: what to keep. It is read, not donated.
          progress: what to keep besides.
          accuracy: the score, which decides which checkpoint is the best: the highest
            is. None for one that was made between two evaluations, which is kept only
            as one of the last; so is one whose score is not a finite number.

        Raises:
          CheckpointError: if it, or the one before, cannot be written (full disk, no
            permission), or if there is one of this step. Earlier checkpoints are
            untouched.
        """
        step = int(state.step)
        if step in self.steps():
            raise CheckpointError(
                f"step {step} is saved already in {self._directory}. Restore the last "
                "checkpoint before you train on, or choose another directory."
            )
        weights, rest = _tree(state)
        blocks = {name: choose_blocks(state.net.plan, w) for name, w in weights.items()}
        meta = {
            "progress": dataclasses.asdict(progress),
            "network": self._fingerprint(state),
            "blocks": blocks,
        }
        brief = {
            "rates": list(state.net.rates),
            "about": order_of_units(state.net),
            "averaged": "averaged" in weights or "evaluation" in weights,
            "blocks": blocks,
            "leaves": leaves_digest(state.net.variables),
            "tree": "evaluation" if "evaluation" in weights else "averaged",
        }
        # One that is not a number compares with nothing, and no best one would be left.
        metrics = None
        if accuracy is not None and math.isfinite(accuracy):
            metrics = {"accuracy": float(accuracy)}
        self._writing = step
        try:
            weights = reshape(weights, _split(weights, blocks))
            arguments = ocp.args.Composite(
                weights=ocp.args.StandardSave(
                    weights, save_args=_by_block(weights, blocks)
                ),
                state=ocp.args.StandardSave(rest),
                meta=ocp.args.JsonSave(meta),
                brief=ocp.args.JsonSave(brief),  # what `restore_narrow` has to know
            )
            self._manager.save(step, args=arguments, metrics=metrics, force=True)
        except Exception as error:  # Orbax wraps the system's errors in many types
            self._fail(error)
        if not self._asynchronous:
            self.wait()

    def wait(self) -> None:
        """Return when what was saved is on disk, complete and sealed.

        Raises:
          CheckpointError: if it could not be written. It is said once.
        """
        if self._writing is None:
            return
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            self._fail(error)
        self._writing = None

    def check(self, state: TrainState) -> None:
        """Raise CheckpointError if a checkpoint here is of another network."""
        for step in self.steps():
            with contextlib.suppress(_Damaged):
                self._compare(step, self._meta(step), state)

    def restore(self, state: TrainState) -> tuple[TrainState, Progress] | None:
        """The last sound checkpoint, or None if there is none at all.

        A damaged one is reported and put aside, next to the directory, under the name
        ``damaged-STEP``; the one before it is used.

        Args:
          state: a state of the same network; its arrays give shapes, types and
            placement (sharding), not values.

        Raises:
          CheckpointError: for a checkpoint of another network, or if all are damaged.
        """
        damaged = []
        for step in reversed(self.steps()):
            try:
                restored = self._read(step, state)
            except _Damaged as found:
                damaged.append(step)
                self._report(
                    f"checkpoint {step} in {self._directory} is damaged ({found}); "
                    "trying the one before it."
                )
                continue
            self._put_aside(damaged)
            return restored
        if damaged:
            raise CheckpointError(
                f"all checkpoints in {self._directory} are damaged (steps {damaged}). "
                "Remove the directory, or choose another, to start anew."
            )
        return None

    def restore_best(self, state: TrainState) -> tuple[TrainState, Progress]:
        """The checkpoint of the highest accuracy. Errors as `restore`."""
        self.wait()
        step = self._manager.best_step()
        if step is None:
            raise CheckpointError(f"no checkpoint with an accuracy: {self._directory}.")
        try:
            return self._read(step, state)
        except _Damaged as found:
            raise CheckpointError(
                f"the best checkpoint, {step} in {self._directory}, is damaged "
                f"({found}). The last one may be sound: use restore."
            ) from found

    def _read(self, step: int, state: TrainState) -> tuple[TrainState, Progress]:
        meta = self._meta(step)
        self._compare(step, meta, state)
        weights, rest = jax.tree.map(_abstract, _tree(state))
        try:
            found = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    weights=ocp.args.StandardRestore(_split(weights, meta["blocks"])),
                    state=ocp.args.StandardRestore(rest),
                ),
            )
            weights, rest = reshape(found["weights"], weights), found["state"]
            progress = Progress(**meta["progress"])
        except Exception as error:
            raise _Damaged(first_line(error)) from error
        return _state(weights, rest, state), progress

    def _meta(self, step: int) -> dict[str, Any]:
        wrong = None
        if jax.process_index() == 0:
            wrong = damage(self._directory / str(step))
        # One host reads all, and the others believe it: all go on with the same step.
        if multihost_utils.broadcast_one_to_all(np.int32(wrong is not None)):
            raise _Damaged(wrong or "as the first host says")
        try:
            arguments = ocp.args.Composite(meta=ocp.args.JsonRestore())
            meta = self._manager.restore(step, args=arguments)["meta"]
            return {name: meta[name] for name in ("network", "progress", "blocks")}
        except Exception as error:
            raise _Damaged(first_line(error)) from error

    def _compare(self, step: int, meta: dict[str, Any], state: TrainState) -> None:
        """Raise CheckpointError unless `meta` has the fingerprint of `state`."""
        differences = compare(meta["network"], self._fingerprint(state))
        if differences:
            raise another_network(self._directory, step, differences)

    def _fingerprint(self, state: TrainState) -> dict[str, Any]:
        weights, rest = _tree(state)
        about = {**self._about, **order_of_units(state.net)}
        return fingerprint({**weights, **rest}, rates=state.net.rates, about=about)

    def _steps(self) -> tuple[int, ...]:
        return tuple(sorted(self._manager.all_steps()))

    def _seal(self) -> None:
        """Called by Orbax, in a thread of the first host: all but the name is there."""
        for unfinished in self._unfinished(self._writing):
            seal(unfinished)

    def _unfinished(self, step: int | None) -> list[Path]:
        return list(self._directory.glob(f"{step}.orbax-checkpoint-tmp*"))

    def _fail(self, error: Exception) -> NoReturn:
        """Free the space of the checkpoint whose writing failed, and say so."""
        step, self._writing = self._writing, None
        alone = jax.process_count() == 1
        # Parts of Orbax keep the error and would raise it at a later save. With several
        # hosts, of which only some may have failed, the run is at its end.
        if alone:
            with contextlib.suppress(Exception):
                self._manager.close()
        if jax.process_index() == 0:
            self._remove_unfinished(step)
        if alone:
            self._manager = self._open()
        raise CheckpointError(self._cannot_write(step, error)) from error

    def _remove_unfinished(self, step: int | None) -> None:
        """Remove what there is of a checkpoint that will not be finished.

        When one write fails, Orbax leaves the others to themselves: they go on for a
        moment, and would be in the way of the next attempt at this step.
        """
        for _ in range(50):
            for path in self._unfinished(step):
                shutil.rmtree(path, ignore_errors=True)
            time.sleep(0.05)
            if not self._unfinished(step):
                return

    def _put_aside(self, steps: list[int]) -> None:
        """Move damaged checkpoints out of the way of the ones that will follow."""
        if not steps:
            return
        if jax.process_index() == 0:
            for step in steps:
                target = self._directory.parent / f"damaged-{step}"
                shutil.rmtree(target, ignore_errors=True)
                (self._directory / str(step)).rename(target)
        multihost_utils.sync_global_devices("damaged checkpoints are put aside")
        self._manager.reload()

    def _cannot_write(self, step: int | None, error: Exception) -> str:
        full = "No space left" in str(error) or (
            isinstance(error, OSError) and error.errno == errno.ENOSPC
        )
        cause = "the disk is full" if full else first_line(error)
        advice = "Free some space" if full else "Mend that"
        kept = ", ".join(map(str, self._steps())) or "none"
        return (
            f"cannot write checkpoint {step} to {self._directory}: {cause}. "
            f"Earlier checkpoints are untouched (steps: {kept}). {advice} and resume."
        )


def _locked(directory: Path) -> Callable[[], None]:
    """Lock the directory, on the first host for all; returns what gives it back."""
    said, unlock = "", _nothing
    if jax.process_index() == 0:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            unlock = lock(directory)
        except (LockedError, OSError) as error:
            said = str(error)
    if multihost_utils.broadcast_one_to_all(np.int32(bool(said))):
        raise CheckpointError(said or f"{directory} is in use, as the first host says.")
    return unlock


def _nothing() -> None:
    """What there is to give back on other hosts."""


class _Damaged(Exception):
    """A checkpoint whose files are not what was written."""


def _accuracy(metrics: Any) -> float:
    return metrics["accuracy"]


def _tree(state: TrainState) -> tuple[dict[str, Any], dict[str, Any]]:
    """Weights, and the rest: plain containers, so that files know no class of ours."""
    weights = {"variables": state.net.variables}
    if state.averaged is not None:
        weights["averaged"] = {"params": state.averaged}
    elif has_evaluation_weights(state.opt_state):
        # Made of others that are here; it is written for `restore_narrow`.
        params = params_of(state.eval_net)
        weights["evaluation"] = {"params": jax.tree.map(jnp.asarray, params)}
    rest = {"step": state.step, "opt_state": state.opt_state, "key": state.key}
    for name in ("carried", "loss_scale"):
        if getattr(state, name) is not None:
            rest[name] = getattr(state, name)
    return weights, rest


def _state(weights: Any, rest: Any, like: TrainState) -> TrainState:
    return TrainState(
        step=rest["step"],
        net=with_variables(like.net, weights["variables"]),
        opt_state=rest["opt_state"],
        key=rest["key"],
        averaged=weights["averaged"]["params"] if "averaged" in weights else None,
        carried=rest.get("carried"),
        loss_scale=rest.get("loss_scale"),
    )


def _split(weights: dict[str, Any], blocks: dict[str, Any]) -> dict[str, Any]:
    """Types of the weights as they are on disk."""
    return {name: split_types(w, blocks[name]) for name, w in weights.items()}


def _by_block(weights: dict[str, Any], blocks: dict[str, Any]) -> dict[str, Any]:
    """Orbax's arguments by which every block is stored by itself."""

    def arguments(path: Any, leaf: jax.Array) -> ocp.SaveArgs:
        name, _, rest = path_name(path).partition("/")
        counts = range(0, leaf.ndim, 2) if rest in blocks[name] else ()
        return ocp.SaveArgs(shard_axes=tuple(counts))

    return jax.tree_util.tree_map_with_path(arguments, weights)


def _abstract(leaf: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def another_network(
    directory: Path, step: int, differences: list[str]
) -> CheckpointError:
    """The error for a checkpoint whose fingerprint differs."""
    return CheckpointError(
        f"checkpoint {step} in {directory} is of another network: "
        f"{'; '.join(differences)}. Use the settings it was made with, or another "
        "directory."
    )


def first_line(error: Exception) -> str:
    """The first line of an error's message, as a part of another message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a line of Orbax's log says what nobody is told otherwise.

    Errors are raised as well, and that a checkpoint has no accuracy is as it should be.
    """
    known = record.exc_info or "did not provide metrics" in str(record.msg)
    return not (known and "orbax" in record.pathname)
