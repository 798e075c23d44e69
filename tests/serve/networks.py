"""Small networks to serve, and what they answer, by NumPy."""

import functools

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from flax import nnx

import mslice_jax as ms

RATES = (0.25, 0.5, 1.0)
HIDDEN = 16


def two_inputs(p, x, more):
    """A pytree in, a pytree out; one hidden layer."""
    h = jnp.tanh(x @ p["w1"] + more["shift"] @ p["w2"])
    return {"y": h @ p["w3"], "twice": (2 * (h @ p["w3"]), x)}


@functools.cache
def weights(seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"w1": (3, HIDDEN), "w2": (2, HIDDEN), "w3": (HIDDEN, 4)}
    return {
        name: jnp.asarray(rng.normal(size=shape), jnp.float32)
        for name, shape in shapes.items()
    }


def two_inputs_net(seed=0):
    x, more = jnp.ones((1, 3)), {"shift": jnp.ones((1, 2))}
    return ms.upgrade(two_inputs, weights(seed), x, more, rates=RATES)


def expected(request, rate, seed=0):
    """`two_inputs` at a rate, for each row by itself."""
    p = {name: np.asarray(x, np.float64) for name, x in weights(seed).items()}
    k = round(HIDDEN * rate)
    rows = zip(request["x"], request["more.shift"], strict=True)
    hidden = [np.tanh(x @ p["w1"][:, :k] + s @ p["w2"][:, :k]) for x, s in rows]
    return np.stack([h @ p["w3"][:k] for h in hidden])


def request(rows, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 3)).astype(np.float32)
    return {"x": x, "more.shift": rng.normal(size=(rows, 2)).astype(np.float32)}


class Normed(nn.Module):
    """A batch norm between two layers."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(8)(x)
        x = nn.BatchNorm(use_running_average=not train)(x)
        return nn.Dense(2)(nn.relu(x))


class OfNnx(nnx.Module):
    """The same kind of network in NNX."""

    def __init__(self, rngs):
        self.first = nnx.Linear(3, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.last = nnx.Linear(8, 2, rngs=rngs)

    def __call__(self, x):
        return self.last(nnx.relu(self.norm(self.first(x))))


def embed(p, tokens):
    return jnp.tanh(p["table"][tokens]) @ p["out"]


def masked_mean(p, tokens, mask):
    h = embed(p, tokens) * mask[..., None]
    return {"mean": h.sum(1) / mask.sum(1)[:, None], "each": h}


def counted_mean(p, tokens, count):
    inside = jnp.arange(tokens.shape[1])[None] < count[:, None]
    return (embed(p, tokens) * inside[..., None]).sum(1) / count[:, None]


def plain_mean(p, tokens):
    return embed(p, tokens).mean(1)


def causal(p, tokens):
    return jnp.cumsum(embed(p, tokens), 1)


@functools.cache
def language_weights():
    rng = np.random.default_rng(3)
    shapes = {"table": (5, 8), "out": (8, 2)}
    return {
        name: jnp.asarray(rng.normal(size=shape), jnp.float32)
        for name, shape in shapes.items()
    }


def language_net(function, *more):
    tokens = jnp.zeros((1, 4), jnp.int32)
    return ms.upgrade(function, language_weights(), tokens, *more, rates=(0.5, 1.0))


def embedded(tokens, rate):
    """`embed` at a rate, by NumPy."""
    p = {k: np.asarray(x, np.float64) for k, x in language_weights().items()}
    k = round(8 * rate)
    return np.tanh(p["table"][tokens][..., :k]) @ p["out"][:k]
