"""The training step: gradients summed over the rates of the step, then one update.

The compiled pieces are one program per rate (`_Step.rate_step`) and one for the update
(`_Step.apply_updates`). A step over three rates runs three of the former and the
latter, so that four rates need five compilations, whichever combinations a schedule
draws. An optimizer that evaluates the loss itself (a line search) is compiled for each
combination.
"""

import concurrent.futures
import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ..cpu.compilation import jit
from . import optimizer_state
from .devices import Placement
from .loss_scale import all_finite
from .losses import Distillation, Loss
from .objective import Objective, with_collections
from .state import TrainState, params_of, with_variables
from .task import Task, image_classification

Batch = Any
"""Any tree of arrays; images (b, h, w, c) and labels (b,) unless a `Task` is given."""

Transform = Callable[[jax.Array, Any], Any]
"""(key, raw inputs) -> inputs that the network takes; runs in the compiled step."""

Metrics = dict[float, dict[str, jax.Array]]
"""For each rate of the step "loss" and the metrics, scalars that may not be ready."""


def no_transform(key: jax.Array, inputs: Any) -> Any:
    """Inputs as they come."""
    del key
    return inputs


class TrainStep(Protocol):
    """What `make_train_step` returns."""

    def __call__(
        self, state: TrainState, batch: Batch, rates: tuple[float, ...]
    ) -> tuple[TrainState, Metrics]:
        """Use up `state`, return the next one and what was measured on the way."""
        ...

    def compile(self, state: TrainState, batch: Batch, rates: Sequence[float]) -> float:
        """Compile the programs of these rates at the same time; returns the seconds."""
        ...


