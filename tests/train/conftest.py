"""A small network and a small data set for the tests of training."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import mslice_jax as ms
from mslice_jax import data

RATES = (0.5, 1.0)


class Perceptron(nn.Module):
    """Two hidden layers of 8 units, 3 classes; with batch norms if asked."""

    norm: bool = False

    @nn.compact
    def __call__(self, x, *, train: bool = False):
        for index in (1, 2):
            x = nn.Dense(8, name=f"hidden{index}")(x)
            if self.norm:
                x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
            x = nn.relu(x)
        return nn.Dense(3, name="logits")(x)


@dataclasses.dataclass(frozen=True)
class Small:
    """32 examples of 5 numbers in 3 classes."""

    x: np.ndarray
    y: np.ndarray
    batch_size: int = 8
    steps_per_epoch: int = 4

    def batch(self, step: int = 0) -> tuple[np.ndarray, np.ndarray]:
        return data.train_batch(self.x, self.y, self.batch_size, seed=0, step=step)

    def batches(self, step: int):
        return data.train_batches(self.x, self.y, self.batch_size, seed=0, start=step)


@pytest.fixture(scope="session")
def small() -> Small:
    random = np.random.default_rng(0)
    x = random.normal(size=(32, 5)).astype(np.float32)
    return Small(x, np.argmax(x @ random.normal(size=(5, 3)), axis=1).astype(np.int32))


def build(small: Small, *, norm: str | None = None, **settings: Any) -> ms.Sliceable:
    """The perceptron as a sliceable network; `norm` is the strategy of its norms."""
    model = Perceptron(norm=norm is not None)
    x = small.x[: small.batch_size]
    variables = model.init(jax.random.key(1), x)
    settings = {"rates": RATES, **settings}
    return ms.upgrade(model, variables, x, norm=norm or "group", **settings)


@pytest.fixture(scope="session")
def net(small: Small) -> ms.Sliceable:
    return build(small)


@pytest.fixture(scope="session")
def build_net(small: Small):
    return lambda **settings: build(small, **settings)


def narrow_logits(params, x, width):
    """The perceptron's leading `width` units, without this library."""
    first, second, last = (params[k] for k in ("hidden1", "hidden2", "logits"))
    h = x @ first["kernel"][:, :width] + first["bias"][None, :width]
    h = jnp.where(h > 0, h, 0)  # its slope at 0 is 0, as that of relu
    h = h @ second["kernel"][:width, :width] + second["bias"][None, :width]
    h = jnp.where(h > 0, h, 0)
    return h @ last["kernel"][:width] + last["bias"][None]


def label_loss(params, x, y, width):
    """The mean cross entropy of its logits."""
    log_p = jax.nn.log_softmax(narrow_logits(params, x, width))
    return -jnp.mean(log_p[jnp.arange(len(y)), y])
