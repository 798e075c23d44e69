"""VGG networks for small images, as in the PyTorch original (CIFAR)."""

from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Num

from .layers import check_images, conv, head, norm_relu, widened

# Output channels of each 3x3 convolution. Between the inner tuples lies a max-pooling
# by two; after the last one, the mean over all positions.
STAGES = {
    11: ((64, 128), (256,) * 2, (512,) * 4),
    13: ((64, 64, 128, 128), (256,) * 2, (512,) * 4),
    16: ((64, 64, 128, 128), (256,) * 3, (512,) * 6),
    19: ((64, 64, 128, 128), (256,) * 4, (512,) * 8),
}


class CifarVGG(nn.Module):
    """VGG with batch norm, two poolings and a single linear layer as its classifier.

    Depth counts two layers more than there are: the original keeps the names of the
    ImageNet networks, whose classifier has three linear layers.

    Attributes:
      depth: 11, 13, 16 or 19.
      num_classes: length of the logits.
      widen: factor on the channels of every layer; 64 x widen must be whole.
      dtype: what layers compute in; None is the type of inputs and parameters.
        Parameters are float32.

    Raises:
      ValueError: at construction, if depth or widen ask for no such network.

    Example:
      >>> import jax
      >>> from mslice_jax.models import CifarVGG
      >>> model = CifarVGG(depth=13, num_classes=100, widen=0.25)
      >>> x = jax.ShapeDtypeStruct((8, 32, 32, 3), "float32")
      >>> jax.eval_shape(model.init_with_output, jax.random.key(0), x)[0].shape
      (8, 100)
    """

    depth: int
    num_classes: int = 10
    widen: float = 1
    dtype: DTypeLike | None = None

    def __post_init__(self):
        if self.depth not in STAGES:
            raise ValueError(
                f"expected a depth of {', '.join(map(str, STAGES))}, got {self.depth}."
            )
        widened(64, self.widen)
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
        index = 0
        for stage, layers in enumerate(STAGES[self.depth]):
            if stage > 0:
                x = nn.max_pool(x, (2, 2), strides=(2, 2))
            for base in layers:
                x = conv(
                    x,
                    widened(base, self.widen),
                    3,
                    use_bias=True,
                    dtype=self.dtype,
                    name=f"conv{index}",
                )
                x = norm_relu(x, train=train, dtype=self.dtype, name=f"bn{index}")
                index += 1
        return head(x, self.num_classes, dtype=self.dtype, name="classifier")