def make_train_step(
    optimizer: optax.GradientTransformation,
    *,
    task: Task | None = None,
    loss: Loss | None = None,
    metrics: Mapping[str, Callable[[Any, Any], jax.Array]] | None = None,
    transform: Transform = no_transform,
    distillation: Distillation | None = None,
    loss_weights: Mapping[float, float] | None = None,
    compute_dtype: Any = None,
    accumulate: int = 1,
    remat: bool = False,
    average: float | None = None,
    placement: Placement | None = None,
    skip_not_finite: bool = False,
    streams: Sequence[str] = (),
    call_kwargs: Mapping[str, Any] | None = None,
) -> TrainStep:
    """Build ``step(state, batch, rates) -> (state, metrics)``.

    The gradients of all `rates` are summed, not averaged, before the one update, as
    in the original (section 3.1 of the paper). All rates of a step see the same
    augmented inputs and the same keys: of the random stream "dropout", of every other
    stream of an NNX model, of those that `upgrade` was given a key for, and of
    `streams`. Only the collection "params" is differentiated. What a call changes of
    the other collections (batch statistics, your own) goes through the rates in their
    order, or is kept for each rate (`carry` of `TrainState.create`).

    The `state` that is passed is used up: its buffers become the new state's. Take
    what is needed of it before the call.

    Args:
      optimizer: Optax transformation, `TrainState.create` got the same one. It is given
        the summed loss as `value`, and functions of the weights (`value_fn`, `grad_fn`,
        `obj_fn`), if it asks.
      task: what a batch means; images and labels unless given. `language_model()` is
        another.
      loss: (outputs, targets) -> scalar, a mean over the batch; in place of the task's.
      metrics: name -> (outputs, targets) -> scalar; in place of the task's.
      transform: (key, inputs) -> inputs; augmentation and normalization.
      distillation: who teaches; None: the targets alone.
      loss_weights: what the loss of a rate is multiplied with, 1 unless given.
      compute_dtype: such as `jnp.bfloat16`: parameters and inputs are cast to it for
        the network's call. Weights, their updates, batch statistics, and outputs from
        the loss on stay as they are. `jnp.float16` needs a state with a `LossScale`.
      accumulate: a batch is computed in this many equal parts, one after the other,
        for batches that do not fit into memory at once. Batch norms see each part by
        itself.
      remat: whether the backward pass computes everything but the results of
        convolutions and dense layers again: less memory for more time.
      average: decay, such as 0.999, of the moving average of the weights that
        `TrainState.averaged` holds (state made with ``average=True``).
      placement: the mesh that state and batches were placed on.
      skip_not_finite: whether a step of which the loss or a gradient is not finite
        changes nothing but the step's number.
      streams: names of random streams besides those that are known.
      call_kwargs: what else the network's call takes. Unless given, ``train=True`` (or
        ``training=True``, ``is_training=True``, ``deterministic=False``) where the
        model takes it. ``mutable`` names the collections that may change, by default
        all of the network but "params"; where it names others, which the call makes
        (sown losses), `loss` and `metrics` get ``(outputs, those)`` as outputs.

    Returns:
      A function. Its metrics are arrays on the device: reading one waits for the step.
      It raises ValueError for a step without rates and for `loss_weights` of a rate
      that the network does not have, `OptimizerError` for an optimizer that needs what
      a step does not have, and what `slice_apply` raises for such a rate.
      ``step.compile(state, batch, rates)`` compiles the programs of these rates
      beforehand, at the same time.

    Raises:
      ValueError: for settings out of their range.

    Example:
      >>> import mslice_jax as ms, jax, jax.numpy as jnp
      >>> from flax import linen as nn
      >>> from mslice_jax.train import TrainState, make_train_step, sgd
      >>> model = nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(2)])
      >>> x, y = jnp.ones((4, 3)), jnp.array([0, 1, 0, 1])
      >>> net = ms.upgrade(model, model.init(jax.random.key(0), x), x, rates=(0.5, 1.0))
      >>> step = make_train_step(sgd(0.1))
      >>> state = TrainState.create(net, sgd(0.1), key=jax.random.key(0))
      >>> state, metrics = step(state, (x, y), (0.5, 1.0))
      >>> int(state.step), sorted(metrics), sorted(metrics[0.5])
      (1, [0.5, 1.0], ['accuracy', 'loss'])
    """
    if accumulate < 1:
        raise ValueError(f"expected to accumulate at least 1 part, got {accumulate}.")
    if average is not None and not 0 < average < 1:
        raise ValueError(f"expected an average's decay in (0, 1), got {average}.")
    if isinstance(streams, str):
        raise ValueError(f"expected streams=[{streams!r}], got {streams!r}.")
    if task is None:
        task = image_classification() if loss is None else Task(loss=loss)
    if loss is not None:
        task = dataclasses.replace(task, loss=loss)
    if metrics is not None:
        task = dataclasses.replace(task, metrics=dict(metrics))
    objective = Objective(
        task=task,
        transform=transform,
        distillation=distillation,
        loss_weights=dict(loss_weights or {}),
        compute_dtype=compute_dtype,
        accumulate=accumulate,
        remat=remat,
        call_kwargs=None if call_kwargs is None else dict(call_kwargs),
        streams=tuple(streams),
    )
    return _Step(
        optimizer,
        objective,
        average=average,
        placement=placement,
        skip_not_finite=skip_not_finite,
    )


