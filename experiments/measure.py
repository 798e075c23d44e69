"""Accuracy and loss of a recipe on held-out examples, and its file of metrics."""

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

from .norm_scales import ScalesFile

Batches = Callable[[], Iterator[tuple[Any, Any, Any]]]
"""() -> batches of images, labels and weights, see `data.eval_batches`."""


@dataclasses.dataclass(frozen=True)
class Numbers:
    """Accuracy and loss of each rate.

    Attributes:
      accuracy: in [0, 1]; of text nothing.
      loss: mean cross entropy in nats, without label smoothing.
    """

    accuracy: dict[float, float]
    loss: dict[float, float]

    @property
    def perplexity(self) -> dict[float, float]:
        """Perplexity: e to the power of the loss."""
        return {rate: math.exp(loss) for rate, loss in self.loss.items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quantity:
    """One of the numbers, and its format.

    Attributes:
      name: of the attribute of `Numbers`, and in files.
      text: a value of it as a table has it.
      short: the same within a line of several, with `unit` once at its end.
      unit: such as " %".
      example: the unit of a cost, such as "image".
    """

    name: str
    text: Callable[[float], str]
    short: Callable[[float], str]
    unit: str
    example: str

    def of(self, numbers: Numbers) -> dict[float, float]:
        """The values of all rates."""
        return getattr(numbers, self.name)


ACCURACY = Quantity(
    name="accuracy",
    text=lambda x: f"{100 * x:.2f} %",
    short=lambda x: f"{100 * x:.1f}",
    unit=" %",
    example="image",
)
PERPLEXITY = Quantity(
    name="perplexity",
    text=lambda x: f"{x:.3f}" if x < 10 else f"{x:.2f}",
    short=lambda x: f"{x:.2f}" if x < 100 else f"{x:.1f}",
    unit="",
    example="row of text",
)


def measure_on(
    batches: Batches,
    count: int,
    *,
    normalize: Callable[[jax.Array], jax.Array],
    logits: Callable[[ms.Sliceable, jax.Array, float], jax.Array] = ms.slice_apply,
) -> Callable[[ms.Sliceable], Numbers]:
    """Build ``measure(net) -> Numbers`` over these examples.

    Args:
      batches: the examples in batches of one shape, anew with each call.
      count: number of examples.
      normalize: raw images -> images that the network takes.
      logits: (network, such images, rate) -> (b, classes).
    """

    @functools.partial(ms.jit, static_argnames="rate")
    def sums(net: ms.Sliceable, images, labels, weights, *, rate: float) -> Any:
        found = logits(net, normalize(images), rate).astype(jnp.float32)
        hits = weights * (jnp.argmax(found, axis=-1) == labels)
        losses = optax.softmax_cross_entropy_with_integer_labels(found, labels)
        # Padding of the last batch has weight 0, and its loss may be anything.
        return jnp.sum(hits), jnp.sum(jnp.where(weights > 0, weights * losses, 0.0))

    def measure(net: ms.Sliceable) -> Numbers:
        totals = {rate: [0.0, 0.0] for rate in net.rates}
        last: dict[float, Any] = {}
        for batch in batches():
            now = {rate: sums(net, *batch, rate=rate) for rate in net.rates}
            # Reading waits for the device, so it is done one batch late; without waits
            # the images of the whole set would pile up there.
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
    """The numbers of each rate for the training loop; `last` keeps all of them.

    Args:
      measure: network -> `Numbers` of its rates.
      quantity: accuracy, which is highest at the best checkpoint; or perplexity, and
        the loss is lowest there.
      scales: keeps the scales of the network's norms, too.
    """

    def __init__(
        self,
        measure: Callable[[ms.Sliceable], Numbers],
        quantity: Quantity = ACCURACY,
        scales: ScalesFile | None = None,
    ):
        self._measure = measure
        self._quantity = quantity
        self.scales = scales
        self.last: Numbers | None = None

    def __call__(self, net: ms.Sliceable) -> dict[float, Any]:
        """The accuracy of each rate, or its loss and perplexity."""
        self.last = self._measure(net)
        if self.scales is not None:
            self.scales.measure(net)
        if self._quantity is ACCURACY:
            return dict(self.last.accuracy)
        values = self._quantity.of(self.last)
        return {
            rate: {"loss": loss, self._quantity.name: values[rate]}
            for rate, loss in self.last.loss.items()
        }


# Names in the loop, and in the file: train or test comes first, as in TensorBoard's
# folders of curves.
_NAMES = {
    "loss": "train_loss",
    "accuracy_train": "train_accuracy",
    "accuracy": "test_accuracy",
    "loss_test": "test_loss",
    "perplexity_train": "train_perplexity",
    "perplexity": "test_perplexity",
}


class FlatMetricsFile(MetricsFile):
    """A file of JSON lines whose values are numbers, for pandas and the like.

    A number of one rate has its rate in its key: ``"test_accuracy/0.5"``. The line of
    an epoch also has the held-out losses. A number that is not finite is ``null``.

    Args:
      path: made at the first write, together with its directory.
      held_out: has the losses for the line of an epoch.
      sinks: called with every line, too.
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
        """Append one line and flush it."""
        if "accuracy" in values and self._held_out.last is not None:
            values["test_loss"] = {
                rate_key(rate): float(f"{loss:.6g}")
                for rate, loss in self._held_out.last.loss.items()
            }
            if self._held_out.scales is not None:
                self._held_out.scales.write(step=step, epoch=values["epoch"])
        flat = flatten(values)
        super().write(step=step, **flat)
        if jax.process_index() == 0:
            for sink in self._sinks:
                sink(step, flat)

    def rewind(self, step: int) -> None:
        """Drop the lines after `step`, those of the scales too."""
        super().rewind(step)
        if self._held_out.scales is not None:
            self._held_out.scales.rewind(step)


def flatten(values: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten nested values to one level of keys.

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


def over_epochs(path: Path, name: str) -> dict[int, dict[float, float]]:
    """Epoch -> rate -> evaluation after it, from the file of metrics."""
    name = f"test_{name}/"
    found: dict[int, dict[float, float]] = {}
    for line in path.read_text().splitlines():
        values = flatten(json.loads(line))
        each = {
            float(key.removeprefix(name)): value
            for key, value in values.items()
            if key.startswith(name)
        }
        if each:
            found[values["epoch"]] = each
    return found


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity."""
    wrong = isinstance(value, float) and not math.isfinite(value)
    return None if wrong else value
