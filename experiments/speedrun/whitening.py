"""The first layer's kernel, from training images: it whitens their patches."""

import numpy as np

from .network import PATCH

IMAGES = 5000
"""How many training images are looked at, at most."""

_LEAST = 5e-4  # added to the variances, so that what never varies is not blown up


def kernel(images: np.ndarray) -> np.ndarray:
    """Filters (2, 2, c, 8 c) whose outputs on the images' patches are uncorrelated.

    The first half are the principal directions of the patches, those of the largest
    variance first, each divided by the deviation along it; the second half is minus
    the first, so that nothing of a patch is lost in an activation. Means are not taken
    away: images are normalized.

    Args:
      images: (n, h, w, c), normalized.

    Example:
      >>> images = np.random.default_rng(0).normal(size=(100, 8, 8, 1))
      >>> kernel(images).shape
      (2, 2, 1, 8)
    """
    windows = np.lib.stride_tricks.sliding_window_view(images, (PATCH, PATCH), (1, 2))
    # (n, h, w, c, 2, 2), as the layer has it: (..., 2, 2, c)
    patches = np.moveaxis(windows, 3, -1).reshape(-1, PATCH * PATCH * images.shape[-1])
    patches = patches.astype(np.float64)
    variances, directions = np.linalg.eigh(patches.T @ patches / len(patches))
    filters = directions[:, ::-1] / np.sqrt(variances[::-1] + _LEAST)
    filters = filters.reshape(PATCH, PATCH, images.shape[-1], -1)
    return np.concatenate([filters, -filters], axis=-1).astype(np.float32)
