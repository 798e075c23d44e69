"""What a run reports: the accuracy of every rate, and a file of JSON lines."""

import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..cpu.compilation import jit
from ..data import eval_batches
from ..sliceable import Sliceable, slice_apply

Evaluate = Callable[[Sliceable], dict[float, float]]
"""network -> accuracy in [0, 1] of each of its rates, ascending."""


EvalBatches = Callable[[], Iterator[tuple[Any, Any, Any]]]
"""() -> batches of images, labels and weights, see `data.eval_batches`."""


def make_evaluate(
    images: np.ndarray,
    labels: np.ndarray,
    *,
    batch_size: int = 256,
    normalize: Callable[[jax.Array], jax.Array] = lambda images: images,
) -> Evaluate:
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
) -> Evaluate:
    """As `make_evaluate`, over examples that need not be in memory.

    Args:
      batches: the examples in batches of one shape, anew with each call.
      count: how many examples there are.
      normalize: raw images -> images that the network takes.
    """

    @functools.partial(jit, static_argnames="rate")
    def correct(net: Sliceable, images, labels, weights, *, rate: float) -> jax.Array:
        logits = slice_apply(net, normalize(images), rate)
        return jnp.sum(weights * (jnp.argmax(logits, axis=-1) == labels))

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
        """Append one line and hand it to the system at once."""
        if jax.process_index() != 0:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")

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


def _at(line: str, step: int) -> bool:
    """Whether a line is whole and belongs to `step` or an earlier one."""
    try:
        return json.loads(line)["step"] <= step
    except (ValueError, KeyError, TypeError):
        return False
