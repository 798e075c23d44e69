"""Checkpoints through Orbax: the best and the last ones, checked before they are used.

A checkpoint holds all that a run needs to continue exactly: weights, optimizer state,
step and key (arrays), the position in the data, the best accuracy and the time spent
(`Progress`), and a fingerprint of the network, so that one of another network is
refused with the leaves that differ and not with a shape error further on.
"""

import contextlib
import dataclasses
import errno
import hashlib
import logging
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np
import orbax.checkpoint as ocp

from mslice_jax.sliceable import Sliceable

from .fingerprint import compare, fingerprint
from .integrity import damage, seal
from .state import TrainState, with_variables


class CheckpointError(Exception):
    """A checkpoint that cannot be written, read or used; it says what to do."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a run stands, besides its arrays.

    Attributes:
      epoch: epochs completed; also the index of the one to go on with.
      batch: batches of that epoch already used.
      best_accuracy: the highest so far at the widest rate, in [0, 1]; -1 before the
        first evaluation.
      train_seconds: wall time spent so far, all parts of the run together.
    """

    epoch: int = 0
    batch: int = 0
    best_accuracy: float = -1.0
    train_seconds: float = 0.0


class Checkpoints:
    """The checkpoints of one run: the last `keep` and the best one.

    Each is written completely before it takes its name, and older ones are removed
    only after that: a process that is killed, or a disk that is full, loses none.

    Args:
      directory: made if absent, together with its parents.
      keep: how many of the last ones stay.
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
        about: Mapping[str, Any] | None = None,
        report: Callable[[str], None] = warnings.warn,
    ):
        self._directory = Path(directory).absolute()
        self._about = dict(about or {})
        self._report = report
        managers = ocp.checkpoint_managers
        self._manager = ocp.CheckpointManager(
            self._directory,
            options=ocp.CheckpointManagerOptions(
                best_fn=_accuracy,
                preservation_policy=managers.AnyPreservationPolicy(
                    [
                        managers.LatestN(keep),
                        managers.BestN(
                            get_metric_fn=_accuracy,
                            n=1,
                            keep_checkpoints_without_metrics=False,
                        ),
                    ]
                ),
                cleanup_tmp_directories=True,  # what a killed run left unfinished
                enable_async_checkpointing=False,
            ),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._manager.close()

    def steps(self) -> tuple[int, ...]:
        """Steps of the checkpoints on disk, ascending."""
        return tuple(sorted(self._manager.all_steps()))

    def save(
        self, state: TrainState, progress: Progress, *, accuracy: float | None = None
    ) -> None:
        """Write a checkpoint of `state`; returns when it is complete.

        Args:
          state: what to keep. It is read, not donated.
          progress: what to keep besides.
          accuracy: decides which checkpoint is the best; None for one that was made
            between two evaluations, which is kept only as one of the last.

        Raises:
          CheckpointError: if it cannot be written (full disk, no permission). Earlier
            checkpoints are untouched.
        """
        step = int(state.step)
        meta = {
            "progress": dataclasses.asdict(progress),
            "network": self._fingerprint(state),
        }
        arguments = ocp.args.Composite(
            state=ocp.args.StandardSave(_tree(state)), meta=ocp.args.JsonSave(meta)
        )
        metrics = None if accuracy is None else {"accuracy": accuracy}
        try:
            if step in self.steps():
                # Stopped between epochs: the same weights, so only the rest is news.
                return
            with _quiet():
                self._manager.save(step, args=arguments, metrics=metrics, force=True)
            seal(self._directory / str(step))
        except Exception as error:  # Orbax wraps the system's errors in many types
            self._remove_unfinished(step)
            raise CheckpointError(self._cannot_write(step, error)) from error

    def check(self, state: TrainState) -> None:
        """Raise CheckpointError if a checkpoint here is of another network."""
        for step in self.steps():
            with contextlib.suppress(_Damaged):
                self._compare(step, self._meta(step)["network"], state)

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
        self._compare(step, meta["network"], state)
        like = jax.tree.map(_abstract, _tree(state))
        try:
            arguments = ocp.args.Composite(state=ocp.args.StandardRestore(like))
            with _quiet():
                tree = self._manager.restore(step, args=arguments)["state"]
            progress = Progress(**meta["progress"])
        except Exception as error:
            raise _Damaged(_first_line(error)) from error
        return _state(tree, state), progress

    def _meta(self, step: int) -> dict[str, Any]:
        wrong = damage(self._directory / str(step))
        if wrong is not None:
            raise _Damaged(wrong)
        try:
            arguments = ocp.args.Composite(meta=ocp.args.JsonRestore())
            with _quiet():
                meta = self._manager.restore(step, args=arguments)["meta"]
            return {"network": meta["network"], "progress": meta["progress"]}
        except Exception as error:
            raise _Damaged(_first_line(error)) from error

    def _compare(self, step: int, found: dict[str, Any], state: TrainState) -> None:
        """Raise CheckpointError unless `found` is the fingerprint of `state`."""
        differences = compare(found, self._fingerprint(state))
        if differences:
            raise CheckpointError(
                f"checkpoint {step} in {self._directory} is of another network: "
                f"{'; '.join(differences)}. Use the settings it was made with, or "
                "another directory."
            )

    def _fingerprint(self, state: TrainState) -> dict[str, Any]:
        about = {**self._about, **_order(state.net)}
        return fingerprint(_tree(state), rates=state.net.rates, about=about)

    def _put_aside(self, steps: list[int]) -> None:
        """Move damaged checkpoints out of the way of the ones that will follow."""
        for step in steps:
            target = self._directory.parent / f"damaged-{step}"
            shutil.rmtree(target, ignore_errors=True)
            (self._directory / str(step)).rename(target)
        if steps:
            self._manager.reload()

    def _remove_unfinished(self, step: int) -> None:
        """Free the space of a checkpoint whose writing failed."""
        for path in self._directory.glob(f"{step}.orbax-checkpoint-tmp*"):
            shutil.rmtree(path, ignore_errors=True)
        if not (self._directory / str(step) / "seal.json").exists():
            shutil.rmtree(self._directory / str(step), ignore_errors=True)
        self._manager.reload()

    def _cannot_write(self, step: int, error: Exception) -> str:
        full = "No space left" in str(error) or (
            isinstance(error, OSError) and error.errno == errno.ENOSPC
        )
        cause = "the disk is full" if full else _first_line(error)
        advice = "Free some space" if full else "Mend that"
        kept = ", ".join(map(str, self.steps())) or "none"
        return (
            f"cannot write checkpoint {step} to {self._directory}: {cause}. "
            f"Earlier checkpoints are untouched (steps: {kept}). {advice} and resume."
        )


class _Damaged(Exception):
    """A checkpoint whose files are not what was written."""


def _accuracy(metrics: Any) -> float:
    return metrics["accuracy"]


def _tree(state: TrainState) -> dict[str, Any]:
    """Plain containers, so that what is on disk does not depend on our classes."""
    tree = {
        "step": state.step,
        "variables": state.net.variables,
        "opt_state": state.opt_state,
        "key": state.key,
    }
    return tree if state.averaged is None else {**tree, "averaged": state.averaged}


def _order(net: Sliceable) -> dict[str, str]:
    """The order of the units: after `reorder` constants of the network follow it."""
    if not net.definition.orders:
        return {}
    digest = hashlib.sha256()
    for name, order in sorted(net.definition.orders.items()):
        digest.update(name.encode() + np.asarray(order, np.int64).tobytes())
    return {"order of units": digest.hexdigest()[:16]}


def _state(tree: dict[str, Any], like: TrainState) -> TrainState:
    return TrainState(
        step=tree["step"],
        net=with_variables(like.net, tree["variables"]),
        opt_state=tree["opt_state"],
        key=tree["key"],
        averaged=tree.get("averaged"),
    )


def _abstract(leaf: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep Orbax from logging the traceback of an error that is raised as well."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
