"""What the CIFAR networks share: layers initialized as PyTorch does, input checks.

The original builds every layer with PyTorch's defaults, so kernels and biases are
uniform in ±1/√fan_in (Kaiming with a = √5). Flax's own defaults differ.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

# Uniform in ±√(3 · scale / fan_in) = ±1/√fan_in.
_kernel_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def _bias_init(fan_in: int) -> nn.initializers.Initializer:
    """Uniform in ±1/√fan_in; the fan-in is the kernel's, which a bias cannot see."""

    def init(key, shape, dtype=jnp.float32, out_sharding=None):
        del out_sharding  # Flax initializers take it; a bias is never sharded here.
        bound = fan_in**-0.5
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def conv(
    x: jax.Array,
    features: int,
    kernel: int,
    *,
    stride: int = 1,
    use_bias: bool = False,
    dtype: DTypeLike | None,
    name: str,
    kernel_init: nn.initializers.Initializer = _kernel_init,
) -> jax.Array:
    """A square convolution, padded by ``kernel // 2`` on every side like PyTorch's.

    (``"SAME"`` would pad a strided one at the end only and see other pixels.)
    """
    return nn.Conv(
        features,
        (kernel, kernel),
        strides=stride,
        padding=kernel // 2,
        use_bias=use_bias,
        dtype=dtype,
        kernel_init=kernel_init,
        bias_init=_bias_init(kernel * kernel * x.shape[-1]),
        name=name,
    )(x)


def norm(x: jax.Array, *, train: bool, dtype: DTypeLike | None, name: str) -> jax.Array:
    """Batch norm with PyTorch's defaults (its momentum 0.1 is 0.9 in Flax's terms)."""
    return nn.BatchNorm(
        use_running_average=not train,
        momentum=0.9,
        epsilon=1e-5,
        dtype=dtype,
        name=name,
    )(x)


def norm_relu(
    x: jax.Array, *, train: bool, dtype: DTypeLike | None, name: str
) -> jax.Array:
    """Batch norm and relu."""
    return nn.relu(norm(x, train=train, dtype=dtype, name=name))


def head(
    x: jax.Array,
    num_classes: int,
    *,
    dtype: DTypeLike | None,
    name: str,
    kernel_init: nn.initializers.Initializer = _kernel_init,
    bias_init: nn.initializers.Initializer | None = None,
) -> jax.Array:
    """Mean over height and width, then one linear layer: (b, h, w, c) -> (b, classes).

    Logits have at least single precision, whatever `dtype` the layers compute in.
    """
    x = x.mean(axis=(1, 2))
    logits = nn.Dense(
        num_classes,
        dtype=dtype,
        kernel_init=kernel_init,
        bias_init=bias_init or _bias_init(x.shape[-1]),
        name=name,
    )(x)
    return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))


def widened(base: int, widen: float) -> int:
    """`base` channels times `widen`, which has to be a whole number of channels."""
    channels = base * widen
    if channels < 1 or not float(channels).is_integer():
        raise ValueError(
            f"widen={widen} asks for {base} x {widen} = {channels:g} channels in the "
            f"first stage; expected a whole number of at least 1. Choose a multiple "
            f"of 1/{base}, such as {1 / base:g}, 0.5 or 2."
        )
    return int(channels)


def check_images(x: jax.Array, *, smallest: int) -> None:
    """Raise ValueError unless `x` is (b, h, w, c) with h and w at least `smallest`."""
    # nn.Conv would take a single image, without a batch axis, and go on.
    if x.ndim != 4:
        raise ValueError(
            "expected images of shape (batch, height, width, channels), got "
            f"{x.shape}. A single image needs a batch axis: x[None]."
        )
    if min(x.shape[1:3]) < smallest:
        raise ValueError(
            f"expected images of at least {smallest} x {smallest} pixels in "
            f"(batch, height, width, channels), got {x.shape}. Enlarge the images, "
            "and check that channels come last."
        )
