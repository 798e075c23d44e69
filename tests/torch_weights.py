"""Weights for networks of PyTorch and Flax, drawn by the name of each tensor."""

import zlib
from collections.abc import Mapping

import numpy as np


def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal float32 numbers, the same for the same name and shape."""
    random = np.random.default_rng(zlib.crc32(name.encode()))
    return random.standard_normal(shape, np.float32)


def weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """A state dict in which signals keep their size, and nothing is zero or one.

    Args:
      shapes: of the tensors, by PyTorch's names. Statistics of norms are left out.
    """
    state = {}
    for name, shape in shapes.items():
        if name.endswith(("running_mean", "running_var", "num_batches_tracked")):
            continue
        noise = draw(name, shape)
        if len(shape) == 1:  # biases, and scales of norms around one
            is_scale = name.endswith("weight")
            state[name] = 0.2 * noise + np.float32(is_scale)
            if name.endswith("bn3.weight"):
                # The branches of bottlenecks add little, as in trained networks: else
                # each of 50 blocks would amplify rounding errors.
                state[name] *= np.float32(0.3)
        else:
            fan_in = np.prod(shape[1:]) if "embedding" not in name else 4
            state[name] = noise * np.float32(np.sqrt(1.6 / fan_in))
    return state


def images(size: int, count: int = 2) -> np.ndarray:
    """Images (count, size, size, 3)."""
    return draw("images", (count, size, size, 3))
