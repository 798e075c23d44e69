"""What the networks share: layers initialized as PyTorch does, pooling, input checks.

The original builds every layer with PyTorch's defaults, so kernels and biases are
uniform in ±1/√fan_in (Kaiming with a = √5). Flax's own defaults differ.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
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
    depthwise: bool = False,
    dtype: DTypeLike | None,
    name: str,
    kernel_init: nn.initializers.Initializer = _kernel_init,
    bias_init: nn.initializers.Initializer | None = None,
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
        feature_group_count=features if depthwise else 1,
        dtype=dtype,
        kernel_init=kernel_init,
        bias_init=bias_init or _bias_init(kernel * kernel * x.shape[-1]),
        name=name,
    )(x)


def norm(
    x: jax.Array,
    *,
    train: bool,
    dtype: DTypeLike | None,
    name: str,
    epsilon: float = 1e-5,
) -> jax.Array:
    """Batch norm with PyTorch's defaults (its momentum 0.1 is 0.9 in Flax's terms)."""
    return nn.BatchNorm(
        use_running_average=not train,
        momentum=0.9,
        epsilon=epsilon,
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
    return classifier(
        x.mean(axis=(1, 2)),
        num_classes,
        dtype=dtype,
        name=name,
        kernel_init=kernel_init,
        bias_init=bias_init or _bias_init(x.shape[-1]),
    )


def classifier(
    x: jax.Array,
    num_classes: int,
    *,
    dtype: DTypeLike | None,
    name: str,
    kernel_init: nn.initializers.Initializer,
    bias_init: nn.initializers.Initializer = nn.initializers.zeros,
) -> jax.Array:
    """One linear layer, (b, c) -> (b, classes), in single precision or better."""
    logits = nn.Dense(
        num_classes,
        dtype=dtype,
        kernel_init=kernel_init,
        bias_init=bias_init,
        name=name,
    )(x)
    return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))


def adaptive_mean(x: jax.Array, size: int) -> jax.Array:
    """Means over windows that cover the image: (b, h, w, c) -> (b, size, size, c).

    As `torch.nn.AdaptiveAvgPool2d`: window i of n pixels starts at floor(i n / size)
    and ends at ceil((i + 1) n / size); windows overlap where size does not divide n,
    and pixels repeat where n is smaller.
    """
    for axis in (1, 2):
        if x.shape[axis] != size:
            windows = _windows(x.shape[axis], size)
            x = jnp.moveaxis(
                jnp.tensordot(x, windows.astype(x.dtype), (axis, 0)), -1, axis
            )
    return x


def _windows(n: int, size: int) -> np.ndarray:
    """Weights (n, size) of the pixels in each window."""
    weights = np.zeros((n, size), np.float32)
    for i in range(size):
        start, end = i * n // size, -(-(i + 1) * n // size)
        weights[start:end, i] = 1 / (end - start)
    return weights


def max_pool_ceil(x: jax.Array, window: int, stride: int) -> jax.Array:
    """Max pooling whose last window may reach over the edge (PyTorch's `ceil_mode`)."""
    padding = []
    for n in x.shape[1:3]:
        count = math.ceil((n - window) / stride) + 1
        padding.append((0, (count - 1) * stride + window - n))
    return nn.max_pool(x, (window, window), (stride, stride), padding)  # type: ignore[arg-type]


def widened(base: int, widen: float) -> int:
    """`base` channels times `widen`, which has to be a whole number of channels."""
    channels = base * widen
    if channels < 1 or not float(channels).is_integer():
        raise ValueError(
            f"widen={widen} asks for {base} x {widen} = {channels:g} channels; "
            "expected a whole number of at least 1. Choose a multiple of "
            f"1/{base}, such as {1 / base:g}, 0.5 or 2."
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
