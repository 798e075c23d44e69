"""What a recipe measures on held-out examples, and the file that its numbers go to."""

import dataclasses
import functools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

import mslice_jax as ms
from mslice_jax.core.rates import rate_key
from mslice_jax.train import MetricsFile

Batches = Callable[[], Iterator[tuple[Any, Any, Any]]]
"""() -> batches of images, labels and weights, see `data.eval_batches`."""


@dataclasses.dataclass(frozen=True)
class Numbers:
    """What came out, for each rate.

    Attributes:
      accuracy: in [0, 1].
      loss: mean cross entropy in nats, without label smoothing.
    """

    accuracy: dict[float, float]
    loss: dict[float, float]


def measure_on(
    batches: Batches, count: int, *, normalize: Callable[[jax.Array], jax.Array]
) -> Callable[[ms.Sliceable], Numbers]:
    """Build ``measure(net) -> Numbers`` over these examples.

    Args:
      batches: the examples in batches of one shape, anew with each call.
      count: how many examples there are.
      normalize: raw images -> images that the network takes.
    """

    @functools.partial(ms.jit, static_argnames="rate")
    def sums(net: ms.Sliceable, images, labels, weights, *, rate: float) -> Any:
        logits = ms.slice_apply(net, normalize(images), rate)
        logits = logits.astype(jnp.float32)
        hits = weights * (jnp.argmax(logits, axis=-1) == labels)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        # Padding of the last batch has weight 0, and a loss that may be anything.
        return jnp.sum(hits), jnp.sum(jnp.where(weights > 0, weights * losses, 0.0))

    def measure(net: ms.Sliceable) -> Numbers:
        totals = {rate: [0.0, 0.0] for rate in net.rates}
        last: dict[float, Any] = {}
        for batch in batches():
            now = {rate: sums(net, *batch, rate=rate) for rate in net.rates}
            # Reading waits for the device, so it is done one batch late; never to wait
            # would let the images of the whole set pile up there.
            _add(totals, last)
            last = now
        _add(totals, last)
        return Numbers(
            {rate: hits / count for rate, (hits, _) in totals.items()},
            {rate: loss / count for rate, (_, loss) in totals.items()},
        )

    return measure


def _add(totals: dict[float, list[float]], part: Mapping[float, Any]) -> None:
    for rate, sums in part.items():
        for index, value in enumerate(sums):
            totals[rate][index] += float(value)


class HeldOut:
    """Accuracies for the training loop, which knows no more; the losses stay beside.

    Args:
      measure: network -> what comes out for each of its rates.
    """

    def __init__(self, measure: Callable[[ms.Sliceable], Numbers]):
        self._measure = measure
        self.last: Numbers | None = None

    def __call__(self, net: ms.Sliceable) -> dict[float, float]:
        """The accuracy of each rate."""
        self.last = self._measure(net)
        return self.last.accuracy


# Names of the loop, and the names that the file has: whose numbers they are comes
# first, as in TensorBoard's folders of curves.
_NAMES = {
    "loss": "train_loss",
    "accuracy_train": "train_accuracy",
    "accuracy": "test_accuracy",
}


class FlatMetricsFile(MetricsFile):
    """A file of JSON lines whose values are numbers, for pandas and the like.

    A number of one rate has its rate in its key: ``"test_accuracy/0.5"``. The line of
    an epoch also has the held-out losses. A number that is not finite is ``null``.

    Args:
      path: made at the first write, together with its directory.
      held_out: has measured what the line of an epoch is about.
      sinks: hear of every line, too.
    """

    def __init__(
        self,
        path: str | Path,
        held_out: HeldOut,
        sinks: Sequence[Callable[[int, Mapping[str, Any]], None]] = (),
    ):
        super().__init__(path)
        self._held_out = held_out
        self._sinks = tuple(sinks)

    def write(self, *, step: int, **values: Any) -> None:
        """Append one line and hand it to the system at once."""
        if "accuracy" in values and self._held_out.last is not None:
            values["test_loss"] = {
                rate_key(rate): float(f"{loss:.6g}")
                for rate, loss in self._held_out.last.loss.items()
            }
        flat = flatten(values)
        super().write(step=step, **flat)
        if jax.process_index() == 0:
            for sink in self._sinks:
                sink(step, flat)


def flatten(values: Mapping[str, Any]) -> dict[str, Any]:
    """One level of keys.

    Example:
      >>> flatten({"epoch": 1, "accuracy": {"0.5": 0.9, "1.0": float("nan")}})
      {'epoch': 1, 'test_accuracy/0.5': 0.9, 'test_accuracy/1.0': None}
    """
    flat: dict[str, Any] = {}
    for name, value in values.items():
        name = _NAMES.get(name, name)
        if isinstance(value, Mapping):
            parts = {f"{name}/{key}": part for key, part in value.items()}
        else:
            parts = {name: value}
        flat |= {key: _finite(part) for key, part in parts.items()}
    return flat


def accuracy_over_epochs(path: Path) -> dict[int, dict[float, float]]:
    """Epoch -> rate -> accuracy on the held-out examples, from the file of metrics."""
    found: dict[int, dict[float, float]] = {}
    for line in path.read_text().splitlines():
        values = flatten(json.loads(line))
        each = {
            float(key.removeprefix("test_accuracy/")): value
            for key, value in values.items()
            if key.startswith("test_accuracy/")
        }
        if each:
            found[values["epoch"]] = each
    return found


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity."""
    wrong = isinstance(value, float) and not math.isfinite(value)
    return None if wrong else value
