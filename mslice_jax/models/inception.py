"""GoogLeNet for images of ImageNet's size (Szegedy et al., 2014, arXiv 1409.4842)."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Num

from .layers import (
    adaptive_mean,
    check_images,
    classifier,
    conv,
    max_pool_ceil,
    norm,
    widened,
)

# Channels of the inception blocks: 1 x 1; 1 x 1 and 3 x 3; again; after pooling.
_INCEPTION = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}
# The auxiliary heads, and the block whose result they see.
_AUXILIARY = {"4a": "aux1", "4d": "aux2"}
POSITIONS = 4
"""Height and width of what an auxiliary head sees flat, in the order h, w, channels."""
_SMALLEST = 8  # All channels are multiples of it.

# Normal of deviation 0.01 cut at ±2, which is cut nowhere, as torchvision begins.
_kernel_init = nn.initializers.normal(0.01)


class GoogLeNetOutputs(NamedTuple):
    """What GoogLeNet gives in training: three logits, (b, num_classes) each.

    The paper adds 0.3 times the loss of either auxiliary head to that of the logits.
    """

    logits: jax.Array
    aux_logits2: jax.Array
    aux_logits1: jax.Array


class GoogLeNet(nn.Module):
    """GoogLeNet with batch norms (of epsilon 0.001), as torchvision's.

    As there, the branches that the paper has 5 x 5 are 3 x 3. `init` makes the
    parameters of the auxiliary heads in either mode, but only training runs them: to
    train with them under slicing, upgrade the network in training mode
    (``upgrade(..., train=True, mutable=["batch_stats"], rngs=...)``), so that their
    axes are seen, and narrow, too.

    Attributes:
      num_classes: length of the logits.
      widen: factor on the channels of every layer; 8 x widen must be whole.
      aux_logits: whether there are auxiliary heads.
      transform_input: whether images come normalized as the other networks of
        torchvision take them; its pretrained GoogLeNet was trained on (x - 0.5) / 0.5.
      dropout: share of the units in front of the logits that training drops.
      dropout_aux: the same of the auxiliary heads.
      dtype: what layers compute in; None is the type of inputs and parameters.
        Parameters are float32.

    Raises:
      ValueError: at construction, if widen asks for no such network.

    Example:
      >>> import jax
      >>> from mslice_jax.models import GoogLeNet
      >>> model = GoogLeNet()
      >>> x = jax.ShapeDtypeStruct((8, 224, 224, 3), "float32")
      >>> jax.eval_shape(model.init_with_output, jax.random.key(0), x)[0].shape
      (8, 1000)
    """

    num_classes: int = 1000
    widen: float = 1
    aux_logits: bool = True
    transform_input: bool = False
    dropout: float = 0.2
    dropout_aux: float = 0.7
    dtype: DTypeLike | None = None

    def __post_init__(self):
        widened(_SMALLEST, self.widen)
        super().__post_init__()

    @nn.compact
    def __call__(
        self, x: Num[Array, "b h w c"], *, train: bool = False
    ) -> Float[Array, "b num_classes"] | GoogLeNetOutputs:
        """Images (b, h, w, c), at least 15 x 15 pixels -> logits (b, num_classes).

        With ``train=True`` all three logits, unless `aux_logits` is false. Then units
        are dropped, which takes a random stream "dropout"; norms use the statistics of
        the batch, and the collection "batch_stats" has to be mutable.
        """
        check_images(x, smallest=15)
        if self.transform_input:
            x = _as_in_training(x)
        conv = functools.partial(_ConvNormRelu, train=train, dtype=self.dtype)
        x = conv(self._wide(64), 7, stride=2, name="conv1")(x)
        x = max_pool_ceil(x, 3, 2)
        x = conv(self._wide(64), 1, name="conv2")(x)
        x = conv(self._wide(192), 3, name="conv3")(x)
        x = max_pool_ceil(x, 3, 2)
        heads = self.aux_logits and (train or self.is_initializing())
        auxiliary: dict[str, jax.Array] = {}
        for block, channels in _INCEPTION.items():
            if block == "4a":
                x = max_pool_ceil(x, 3, 2)
            if block == "5a":
                x = max_pool_ceil(x, 2, 2)
            x = self._inception(x, f"inception{block}", channels, train)
            if heads and block in _AUXILIARY:
                name = _AUXILIARY[block]
                auxiliary[name] = _Auxiliary(
                    channels=self._wide(128),
                    hidden=self._wide(1024),
                    num_classes=self.num_classes,
                    dropout=self.dropout_aux,
                    dtype=self.dtype,
                    name=name,
                )(x, train)
        x = nn.Dropout(self.dropout, deterministic=not train)(x.mean(axis=(1, 2)))
        logits = classifier(
            x,
            self.num_classes,
            dtype=self.dtype,
            name="fc",
            kernel_init=_kernel_init,
        )
        if not (self.aux_logits and train):
            return logits
        return GoogLeNetOutputs(logits, auxiliary["aux2"], auxiliary["aux1"])

    def _wide(self, base: int) -> int:
        return widened(base, self.widen)

    def _inception(
        self, x: jax.Array, name: str, channels: tuple[int, ...], train: bool
    ) -> jax.Array:
        return _Inception(
            channels=tuple(map(self._wide, channels)), dtype=self.dtype, name=name
        )(x, train)


class _ConvNormRelu(nn.Module):
    """A convolution, its batch norm and relu."""

    channels: int
    kernel: int
    train: bool
    dtype: DTypeLike | None
    stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = conv(
            x,
            self.channels,
            self.kernel,
            stride=self.stride,
            dtype=self.dtype,
            name="conv",
            kernel_init=_kernel_init,
        )
        x = norm(x, train=self.train, dtype=self.dtype, name="bn", epsilon=1e-3)
        return nn.relu(x)


class _Inception(nn.Module):
    """Four branches, their channels side by side."""

    channels: tuple[int, ...]
    dtype: DTypeLike | None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        conv: Any = functools.partial(_ConvNormRelu, train=train, dtype=self.dtype)
        one, reduce3, three, reduce5, five, pool = self.channels
        # "SAME" windows of stride 1: their padding is never the largest entry.
        pooled = nn.max_pool(x, (3, 3), (1, 1), "SAME")
        branches = [
            conv(one, 1, name="branch1")(x),
            conv(three, 3, name="branch2_1")(conv(reduce3, 1, name="branch2_0")(x)),
            conv(five, 3, name="branch3_1")(conv(reduce5, 1, name="branch3_0")(x)),
            conv(pool, 1, name="branch4_1")(pooled),
        ]
        return jnp.concatenate(branches, axis=-1)


class _Auxiliary(nn.Module):
    """An auxiliary head: 4 x 4 means, a 1 x 1 convolution, two linear layers."""

    channels: int
    hidden: int
    num_classes: int
    dropout: float
    dtype: DTypeLike | None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = adaptive_mean(x, POSITIONS)
        x = _ConvNormRelu(self.channels, 1, train, self.dtype, name="conv")(x)
        x = x.reshape(x.shape[0], -1)
        x = nn.Dense(
            self.hidden, dtype=self.dtype, kernel_init=_kernel_init, name="fc1"
        )(x)
        x = nn.Dropout(self.dropout, deterministic=not train)(nn.relu(x))
        return classifier(
            x,
            self.num_classes,
            dtype=self.dtype,
            name="fc2",
            kernel_init=_kernel_init,
        )


def _as_in_training(x: jax.Array) -> jax.Array:
    """ImageNet's mean and deviation undone, and (x - 0.5) / 0.5 in their place."""
    mean = np.array((0.485, 0.456, 0.406), np.float32).reshape(1, 1, 1, 3)
    std = np.array((0.229, 0.224, 0.225), np.float32).reshape(1, 1, 1, 3)
    return x * (std / 0.5) + (mean - 0.5) / 0.5


def googlenet(**settings: Any) -> GoogLeNet:
    """GoogLeNet, 13.0 million parameters with auxiliary heads, 6.6 million without."""
    return GoogLeNet(**settings)
