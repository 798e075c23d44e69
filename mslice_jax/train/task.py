"""What a batch means: the inputs of the network, its loss, and what is reported.

A `Task` is all that training and evaluation have to know of the data. Two are ready
made: images with labels, and token sequences.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from .losses import cross_entropy, token_cross_entropy, token_weights


@jax.tree_util.register_pytree_node_class
class Arguments:
    """Several inputs of a network, or inputs by keyword: what `Task.inputs` may return.

    Example:
      >>> given = Arguments(jnp.ones(3), mask=jnp.ones(3))
      >>> len(given.args), sorted(given.kwargs)
      (1, ['mask'])
    """

    def __init__(self, *args: Any, **kwargs: Any):
        self.args, self.kwargs = args, kwargs

    def tree_flatten(self) -> Any:
        """Children and the static part, as JAX asks of a pytree."""
        names = tuple(sorted(self.kwargs))
        return (self.args, [self.kwargs[name] for name in names]), names

    @classmethod
    def tree_unflatten(cls, names: Any, children: Any) -> "Arguments":
        """The inverse of flattening."""
        args, values = children
        return cls(*args, **dict(zip(names, values, strict=True)))


def as_arguments(inputs: Any) -> Arguments:
    """What `Task.inputs` returned, as arguments of the network's call."""
    return inputs if isinstance(inputs, Arguments) else Arguments(inputs)


def _first(batch: Any) -> Any:
    return batch[0]


def _second(batch: Any) -> Any:
    return batch[1]


def _same(outputs: Any) -> Any:
    return outputs


def _as_they_are(results: dict[str, Any]) -> dict[str, Any]:
    return results


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """How a batch becomes inputs, a loss, and metrics.

    A batch is any tree of arrays; what has an axis of examples has it first.

    Attributes:
      loss: (outputs, targets) -> scalar, a mean over what `weights` counts.
      metrics: name -> (outputs, targets) -> scalar, a mean of the same kind. None:
        "accuracy" where the targets are a class for each of the logits, else nothing.
      inputs: batch -> the input of the network, or `Arguments` for several.
      targets: batch -> what `loss` and `metrics` get beside the outputs; may be the
        batch itself.
      weights: targets -> how much each prediction counts (the outputs' axes but the
        last, which may be masked); None where each example counts alike. Parts of a
        batch, and batches of an evaluation, are weighed by their sum.
      logits: outputs -> the array of which a wider rate teaches the others.
      summary: the means by name, "loss" among them, -> what is reported. What is no
        mean, such as the perplexity, is made of means here.

    Example:
      >>> import jax.numpy as jnp
      >>> regression = Task(
      ...     loss=lambda y, target: jnp.mean((y - target) ** 2),
      ...     inputs=lambda batch: batch["x"],
      ...     targets=lambda batch: batch["y"],
      ... )
      >>> batch = {"x": jnp.ones((2, 3)), "y": jnp.zeros((2, 1))}
      >>> float(regression.loss(jnp.full((2, 1), 2.0), regression.targets(batch)))
      4.0
    """

    loss: Callable[[Any, Any], jax.Array]
    metrics: Mapping[str, Callable[[Any, Any], jax.Array]] | None = None
    inputs: Callable[[Any], Any] = _first
    targets: Callable[[Any], Any] = _second
    weights: Callable[[Any], jax.Array] | None = None
    logits: Callable[[Any], jax.Array] = _same
    summary: Callable[[dict[str, Any]], dict[str, Any]] = _as_they_are

    def __post_init__(self) -> None:
        if "loss" in (self.metrics or {}):
            raise ValueError(
                'expected metrics of other names than "loss", which is the loss itself.'
            )

    def measure(self, outputs: Any, targets: Any) -> dict[str, jax.Array]:
        """The metrics, without the loss."""
        metrics = self.metrics
        if metrics is None:
            metrics = {"accuracy": accuracy} if _are_classes(outputs, targets) else {}
        return {name: f(outputs, targets) for name, f in metrics.items()}


def accuracy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The share of the labels (b,) that have the highest of the logits (b, classes)."""
    return jnp.mean(predicted(logits).astype(labels.dtype) == labels)


def predicted(logits: jax.Array) -> jax.Array:
    """The first of the highest logits (..., classes), int32 (...); classes if NaN.

    As `jnp.argmax`, which takes XLA twenty times as long on CPU: it compares one after
    the other, and these are two reductions of rows.
    """
    classes = logits.shape[-1]
    highest = logits.max(axis=-1, keepdims=True)
    places = jnp.arange(classes, dtype=jnp.int32)
    return jnp.where(logits == highest, places, classes).min(axis=-1)


def _are_classes(outputs: Any, targets: Any) -> bool:
    """Whether targets are integers, one for each row of outputs."""
    try:
        whole = jnp.issubdtype(targets.dtype, jnp.integer)
        return whole and outputs.shape[:-1] == targets.shape
    except AttributeError:
        return False


def image_classification(
    loss: Callable[[jax.Array, jax.Array], jax.Array] = cross_entropy,
) -> Task:
    """Batches (images (b, h, w, c), labels (b,)): cross entropy, and "accuracy"."""
    return Task(loss=loss, metrics={"accuracy": accuracy})


def language_model(*, smoothing: float = 0.0) -> Task:
    """Tokens to the next token: cross entropy in nats, "accuracy", and "perplexity".

    A batch is ``(tokens, targets)``, ``(tokens, targets, mask)``, or a mapping with
    these names; all of shape (b, t). The network maps tokens to logits (b, t, vocab).
    Where the mask is 0 nothing counts, neither in the loss nor in the metrics; a mean
    is one over all tokens of a batch that count, wherever they stand.

    Args:
      smoothing: share of each target that is spread evenly over the vocabulary.

    Example:
      >>> task = language_model()
      >>> targets = task.targets((jnp.array([[1, 2]]), jnp.array([[0, 1]])))
      >>> loss = task.loss(jnp.zeros((1, 2, 4)), targets)  # log 4
      >>> summary = task.summary({"loss": loss})
      >>> round(float(loss), 3), round(float(summary["perplexity"]), 3)
      (1.386, 4.0)
    """

    def part(batch: Any, at: int, name: str) -> Any:
        if isinstance(batch, Mapping):
            return batch.get(name)
        return batch[at] if at < len(batch) else None

    def targets(batch: Any) -> Any:
        return part(batch, 1, "targets"), part(batch, 2, "mask")

    def correct(logits: jax.Array, targets: Any) -> jax.Array:
        labels, _ = targets
        right = predicted(logits).astype(labels.dtype) == labels
        weights = token_weights(targets)
        total = jnp.sum(weights)
        return jnp.sum(weights * right.astype(weights.dtype)) / jnp.where(
            total > 0, total, jnp.ones_like(total)
        )

    def summary(results: dict[str, Any]) -> dict[str, Any]:
        return {**results, "perplexity": jnp.exp(results["loss"])}

    return Task(
        loss=lambda logits, given: token_cross_entropy(
            logits, *given, smoothing=smoothing
        ),
        metrics={"accuracy": correct},
        inputs=lambda batch: part(batch, 0, "tokens"),
        targets=targets,
        weights=token_weights,
        summary=summary,
    )
