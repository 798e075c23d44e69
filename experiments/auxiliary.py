"""Networks with auxiliary heads: GoogLeNet, whose training gives three logits.

They narrow with the network, so it is upgraded in training, where they run; what is
saved is without them (Szegedy et al., 2014, section 5).
"""

from typing import Any

import jax
from flax import linen as nn

from mslice_jax.models import GoogLeNet, GoogLeNetOutputs
from mslice_jax.train import Task, cross_entropy
from mslice_jax.train.task import accuracy

SHARE = 0.3
"""Share of each auxiliary head's loss, as in the paper and in torchvision's recipe."""

HEADS = ("aux1", "aux2")
"""Their modules."""


def has_heads(model: nn.Module) -> bool:
    """Whether the network has auxiliary heads."""
    return isinstance(model, GoogLeNet) and model.aux_logits


def call(model: nn.Module, key: jax.Array) -> dict[str, Any]:
    """Arguments of the call that `ms.upgrade` sees: with the heads, if there are."""
    if not has_heads(model):
        return {}
    return {"train": True, "mutable": ["batch_stats"], "rngs": {"dropout": key}}


def without_heads(model: nn.Module) -> nn.Module:
    """The network for evaluation."""
    assert isinstance(model, GoogLeNet)
    return model.clone(aux_logits=False)


def without_variables(variables: Any) -> Any:
    """Its variables, of those with heads."""
    return {
        collection: {name: tree[name] for name in tree if name not in HEADS}
        for collection, tree in variables.items()
    }


def task(*, smoothing: float = 0.0) -> Task:
    """Cross entropy and accuracy of the logits; with heads, their losses besides."""

    def loss(outputs: Any, labels: jax.Array) -> jax.Array:
        main = cross_entropy(_logits(outputs), labels, smoothing=smoothing)
        heads = outputs[1:] if isinstance(outputs, GoogLeNetOutputs) else ()
        losses = [cross_entropy(head, labels, smoothing=smoothing) for head in heads]
        return main + SHARE * sum(losses) if losses else main

    return Task(
        loss=loss,
        metrics={"accuracy": lambda outputs, y: accuracy(_logits(outputs), y)},
        logits=_logits,
    )


def _logits(outputs: Any) -> jax.Array:
    return outputs.logits if isinstance(outputs, GoogLeNetOutputs) else outputs
