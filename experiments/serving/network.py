"""A network of digits that takes its time, for loads that one core can hold.

The digits are seen through noise, so that a wide network is better at them than a
narrow one. What the server of `--demo` trains takes a tenth of a millisecond, far less
than HTTP; here the full width takes more than ten.
"""

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
from mslice_jax.train import TrainState, make_train_step

RATES = (0.25, 0.5, 0.75, 1.0)
_NOISE = 5.0  # standard deviation, where pixels are 0 to 16
_DRAWS = 4  # of noise, for every held-out image
_BATCH, _LR = 32, 2e-3


class Residual(nn.Module):
    """Residual blocks on 16 x 16: `[b, 8, 8, 1]`, pixels 0 to 16, to `[b, 10]`."""

    channels: int
    blocks: int

    @nn.compact
    def __call__(self, image: Any) -> Any:
        """The logits."""

        def active(x: Any) -> Any:
            return nn.relu(nn.GroupNorm(8)(x))

        x = jnp.repeat(jnp.repeat(image / 8 - 1, 2, 1), 2, 2)
        x = nn.Conv(self.channels, (3, 3))(x)
        for _ in range(self.blocks):
            y = nn.Conv(self.channels, (3, 3))(active(x))
            x = x + nn.Conv(self.channels, (3, 3))(active(y))
        return nn.Dense(10)(active(x).mean((1, 2)))


HEAVY = Residual(channels=256, blocks=4)
TINY = Residual(channels=16, blocks=1)
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
    net = ms.upgrade(model, model.init(jax.random.key(0), image), image, rates=RATES)
    steps = epochs * (len(digits.x_train) // _BATCH)
    optimizer = optax.adam(optax.cosine_decay_schedule(_LR, steps))
    state = TrainState.create(net, optimizer, key=jax.random.key(0))
    step = make_train_step(optimizer, transform=noisy)
    each = schedules.random_min_max(net.rates, seed=0)
    batches = train_batches(digits.x_train, digits.y_train, _BATCH, seed=0)
    for i, batch in zip(range(steps), batches, strict=False):
        state, _ = step(state, batch, each(i))
    x, y = held_out()
    found = {}
    for rate in net.rates:
        right = [
            np.argmax(ms.slice_apply(state.net, x[i : i + 355], rate), -1)
            == y[i : i + 355]
            for i in range(0, len(x), 355)
        ]
        found[float(rate)] = float(np.mean(right))
    return state.net, found


def checkpoint(folder: Path, name: str, epochs: int) -> list[str]:
    """Options of the server for the network, which is trained if it is not there yet."""
    path = folder / "network.mslice"
    if not path.exists():
        import json

        net, accuracy = train(name, epochs)
        folder.mkdir(parents=True, exist_ok=True)
        told = {"rates": {str(r): {"accuracy": a} for r, a in accuracy.items()}}
        (folder / "summary.json").write_text(json.dumps(told) + "\n")
        ms.save(net, path, programs=False)
    model = f"{__name__}:{name.upper()}"
    return ["--checkpoint", str(folder), "--model", model]
