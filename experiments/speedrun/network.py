"""The network of the public speed runs of CIFAR-10, in Flax.

It is that of Keller Jordan's airbench94 (arXiv 2404.00498), which comes from tysam's
hlb-CIFAR10 and David Page's ResNet for DAWNBench: a frozen layer that whitens patches,
three groups of two convolutions, and no shortcuts, for every convolution begins as the
identity.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Num

from mslice_jax.models.layers import check_images, widened

PATCH = 2
"""Height and width of the patches that the first layer whitens, in pixels."""

CHANNELS = (64, 256, 256)
"""Channels of the three groups."""

_uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # ±1/√fan_in

_SCALE = 16 / 9  # of the logits: with the initial weights they are nearly alike


class SpeedNet(nn.Module):
    """Whitening, three groups of two convolutions, the maximum, and a linear layer.

    The collection "whitening" holds the kernel of the first layer, which is not
    trained: the patches' principal directions, each scaled to unit variance, and each
    once more with its sign changed (`whitening.kernel`). `init` draws it at random.

    Attributes:
      num_classes: length of the logits.
      width: factor on the channels of the groups; 64 x width must be whole.
      whitening_bias: whether the first layer has a bias, which is trained. Without one
        a training step needs no gradient there, where the images are largest.
      momentum: of the running statistics, as Flax has it: the share that stays.
      kernel_init: how convolutions begin, one of `INITS`.

    Raises:
      ValueError: at construction, for channels that are no whole number, or an unknown
        `kernel_init`.

    Example:
      >>> import jax
      >>> x = jax.ShapeDtypeStruct((8, 32, 32, 3), "float32")
      >>> model = SpeedNet(width=0.5)
      >>> jax.eval_shape(model.init_with_output, jax.random.key(0), x)[0].shape
      (8, 10)
    """

    num_classes: int = 10
    width: float = 1
    whitening_bias: bool = True
    momentum: float = 0.6
    kernel_init: str = "identity"

    def __post_init__(self):
        if self.kernel_init not in INITS:
            raise ValueError(
                f"expected one of {', '.join(INITS)}, got {self.kernel_init!r}."
            )
        widened(CHANNELS[0], self.width)
        super().__post_init__()

    @nn.compact
    def __call__(
        self, x: Num[Array, "b h w c"], *, train: bool = False
    ) -> Float[Array, "b num_classes"]:
        """Images (b, h, w, c), at least 4 x 4 pixels -> logits (b, num_classes).

        With ``train=True`` norms use the statistics of the batch, and the collection
        "batch_stats" has to be mutable.
        """
        check_images(x, smallest=4)
        shape = PATCH, PATCH, x.shape[-1], 2 * PATCH * PATCH * x.shape[-1]
        kernel: Any = self.variable("whitening", "kernel", self._random, shape)
        x = jax.lax.conv_general_dilated(
            x, kernel.value, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        if self.whitening_bias:
            bias = self.param("whitening_bias", nn.initializers.zeros, shape[-1:])
            x = x + bias.reshape(1, 1, 1, -1)
        x = nn.gelu(x, approximate=False)
        for index, base in enumerate(CHANNELS):
            channels = widened(base, self.width)
            for layer in (1, 2):
                name = f"group{index + 1}_"
                # Of an odd size the pooling leaves the last row and column out; so they
                # are not computed. On CPU a step at half the width takes 1.4 times as
                # long with them, and 1.2 times with images padded to even sizes.
                even = [n - n % 2 for n in x.shape[1:3]]
                pools = layer == 1 and min(even) > 0
                x = nn.Conv(
                    channels,
                    (3, 3),
                    padding=[
                        (1, m - n + 1 if pools else 1)
                        for n, m in zip(x.shape[1:3], even, strict=True)
                    ],
                    use_bias=False,
                    kernel_init=INITS[self.kernel_init],
                    name=f"{name}conv{layer}",
                )(x)
                if pools:
                    x = nn.max_pool(x, (2, 2), strides=(2, 2))
                x = nn.BatchNorm(
                    use_running_average=not train,
                    momentum=self.momentum,
                    use_scale=False,
                    name=f"{name}norm{layer}",
                )(x)
                x = nn.gelu(x, approximate=False)
        x = x.max(axis=(1, 2))
        dense = nn.Dense(
            self.num_classes, use_bias=False, kernel_init=_uniform, name="head"
        )
        # By the root of the channels that there are: then a step of SGD changes the
        # logits of every width alike, and narrow rates learn as fast as wide ones.
        return _SCALE * (dense(x) / math.sqrt(channels))

    def _random(self, shape: tuple[int, ...]) -> jax.Array:
        key = self.make_rng("params")
        return nn.initializers.lecun_normal()(key, shape, jnp.float32)


def identity(
    key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32, **_: Any
) -> jax.Array:
    """A kernel (h, w, in, out) whose first filters pass one channel on, unchanged.

    There are as many of these as inputs, or as outputs if those are fewer. The other
    filters are uniform in ±1/√fan_in.

    Example:
      >>> kernel = identity(jax.random.key(0), (3, 3, 2, 4))
      >>> kernel[1, 1, :, :2].tolist(), float(abs(kernel[..., :2]).sum())
      ([[1.0, 0.0], [0.0, 1.0]], 2.0)
    """
    *window, into, out = shape
    kernel = _uniform(key, shape, dtype)
    passed = min(into, out)
    at = tuple(size // 2 for size in window)
    kernel = kernel.at[..., :passed].set(0)
    return kernel.at[(*at, slice(None, passed), slice(None, passed))].set(
        jnp.eye(passed, dtype=dtype)
    )


INITS = {
    "identity": identity,
    "orthogonal": nn.initializers.orthogonal(),
    "uniform": _uniform,
}
"""How convolutions begin: as the identity, with orthogonal filters, or at random."""
