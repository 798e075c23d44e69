"""The objective of a training step: the loss of a batch at one rate, and its gradient.

It knows how the network is called: which keywords, which random streams, which
collections of its variables change; and how a batch is computed in parts.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ..core import streams
from ..core.paths import path_name
from ..core.rates import rate_key
from .losses import Distillation
from .state import TrainState, params_of, with_variables
from .task import Arguments, Task, as_arguments

# The keyword that switches training on, by the names that models have for it.
_MODES = {"train": True, "training": True, "is_training": True, "deterministic": False}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """What a step minimizes; the attributes are arguments of `make_train_step`."""

    task: Task
    transform: Callable[[jax.Array, Any], Any]
    distillation: Distillation | None
    loss_weights: Mapping[float, float]
    compute_dtype: Any
    accumulate: int
    remat: bool
    call_kwargs: Mapping[str, Any] | None
    streams: Sequence[str]

    def teach(self, state: TrainState, batch: Any) -> jax.Array:
        """What a teacher outside says of a batch."""
        assert self.distillation is not None and self.distillation.teacher is not None
        given, _ = self._prepared(state, batch)
        return self.distillation.teacher(*given.args, **given.kwargs)

    def value(
        self,
        params: Any,
        state: TrainState,
        batch: Any,
        taught: Any,
        rates: Sequence[float],
    ) -> jax.Array:
        """The weighted losses of all rates, summed, at other weights than the state's.

        It is what a step at these rates adds up, statistics and all.
        """
        state = dataclasses.replace(state, loss_scale=None)
        total = jnp.zeros((), jnp.result_type(float))

        def work_off(collections: Any, part: Any, *, state: Any, rate: float) -> Any:
            weighted, (_, outputs, new, _) = self._part(
                params, state, collections, part, rate
            )
            return new, (weighted, self._lesson(outputs))

        for rate in rates:
            collections, (values, lesson) = self._over_parts(
                functools.partial(work_off, state=state, rate=rate),
                collections_of(state, rate),
                state,
                batch,
                taught,
            )
            total += jnp.sum(values).astype(total.dtype)
            taught = lesson if taught is None else taught
            state = with_collections(state, collections, rate)
        return total

    def slope(
        self,
        state: TrainState,
        sums: Any,
        batch: Any,
        taught: Any,
        rate: float,
    ) -> tuple[Any, Any, dict[str, jax.Array], Any]:
        """Adds a rate's gradient and loss to `sums`.

        Returns:
          The sums, the collections of this rate, what is reported, and what narrower
          rates learn from (None without distillation).
        """
        params = params_of(state.net)
        of_part = jax.value_and_grad(self._part, has_aux=True)

        def work_off(carry: Any, part: Any) -> Any:
            sums, collections = carry
            (weighted, (results, outputs, new, share)), grads = of_part(
                params, state, collections, part, rate
            )
            scale = state.loss_scale
            if scale is not None:
                weighted = weighted / scale.scale.astype(weighted.dtype)
            value = sums["value"] + weighted.astype(sums["value"].dtype)
            sums = {
                "params": jax.tree.map(jnp.add, sums["params"], grads),
                "value": value,
            }
            if share is not None:
                results = jax.tree.map(lambda x: x * share.astype(x.dtype), results)
            return (sums, new), (results, self._lesson(outputs))

        (sums, collections), (results, lesson) = self._over_parts(
            work_off, (sums, collections_of(state, rate)), state, batch, taught
        )
        if self.accumulate > 1:
            results = jax.tree.map(lambda x: jnp.sum(x, axis=0), results)
        return sums, collections, self.task.summary(results), lesson

    # -- a batch in parts

    def _over_parts(
        self, work_off: Any, carry: Any, state: TrainState, batch: Any, taught: Any
    ) -> tuple[Any, Any]:
        """Works a batch off, (carry, part) -> (carry, result), part by part.

        Results are stacked; lessons are put back into the order of the batch.
        """
        given, key = self._prepared(state, batch)
        targets, parts = self.task.targets(batch), self.accumulate
        examples = (given, targets, taught)
        if parts == 1:
            return work_off(carry, (*examples, key, None))
        # Every n-th example, so that a sharded batch stays on its devices.
        split = jax.tree.map(
            lambda x: (
                x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1)
                if x.ndim
                else jnp.broadcast_to(x, (parts,))
            ),
            examples,
        )
        shares = jnp.full(parts, 1 / parts)
        if self.task.weights is not None:
            counts = jax.vmap(lambda t: jnp.sum(self._weights(t)))(split[1])
            total = jnp.sum(counts)
            shares = counts / jnp.where(total > 0, total, jnp.ones_like(total))
        keys = jax.random.split(key, parts)
        carry, (first, lesson) = jax.lax.scan(work_off, carry, (*split, keys, shares))
        if lesson is not None:
            lesson = lesson.swapaxes(0, 1).reshape(-1, *lesson.shape[2:])
        return carry, (first, lesson)

    def _part(
        self, params: Any, state: TrainState, collections: Any, part: Any, rate: float
    ) -> tuple[jax.Array, Any]:
        """What is differentiated; also results, outputs, new collections, the share."""
        given, targets, taught, key, share = part
        outputs, collections = self._call(
            params, state.net, collections, given, key, rate
        )
        loss = self.task.loss(outputs, targets)
        if jnp.shape(loss) != ():
            raise ValueError(
                f"expected a loss that is a scalar, got one of shape {loss.shape}. "
                "Return the mean over the batch."
            )
        if taught is not None:
            assert self.distillation is not None
            of_teacher = self.distillation.loss(
                self.task.logits(outputs), taught, self._weights(targets)
            )
            soft = self.distillation.share(state.step)
            loss = (1 - soft) * loss + soft * of_teacher
        results = {"loss": loss, **self.task.measure(outputs, targets)}
        weighted = self.loss_weights.get(rate, 1.0) * loss
        if share is not None:
            weighted = weighted * share.astype(weighted.dtype)
        if state.loss_scale is not None:
            weighted = weighted * state.loss_scale.scale.astype(weighted.dtype)
        return weighted, (results, outputs, collections, share)

    def _weights(self, targets: Any) -> Any:
        return None if self.task.weights is None else self.task.weights(targets)

    def _lesson(self, outputs: Any) -> Any:
        return None if self.distillation is None else self.task.logits(outputs)

    def _prepared(self, state: TrainState, batch: Any) -> tuple[Arguments, jax.Array]:
        """The inputs of the network, and the key of its random streams."""
        augmentation, key = streams.step_keys(state.key, state.step)
        inputs = self.transform(augmentation, self.task.inputs(batch))
        return as_arguments(inputs), key

    # -- the call of the network

    def _call(
        self,
        params: Any,
        net: Any,
        collections: Any,
        given: Arguments,
        key: jax.Array,
        rate: float,
    ) -> tuple[Any, Any]:
        """Outputs in full precision, and the collections as the call leaves them."""
        function, call = net.definition.function, self._keywords(net)
        if function.takes("rngs", call):
            call["rngs"] = streams.stream_keys(key, self._stream_names(net))
        changing = call.get("mutable", False)
        dtype = self.compute_dtype
        inputs = _cast(params, dtype), _cast(given, dtype)

        def run(call: Mapping[str, Any]) -> Any:
            def apply(params: Any, given: Arguments) -> Any:
                whole = with_variables(net, {**collections, "params": params})
                return whole(rate, *given.args, **{**given.kwargs, **call})

            if self.remat:
                apply = jax.checkpoint(apply, policy=_is_contraction)
            return apply(*inputs)

        unknown = "train" not in call and function.takes_any(call)
        if self.call_kwargs is None and unknown:
            # Only what the keywords are passed on to can tell.
            try:
                outputs = run({**call, "train": True})
            except TypeError as error:
                if "'train'" not in str(error):
                    raise
                outputs = run(call)
        else:
            outputs = run(call)
        updates: Mapping[str, Any] = {}
        if function.updates({"mutable": changing}):
            outputs, updates = outputs
        if dtype is not None:
            outputs = _cast(outputs, jnp.float32)
        known, added = {}, {}
        for name, update in updates.items():
            if name in collections:
                known[name] = _kept(name, update, collections[name])
            elif name != "params":
                added[name] = update
        if added and "mutable" in (self.call_kwargs or {}):
            outputs = outputs, added
        return outputs, {**collections, **known}

    def _keywords(self, net: Any) -> dict[str, Any]:
        """What the call is given besides its inputs and keys."""
        function = net.definition.function
        call: dict[str, Any] = dict(self.call_kwargs or {})
        if "rngs" in call:
            raise ValueError(
                "call_kwargs holds rngs, which would be the same in every step. The "
                "step makes keys of its own; name more streams in streams=."
            )
        if self.call_kwargs is None:
            seen = net.definition.call.keywords
            call |= {
                name: value
                for name, value in _MODES.items()
                if function.takes(name, {}) or name in seen
            }
        if "mutable" not in call and function.takes("mutable", call):
            names = [name for name in net.variables if name != "params"]
            # A function may ask for the argument though nothing of it changes.
            _, seen = net.definition.call.join(net.definition.arrays)
            if names := names or seen.get("mutable"):
                call["mutable"] = names
        return call

    def _stream_names(self, net: Any) -> set[str]:
        """Those of an NNX model, and those to which `upgrade` was given keys."""
        definition = net.definition
        _, kwargs = definition.call.join(definition.arrays)
        given = kwargs.get("rngs")
        names = {*definition.function.streams(), *self.streams}
        names |= set(given) if isinstance(given, Mapping) else set()
        if "dropout" not in names:  # then "default" stands for it
            names.discard("default")
        return names


def collections_of(state: TrainState, rate: float) -> dict[str, Any]:
    """What a call at a rate reads besides "params"; some are kept for each rate."""
    own = (state.carried or {}).get(rate_key(rate), {})
    return {k: v for k, v in {**state.net.variables, **own}.items() if k != "params"}


def with_collections(state: TrainState, collections: Any, rate: float) -> TrainState:
    """The state after a call at a rate left these."""
    carried = state.carried
    if carried is not None:
        own = {name: collections[name] for name in carried[rate_key(rate)]}
        carried = {**carried, rate_key(rate): own}
        collections = {k: v for k, v in collections.items() if k not in own}
    net = with_variables(state.net, collections)
    return dataclasses.replace(state, net=net, carried=carried)


def _kept(name: str, new: Any, old: Any) -> Any:
    """The collection as it was made: a state of other leaves would fit no next step."""
    if jax.tree.structure(new) != jax.tree.structure(old):
        before = {path_name(p) for p, _ in jax.tree_util.tree_leaves_with_path(old)}
        after = {path_name(p) for p, _ in jax.tree_util.tree_leaves_with_path(new)}
        changed = ", ".join(f"{name}/{path}" for path in sorted(before ^ after)[:4])
        raise ValueError(
            f"the call in training makes or drops variables: {changed}. Give `upgrade` "
            "the variables of a call in training, or leave the collection out of "
            "mutable= in call_kwargs."
        )
    return jax.tree.map(lambda x, like: x.astype(like.dtype), new, old)


def _cast(tree: Any, dtype: Any) -> Any:
    if dtype is None:
        return tree
    return jax.tree.map(
        lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree
    )


def _is_contraction(primitive: Any, *_: Any, **__: Any) -> bool:
    return primitive.name in ("conv_general_dilated", "dot_general")
