"""A U-Net: every pixel gets a class; group norms, SiLU, transposed convolutions."""

# The checks of this project do not install PyTorch.
# pyright: reportMissingImports=false

from collections.abc import Mapping
from typing import Any

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from .data import Images
from .pair import Arrays, Pair, named

GROUPS = 8
CHANNELS = (32, 64, 128)
CLASSES = 4


def unet(tiny: bool) -> Pair:
    """Three levels of 32, 64 and 128 channels."""
    return Pair(
        model=_Ours(),
        twin=_Twin,
        tensors=_tensors,
        batch=2 if tiny else 16,
        upgrade={"groups": GROUPS},
        **Images(8 if tiny else 48, CLASSES, of_pixels=True).settings(),
    )


class _Ours(linen.Module):
    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(b, h, w, 3) -> (b, h, w, classes)."""
        kept = []
        for level, channels in enumerate(CHANNELS):
            x = self._block(x, channels, f"down{level}")
            if level < len(CHANNELS) - 1:
                kept.append(x)
                x = linen.max_pool(x, (2, 2), strides=(2, 2))
        for level in reversed(range(len(kept))):
            up = linen.ConvTranspose(CHANNELS[level], (2, 2), (2, 2), name=f"up{level}")
            x = jnp.concatenate([up(x), kept[level]], axis=-1)
            x = self._block(x, CHANNELS[level], f"join{level}")
        return linen.Conv(CLASSES, (1, 1), name="head")(x)

    def _block(self, x: jax.Array, channels: int, name: str) -> jax.Array:
        for each in ("a", "b"):
            x = linen.Conv(channels, (3, 3), name=f"{name}{each}_conv")(x)
            norm = linen.GroupNorm(GROUPS, epsilon=1e-5, name=f"{name}{each}_norm")
            x = linen.silu(norm(x))
        return x


class _Twin(nn.Module):
    def __init__(self, rate: float):
        super().__init__()
        self._rate = rate
        widths = [round(channels * rate) for channels in CHANNELS]
        inputs = 3
        for level, channels in enumerate(widths):
            self._add(inputs, channels, f"down{level}")
            inputs = channels
        for level in reversed(range(len(widths) - 1)):
            up = nn.ConvTranspose2d(inputs, widths[level], 2, 2)
            self.add_module(f"up{level}", up)
            self._add(2 * widths[level], widths[level], f"join{level}")
            inputs = widths[level]
        self.head = nn.Conv2d(inputs, CLASSES, 1)

    def _add(self, inputs: int, channels: int, name: str) -> None:
        for each in ("a", "b"):
            conv = nn.Conv2d(inputs, channels, 3, padding=1)
            self.add_module(f"{name}{each}_conv", conv)
            norm = nn.GroupNorm(round(GROUPS * self._rate), channels, eps=1e-5)
            self.add_module(f"{name}{each}_norm", norm)
            inputs = channels

    def _block(self, x: torch.Tensor, name: str) -> torch.Tensor:
        for each in ("a", "b"):
            x = getattr(self, f"{name}{each}_conv")(x)
            x = F.silu(getattr(self, f"{name}{each}_norm")(x))
        return x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(b, 3, h, w) -> (b, classes, h, w)."""
        kept = []
        for level in range(len(CHANNELS)):
            x = self._block(x, f"down{level}")
            if level < len(CHANNELS) - 1:
                kept.append(x)
                x = F.max_pool2d(x, 2)
        for level in reversed(range(len(kept))):
            x = torch.cat([getattr(self, f"up{level}")(x), kept[level]], 1)
            x = self._block(x, f"join{level}")
        return self.head(x)


def _tensors(variables: Mapping[tuple[str, ...], Any]) -> Arrays:
    arrays = named(variables)
    for name, x in arrays.items():
        if name.startswith("up") and x.ndim == 4:
            # Inputs come first, and a window is not flipped.
            arrays[name] = np.flip(x.transpose(1, 0, 2, 3), (2, 3))
    return arrays
