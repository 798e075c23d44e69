"""What happens to images inside the compiled step: crop, flip, normalization."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from .dataset import Dataset
from .imagenet import ImageDataset


def crop_and_flip(
    key: jax.Array, images: Num[Array, "b h w c"], *, pad: int, flip: bool
) -> Num[Array, "b h w c"]:
    """Each image shifted by up to `pad` pixels both ways, half of them mirrored.

    The usual augmentation of CIFAR (with pad = 4): a border of `pad` black pixels, a
    random crop of the original size, a random horizontal flip.

    Args:
      key: random key; every image of the batch gets its own draw.
      images: (b, h, w, c), raw pixels, uint8 or floats of at most 32 bits; finite; 0
        is black.
      pad: most pixels of shift, not negative.
      flip: whether to mirror.

    Returns:
      Images of the same shape and dtype; pixels are moved, never changed.

    Example:
      >>> images = jnp.ones((2, 4, 4, 1), jnp.uint8)
      >>> crop_and_flip(jax.random.key(0), images, pad=1, flip=False).shape
      (2, 4, 4, 1)
    """
    batch, height, width, _ = images.shape
    key_y, key_x, key_flip = jax.random.split(key, 3)
    shift_y = jax.random.randint(key_y, (batch, 1, 1), -pad, pad + 1)
    shift_x = jax.random.randint(key_x, (batch, 1, 1), -pad, pad + 1)
    mirrored = jax.random.bernoulli(key_flip, 0.5, (batch, 1, 1)) & flip
    # The row and the column of the image that each row and column of the crop shows.
    rows = jnp.arange(height).reshape(1, -1, 1) + shift_y
    columns = jnp.arange(width).reshape(1, -1, 1)
    columns = jnp.where(mirrored, width - 1 - columns, columns) + shift_x
    # Picked by products with zeros and ones: a gather is slow on TPU. The highest
    # precision makes them exact there too, where products else run in bfloat16.
    cropped = jnp.einsum(
        "byh,bhwc,bxw->byxc",
        _one_hot(rows, height),
        images.astype(jnp.float32),
        _one_hot(columns, width),
        precision=jax.lax.Precision.HIGHEST,
    )
    return cropped.astype(images.dtype)


def _one_hot(chosen: jax.Array, size: int) -> jax.Array:
    """(b, n, 1) -> (b, n, size): 1 at the chosen place; none if it lies outside."""
    return (chosen == jnp.arange(size).reshape(1, 1, -1)).astype(jnp.float32)


def normalize(
    images: Num[Array, "b h w c"], mean: Sequence[float], std: Sequence[float]
) -> Float[Array, "b h w c"]:
    """(images - mean) / std for each channel, in float32.

    Args:
      images: (b, h, w, c), raw pixels of any dtype.
      mean, std: c numbers in the units of the pixels.

    Example:
      >>> float(normalize(jnp.full((1, 1, 1, 1), 6), [4.0], [2.0])[0, 0, 0, 0])
      1.0
    """
    shift = np.asarray(mean, np.float32).reshape(1, 1, 1, -1)
    scale = np.asarray(std, np.float32).reshape(1, 1, 1, -1)
    return (images.astype(jnp.float32) - shift) / scale


def train_transform(
    dataset: Dataset | ImageDataset,
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """(key, raw images) -> images cropped, flipped and normalized, for training.

    Made to run inside the compiled step; images are (b, h, w, c). Those that come from
    disk are cropped and mirrored already.
    """

    def transform(key: jax.Array, images: jax.Array) -> jax.Array:
        if dataset.pad or dataset.flip:
            images = crop_and_flip(key, images, pad=dataset.pad, flip=dataset.flip)
        return normalize(images, dataset.mean, dataset.std)

    return transform


def eval_transform(
    dataset: Dataset | ImageDataset,
) -> Callable[[jax.Array], jax.Array]:
    """Raw images -> images normalized, for evaluation."""
    return lambda images: normalize(images, dataset.mean, dataset.std)
