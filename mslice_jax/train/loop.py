"""The training loop: one function, in the order in which things happen."""

import contextlib
import dataclasses
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import optax
from jax.experimental import multihost_utils

from ..core.rates import rate_key
from .checkpoints import Checkpoints, Progress
from .devices import Placement
from .interrupts import Stop, stop_on_interrupt
from .metrics import Evaluate, MetricsFile
from .state import TrainState
from .step import Batch, Metrics, TrainStep

# So many steps in a row without an update are no accident any more.
_SKIPPED_AT_MOST = 100


class NotFiniteError(ArithmeticError):
    """A loss that is not finite: the run cannot go on from there."""


class Watcher:
    """What a caller hears of a run. Every method does nothing until it is overridden.

    Rates are floats, losses in nats, accuracies in [0, 1].
    """

    def restored(self, step: int, progress: Progress) -> None:
        """The run goes on from a checkpoint of `step`."""

    def stepped(
        self, step: int, losses: dict[float, float], examples_per_second: float
    ) -> None:
        """Step number `step` (1 is the first) is done."""

    def evaluated(self, epoch: int, accuracy: dict[float, Any], loss: float) -> None:
        """`epoch` (1 is the first) is done; `loss` is its mean, at the widest rate.

        `accuracy` is what `evaluate` returned.
        """


