"""A network that takes its time, for loads that one core can hold.

It sees two digits side by side, and tells the last digit of their sum; a wide network
is better at that than a narrow one. What the server of `--demo` trains takes a tenth of
a millisecond, far less than HTTP. This one looks at an image many times, each time
through other noise, and gives the mean (as randomized smoothing does, Cohen et al.,
ICML 2019): more than ten milliseconds at full width. In training one look is enough.
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
from mslice_jax.data.digits import read
from mslice_jax.train import TrainState, make_train_step, sgd

RATES = (0.25, 0.5, 0.75, 1.0)
_NOISE = 1.0  # standard deviation, where pixels are 0 to 16
_PAIRS = 2000  # that are held out
_BATCH, _LR = 64, 0.02


class Looks(nn.Module):
    """Dense layers, and the mean over many looks: `[b, 8, 16, 1]` to `[b, 10]`.

    Attributes:
      width: of the hidden layers.
      looks: how often it looks at an image.
    """

    width: int
    looks: int

    @nn.compact
    def __call__(self, image: Any) -> Any:
        """The logits; pixels are 0 to 16."""
        noise = np.random.default_rng(0).normal(
            scale=_NOISE / 8, size=(self.looks, 128)
        )
        x = image.reshape(image.shape[0], 1, -1) / 8 - 1
        x = x + (noise - noise.mean(0)).astype(np.float32)[None]
        for _ in range(3):
            x = nn.relu(nn.LayerNorm()(nn.Dense(self.width)(x)))
        return nn.Dense(10)(x).mean(1)


HEAVY = Looks(width=1024, looks=640)
TINY = Looks(width=16, looks=2)
NETWORKS = {"heavy": HEAVY, "tiny": TINY}


def noisy(key: jax.Array, images: Any) -> Any:
    """Images as one look sees them: `[b, 8, 16, 1]`."""
    x = jnp.asarray(images, jnp.float32)
    return x + _NOISE * jax.random.normal(key, x.shape)


def pairs(
    x: np.ndarray, y: np.ndarray, count: int, seed: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Two digits side by side, drawn from those given; and the last digit of the sum.

    Args:
      x, y: digits `[n, 8, 8, 1]` and what they are.
      count: how many pairs.
      seed: of what is drawn.

    Returns:
      Images `[count, 8, 16, 1]` and labels.
    """
    one, two = np.random.default_rng(seed).integers(len(x), size=(2, count))
    images = np.concatenate([x[one], x[two]], axis=2).astype(np.float32)
    return images, ((y[one] + y[two]) % 10).astype(np.int32)


def held_out() -> tuple[np.ndarray, np.ndarray]:
    """Pairs of digits that training did not see, and their labels."""
    digits = read()
    return pairs(digits.x_test, digits.y_test, _PAIRS, seed=0)


def train(name: str, updates: int) -> tuple[ms.Sliceable, dict[float, float]]:
    """The network, and its accuracy at each rate on the held-out pairs.

    Args:
      name: one of `NETWORKS`.
      updates: of the weights.

    Raises:
      DataError: without scikit-learn, whose digits they are.
    """
    digits, model = read(), NETWORKS[name]
    image = jnp.zeros((1, 8, 16, 1))
    once = model.clone(looks=1)  # the same weights
    net = ms.upgrade(once, once.init(jax.random.key(0), image), image, rates=RATES)
    optimizer = sgd(optax.cosine_decay_schedule(_LR, updates))
    state = TrainState.create(net, optimizer, key=jax.random.key(0))
    step = make_train_step(optimizer, transform=noisy)
    each = schedules.random_min_max(net.rates, seed=0)
    for i in range(updates):
        batch = pairs(digits.x_train, digits.y_train, _BATCH, seed=(1, i))
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


def checkpoint(folder: Path, name: str, updates: int) -> list[str]:
    """Options of the server for the network, which is trained if it is not there."""
    path = folder / "network.mslice"
    if not path.exists():
        net, accuracy = train(name, updates)
        folder.mkdir(parents=True, exist_ok=True)
        told = {"rates": {str(r): {"accuracy": a} for r, a in accuracy.items()}}
        (folder / "summary.json").write_text(json.dumps(told) + "\n")
        ms.save(net, path, programs=False)
    model = f"{__name__}:{name.upper()}"
    return ["--checkpoint", str(folder.resolve()), "--model", model]
