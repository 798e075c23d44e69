"""From an encoded image to pixels of one size: decoded, cropped, resized, mirrored.

Random draws depend on the seed, the epoch and the number of the example
alone.
"""

import io
import math
from typing import Any

import numpy as np

from ..core.streams import Stream, uniforms

# How many candidates for a crop are drawn before the largest one in the middle is
# taken, as in torchvision.
_ATTEMPTS = 10


def uniform(seed: int, epoch: int, number: int) -> np.ndarray:
    """(23,) numbers in [0, 1), the draws for one example in one epoch.

    They come of raw random words, see `core.streams`.
    """
    return uniforms(seed, Stream.CROPS, epoch, number, count=2 * _ATTEMPTS + 3)


def random_box(height: int, width: int, draws: np.ndarray) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a random part of an image, as torchvision draws it.

    Args:
      height, width: of the image.
      draws: (22,) numbers in [0, 1).

    >>> random_box(375, 500, np.full(22, 0.5))
    (29, 91, 318, 318)
    """
    for area, shape in draws[:-2].reshape(_ATTEMPTS, 2):
        pixels = height * width * (0.08 + 0.92 * area)
        ratio = (3 / 4) ** (1 - 2 * shape)  # from 3/4 to 4/3, uniform in its logarithm
        h, w = round(math.sqrt(pixels / ratio)), round(math.sqrt(pixels * ratio))
        if 0 < h <= height and 0 < w <= width:
            down, right = draws[-2:]
            return int(down * (height - h + 1)), int(right * (width - w + 1)), h, w
    # No luck, as in very long images: as much of the middle as the ratios allow.
    h = min(height, round(width * 4 / 3))
    w = min(width, round(height * 4 / 3))
    return (height - h) // 2, (width - w) // 2, h, w


def train_pixels(encoded: bytes, size: int, draws: np.ndarray) -> np.ndarray:
    """A random part of the image, mirrored or not: (size, size, 3), uint8.

    Args:
      encoded: a JPEG, or another format that Pillow reads.
      size: in pixels.
      draws: (23,) numbers in [0, 1), which decide.
    """
    from PIL import Image

    with Image.open(io.BytesIO(encoded)) as image:
        width, height = image.size
        top, left, h, w = random_box(height, width, draws[1:])
        # Where pixels are to spare, a JPEG gives one for 2 x 2, 4 x 4 or 8 x 8 of them
        # in less time than all.
        shrink = next((n for n in (8, 4, 2) if min(h, w) >= n * size), 1)
        if image.draft(None, (width // shrink, height // shrink)) is None:
            shrink = 1  # no JPEG
        # Cut out before it is resized: what lies outside has no part in it.
        x, y = left // shrink, top // shrink
        edges = (x, y, -(-(left + w) // shrink), -(-(top + h) // shrink))
        part = image.crop(edges).convert("RGB")
    x, y = left / shrink - x, top / shrink - y
    return _resized(part, size, (x, y, x + w / shrink, y + h / shrink), draws[0] < 0.5)


def eval_pixels(encoded: bytes, size: int) -> np.ndarray:
    """The square in the middle of the image: (size, size, 3), uint8.

    It is 7/8 as long as the shorter side. Gives what resizing the whole image and
    cutting out the middle would, up to a fraction of a pixel.
    """
    from PIL import Image

    with Image.open(io.BytesIO(encoded)) as image:
        width, height = image.size
        side = min(height, width) * 7 / 8
        x, y = (width - side) / 2, (height - side) / 2
        return _resized(image.convert("RGB"), size, (x, y, x + side, y + side))


def undecodable(encoded: bytes) -> str | None:
    """Why an image cannot be decoded; None if it can.

    All of it is decoded, a JPEG to an eighth of its size, which takes half of the time.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(encoded)) as image:
            width, height = image.size
            image.draft(None, (width // 8, height // 8))
            image.load()
    except Exception as error:  # what decoders raise for bytes of all kinds
        return "empty" if not encoded else type(error).__name__
    return None


def _resized(
    image: Any, size: int, box: tuple[float, ...], mirrored: bool = False
) -> np.ndarray:
    """What lies in (left, top, right, bottom) of the image, as (size, size, 3)."""
    from PIL import Image

    image = image.resize((size, size), Image.Resampling.BILINEAR, box=box)
    pixels = np.asarray(image)
    return pixels[:, ::-1] if mirrored else pixels
