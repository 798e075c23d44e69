"""The items of ten categories: drawn, or images; and the networks that tell them."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from mslice_jax import data
from mslice_jax.models import CifarVGG

FEATURES, CLASSES = 16, 10
TRAINING, HELD_OUT, HIDDEN = 8000, 4000, 32  # items, items, units of what draws


@dataclasses.dataclass(frozen=True, kw_only=True)
class Items:
    """Items with a category each, and a network for them.

    Attributes:
      x_train, x_test: items as they are stored.
      y_train, y_test: their categories.
      classes: how many categories there are.
      body: items as the network takes them -> logits of the categories.
      train_transform: (key, items) -> items as the network takes them, in training.
      transform: the same without augmentation.
    """

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    classes: int
    body: nn.Module
    train_transform: Callable[[jax.Array, Any], Any]
    transform: Callable[[Any], Any]


class Dense(nn.Module):
    """A network for drawn items: two hidden layers."""

    width: int
    classes: int

    @nn.compact
    def __call__(self, x: Any) -> Any:
        for _ in range(2):
            x = nn.relu(nn.Dense(self.width)(x))
        return nn.Dense(self.classes)(x)


class Relevance(nn.Module):
    """Logits of the categories; for a query, how relevant an item is for it.

    Relevance is the logit of the category that is asked for above the highest of the
    others: above 0 where the network says that the item is of it.
    """

    body: nn.Module

    def __call__(self, x: Any, query: Any = None, *, train: bool = False) -> Any:
        images = isinstance(self.body, CifarVGG)
        logits = self.body(x, train=train) if images else self.body(x)
        if query is None:
            return logits
        asked = jax.nn.one_hot(query, logits.shape[-1], dtype=bool)
        of_query = jnp.where(asked, logits, -jnp.inf).max(axis=-1)
        return of_query - jnp.where(asked, -jnp.inf, logits).max(axis=-1)


def drawn(*, width: int, sharpness: float, seed: int = 0) -> Items:
    """Items drawn at random, their categories from a random network, with noise.

    The noise of an item is drawn with it, so that no network is right on all.

    Args:
      width: of the hidden layers of the network to train.
      sharpness: the scale of the logits that categories are drawn from.
      seed: of all that is drawn.
    """
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(FEATURES, HIDDEN)) / np.sqrt(FEATURES)
    out = rng.normal(size=(HIDDEN, CLASSES)) / np.sqrt(HIDDEN)
    x = rng.normal(size=(TRAINING + HELD_OUT, FEATURES))
    logits = np.tanh(2 * x @ hidden) @ out
    logits = (logits - logits.mean(axis=0)) / logits.std(axis=0)  # alike in number
    y = np.argmax(sharpness * logits + rng.gumbel(size=logits.shape), axis=1)
    x, y = x.astype(np.float32), y.astype(np.int32)
    return Items(
        x_train=x[:TRAINING],
        y_train=y[:TRAINING],
        x_test=x[TRAINING:],
        y_test=y[TRAINING:],
        classes=CLASSES,
        body=Dense(width, CLASSES),
        train_transform=lambda key, x: x,
        transform=lambda x: x,
    )


def images(name: str, data_dir: Path | None, *, depth: int, widen: float) -> Items:
    """Images of a data set, and a VGG of the original for them.

    Raises:
      DataError: if the data set is not there.
    """
    found = data.load(name, data_dir)
    return Items(
        x_train=found.x_train,
        y_train=found.y_train,
        x_test=found.x_test,
        y_test=found.y_test,
        classes=found.num_classes,
        body=CifarVGG(depth=depth, num_classes=found.num_classes, widen=widen),
        train_transform=data.train_transform(found),
        transform=data.eval_transform(found),
    )
