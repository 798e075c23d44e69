"""Small networks for `own_jit`: convolutional, recurrent, mixed and other ones."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mslice_jax.models import CifarResNet, CifarVGG


class Recurrent(nn.Module):
    """Two layers over a sequence, as a language model has them."""

    cell: Callable[..., nn.RNNCellBase]

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """(b, t) -> (b, t, vocabulary)."""
        x: Any = nn.Embed(512, 256)(tokens)
        for _ in range(2):
            x = nn.RNN(self.cell(256))(x)
        return nn.Dense(512)(x)


class Dense(nn.Module):
    """Dense layers with layer norms."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(b, c) -> (b, 10)."""
        for _ in range(3):
            x = nn.LayerNorm()(nn.relu(nn.Dense(512)(x)))
        return nn.Dense(10)(x)


class Transformer(nn.Module):
    """Two blocks of attention and a gated layer."""

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """(b, t) -> (b, t, vocabulary)."""
        x = nn.Embed(512, 256)(tokens)
        for _ in range(2):
            x = x + nn.SelfAttention(8)(nn.RMSNorm()(x))
            y = nn.RMSNorm()(x)
            x = x + nn.Dense(256)(nn.silu(nn.Dense(512)(y)) * nn.Dense(512)(y))
        return nn.Dense(512)(x)


class Patches(nn.Module):
    """A vision transformer of two blocks: one convolution, little of the work."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(b, h, w, c) -> (b, 10)."""
        x = nn.Conv(192, (4, 4), strides=4)(x)
        x = x.reshape(len(x), -1, 192)
        for _ in range(2):
            x = x + nn.SelfAttention(6)(nn.LayerNorm()(x))
            x = x + nn.Dense(192)(nn.gelu(nn.Dense(768)(nn.LayerNorm()(x))))
        return nn.Dense(10)(x.mean(1))


class Hybrid(nn.Module):
    """Convolutions, then a block of attention: half of the work each."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(b, h, w, c) -> (b, 10)."""
        for features, stride in ((32, 1), (32, 1), (64, 2), (128, 2)):
            x = nn.relu(nn.Conv(features, (3, 3), strides=stride)(x))
        x = x.reshape(len(x), -1, 128)
        for _ in range(2):
            x = x + nn.SelfAttention(8)(nn.LayerNorm()(x))
            x = x + nn.Dense(128)(nn.gelu(nn.Dense(512)(nn.LayerNorm()(x))))
        return nn.Dense(10)(x.mean(1))


class ConvolutionAndLSTM(nn.Module):
    """One convolution over time before a recurrent network."""

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """(b, t) -> (b, t, vocabulary)."""
        x = nn.relu(nn.Conv(256, (3,))(nn.Embed(512, 256)(tokens)))
        return nn.Dense(512)(nn.RNN(nn.OptimizedLSTMCell(256))(x))


class ConvolutionAndDense(nn.Module):
    """A small convolution before dense layers."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(b, h, w, c) -> (b, 10)."""
        x = nn.max_pool(nn.relu(nn.Conv(8, (3, 3))(x)), (2, 2), strides=(2, 2))
        x = x.reshape(len(x), -1)
        for _ in range(2):
            x = nn.relu(nn.Dense(512)(x))
        return nn.Dense(10)(x)


class Groups(nn.Module):
    """Residual blocks with convolutions of 16 groups, as ResNeXt has them."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(b, h, w, c) -> (b, 10)."""
        x = nn.max_pool(nn.relu(nn.Conv(64, (3, 3))(x)), (3, 3), (2, 2), "SAME")
        for _ in range(2):
            y = nn.relu(nn.Conv(128, (1, 1))(x))
            y = nn.relu(nn.Conv(128, (3, 3), feature_group_count=16)(y))
            x = nn.relu(x + nn.Conv(64, (1, 1))(y))
        return nn.Dense(10)(x.mean((1, 2)))


class Volumes(nn.Module):
    """Convolutions over volumes, down and up again, as a U-Net has them."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(b, d, h, w, c) -> (b, d, h, w, 2)."""
        fine = nn.relu(nn.Conv(16, (3, 3, 3))(x))
        x = nn.relu(nn.Conv(32, (3, 3, 3), strides=2)(fine))
        x = nn.relu(nn.ConvTranspose(16, (2, 2, 2), strides=(2, 2, 2))(x))
        x = nn.relu(nn.Conv(16, (3, 3, 3))(jnp.concatenate([x, fine], -1)))
        return nn.Conv(2, (1, 1, 1))(x)


def networks() -> dict[str, tuple[nn.Module, jax.Array]]:
    """Modules and inputs, by name."""
    images = jax.random.normal(jax.random.key(0), (64, 32, 32, 3))
    tokens = jax.random.randint(jax.random.key(0), (8, 128), 0, 512)
    return {
        "ResNet-20": (CifarResNet(depth=20), images),
        "VGG-11": (CifarVGG(11), images),
        "LSTM": (Recurrent(nn.OptimizedLSTMCell), tokens),
        "GRU": (Recurrent(nn.GRUCell), tokens),
        "transformer": (Transformer(), tokens),
        "dense": (Dense(), jnp.ones((64, 256))),
        "patches, transformer": (Patches(), images[:16]),
        "convolutions, transformer": (Hybrid(), images[:16]),
        "convolution, LSTM": (ConvolutionAndLSTM(), tokens),
        "convolution, dense": (ConvolutionAndDense(), images),
        "grouped convolutions": (Groups(), images[:16]),
        "volumes": (
            Volumes(),
            jax.random.normal(jax.random.key(0), (2, 16, 16, 16, 1)),
        ),
    }
