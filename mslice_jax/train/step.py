"""The training step: gradients summed over the rates of the step, then one update.

The compiled pieces are one program per rate (`_Step.rate_step`) and one for the update
(`_Step.apply_updates`). A step over three rates runs three of the former and the
latter, so that four rates need five compilations, whichever combinations a schedule
draws.
"""

import concurrent.futures
import dataclasses
import os
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax

from ..cpu.compilation import jit
from ..sliceable import slice_apply
from .devices import Placement
from .losses import Distillation, Loss, cross_entropy
from .state import TrainState, params_of, with_variables

Batch = tuple[Any, Any]
"""Images (b, h, w, c) and integer labels (b,)."""

Transform = Callable[[jax.Array, jax.Array], jax.Array]
"""(key, raw images) -> images that the network takes; runs inside the compiled step."""

Metrics = dict[float, dict[str, jax.Array]]
"""For each rate of the step: "loss" and "accuracy", scalars that may not be ready."""


def no_transform(key: jax.Array, images: jax.Array) -> jax.Array:
    """Images as they come."""
    del key
    return images


class TrainStep(Protocol):
    """What `make_train_step` returns."""

    def __call__(
        self, state: TrainState, batch: Batch, rates: tuple[float, ...]
    ) -> tuple[TrainState, Metrics]:
        """Use up `state`, return the next one and what was measured on the way."""
        ...

    def compile(self, state: TrainState, batch: Batch, rates: Sequence[float]) -> float:
        """Compile the programs of these rates side by side; returns the seconds."""
        ...


def make_train_step(
    optimizer: optax.GradientTransformation,
    *,
    transform: Transform = no_transform,
    loss: Loss = cross_entropy,
    distillation: Distillation | None = None,
    loss_weights: Mapping[float, float] | None = None,
    compute_dtype: Any = None,
    accumulate: int = 1,
    remat: bool = False,
    average: float | None = None,
    placement: Placement | None = None,
    call_kwargs: Mapping[str, Any] | None = None,
) -> TrainStep:
    """Build ``step(state, batch, rates) -> (state, metrics)``.

    The gradients of all `rates` are summed, not averaged, before the one update, as
    in the original (section 3.1 of the paper). All rates of a step see the same
    augmented images and the same keys: of the random stream "dropout", of every other
    stream of an NNX model, and of those that `upgrade` was given a key for. Batch
    statistics go through the rates in their order. Only the collection "params" is
    differentiated.

    The `state` that is passed is used up: its buffers become the new state's. Take
    what is needed of it before the call.

    Args:
      optimizer: Optax transformation, `TrainState.create` got the same one.
      transform: (key, images) -> images; augmentation and normalization.
      loss: (logits, labels) -> scalar, a mean over the batch.
      distillation: who teaches; None: the labels alone.
      loss_weights: what the loss of a rate is multiplied with, 1 unless given.
      compute_dtype: such as `jnp.bfloat16`: parameters and images are cast to it for
        the network's call. Weights, their updates, batch statistics, and logits from
        the loss on stay as they are.
      accumulate: a batch is worked off in this many equal parts, one after the other,
        for batches that do not fit into memory at once. Batch norms see each part by
        itself.
      remat: whether the backward pass computes everything but the results of
        convolutions and dense layers again: less memory for more time.
      average: decay, such as 0.999, of the moving average of the weights that
        `TrainState.averaged` holds (state made with ``average=True``).
      placement: the mesh that state and batches were placed on.
      call_kwargs: what else the network's call takes; ``{"train": True}`` unless
        given.

    Returns:
      A function. Its metrics are arrays on the device: reading one waits for the step.
      It raises ValueError for a step without rates and for `loss_weights` of a rate
      that the network does not have, and what `slice_apply` raises for such a rate.
      ``step.compile(state, batch, rates)`` compiles the programs of these rates
      beforehand, side by side.

    Raises:
      ValueError: for settings out of their range.

    Example:
      >>> import mslice_jax as ms, jax, jax.numpy as jnp
      >>> from flax import linen as nn
      >>> from mslice_jax.train import TrainState, make_train_step, sgd
      >>> model = nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(2)])
      >>> x, y = jnp.ones((4, 3)), jnp.array([0, 1, 0, 1])
      >>> net = ms.upgrade(model, model.init(jax.random.key(0), x), x, rates=(0.5, 1.0))
      >>> step = make_train_step(sgd(0.1), call_kwargs={})
      >>> state = TrainState.create(net, sgd(0.1), key=jax.random.key(0))
      >>> state, metrics = step(state, (x, y), (0.5, 1.0))
      >>> int(state.step), sorted(metrics)
      (1, [0.5, 1.0])
    """
    if accumulate < 1:
        raise ValueError(f"expected to accumulate at least 1 part, got {accumulate}.")
    if average is not None and not 0 < average < 1:
        raise ValueError(f"expected an average's decay in (0, 1), got {average}.")
    settings = _Settings(
        optimizer=optimizer,
        transform=transform,
        loss=loss,
        distillation=distillation,
        loss_weights=dict(loss_weights or {}),
        compute_dtype=compute_dtype,
        accumulate=accumulate,
        remat=remat,
        average=average,
        placement=placement,
        call_kwargs={"train": True} if call_kwargs is None else dict(call_kwargs),
    )
    return _Step(settings)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Settings:
    """The arguments of `make_train_step`, see there."""

    optimizer: optax.GradientTransformation
    transform: Transform
    loss: Loss
    distillation: Distillation | None
    loss_weights: dict[float, float]
    compute_dtype: Any
    accumulate: int
    remat: bool
    average: float | None
    placement: Placement | None
    call_kwargs: dict[str, Any]


