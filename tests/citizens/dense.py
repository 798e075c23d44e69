"""Networks of dense layers: module, plain function, dropout, captured constant."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from tests.citizens.citizen import (
    Citizen,
    Tree,
    cut,
    everything,
    kernel,
    lead,
    part_of,
    random_inputs,
)


class Mlp(nn.Module):
    """Two hidden layers with a relu between."""

    widths: tuple[int, int] = (32, 16)
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        for width in self.widths:
            x = nn.relu(nn.Dense(width)(x))
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(10)(x)


def narrow_mlp(variables: Tree, rate: float) -> Tree:
    """Each layer's outputs are the next one's inputs."""
    params = variables["params"]
    first, second = lead(32, rate), lead(16, rate)
    return {
        "params": {
            "Dense_0": kernel(params["Dense_0"], everything(12), first),
            "Dense_1": kernel(params["Dense_1"], first, second),
            "Dense_2": kernel(params["Dense_2"], second, everything(10)),
        }
    }


def mlp(dropout: float = 0.0, **more: Any) -> Citizen:
    """A multilayer perceptron; with dropout, in training mode."""

    def build(rate: float) -> Mlp:
        return Mlp((part_of(32, rate), part_of(16, rate)), dropout)

    return Citizen(
        name="dropout" if dropout else "mlp",
        model=Mlp(dropout=dropout),
        inputs=(random_inputs(2, 12),),
        by_hand=build,
        narrow_by_hand=narrow_mlp,
        **more,
    )


def residual_function(variables: Tree, x: jax.Array) -> jax.Array:
    """Plain function: the sum ties the outputs of two layers with the inputs of two."""
    x = x @ variables["enter"]["weight"]
    inner = jnp.tanh(x @ variables["block"]["up"] + variables["block"]["shift"][None])
    x = x + inner @ variables["block"]["down"]
    return jax.nn.gelu(x) @ variables["leave"]["weight"]


def init_residual_function(key: jax.Array) -> Tree:
    """Zeros of the right shapes; the values are drawn later."""
    del key
    return {
        "enter": {"weight": np.zeros((12, 16), np.float32)},
        "block": {
            "up": np.zeros((16, 24), np.float32),
            "shift": np.zeros((24,), np.float32),
            "down": np.zeros((24, 16), np.float32),
        },
        "leave": {"weight": np.zeros((16, 5), np.float32)},
    }


def narrow_residual_function(variables: Tree, rate: float) -> Tree:
    """The residual stream has 16 units, the block 24 of its own."""
    stream, inner, block = lead(16, rate), lead(24, rate), variables["block"]
    return {
        "enter": {"weight": cut(variables["enter"]["weight"], everything(12), stream)},
        "block": {
            "up": cut(block["up"], stream, inner),
            "shift": cut(block["shift"], inner),
            "down": cut(block["down"], inner, stream),
        },
        "leave": {"weight": cut(variables["leave"]["weight"], stream, everything(5))},
    }


def function() -> Citizen:
    """A residual network without any framework; groups=4."""
    return Citizen(
        name="function",
        model=residual_function,
        init=init_residual_function,
        inputs=(random_inputs(2, 12),),
        by_hand=lambda rate: residual_function,
        narrow_by_hand=narrow_residual_function,
        groups=4,
    )


# A position table that is no parameter, as transformers capture it: (time, units).
_ANGLES = np.arange(6)[:, None] / 100 ** (np.arange(16) / 16)
POSITIONS = np.sin(_ANGLES + np.arange(16)).astype(np.float32)


def position_table() -> Citizen:
    """A captured constant, tied to an axis that narrows, narrows with it."""

    def build(rate: float) -> Any:
        table = POSITIONS[:, lead(16, rate)]

        def run(variables: Tree, x: jax.Array) -> jax.Array:
            x = x @ variables["enter"] + table[None]
            return jax.nn.silu(x) @ variables["leave"]

        return run

    def init(key: jax.Array) -> Tree:
        del key
        shapes = {"enter": (12, 16), "leave": (16, 5)}
        return {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}

    def narrow(variables: Tree, rate: float) -> Tree:
        stream = lead(16, rate)
        return {
            "enter": cut(variables["enter"], everything(12), stream),
            "leave": cut(variables["leave"], stream, everything(5)),
        }

    return Citizen(
        name="position_table",
        model=build(1.0),
        init=init,
        inputs=(random_inputs(2, 6, 12),),
        by_hand=build,
        narrow_by_hand=narrow,
    )