class _Step:
    """A step with its settings and its jitted pieces."""

    def __init__(
        self,
        optimizer: Any,
        objective: Objective,
        *,
        average: float | None,
        placement: Placement | None,
        skip_not_finite: bool,
    ):
        self.skips_not_finite = skip_not_finite
        self._optimizer = optimizer
        self._objective = objective
        self._average = average
        self._placement = placement
        self._asks_for_loss = False  # whether the optimizer evaluates the loss itself
        self._rate_step = jit(
            self.rate_step, static_argnames="rate", donate_argnames="sums"
        )
        # `sums` is not donated: the optimizer's buffers and the weights already have
        # theirs to give, and a third set would find no output of its kind.
        self._apply_updates = jax.jit(
            self.apply_updates, static_argnames="rates", donate_argnames="state"
        )
        # Unused as they are, the weights stay arguments: zeros that come from constants
        # alone are placed otherwise than gradients, and would cost a compilation more.
        self._zeros = jax.jit(self.zeros, keep_unused=True)
        self._ask_teacher = jit(objective.teach)

    def __call__(
        self, state: TrainState, batch: Batch, rates: tuple[float, ...]
    ) -> tuple[TrainState, Metrics]:
        if not rates:
            raise ValueError("expected at least one rate for a training step, got ().")
        self._check(state, batch)
        batch, rates = _on_device(batch), tuple(self._in_turn(rates))
        metrics, sums = {}, self._zeros(params_of(state.net))
        taught = first = self._ask_teacher(state, batch) if self._has_teacher else None
        before = state
        for rate in rates:
            sums, collections, metrics[rate], lesson = self._rate_step(
                state, sums, batch, taught, rate=rate
            )
            taught = lesson if taught is None else taught
            state = with_collections(state, collections, rate)
        arguments = self._arguments(before, state, batch, first, rates)
        try:
            moved, chosen = self._apply_updates(_bare(state), sums, **arguments)
        except _AsksForLoss:
            self._asks_for_loss = True
            arguments = self._arguments(before, state, batch, first, rates)
            moved, chosen = self._apply_updates(_bare(state), sums, **arguments)
        return _whole(moved, chosen or _collections(state)), metrics

    def compile(self, state: TrainState, batch: Batch, rates: Sequence[float]) -> float:
        began = time.perf_counter()
        self._check(state, batch)
        rates = tuple(self._in_turn(rates))
        sums = self._zeros(params_of(state.net))
        # Tracing is Python and takes turns; XLA works without the interpreter. More of
        # it at a time than there are cores takes longer.
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            compiled, taught = [], None
            if self._has_teacher:
                teacher = self._ask_teacher.lower(state, batch)
                compiled.append(pool.submit(teacher.compile))
                taught = teacher.out_info
            # One that asks for the loss is compiled for the rates of each step.
            with contextlib.suppress(_AsksForLoss):
                arguments = self._arguments(state, state, batch, taught, rates)
                update = self._apply_updates.lower(_bare(state), sums, **arguments)
                compiled.append(pool.submit(update.compile))
            for rate in rates:
                one = self._rate_step.lower(state, sums, batch, taught, rate=rate)
                compiled.append(pool.submit(one.compile))
                taught = one.out_info[3] if taught is None else taught
            for future in compiled:
                future.result()
        return time.perf_counter() - began

    @property
    def _has_teacher(self) -> bool:
        distillation = self._objective.distillation
        return distillation is not None and distillation.teacher is not None

    def _in_turn(self, rates: Sequence[float]) -> Sequence[float]:
        """The widest first where it teaches the others; else as they come."""
        distils = self._objective.distillation is not None
        return sorted(rates, reverse=True) if distils else rates

    def _check(self, state: TrainState, batch: Batch) -> None:
        objective = self._objective
        unknown = objective.loss_weights.keys() - set(state.net.rates)
        if unknown:
            raise ValueError(
                f"expected loss_weights of the network's rates {state.net.rates}, got "
                f"one of {', '.join(map(repr, unknown))}."
            )
        half = objective.compute_dtype is not None and (
            jnp.dtype(objective.compute_dtype) == jnp.float16
        )
        if half and state.loss_scale is None:
            raise ValueError(
                "float16 loses small gradients without a loss scale: make the state "
                "with TrainState.create(..., loss_scale=LossScale.start()), or compute "
                "in bfloat16."
            )
        parts = objective.accumulate
        if parts == 1:
            return
        sizes = {x.shape[0] for x in jax.tree.leaves(batch) if np.ndim(x)}
        if len(sizes) > 1:
            raise ValueError(
                "accumulate= needs arrays with the examples on their first axis, or "
                f"scalars; got first axes of {sorted(sizes)}."
            )
        size = sizes.pop() if sizes else 0
        if size % parts:
            raise ValueError(
                f"expected a batch that divides into accumulate={parts} equal parts, "
                f"got {size} examples."
            )
        if state.carried is not None:
            raise ValueError(
                "accumulate= divides a batch, and what is carried from batch to batch "
                "cannot be divided with it. Use accumulate=1."
            )

    def _arguments(
        self,
        before: TrainState,
        state: TrainState,
        batch: Batch,
        taught: Any,
        rates: tuple[float, ...],
    ) -> dict[str, Any]:
        """What an update needs besides gradients: nothing, unless it was asked for."""
        guards = self.skips_not_finite or state.loss_scale is not None
        asks = self._asks_for_loss
        return {
            "before": _collections(before) if guards or asks else None,
            "after": _collections(state) if guards else None,
            "batch": batch if asks else None,
            "taught": taught if asks else None,
            "rates": rates if asks else None,
        }

    # -- the compiled pieces

    def zeros(self, params: Any) -> Any:
        """Where gradients and losses are added up."""
        zero = jnp.zeros((), jnp.result_type(float))
        return self._placed(
            {"params": jax.tree.map(jnp.zeros_like, params), "value": zero}
        )

    def rate_step(
        self, state: TrainState, sums: Any, batch: Batch, taught: Any, *, rate: float
    ) -> tuple[Any, Any, Any, Any]:
        """Adds this rate's gradients to `sums`; also new collections, and metrics."""
        sums, collections, results, lesson = self._objective.slope(
            state, sums, batch, taught, rate
        )
        return *self._placed((sums, collections)), results, lesson

    def apply_updates(
        self,
        state: TrainState,
        sums: Any,
        *,
        before: Any,
        after: Any,
        batch: Any,
        taught: Any,
        rates: tuple[float, ...] | None,
    ) -> tuple[TrainState, Any]:
        """The next state, without collections; and these, if there is a choice.

        Args:
          state: without its collections.
          sums: gradients and loss of all rates.
          before: the collections at the beginning of the step, if asked for.
          after: those that the step left, if they may have to be dropped.
          batch, taught, rates: of the step, if the optimizer evaluates the loss.
        """
        params, scale = params_of(state.net), state.loss_scale
        grads = sums["params"]
        if scale is not None:
            size = scale.scale
            grads = jax.tree.map(lambda g: g / size.astype(g.dtype), grads)

        def objective(params: Any, *_: Any) -> jax.Array:
            if rates is None:
                raise _AsksForLoss
            whole = _whole(state, before)
            return self._objective.value(params, whole, batch, taught, rates)

        extra = {
            "value": sums["value"],
            "grad": grads,
            "value_fn": objective,
            "obj_fn": objective,
            "grad_fn": jax.grad(objective),
        }
        new, opt_state = optimizer_state.update(
            self._optimizer, grads, state.opt_state, params, extra
        )
        moving = (new, opt_state, self._averaged(state, new), after)
        if after is not None:
            sound = all_finite((grads, sums["value"]))
            staying = (params, state.opt_state, state.averaged, before)
            moving = jax.tree.map(
                lambda moved, stayed: jnp.where(sound, moved, stayed), moving, staying
            )
            scale = None if scale is None else scale.after(sound)
        new, opt_state, averaged, chosen = moving
        moved = TrainState(
            step=state.step + 1,
            net=state.net.replace({"params": new}),
            opt_state=opt_state,
            key=state.key,
            averaged=averaged,
            loss_scale=scale,
        )
        return self._placed((moved, chosen))

    def _placed(self, tree: Any) -> Any:
        """The tree where it belongs, so that the next step finds it where this did."""
        return tree if self._placement is None else self._placement.constrain(tree)

    def _averaged(self, state: TrainState, params: Any) -> Any:
        if self._average is None:
            return state.averaged
        if state.averaged is None:
            raise ValueError(
                "average= needs a state that holds an average: make it with "
                "TrainState.create(..., average=True)."
            )
        # The first steps, whose weights are still those of the start, count less.
        step = state.step.astype(jnp.float32)
        share = 1 - jnp.minimum(self._average, (1 + step) / (10 + step))

        def moved(mean: jax.Array, new: jax.Array) -> jax.Array:
            part: Any = share.astype(mean.dtype)
            result: Any = optax.incremental_update(new, mean, part)
            return result.astype(mean.dtype)

        return jax.tree.map(moved, state.averaged, params)


class _AsksForLoss(Exception):
    """Raised while an update is traced for an optimizer that evaluates the loss."""


def _collections(state: TrainState) -> Any:
    """All of a state that calls of the network change."""
    shared = {k: v for k, v in state.net.variables.items() if k != "params"}
    return {"shared": shared, "carried": state.carried}


def _bare(state: TrainState) -> TrainState:
    """The state without its collections, which an update does not touch."""
    net = state.net.replace({"params": params_of(state.net)})
    return dataclasses.replace(state, net=net, carried=None)


def _whole(state: TrainState, collections: Any) -> TrainState:
    """The inverse of taking collections away."""
    net = with_variables(state.net, collections["shared"])
    return dataclasses.replace(state, net=net, carried=collections["carried"])


def _on_device(batch: Batch) -> Batch:
    """NumPy's arrays put where JAX computes, as `jax.transfer_guard` wants it said."""
    return jax.tree.map(
        lambda x: jax.device_put(x) if isinstance(x, (np.ndarray, np.generic)) else x,
        batch,
    )
