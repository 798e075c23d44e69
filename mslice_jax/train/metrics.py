"""What a run reports: the accuracy of every rate, and a file of JSON lines."""

import functools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..cpu.compilation import jit
from ..data import eval_batches
from ..sliceable import Sliceable, slice_apply
from .state import with_variables
from .task import Task, as_arguments, predicted

Evaluate = Callable[[Sliceable], Mapping[float, Any]]
"""network -> of each of its rates, ascending, the accuracy in [0, 1], or a mapping of
what `evaluate_task` measures."""

EvalBatches = Callable[[], Iterator[tuple[Any, Any, Any]]]
"""() -> batches of images, labels and weights, see `data.eval_batches`."""


def make_evaluate(
    images: np.ndarray,
    labels: np.ndarray,
    *,
    batch_size: int = 256,
    normalize: Callable[[jax.Array], jax.Array] = lambda images: images,
) -> Callable[[Sliceable], dict[float, float]]:
    """Build ``evaluate(net) -> {rate: accuracy}`` over these examples.

    One program is compiled per rate: the last batch is filled up to `batch_size`, and
    what was filled in does not count.

    Args:
      images: (n, h, w, c), raw.
      labels: (n,), integers.
      batch_size: examples a call of the network; at most n are used.
      normalize: raw images -> images that the network takes.

    Raises:
      ValueError: if there are no examples, or not as many labels as images.
    """
    if len(images) == 0 or len(images) != len(labels):
        raise ValueError(
            "expected as many labels as images, and at least one; got "
            f"{len(images)} images and {len(labels)} labels."
        )
    size = min(batch_size, len(images))
    return evaluate_on(
        lambda: eval_batches(images, labels, size), len(images), normalize=normalize
    )


def evaluate_on(
    batches: EvalBatches,
    count: int,
    *,
    normalize: Callable[[jax.Array], jax.Array] = lambda images: images,
) -> Callable[[Sliceable], dict[float, float]]:
    """As `make_evaluate`, over examples that need not be in memory.

    Args:
      batches: the examples in batches of one shape, anew with each call.
      count: how many examples there are.
      normalize: raw images -> images that the network takes.
    """

    @functools.partial(jit, static_argnames="rate")
    def correct(net: Sliceable, images, labels, weights, *, rate: float) -> jax.Array:
        logits = slice_apply(net, normalize(images), rate)
        return jnp.sum(weights * (predicted(logits) == labels))

    def evaluate(net: Sliceable) -> dict[float, float]:
        totals = dict.fromkeys(net.rates, 0.0)
        last: dict[float, jax.Array] = {}
        for batch in batches():
            now = {rate: correct(net, *batch, rate=rate) for rate in net.rates}
            # Reading waits for the device, so it is done one batch late; never to wait
            # would let the images of the whole set pile up there.
            for rate, hits in last.items():
                totals[rate] += float(hits)
            last = now
        return {rate: (totals[rate] + float(last[rate])) / count for rate in net.rates}

    return evaluate


