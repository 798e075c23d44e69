"""The training loop: one function, in the order in which things happen."""

import contextlib
import dataclasses
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import optax

from ..core.rates import rate_key
from .checkpoints import Checkpoints, Progress
from .devices import Placement
from .interrupts import Stop, stop_on_interrupt
from .metrics import Evaluate, MetricsFile
from .state import TrainState
from .step import Batch, Metrics, TrainStep


class Watcher:
    """What a caller hears of a run. Every method does nothing until it is overridden.

    Rates are floats, losses in nats, accuracies in [0, 1].
    """

    def restored(self, step: int, progress: Progress) -> None:
        """The run goes on from a checkpoint of `step`."""

    def stepped(
        self, step: int, losses: dict[float, float], images_per_second: float
    ) -> None:
        """Step number `step` (1 is the first) is done."""

    def evaluated(self, epoch: int, accuracy: dict[float, float], loss: float) -> None:
        """`epoch` (1 is the first) is done; `loss` is its mean, at the widest rate."""


class Watchers(Watcher):
    """Several watchers as one."""

    def __init__(self, *watchers: Watcher):
        self._watchers = watchers

    def restored(self, step: int, progress: Progress) -> None:
        """Tells all."""
        for watcher in self._watchers:
            watcher.restored(step, progress)

    def stepped(
        self, step: int, losses: dict[float, float], images_per_second: float
    ) -> None:
        """Tells all."""
        for watcher in self._watchers:
            watcher.stepped(step, losses, images_per_second)

    def evaluated(self, epoch: int, accuracy: dict[float, float], loss: float) -> None:
        """Tells all."""
        for watcher in self._watchers:
            watcher.evaluated(epoch, accuracy, loss)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run ended.

    Attributes:
      state: the last state.
      progress: where the run stands.
      accuracy: of each rate in [0, 1], of `state.eval_net`; empty if the run was
        interrupted.
      interrupted: what ended it before its last epoch: SIGINT (Ctrl-C), SIGTERM (the
        machine will be taken away), or None.
    """

    state: TrainState
    progress: Progress
    accuracy: dict[float, float]
    interrupted: signal.Signals | None


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
    watcher: Watcher | None = None,
) -> Outcome:
    """Train to the end of epoch `epochs`, going on from the last checkpoint, if any.

    A run that was stopped and resumed, at whatever step, ends with the same weights,
    bit for bit, as one that was not: rates, data order and keys are functions of the
    step, and the rest is in the checkpoint. Ctrl-C and SIGTERM end it behind the step
    under way (the last one of an epoch is evaluated first), with a checkpoint.

    Args:
      state: a fresh state; a checkpoint takes its place. Its buffers are used up.
      train_step: from `make_train_step`.
      batches: ``batches(step)`` iterates over the batches from that step on (0 is the
        first), without end, the same ones whenever it is asked.
      schedule: step -> rates of that step.
      evaluate: network -> accuracy of each rate.
      epochs: length of the whole run, resumed parts included.
      steps_per_epoch: batches an epoch.
      checkpoints: where to restore from and save to; once an epoch.
      metrics: gets a line of losses every `log_every` steps, of accuracies each epoch;
        with the speed, and the share of the epoch's time spent waiting for `batches`.
      placement: the mesh that the run is on, the one of `train_step`; one device
        unless given. `state` is placed by this, and `batches` gives each host its part.
      learning_rate: schedule to be reported in the lines of losses.
      log_every: steps between two lines of losses.
      watcher: hears of every step.

    Returns:
      The last state and its accuracies.

    Raises:
      CheckpointError: if checkpoints cannot be used or written.
    """
    watcher = watcher or Watcher()
    if placement is not None:
        state = placement.state(state)
    restored = checkpoints.restore(state)
    if restored:
        # Whoever called still holds it, and would hold its memory through the run.
        for leaf in jax.tree.leaves(state):
            leaf.delete()
    state, progress = restored or (state, Progress())
    metrics.rewind(int(state.step))
    if restored:
        watcher.restored(int(state.step), progress)

    began = time.perf_counter() - progress.train_seconds
    stream = batches(int(state.step))
    log = _Log(metrics, watcher, learning_rate, log_every)
    accuracy: dict[float, float] = {}
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
                log.put(step + 1, losses, images=len(batch[1]))
                if stop.after(step + 1) and index + 1 < steps_per_epoch:
                    log.flush()
                    progress = dataclasses.replace(
                        progress,
                        epoch=epoch,
                        batch=index + 1,
                        train_seconds=time.perf_counter() - began,
                    )
                    checkpoints.save(state, progress)
                    checkpoints.wait()
                    return _interrupted(state, progress, stop)
            log.flush()

            accuracy = evaluate(state.eval_net)
            widest = accuracy[max(accuracy)]
            progress = Progress(
                epoch=epoch + 1,
                batch=0,
                best_accuracy=max(widest, progress.best_accuracy),
                train_seconds=time.perf_counter() - began,
            )
            # The line first: a run that dies here writes it again after a rewind, one
            # that dies after the checkpoint would miss it.
            metrics.write(
                step=(epoch + 1) * steps_per_epoch,
                epoch=epoch + 1,
                accuracy={rate_key(rate): _short(a) for rate, a in accuracy.items()},
                train_seconds=round(progress.train_seconds, 3),
            )
            checkpoints.save(state, progress, accuracy=widest)
            watcher.evaluated(epoch + 1, accuracy, log.mean_loss())
            if stop.after((epoch + 1) * steps_per_epoch) and epoch + 1 < epochs:
                checkpoints.wait()
                return _interrupted(state, progress, stop)
        checkpoints.wait()

    # Nothing was left to train: the table is still owed.
    accuracy = accuracy or evaluate(state.eval_net)
    return Outcome(state=state, progress=progress, accuracy=accuracy, interrupted=None)


def _interrupted(state: TrainState, progress: Progress, stop: Stop) -> Outcome:
    return Outcome(state=state, progress=progress, accuracy={}, interrupted=stop.signal)


def _short(value: Any) -> float:
    """Six digits, which is what float32 holds and a person reads."""
    return float(f"{float(value):.6g}")


class _Log:
    """Reports each step one step late, when its numbers are likely to be there."""

    def __init__(self, metrics, watcher, learning_rate, every):
        self._metrics: MetricsFile = metrics
        self._watcher: Watcher = watcher
        # jitted: op by op a schedule is slow, and compiles once for every operation
        self._learning_rate = jax.jit(learning_rate) if learning_rate else None
        self._every: int = every
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
        losses = {rate: float(value["loss"]) for rate, value in values.items()}
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
                loss={rate_key(rate): _short(loss) for rate, loss in losses.items()},
                accuracy_train={
                    rate_key(rate): _short(value["accuracy"])
                    for rate, value in values.items()
                },
                images_per_second=round(speed, 1),
                waiting_for_data=round(self._waited / seconds, 4),
                **more,
            )

    def mean_loss(self) -> float:
        """Mean over the epoch of the loss at the widest rate of each step."""
        return sum(self._widest_losses) / max(len(self._widest_losses), 1)
