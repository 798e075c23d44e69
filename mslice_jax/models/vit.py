"""Vision transformers (Dosovitskiy et al., 2020, arXiv 2010.11929), in Flax Linen."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Num

from .layers import classifier

EPSILON = 1e-6
"""Of the layer norms, as torchvision's."""

# As torchvision's begin. Queries, keys and values are one (d, 3d) matrix there, of
# which Xavier's variance is 2 / 4d: half of what it would be for each by itself.
XAVIER = nn.initializers.xavier_uniform()
QKV_INIT = nn.initializers.variance_scaling(0.5, "fan_avg", "uniform")
OUT_INIT = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
PATCH_INIT = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
POSITION_INIT = nn.initializers.normal(0.02)
MLP_BIAS_INIT = nn.initializers.normal(1e-6)
ZEROS = nn.initializers.zeros

# Layers, heads, hidden size and that of the MLPs.
_SIZES = {
    "b": {"layers": 12, "heads": 12, "hidden": 768, "mlp": 3072},
    "l": {"layers": 24, "heads": 16, "hidden": 1024, "mlp": 4096},
    "h": {"layers": 32, "heads": 16, "hidden": 1280, "mlp": 5120},
}


class VisionTransformer(nn.Module):
    """A transformer on patches and a class token, norms in front, as torchvision's.

    Attributes:
      patch_size: height and width of a patch, in pixels.
      layers: how many blocks of attention and MLP.
      heads: of each attention; they divide the hidden size.
      hidden: size of every token.
      mlp: hidden units of each MLP.
      image_size: height and width of the images, a multiple of the patches'.
      num_classes: length of the logits.
      dropout: share of units that training drops after embedding, attention and MLP.
      attention_dropout: the same of attention weights.
      dtype: what layers compute in; None is the type of inputs and parameters.
        Parameters are float32.

    Raises:
      ValueError: at construction, if sizes do not divide.

    Example:
      >>> import jax
      >>> import mslice_jax as ms
      >>> model = ms.models.vit_b_16()
      >>> x = jax.ShapeDtypeStruct((8, 224, 224, 3), "float32")
      >>> jax.eval_shape(model.init_with_output, jax.random.key(0), x)[0].shape
      (8, 1000)
    """

    patch_size: int
    layers: int
    heads: int
    hidden: int
    mlp: int
    image_size: int = 224
    num_classes: int = 1000
    dropout: float = 0.0
    attention_dropout: float = 0.0
    dtype: DTypeLike | None = None

    def __post_init__(self):
        check_sizes(self.image_size, self.patch_size, self.hidden, self.heads)
        super().__post_init__()

    @nn.compact
    def __call__(
        self, x: Num[Array, "b h w c"], *, train: bool = False
    ) -> Float[Array, "b num_classes"]:
        """Images (b, image_size, image_size, c) -> logits (b, num_classes).

        With ``train=True`` units are dropped, which takes a random stream "dropout"
        unless the shares are 0.
        """
        check_size(x, self.image_size)
        x = nn.Conv(
            self.hidden,
            (self.patch_size, self.patch_size),
            strides=self.patch_size,
            padding="VALID",
            dtype=self.dtype,
            kernel_init=PATCH_INIT,
            name="conv_proj",
        )(x)
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        token = self.param("class_token", ZEROS, (1, 1, self.hidden))
        shape = (1, x.shape[1] + 1, self.hidden)
        position = self.param("pos_embedding", POSITION_INIT, shape)
        first = jnp.broadcast_to(token.astype(x.dtype), (x.shape[0], 1, self.hidden))
        x = jnp.concatenate([first, x], axis=1) + position.astype(x.dtype)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        for index in range(self.layers):
            x = _Block(
                heads=self.heads,
                mlp=self.mlp,
                dropout=self.dropout,
                attention_dropout=self.attention_dropout,
                dtype=self.dtype,
                name=f"block{index}",
            )(x, train)
        x = nn.LayerNorm(epsilon=EPSILON, dtype=self.dtype, name="ln")(x)
        return classifier(
            x[:, 0],
            self.num_classes,
            dtype=self.dtype,
            name="head",
            kernel_init=ZEROS,
        )


class _Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    heads: int
    mlp: int
    dropout: float
    attention_dropout: float
    dtype: DTypeLike | None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        hidden, dtype = x.shape[-1], self.dtype
        y = nn.LayerNorm(epsilon=EPSILON, dtype=dtype, name="ln_1")(x)
        y = nn.MultiHeadDotProductAttention(
            self.heads,
            dtype=dtype,
            dropout_rate=self.attention_dropout,
            broadcast_dropout=False,
            deterministic=not train,
            kernel_init=QKV_INIT,
            out_kernel_init=OUT_INIT,
            name="self_attention",
        )(y)
        x = x + nn.Dropout(self.dropout, deterministic=not train)(y)
        y = nn.LayerNorm(epsilon=EPSILON, dtype=dtype, name="ln_2")(x)
        for name, size in (("fc1", self.mlp), ("fc2", hidden)):
            y = nn.Dense(
                size,
                dtype=dtype,
                kernel_init=XAVIER,
                bias_init=MLP_BIAS_INIT,
                name=name,
            )(y)
            y = nn.gelu(y, approximate=False) if name == "fc1" else y
            y = nn.Dropout(self.dropout, deterministic=not train)(y)
        return x + y


def check_sizes(image_size: int, patch_size: int, hidden: int, heads: int) -> None:
    """Raise ValueError unless patches divide images, and heads the hidden size."""
    for whole, part, text in (
        (image_size, patch_size, "an image_size that is a multiple of patch_size"),
        (hidden, heads, "a hidden size that is a multiple of the heads"),
    ):
        if whole < 1 or part < 1 or whole % part:
            raise ValueError(f"expected {text}, got {whole} and {part}.")


def check_size(x: jax.Array, image_size: int) -> None:
    """Raise ValueError unless `x` is (b, image_size, image_size, c)."""
    if x.ndim != 4 or x.shape[1:3] != (image_size, image_size):
        raise ValueError(
            "expected images of shape (batch, height, width, channels) with "
            f"{image_size} x {image_size} pixels, as many as there are position "
            f"embeddings for; got {x.shape}. Resize them, or build the network with "
            "another image_size."
        )


def sizes(name: str, patch_size: int) -> dict[str, int]:
    """The sizes of the "b"ase, "l"arge or "h"uge transformer.

    >>> sizes("b", 16)["hidden"]
    768
    """
    return {**_SIZES[name], "patch_size": patch_size}


def vit_b_16(**settings: Any) -> VisionTransformer:
    """ViT-B/16, 86.6 million parameters; settings of `VisionTransformer`."""
    return VisionTransformer(**{**sizes("b", 16), **settings})


def vit_b_32(**settings: Any) -> VisionTransformer:
    """ViT-B/32, 88.2 million parameters; settings of `VisionTransformer`."""
    return VisionTransformer(**{**sizes("b", 32), **settings})


def vit_l_16(**settings: Any) -> VisionTransformer:
    """ViT-L/16, 304.3 million parameters; settings of `VisionTransformer`."""
    return VisionTransformer(**{**sizes("l", 16), **settings})


def vit_l_32(**settings: Any) -> VisionTransformer:
    """ViT-L/32, 306.5 million parameters; settings of `VisionTransformer`."""
    return VisionTransformer(**{**sizes("l", 32), **settings})


def vit_h_14(**settings: Any) -> VisionTransformer:
    """ViT-H/14, 632.0 million parameters; settings of `VisionTransformer`."""
    return VisionTransformer(**{**sizes("h", 14), **settings})
