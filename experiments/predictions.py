"""The predicted class of every held-out example, or token, at every rate."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import mslice_jax as ms


@dataclasses.dataclass(frozen=True)
class Predictions:
    """Predicted classes.

    Attributes:
      labels: (n,), the right ones.
      classes: rate -> (n,), of the highest logit.
    """

    labels: np.ndarray
    classes: dict[float, np.ndarray]


def predict_on(
    batches: Callable[[], Iterable[tuple[Any, Any, Any]]],
    *,
    normalize: Callable[[Any], Any] = lambda inputs: inputs,
    carry: Sequence[str] = (),
) -> Callable[[ms.Sliceable], Predictions]:
    """Build ``predict(net) -> Predictions`` over these examples.

    Args:
      batches: inputs, labels and weights in batches of one shape, anew with each call;
        what has weight 0 does not count.
      normalize: raw inputs -> inputs that the network takes.
      carry: collections that every rate carries from batch to batch for itself.
    """
    call = {"mutable": list(carry)} if carry else {}

    @functools.partial(ms.jit, static_argnames="rate")
    def step(net: ms.Sliceable, carried: Any, inputs: Any, *, rate: float) -> Any:
        net = net.replace({**net.variables, **carried})
        outputs = ms.slice_apply(net, normalize(inputs), rate, **call)
        logits, carried = outputs if carry else (outputs, carried)
        return jnp.argmax(logits, axis=-1), carried

    def predict(net: ms.Sliceable) -> Predictions:
        start = {name: net.variables[name] for name in carry}
        carried = dict.fromkeys(net.rates, start)
        labels: list[np.ndarray] = []
        classes: dict[float, list[np.ndarray]] = {rate: [] for rate in net.rates}
        for inputs, right, weights in batches():
            counts = np.asarray(weights) > 0
            labels.append(np.asarray(right)[counts])
            for rate in net.rates:
                found, carried[rate] = step(
                    net, carried[rate], jnp.asarray(inputs), rate=rate
                )
                classes[rate].append(np.asarray(jax.device_get(found))[counts])
        return Predictions(
            np.concatenate(labels),
            {rate: np.concatenate(parts) for rate, parts in classes.items()},
        )

    return predict
