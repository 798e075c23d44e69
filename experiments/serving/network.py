"""A network of digits that takes its time, for loads that one core can hold.

What the server of `--demo` trains takes a tenth of a millisecond, far less than HTTP.
This one looks at an image many times, each time through other noise, and gives the mean
(as randomized smoothing does, Cohen et al., ICML 2019): more than ten milliseconds at
full width. One look is enough in training, which takes a minute. The images have noise
of their own, so that a wide network is better at them than a narrow one.
"""

import json
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import mslice_jax as ms
from mslice_jax import schedules
from mslice_jax.data import train_batches
from mslice_jax.data.digits import read
from mslice_jax.train import TrainState, make_train_step, sgd

RATES = (0.25, 0.5, 0.75, 1.0)
_NOISE, _LOOK = 6.0, 1.0  # standard deviations, where pixels are 0 to 16
_DRAWS = 4  # of noise, for every held-out image
_BATCH, _LR = 64, 0.05


class Looks(nn.Module):
    """Dense layers, and the mean over many looks: `[b, 8, 8, 1]` to `[b, 10]`.

    Attributes:
      width: of the hidden layers.
      looks: how often it looks at an image.
    """

    width: int
    looks: int

    @nn.compact
    def __call__(self, image: Any) -> Any:
        """The logits; pixels are 0 to 16."""
        noise = np.random.default_rng(0).normal(scale=_LOOK / 8, size=(self.looks, 64))
        x = image.reshape(image.shape[0], 1, -1) / 8 - 1
        x = x + (noise - noise.mean(0)).astype(np.float32)[None]
        for _ in range(3):
            x = nn.relu(nn.LayerNorm()(nn.Dense(self.width)(x)))
        return nn.Dense(10)(x).mean(1)


HEAVY = Looks(width=1024, looks=640)
TINY = Looks(width=16, looks=2)
NETWORKS = {"heavy": HEAVY, "tiny": TINY}


def noisy(key: jax.Array, images: Any) -> Any:
    """Images with noise: `[b, 8, 8, 1]`."""
    x = jnp.asarray(images, jnp.float32)
    return x + _NOISE * jax.random.normal(key, x.shape)


def held_out() -> tuple[np.ndarray, np.ndarray]:
    """The images that training did not see, each several times, and their labels."""
    digits = read()
    x = np.tile(digits.x_test, (_DRAWS, 1, 1, 1))
    return np.asarray(noisy(jax.random.key(1), x)), np.tile(digits.y_test, _DRAWS)


def train(name: str, epochs: int) -> tuple[ms.Sliceable, dict[float, float]]:
    """The network, and its accuracy at each rate on the held-out images.

    Args:
      name: one of `NETWORKS`.
      epochs: passes over the digits.

    Raises:
      DataError: without scikit-learn, whose digits they are.
    """
    digits, model = read(), NETWORKS[name]
    image = jnp.zeros((1, 8, 8, 1))
    once = model.clone(looks=1)  # the same weights
    net = ms.upgrade(once, once.init(jax.random.key(0), image), image, rates=RATES)
    steps = epochs * (len(digits.x_train) // _BATCH)
    optimizer = sgd(optax.cosine_decay_schedule(_LR, steps))
    state = TrainState.create(net, optimizer, key=jax.random.key(0))
    step = make_train_step(optimizer, transform=noisy)
    each = schedules.random_min_max(net.rates, seed=0)
    batches = train_batches(digits.x_train, digits.y_train, _BATCH, seed=0)
    for i, batch in zip(range(steps), batches, strict=False):
        state, _ = step(state, batch, each(i))
    net = ms.upgrade(model, state.net.variables, image, rates=RATES)
    x, y = held_out()
    found = {}
    for rate in net.rates:
        right = [
            np.argmax(ms.slice_apply(net, x[i : i + 20], rate), -1) == y[i : i + 20]
            for i in range(0, len(x), 20)
        ]
        found[float(rate)] = float(np.mean(right))
    return net, found


def checkpoint(folder: Path, name: str, epochs: int) -> list[str]:
    """Options of the server for the network, which is trained if it is not there."""
    path = folder / "network.mslice"
    if not path.exists():
        net, accuracy = train(name, epochs)
        folder.mkdir(parents=True, exist_ok=True)
        told = {"rates": {str(r): {"accuracy": a} for r, a in accuracy.items()}}
        (folder / "summary.json").write_text(json.dumps(told) + "\n")
        ms.save(net, path, programs=False)
    model = f"{__name__}:{name.upper()}"
    return ["--checkpoint", str(folder), "--model", model]