def evaluate_task(
    batches: Callable[[], Iterable[Any]],
    task: Task,
    *,
    normalize: Callable[[Any], Any] = lambda inputs: inputs,
    call_kwargs: Mapping[str, Any] | None = None,
    carry: Sequence[str] = (),
) -> Callable[[Sliceable], dict[float, dict[str, float]]]:
    """Build ``evaluate(net) -> {rate: {"loss": ..., metric: ...}}`` of a task.

    Means are those over all examples, or over all that `Task.weights` counts, however
    they fall into batches. A batch of another shape costs a compilation.

    Args:
      batches: the examples in batches, anew with each call.
      task: the one of `make_train_step`.
      normalize: raw inputs -> inputs that the network takes.
      call_kwargs: what else the network's call takes in evaluation.
      carry: collections that every rate carries from batch to batch for itself, as in
        `TrainState.create`; each evaluation begins with what the network holds.

    Raises:
      ValueError: if there is nothing to evaluate.

    Example:
      ``evaluate = evaluate_task(lambda: held_out, language_model())`` then
      ``evaluate(state.eval_net)[1.0]["perplexity"]``
    """
    call = dict(call_kwargs or {})
    if carry:
        call["mutable"] = list(carry)

    @functools.partial(jit, static_argnames="rate")
    def measured(net: Sliceable, carried: Any, batch: Any, *, rate: float) -> Any:
        given = as_arguments(normalize(task.inputs(batch)))
        whole = with_variables(net, carried) if carry else net
        outputs = whole(rate, *given.args, **{**given.kwargs, **call})
        if carry:
            outputs, carried = outputs
        targets = task.targets(batch)
        results = {
            "loss": task.loss(outputs, targets),
            **task.measure(outputs, targets),
        }
        if task.weights is None:
            size = next(x.shape[0] for x in jax.tree.leaves(batch) if x.ndim)
            count = jnp.float32(size)
        else:
            count = jnp.sum(task.weights(targets))
        # Padding may be NaN, and 0 times NaN is NaN.
        sums = {
            name: jnp.where(count > 0, value * count.astype(value.dtype), 0)
            for name, value in results.items()
        }
        return (sums, count), carried

    def evaluate(net: Sliceable) -> dict[float, dict[str, float]]:
        totals: dict[float, dict[str, float]] = {rate: {} for rate in net.rates}
        counts = dict.fromkeys(net.rates, 0.0)

        def add(found: dict[float, Any]) -> None:
            for rate, (results, count) in jax.device_get(found).items():
                counts[rate] += float(count)
                for name, value in results.items():
                    so_far = totals[rate].get(name, 0.0)
                    totals[rate][name] = so_far + float(value)

        last: dict[float, Any] = {}
        start = {name: net.variables[name] for name in carry}
        carried = dict.fromkeys(net.rates, start)
        for batch in batches():
            batch = jax.tree.map(jnp.asarray, batch)
            now = {}
            for rate in net.rates:
                now[rate], carried[rate] = measured(
                    net, carried[rate], batch, rate=rate
                )
            add(last)  # one batch late, see `evaluate_on`
            last = now
        add(last)
        if not all(counts.values()):
            raise ValueError("expected something to evaluate, got nothing that counts.")
        return {
            rate: {
                name: float(value)
                for name, value in task.summary(
                    {n: np.float64(v / counts[rate]) for n, v in total.items()}
                ).items()
            }
            for rate, total in totals.items()
        }

    return evaluate


class MetricsFile:
    r"""A file of JSON lines, each with the "step" it belongs to; readable at any time.

    Of several hosts the first one writes.

    Args:
      path: made at the first write, together with its directory.

    Example:
      >>> import tempfile, pathlib
      >>> path = pathlib.Path(tempfile.mkdtemp()) / "metrics.jsonl"
      >>> metrics = MetricsFile(path)
      >>> metrics.write(step=1, loss={"1.0": 2.5})
      >>> path.read_text()
      '{"step": 1, "loss": {"1.0": 2.5}}\n'
    """

    def __init__(self, path: str | Path):
        self._path = Path(path)

    def write(self, *, step: int, **values: Any) -> None:
        """Append one line and hand it to the system at once.

        JSON has no infinity and nothing that is not a number: these become null.
        """
        if jax.process_index() != 0:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a") as file:
            line = strict_json({"step": step, **values})
            file.write(json.dumps(line, allow_nan=False) + "\n")

    def rewind(self, step: int) -> None:
        """Drop the lines after `step`, which a run restored there will write again.

        So is a line that a killed process left half written.
        """
        if jax.process_index() != 0 or not self._path.exists():
            return
        kept = [line for line in self._path.read_text().splitlines() if _at(line, step)]
        temporary = self._path.with_name(self._path.name + ".tmp")
        temporary.write_text("".join(line + "\n" for line in kept))
        temporary.replace(self._path)


def strict_json(value: Any) -> Any:
    """The value with None in place of floats that JSON does not know.

    Example:
      >>> strict_json({"loss": [float("nan"), 1.5]})
      {'loss': [None, 1.5]}
    """
    if isinstance(value, Mapping):
        return {key: strict_json(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [strict_json(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _at(line: str, step: int) -> bool:
    """Whether a line is whole and belongs to `step` or an earlier one."""
    try:
        return json.loads(line)["step"] <= step
    except (ValueError, KeyError, TypeError):
        return False
