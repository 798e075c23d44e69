"""A small network of digits, trained within seconds, to try the server with."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from .. import schedules
from ..data import train_batches
from ..data.digits import read
from ..sliceable import Sliceable, slice_apply
from ..train import TrainState, make_train_step, sgd
from ..upgrade import upgrade

RATES = (0.25, 0.5, 0.75, 1.0)
_EPOCHS = 12
_BATCH = 64


class Digits(nn.Module):
    """Three layers; pixels are numbers from 0 to 16: `[b, 8, 8, 1]` to `[b, 10]`."""

    width: int = 256

    @nn.compact
    def __call__(self, image):
        """The logits."""
        x = image.reshape(image.shape[0], -1) / 8 - 1
        for _ in range(2):
            x = nn.relu(nn.LayerNorm()(nn.Dense(self.width)(x)))
        return nn.Dense(10)(x)


def trained(*, epochs: int = _EPOCHS) -> tuple[Sliceable, dict[float, float]]:
    """The network, and its accuracy at each rate on the images that were held out.

    Raises:
      DataError: without scikit-learn, whose digits they are.
    """
    dataset = read()
    model, image = Digits(), jnp.zeros((1, 8, 8, 1))
    net = upgrade(model, model.init(jax.random.key(0), image), image, rates=RATES)
    optimizer = sgd(0.05)
    state = TrainState.create(net, optimizer, key=jax.random.key(0))
    step = make_train_step(optimizer)
    each = schedules.random_min_max(net.rates, seed=0)
    steps = epochs * (len(dataset.x_train) // _BATCH)
    batches = train_batches(dataset.x_train, dataset.y_train, _BATCH, seed=0)
    for i, (images, labels) in zip(range(steps), batches, strict=False):
        state, _ = step(state, (images.astype(np.float32), labels), each(i))
    net, x = state.net, jnp.asarray(dataset.x_test, jnp.float32)
    found = {}
    for rate in net.rates:
        guess = np.argmax(slice_apply(net, x, rate), axis=-1)
        found[rate] = float(np.mean(guess == dataset.y_test))
    return net, found
