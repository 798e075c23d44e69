"""Vision transformers (see `vit`) in Flax NNX: the same networks, names and weights."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Num

from .vit import (
    EPSILON,
    MLP_BIAS_INIT,
    OUT_INIT,
    PATCH_INIT,
    POSITION_INIT,
    QKV_INIT,
    XAVIER,
    ZEROS,
    check_size,
    check_sizes,
    sizes,
)


class NnxVisionTransformer(nnx.Module):
    """A transformer on patches and a class token, norms in front, as torchvision's.

    Whether units are dropped is the model's mode (``model.train()``, ``model.eval()``),
    as everywhere in NNX; by default the shares are 0.

    Args:
      patch_size, layers, heads, hidden, mlp: as in `VisionTransformer`.
      image_size, num_classes, dtype: as in `VisionTransformer`.
      dropout, attention_dropout: as in `VisionTransformer`.
      channels: of the images.
      rngs: the streams "params" and, where units are dropped, "dropout".

    Raises:
      ValueError: if sizes do not divide.

    Example:
      >>> from flax import nnx
      >>> import jax
      >>> from mslice_jax.models import vit_nnx
      >>> make = lambda: vit_nnx.vit_b_16(layers=1, rngs=nnx.Rngs(0))
      >>> model = nnx.eval_shape(make)  # types alone
      >>> model.conv_proj.kernel.shape
      (16, 16, 3, 768)
    """

    def __init__(
        self,
        *,
        patch_size: int,
        layers: int,
        heads: int,
        hidden: int,
        mlp: int,
        image_size: int = 224,
        num_classes: int = 1000,
        channels: int = 3,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
    ):
        check_sizes(image_size, patch_size, hidden, heads)
        self.image_size = image_size
        self.conv_proj = nnx.Conv(
            channels,
            hidden,
            (patch_size, patch_size),
            strides=patch_size,
            padding="VALID",
            dtype=dtype,
            kernel_init=PATCH_INIT,
            rngs=rngs,
        )
        count = (image_size // patch_size) ** 2 + 1
        position = POSITION_INIT(rngs.params(), (1, count, hidden), jnp.float32)
        self.class_token = nnx.Param(jnp.zeros((1, 1, hidden)))
        self.pos_embedding = nnx.Param(position)
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        self.blocks = nnx.List(
            [
                _Block(heads, hidden, mlp, dropout, attention_dropout, dtype, rngs)
                for _ in range(layers)
            ]
        )
        self.ln = nnx.LayerNorm(hidden, epsilon=EPSILON, dtype=dtype, rngs=rngs)
        self.head = nnx.Linear(
            hidden, num_classes, dtype=dtype, kernel_init=ZEROS, rngs=rngs
        )

    def __call__(self, x: Num[Array, "b h w c"]) -> Float[Array, "b num_classes"]:
        """Images (b, image_size, image_size, c) -> logits (b, num_classes)."""
        check_size(x, self.image_size)
        x = self.conv_proj(x)
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        token = self.class_token[...].astype(x.dtype)
        first = jnp.broadcast_to(token, (x.shape[0], 1, x.shape[-1]))
        x = jnp.concatenate([first, x], axis=1)
        x = self.dropout(x + self.pos_embedding[...].astype(x.dtype))
        for block in self.blocks:
            x = block(x)
        logits = self.head(self.ln(x)[:, 0])
        return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))


class _Block(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(
        self,
        heads: int,
        hidden: int,
        mlp: int,
        dropout: float,
        attention_dropout: float,
        dtype: DTypeLike | None,
        rngs: nnx.Rngs,
    ):
        def dense(inputs: int, outputs: int) -> nnx.Linear:
            return nnx.Linear(
                inputs,
                outputs,
                dtype=dtype,
                kernel_init=XAVIER,
                bias_init=MLP_BIAS_INIT,
                rngs=rngs,
            )

        self.ln_1 = nnx.LayerNorm(hidden, epsilon=EPSILON, dtype=dtype, rngs=rngs)
        self.self_attention = nnx.MultiHeadAttention(
            heads,
            hidden,
            dtype=dtype,
            dropout_rate=attention_dropout,
            broadcast_dropout=False,
            kernel_init=QKV_INIT,
            out_kernel_init=OUT_INIT,
            decode=False,
            rngs=rngs,
        )
        self.ln_2 = nnx.LayerNorm(hidden, epsilon=EPSILON, dtype=dtype, rngs=rngs)
        self.fc1, self.fc2 = dense(hidden, mlp), dense(mlp, hidden)
        self.dropout = nnx.Dropout(dropout, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.dropout(self.self_attention(self.ln_1(x)))
        y = nnx.gelu(self.fc1(self.ln_2(x)), approximate=False)
        return x + self.dropout(self.fc2(self.dropout(y)))


def vit_b_16(**settings: Any) -> NnxVisionTransformer:
    """ViT-B/16; settings of `NnxVisionTransformer`, of which `rngs` has to be given."""
    return NnxVisionTransformer(**{**sizes("b", 16), **settings})


def vit_b_32(**settings: Any) -> NnxVisionTransformer:
    """ViT-B/32; settings of `NnxVisionTransformer`, of which `rngs` has to be given."""
    return NnxVisionTransformer(**{**sizes("b", 32), **settings})


def vit_l_16(**settings: Any) -> NnxVisionTransformer:
    """ViT-L/16; settings of `NnxVisionTransformer`, of which `rngs` has to be given."""
    return NnxVisionTransformer(**{**sizes("l", 16), **settings})


def vit_l_32(**settings: Any) -> NnxVisionTransformer:
    """ViT-L/32; settings of `NnxVisionTransformer`, of which `rngs` has to be given."""
    return NnxVisionTransformer(**{**sizes("l", 32), **settings})


def vit_h_14(**settings: Any) -> NnxVisionTransformer:
    """ViT-H/14; settings of `NnxVisionTransformer`, of which `rngs` has to be given."""
    return NnxVisionTransformer(**{**sizes("h", 14), **settings})
