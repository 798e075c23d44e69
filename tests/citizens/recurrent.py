"""Recurrent networks: LSTMs under scan."""

from typing import cast

import flax.linen as nn
import jax

from tests.citizens.citizen import (
    Citizen,
    Tree,
    cut,
    everything,
    kernel,
    lead,
    part_of,
    random_tokens,
)


class Lstm(nn.Module):
    """Embedding, two recurrent layers, a dense layer on the last state."""

    units: int = 16
    hidden: tuple[int, int] = (16, 8)
    optimized: bool = True

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = nn.Embed(11, self.units, name="embed")(tokens)
        kind = nn.OptimizedLSTMCell if self.optimized else nn.LSTMCell
        for index, hidden in enumerate(self.hidden):
            x = cast(jax.Array, nn.RNN(kind(hidden, name=f"cell{index}"))(x))
        return nn.Dense(10, name="head")(x[:, -1])


def narrow_lstm(variables: Tree, rate: float) -> Tree:
    """Each of the four gates has the hidden units of its layer."""
    params = variables["params"]
    stream = lead(16, rate)
    hidden = lead(16, rate), lead(8, rate)
    narrow = {
        "embed": {"embedding": cut(params["embed"]["embedding"], stream)},
        "head": kernel(params["head"], hidden[1], everything(10)),
    }
    for index, inputs in enumerate((stream, hidden[0])):
        cell, units = params[f"cell{index}"], hidden[index]
        narrow[f"cell{index}"] = {
            name: kernel(gate, inputs if name.startswith("i") else units, units)
            for name, gate in cell.items()
        }
    return {"params": narrow}


def lstm(optimized: bool) -> Citizen:
    """Two layers of LSTM; the optimized cell concatenates its gates' weights."""

    def build(rate: float) -> Lstm:
        hidden = part_of(16, rate), part_of(8, rate)
        return Lstm(part_of(16, rate), hidden, optimized)

    return Citizen(
        name="lstm_optimized" if optimized else "lstm",
        model=Lstm(optimized=optimized),
        inputs=(random_tokens(2, 5, below=11),),
        by_hand=build,
        narrow_by_hand=narrow_lstm,
    )
