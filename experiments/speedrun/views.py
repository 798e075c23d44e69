"""An image seen from several sides: test-time augmentation of the public runs."""

from typing import Any

import jax
import jax.numpy as jnp

import mslice_jax as ms


def logits(net: ms.Sliceable, images: jax.Array, rate: float, *, views: int) -> Any:
    """Mean logits over views of each image.

    Args:
      net: the network.
      images: (b, h, w, c), normalized.
      rate: of the network.
      views: 1, the image; 2, and its mirror image; 6, and both shifted by a pixel along
        the diagonal either way, which count half as much in all.
    """

    def of(images: jax.Array) -> Any:
        return ms.slice_apply(net, images, rate)

    def both(images: jax.Array) -> Any:
        return (of(images) + of(images[:, :, ::-1])) / 2

    if views == 1:
        return of(images)
    if views == 2:
        return both(images)
    _, height, width, _ = images.shape
    padded = jnp.pad(images, [(0, 0), (1, 1), (1, 1), (0, 0)], mode="reflect")
    shifted = [both(padded[:, n : n + height, n : n + width]) for n in (0, 2)]
    return both(images) / 2 + sum(shifted) / 4
