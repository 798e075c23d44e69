"""Images to train on, to search on and to compare on; and the network for them."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from mslice_jax import data


class Network(nn.Module):
    """Convolutions, the mean over the image, and two dense layers.

    Attributes:
      channels: of each convolution, and of the hidden dense layer.
      strides: of each convolution.
      classes: how many logits.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    classes: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Images (b, h, w, c) to logits (b, classes)."""
        *convolutions, dense = self.channels
        for width, stride in zip(convolutions, self.strides, strict=True):
            x = nn.Conv(width, (3, 3), strides=stride)(x)
            x = nn.relu(nn.GroupNorm(num_groups=8)(x))
        x = nn.relu(nn.Dense(dense)(x.mean((1, 2))))
        return nn.Dense(self.classes)(x)


@dataclasses.dataclass(frozen=True, eq=False)
class Images:
    """Images as the network takes them, and their labels.

    Attributes:
      x: (n, h, w, c).
      y: (n,).
      draws: each image is there so many times, with noise of its own; the first
        n / draws are all images once.
    """

    x: np.ndarray
    y: np.ndarray
    draws: int = 1


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """Three parts that share no image, and how training images are varied.

    Attributes:
      x_train, y_train: raw.
      validation: to search on.
      held_out: to compare on.
      vary: (key, raw images) -> images as the network takes them, in training.
      classes: how many the labels name.
    """

    x_train: np.ndarray
    y_train: np.ndarray
    validation: Images
    held_out: Images
    vary: Callable[[jax.Array, jax.Array], jax.Array]
    classes: int


def split(
    name: str,
    data_dir: Path | None,
    *,
    counts: Sequence[int],
    noise: float,
    draws: int,
    seed: int,
) -> Split:
    """A data set, split anew.

    Args:
      name, data_dir: as `mslice_jax.data.load` takes them; its training and test images
        are put together.
      counts: images to train on, to search on and to compare on.
      noise: standard deviation of normal noise on the pixels, in units of theirs.
      draws: how many times each image to search or compare on is drawn.
      seed: decides who is where, and the noise.

    Raises:
      DataError: if the data set is not there.
      ValueError: if it has fewer images.
    """
    found = data.load(name, data_dir)
    x = np.concatenate([found.x_train, found.x_test])
    y = np.concatenate([found.y_train, found.y_test])
    if sum(counts) > len(x):
        raise ValueError(
            f"expected at most the {len(x)} images of {name} in all; got "
            f"{' + '.join(map(str, counts))} to train, search and compare on."
        )
    rng = np.random.default_rng(seed)
    parts = np.split(rng.permutation(len(x))[: sum(counts)], np.cumsum(counts)[:-1])
    augmented, plain = data.train_transform(found), data.eval_transform(found)

    def vary(key: jax.Array, raw: jax.Array) -> jax.Array:
        crop, noisy = jax.random.split(key)
        seen = augmented(crop, raw)
        return seen + noise * jax.random.normal(noisy, seen.shape)

    def drawn(part: np.ndarray) -> Images:
        seen = np.tile(np.asarray(plain(jnp.asarray(x[part]))), (draws, 1, 1, 1))
        seen = seen + noise * rng.normal(size=seen.shape).astype(np.float32)
        return Images(seen, np.tile(y[part], draws), draws)

    train, validation, held_out = parts
    return Split(
        x[train], y[train], drawn(validation), drawn(held_out), vary, found.num_classes
    )