class Watchers(Watcher):
    """Several watchers as one."""

    def __init__(self, *watchers: Watcher):
        self._watchers = watchers

    def restored(self, step: int, progress: Progress) -> None:
        """Tells all."""
        for watcher in self._watchers:
            watcher.restored(step, progress)

    def stepped(
        self, step: int, losses: dict[float, float], examples_per_second: float
    ) -> None:
        """Tells all."""
        for watcher in self._watchers:
            watcher.stepped(step, losses, examples_per_second)

    def evaluated(self, epoch: int, accuracy: dict[float, Any], loss: float) -> None:
        """Tells all."""
        for watcher in self._watchers:
            watcher.evaluated(epoch, accuracy, loss)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run ended.

    Attributes:
      state: the last state.
      progress: where the run stands.
      accuracy: what `evaluate` returned of `state.eval_net`, of each rate; empty if
        the run was interrupted.
      interrupted: what ended it before its last epoch: SIGINT (Ctrl-C), SIGTERM (the
        machine will be taken away), or None.
    """

    state: TrainState
    progress: Progress
    accuracy: dict[float, Any]
    interrupted: signal.Signals | None


def score_of_widest(results: Mapping[float, Any]) -> float:
    """How good a network is, by its widest rate: the accuracy, or else minus the loss.

    Example:
      >>> score_of_widest({0.5: 0.3, 1.0: 0.8})
      0.8
      >>> score_of_widest({1.0: {"loss": 2.0, "perplexity": 7.4}})
      -2.0
    """
    widest = results[max(results)]
    if not isinstance(widest, Mapping):
        return float(widest)
    if "accuracy" in widest:
        return float(widest["accuracy"])
    return -float(widest["loss"])


def train(
    state: TrainState,
    *,
    train_step: TrainStep,
    batches: Callable[[int], Iterator[Batch]],
    schedule: Callable[[int], tuple[float, ...]],
    evaluate: Evaluate,
    epochs: int,
    steps_per_epoch: int,
    checkpoints: Checkpoints,
    metrics: MetricsFile,
    placement: Placement | None = None,
    learning_rate: optax.Schedule | None = None,
    log_every: int = 10,
    save_every_steps: int | None = None,
    save_every_minutes: float | None = None,
    score: Callable[[Mapping[float, Any]], float] = score_of_widest,
    watcher: Watcher | None = None,
) -> Outcome:
    """Train to the end of epoch `epochs`, going on from the last checkpoint, if any.

    A run that was stopped and resumed, at whatever step, ends with the same weights,
    bit for bit, as one that was not: rates, data order and keys are functions of the
    step, and the rest is in the checkpoint. Ctrl-C and SIGTERM end it after the step
    under way (the last one of an epoch is evaluated first), with a checkpoint.

    A loss that is not finite ends the run, before anything is saved that came of it;
    with a step that skips such updates (`skip_not_finite`) the run goes on, unless a
    hundred steps in a row are skipped.

    Args:
      state: a fresh state; a checkpoint takes its place. Its buffers are used up.
      train_step: from `make_train_step`.
      batches: ``batches(step)`` iterates over the batches from that step on (0 is the
        first), without end, the same ones whenever it is asked.
      schedule: step -> rates of that step.
      evaluate: network -> accuracy of each rate, or a mapping of metrics.
      epochs: length of the whole run, resumed parts included.
      steps_per_epoch: batches an epoch.
      checkpoints: where to restore from and save to: after every epoch, and between.
      metrics: gets a line of losses every `log_every` steps, of accuracies each epoch;
        with the speed, and the share of the epoch's time spent waiting for `batches`.
      placement: the mesh that the run is on, the one of `train_step`; one device
        unless given. `state` is placed by this, and `batches` gives each host its part.
      learning_rate: schedule to be reported in the lines of losses.
      log_every: steps between two lines of losses.
      save_every_steps: a checkpoint after every step whose number this divides.
      save_every_minutes: a checkpoint when the last one is so old. Neither changes what
        the run computes.
      score: what `evaluate` returned -> how good it is: the checkpoint of the highest
        score is kept as the best.
      watcher: hears of every step.

    Returns:
      The last state and its accuracies.

    Raises:
      CheckpointError: if checkpoints cannot be used or written.
      NotFiniteError: for a loss that is not finite; it names the step and the rate.
      ValueError: for a number of steps or minutes that is not above 0.
    """
    watcher = watcher or Watcher()
    due = _Due(save_every_steps, save_every_minutes)
    if placement is not None:
        state = placement.state(state)
    restored = checkpoints.restore(state)
    if restored:
        # The caller still holds it, and would hold its memory through the run.
        for leaf in jax.tree.leaves(state):
            leaf.delete()
    state, progress = restored or (state, Progress())
    metrics.rewind(int(state.step))
    if restored:
        watcher.restored(int(state.step), progress)

    began = time.perf_counter() - progress.train_seconds
    stream = batches(int(state.step))
    skips = getattr(train_step, "skips_not_finite", False)
    log = _Log(metrics, watcher, learning_rate, log_every, skips=skips)
    accuracy: dict[float, Any] = {}
    with stop_on_interrupt() as stop:
        for epoch in range(progress.epoch, epochs):
            first = progress.batch if epoch == progress.epoch else 0
            log.begin_epoch(epoch)
            for index in range(first, steps_per_epoch):
                step = epoch * steps_per_epoch + index
                with log.waiting():
                    batch = next(stream)
                if placement is not None:
                    batch = placement.batch(batch)
                state, losses = train_step(state, batch, schedule(step))
                # Reading the losses of a step waits for it. The device is already
                # busy with the next one when this reads those of the last.
                log.put(step + 1, losses, images=_examples(batch))
                if index + 1 == steps_per_epoch:
                    continue
                stops = stop.after(step + 1)
                if due.after(step + 1) or stops:
                    log.flush()
                    progress = dataclasses.replace(
                        progress,
                        epoch=epoch,
                        batch=index + 1,
                        train_seconds=time.perf_counter() - began,
                    )
                    checkpoints.save(state, progress)
                    due.saved()
                if stops:
                    checkpoints.wait()
                    return _interrupted(state, progress, stop)
            log.flush()

            accuracy = dict(evaluate(state.eval_net))
            found = score(accuracy)
            scores = [x for x in (found, _best(progress)) if math.isfinite(x)]
            progress = Progress(
                epoch=epoch + 1,
                batch=0,
                best_accuracy=max(scores, default=Progress().best_accuracy),
                train_seconds=time.perf_counter() - began,
            )
            # The line first: a run that dies here writes it again after a rewind, one
            # that dies after the checkpoint would miss it.
            metrics.write(
                step=(epoch + 1) * steps_per_epoch,
                epoch=epoch + 1,
                **_lines(accuracy),
                train_seconds=round(progress.train_seconds, 3),
            )
            checkpoints.save(state, progress, accuracy=found)
            due.saved()
            watcher.evaluated(epoch + 1, accuracy, log.mean_loss())
            if stop.after((epoch + 1) * steps_per_epoch) and epoch + 1 < epochs:
                checkpoints.wait()
                return _interrupted(state, progress, stop)
        checkpoints.wait()

    # Nothing was left to train: the table is still owed.
    accuracy = accuracy or dict(evaluate(state.eval_net))
    return Outcome(state=state, progress=progress, accuracy=accuracy, interrupted=None)


def _interrupted(state: TrainState, progress: Progress, stop: Stop) -> Outcome:
    return Outcome(state=state, progress=progress, accuracy={}, interrupted=stop.signal)


def _best(progress: Progress) -> float:
    """The best score so far; minus infinity before the first evaluation."""
    before_any = progress.best_accuracy == Progress().best_accuracy
    return -math.inf if before_any else progress.best_accuracy


def _examples(batch: Any) -> int:
    """How many examples a batch has: the first axis of its arrays."""
    sizes = (np.shape(x)[0] for x in jax.tree.leaves(batch) if np.ndim(x))
    return next(sizes, 1)


def _lines(results: Mapping[float, Any]) -> dict[str, dict[str, float]]:
    """What an evaluation found, by metric and rate, as a line of the file has it."""
    lines: dict[str, dict[str, float]] = {}
    for rate, found in results.items():
        named = found if isinstance(found, Mapping) else {"accuracy": found}
        for name, value in named.items():
            # A line with "loss" is one of training.
            name = "loss_test" if name == "loss" else name
            lines.setdefault(name, {})[rate_key(rate)] = _short(value)
    return lines


class _Due:
    """Whether it is time for a checkpoint: the same on every host."""

    def __init__(self, steps: int | None, minutes: float | None):
        for name, value in (("steps", steps), ("minutes", minutes)):
            if value is not None and not value > 0:
                raise ValueError(f"expected save_every_{name} above 0, got {value}.")
        self._steps = steps
        self._seconds = None if minutes is None else 60 * minutes
        self.saved()

    def saved(self) -> None:
        """The time until the next one begins anew."""
        self._since = time.perf_counter()

    def after(self, step: int) -> bool:
        """Whether one is due after this step."""
        late = self._seconds is not None and (
            time.perf_counter() - self._since >= self._seconds
        )
        if self._seconds is not None and jax.process_count() > 1:
            # Clocks differ; a checkpoint is written by all hosts or by none.
            late = bool(multihost_utils.broadcast_one_to_all(np.int32(late)))
        return late or (self._steps is not None and step % self._steps == 0)


def _short(value: Any) -> float:
    """Six digits, which is what float32 holds and a person reads."""
    return float(f"{float(value):.6g}")


class _Log:
    """Reports each step one step late, when its numbers are likely to be there."""

    def __init__(self, metrics, watcher, learning_rate, every, *, skips):
        self._metrics: MetricsFile = metrics
        self._watcher: Watcher = watcher
        # jitted: op by op a schedule is slow, and compiles once for every operation
        self._learning_rate = jax.jit(learning_rate) if learning_rate else None
        self._every: int = every
        self._skips: bool = skips
        self._skipped = 0  # steps in a row
        self._pending: tuple[int, Metrics, int] | None = None
        self.begin_epoch(0)

    def begin_epoch(self, epoch: int) -> None:
        self._epoch = epoch
        self._widest_losses: list[float] = []
        self._since, self._images, self._waited = time.perf_counter(), 0, 0.0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts as time in which the run waits for its data."""
        began = time.perf_counter()
        yield
        self._waited += time.perf_counter() - began

    def put(self, step: int, losses: Metrics, *, images: int) -> None:
        """Report the step before this one; keep this one for later."""
        self.flush()
        self._pending = (step, losses, images)

    def flush(self) -> None:
        """Report what is pending."""
        if self._pending is None:
            return
        (step, values, images), self._pending = self._pending, None
        values = {rate: jax.device_get(value) for rate, value in values.items()}
        losses = {rate: float(value["loss"]) for rate, value in values.items()}
        self._check(step, losses)
        self._widest_losses.append(losses[max(losses)])
        self._images += images
        seconds = max(time.perf_counter() - self._since, 1e-9)
        speed = self._images / seconds
        self._watcher.stepped(step, losses, speed)
        if step % self._every == 0:
            more = {}
            if self._learning_rate is not None:
                more["learning_rate"] = _short(self._learning_rate(step - 1))
            self._metrics.write(
                step=step,
                epoch=self._epoch + 1,
                **_trained(values),
                examples_per_second=round(speed, 1),
                waiting_for_data=round(self._waited / seconds, 4),
                **more,
            )

    def mean_loss(self) -> float:
        """Mean over the epoch of the loss at the widest rate of each step.

        Without the steps that were skipped.
        """
        finite = [loss for loss in self._widest_losses if math.isfinite(loss)]
        return sum(finite) / max(len(finite), 1)

    def _check(self, step: int, losses: dict[float, float]) -> None:
        """Raise NotFiniteError if the run has to end with this step."""
        wrong = {rate: x for rate, x in losses.items() if not math.isfinite(x)}
        self._skipped = self._skipped + 1 if wrong else 0
        if not wrong or (self._skips and self._skipped < _SKIPPED_AT_MOST):
            return
        where = ", ".join(f"{loss} at rate {rate:g}" for rate, loss in wrong.items())
        if self._skips:
            where += f", as in the {_SKIPPED_AT_MOST - 1} steps before it"
        raise NotFiniteError(
            f"the loss of step {step} is {where}. The last checkpoint is from before "
            "it. Lower the learning rate, clip gradients, or pass skip_not_finite=True "
            "to make_train_step to leave such steps out."
        )


def _trained(values: Mapping[float, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """The metrics of a training step, by name and rate."""
    lines: dict[str, dict[str, float]] = {}
    for rate, found in values.items():
        for name, value in found.items():
            name = "loss" if name == "loss" else f"{name}_train"
            lines.setdefault(name, {})[rate_key(rate)] = _short(value)
    return lines