class _Step:
    """A step with its settings and its jitted pieces."""

    def __init__(self, settings: _Settings):
        self._settings = settings
        self._rate_step = jit(
            self.rate_step, static_argnames="rate", donate_argnames="grads"
        )
        # `grads` is not donated: the optimizer's buffers and the weights already have
        # theirs to give, and a third set would find no output of its kind.
        self._apply_updates = jax.jit(self.apply_updates, donate_argnames="state")
        # Unused as they are, the weights stay arguments: zeros that come from constants
        # alone are placed otherwise than gradients, and would cost a compilation more.
        self._zeros = jax.jit(self.zeros, keep_unused=True)
        self._ask_teacher = jit(self.teacher_logits)

    def __call__(
        self, state: TrainState, batch: Batch, rates: tuple[float, ...]
    ) -> tuple[TrainState, Metrics]:
        if not rates:
            raise ValueError("expected at least one rate for a training step, got ().")
        self._check(state, batch)
        metrics, grads = {}, self._zeros(params_of(state.net))
        taught = self._ask_teacher(state, batch) if self._has_teacher else None
        for rate in self._in_turn(rates):
            grads, updates, metrics[rate], logits = self._rate_step(
                state, grads, batch, taught, rate=rate
            )
            taught = self._next_lesson(taught, logits)
            state = dataclasses.replace(state, net=with_variables(state.net, updates))
        return self._apply_updates(state, grads), metrics

    def compile(self, state: TrainState, batch: Batch, rates: Sequence[float]) -> float:
        began = time.perf_counter()
        self._check(state, batch)
        grads = self._zeros(params_of(state.net))
        # Tracing is Python and takes turns; XLA works without the interpreter. More of
        # it at a time than there are cores takes longer.
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            compiled = [pool.submit(self._apply_updates.lower(state, grads).compile)]
            taught = None
            if self._has_teacher:
                teacher = self._ask_teacher.lower(state, batch)
                compiled.append(pool.submit(teacher.compile))
                taught = teacher.out_info
            for rate in self._in_turn(rates):
                one = self._rate_step.lower(state, grads, batch, taught, rate=rate)
                compiled.append(pool.submit(one.compile))
                taught = self._next_lesson(taught, one.out_info[3])
            for future in compiled:
                future.result()
        return time.perf_counter() - began

    @property
    def _has_teacher(self) -> bool:
        distillation = self._settings.distillation
        return distillation is not None and distillation.teacher is not None

    def _in_turn(self, rates: Sequence[float]) -> Sequence[float]:
        """The widest first where it teaches the others; else as they come."""
        distils = self._settings.distillation is not None
        return sorted(rates, reverse=True) if distils else rates

    def _next_lesson(self, taught: Any, logits: Any) -> Any:
        """What the rates after this one learn from."""
        if taught is None and self._settings.distillation is not None:
            return logits
        return taught

    def _check(self, state: TrainState, batch: Batch) -> None:
        unknown = self._settings.loss_weights.keys() - set(state.net.rates)
        if unknown:
            raise ValueError(
                f"expected loss_weights of the network's rates {state.net.rates}, got "
                f"one of {', '.join(map(repr, unknown))}."
            )
        size = len(batch[1])
        if size % self._settings.accumulate:
            raise ValueError(
                f"expected a batch that divides into accumulate="
                f"{self._settings.accumulate} equal parts, got {size} examples."
            )

    # -- the compiled pieces

    def zeros(self, params: Any) -> Any:
        """Where gradients are added up."""
        return self._placed(jax.tree.map(jnp.zeros_like, params))

    def teacher_logits(self, state: TrainState, batch: Batch) -> jax.Array:
        assert self._settings.distillation and self._settings.distillation.teacher
        augment_key, _ = _keys(state)
        images = self._settings.transform(augment_key, batch[0])
        return self._settings.distillation.teacher(images)

    def rate_step(
        self, state: TrainState, grads: Any, batch: Batch, taught: Any, *, rate: float
    ) -> tuple[Any, Any, Any, jax.Array]:
        """Adds this rate's gradients to `grads`; also new statistics, and metrics."""
        augment_key, dropout_key = _keys(state)
        images = self._settings.transform(augment_key, batch[0])
        params = params_of(state.net)
        slope = jax.value_and_grad(self._loss, has_aux=True)
        parts = self._settings.accumulate

        def work_off(carry: Any, part: Any) -> tuple[Any, Any]:
            grads, statistics = carry
            images, labels, taught, key = part
            net = with_variables(state.net, statistics)
            (_, (value, logits, updates)), new = slope(
                params, net, images, labels, taught, key, rate
            )
            if parts > 1:
                new = jax.tree.map(lambda g: g / parts, new)
            grads = jax.tree.map(jnp.add, grads, new)
            return (grads, {**statistics, **updates}), (value, logits)

        statistics = {
            name: state.net.variables[name]
            for name in ("batch_stats",)
            if name in state.net.variables
        }
        examples = images, batch[1], taught
        if parts == 1:
            (grads, statistics), (value, logits) = work_off(
                (grads, statistics), (*examples, dropout_key)
            )
        else:
            # Every n-th example, so that a batch dealt out over devices stays there.
            split = jax.tree.map(
                lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), examples
            )
            keys = jax.random.split(dropout_key, parts)
            (grads, statistics), (value, logits) = jax.lax.scan(
                work_off, (grads, statistics), (*split, keys)
            )
            value = value.mean()
            logits = logits.swapaxes(0, 1).reshape(-1, *logits.shape[2:])
        accuracy = jnp.mean(jnp.argmax(logits, axis=-1) == batch[1])
        grads, statistics = self._placed((grads, statistics))
        return grads, statistics, {"loss": value, "accuracy": accuracy}, logits

    def _loss(
        self, params: Any, net: Any, images: Any, labels: Any, taught: Any, key: Any,
        rate: float,
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array, Any]]:  # fmt: skip
        """The weighted loss; also the plain one, the logits, and new statistics."""
        settings = self._settings

        def apply(params: Any, images: Any) -> Any:
            return slice_apply(
                with_variables(net, {"params": params}),
                images,
                rate,
                mutable=["batch_stats"],
                rngs=_keys_by_stream(net, key),
                **settings.call_kwargs,
            )

        if settings.remat:
            apply = jax.checkpoint(apply, policy=_is_contraction)
        dtype = settings.compute_dtype
        logits, updates = apply(_cast(params, dtype), _cast(images, dtype))
        if dtype is not None:
            logits = logits.astype(jnp.float32)
        value = settings.loss(logits, labels)
        if taught is not None:
            assert settings.distillation is not None
            share = settings.distillation.weight
            value = (1 - share) * value + share * settings.distillation.loss(
                logits, taught
            )
        weighted = settings.loss_weights.get(rate, 1.0) * value
        return weighted, (value, logits, updates)

    def apply_updates(self, state: TrainState, grads: Any) -> TrainState:
        params = params_of(state.net)
        updates, opt_state = self._settings.optimizer.update(
            grads, state.opt_state, params
        )
        params = optax.apply_updates(params, updates)
        return self._placed(
            TrainState(
                step=state.step + 1,
                net=with_variables(state.net, {"params": params}),
                opt_state=opt_state,
                key=state.key,
                averaged=self._average(state, params),
            )
        )

    def _placed(self, tree: Any) -> Any:
        """The tree where it belongs, so that the next step finds it where this did."""
        placement = self._settings.placement
        return tree if placement is None else placement.constrain(tree)

    def _average(self, state: TrainState, params: Any) -> Any:
        if self._settings.average is None:
            return state.averaged
        if state.averaged is None:
            raise ValueError(
                "average= needs a state that holds an average: make it with "
                "TrainState.create(..., average=True)."
            )
        # The first steps, whose weights are still those of the start, count less.
        step = state.step.astype(jnp.float32)
        decay = jnp.minimum(self._settings.average, (1 + step) / (10 + step))
        return jax.tree.map(
            lambda mean, new: (decay * mean + (1 - decay) * new).astype(mean.dtype),
            state.averaged,
            params,
        )


def _keys(state: TrainState) -> Any:
    """Of augmentation and dropout: of the step alone, so the same for every rate."""
    return jax.random.split(jax.random.fold_in(state.key, state.step))


def _keys_by_stream(net: Any, key: jax.Array) -> dict[str, jax.Array]:
    """A key for each random stream of the network: its own, where that is known.

    The streams of an NNX model are known, of any other those to which `upgrade` was
    given keys. "dropout" is always one.
    """
    definition = net.definition
    _, kwargs = definition.call.join(definition.arrays)
    given = kwargs.get("rngs")
    names = {*definition.function.streams()}
    names |= set(given) if isinstance(given, Mapping) else set()
    if "dropout" not in names:  # then "default" stands for it
        names.discard("default")
    return {"dropout": key} | {
        # By a digest that is the same in every process, and in every run.
        name: jax.random.fold_in(key, zlib.crc32(name.encode()))
        for name in sorted(names - {"dropout"})
    }


def _cast(tree: Any, dtype: Any) -> Any:
    if dtype is None:
        return tree
    return jax.tree.map(
        lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree
    )


def _is_contraction(primitive: Any, *_: Any, **__: Any) -> bool:
    return primitive.name in ("conv_general_dilated", "dot_general")
