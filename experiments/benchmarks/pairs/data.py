"""Inputs of the pairs: random images and tokens, and what to compare logits with."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from mslice_jax.train import Task, cross_entropy, language_model


@dataclasses.dataclass(frozen=True)
class Images:
    """Random images (b, size, size, 3), and labels."""

    size: int
    classes: int = 10
    of_pixels: bool = False
    """Whether each pixel has a label."""

    def inputs(self, batch: int) -> jax.Array:
        """(b, size, size, 3)."""
        return jax.random.normal(jax.random.key(0), (batch, self.size, self.size, 3))

    def targets(self, batch: int) -> jax.Array:
        """(b,), or (b, size, size)."""
        count = batch * self.size**2 if self.of_pixels else batch
        labels = jnp.arange(count) % self.classes
        return labels.reshape(batch, self.size, self.size) if self.of_pixels else labels

    def settings(self) -> dict[str, Any]:
        """What a `Pair` is made of."""
        # PyTorch's side computes no accuracy.
        task = Task(loss=cross_entropy, metrics={})
        settings = {"inputs": self.inputs, "targets": self.targets, "task": task}
        return settings | {"images": True}


@dataclasses.dataclass(frozen=True)
class Texts:
    """Random tokens (b, length)."""

    length: int
    vocab: int

    def inputs(self, batch: int) -> jax.Array:
        """(b, length), whole numbers below vocab."""
        shape = batch, self.length
        return jax.random.randint(jax.random.key(0), shape, 0, self.vocab)

    def targets(self, batch: int) -> jax.Array:
        """The tokens that follow."""
        return jnp.roll(self.inputs(batch), -1, axis=1)

    def settings(self) -> dict[str, Any]:
        """What a `Pair` is made of."""
        task = dataclasses.replace(language_model(), metrics={})
        return {"inputs": self.inputs, "targets": self.targets, "task": task}
