"""NNX models: convolution, attention, recurrence, and layers stacked under scan."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mslice_jax.adapters.norms import group_norm
from tests.citizens.citizen import (
    Citizen,
    Tree,
    beside,
    cut,
    everything,
    kernel,
    lead,
    part_of,
    random_inputs,
    random_tokens,
    vectors,
    within,
)
from tests.citizens.convolution import narrow_norms


def norm(features: int, groups: int | None) -> Any:
    """A batch norm, or (groups given) the group norm that replaces it."""
    if groups is None:
        return nnx.BatchNorm(features, momentum=0.9, rngs=nnx.Rngs(0))
    return GroupNorm(features, num_groups=groups, epsilon=1e-5, rngs=nnx.Rngs(0))


class GroupNorm(nnx.GroupNorm):
    """Rounds as `upgrade` does; `tests/test_norms.py` compares with Flax and NumPy."""

    def __call__(self, x: jax.Array) -> jax.Array:
        scale, bias = self.scale[...], self.bias[...]
        return group_norm(x, scale, bias, groups=self.num_groups, epsilon=self.epsilon)


def built(model: nnx.Module) -> nnx.Module:
    """The model in evaluation mode."""
    model.eval()
    return model


class Cnn(nnx.Module):
    """Twice convolution, norm, relu, pool; NHWC flatten, dropout, a dense layer."""

    def __init__(self, widths: tuple[int, int] = (16, 32), groups: int | None = None):
        rngs = nnx.Rngs(0)
        first, second = widths
        self.convs = nnx.List(
            [
                nnx.Conv(3, first, (3, 3), rngs=rngs),
                nnx.Conv(first, second, (3, 3), rngs=rngs),
            ]
        )
        self.norms = nnx.List([norm(width, groups) for width in widths])
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(4 * second, 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = nnx.max_pool(nnx.relu(norm(conv(x))), (2, 2), (2, 2))
        return self.head(self.dropout(x.reshape(x.shape[0], -1)))


def narrow_cnn(variables: Tree, rate: float) -> Tree:
    """The flattened axis is 2 x 2 positions by 32 channels: each keeps its own."""
    params = variables["params"]
    first, second = lead(16, rate), lead(32, rate)
    norms = {"0": first, "1": second}
    narrow = {
        "params": {
            "convs": {
                "0": kernel(params["convs"]["0"], everything(3), first),
                "1": kernel(params["convs"]["1"], first, second),
            },
            "norms": narrow_norms(params["norms"], norms, rate),
            "head": kernel(
                params["head"], within(everything(4), 32, second), everything(10)
            ),
        }
    }
    if "batch_stats" in variables:
        stats = narrow_norms(variables["batch_stats"]["norms"], norms, rate)
        narrow["batch_stats"] = {"norms": stats}
    return narrow


def cnn(strategy: str) -> Citizen:
    """A batch-norm network under one of the norm strategies."""

    def build(rate: float) -> nnx.Module:
        widths = part_of(16, rate), part_of(32, rate)
        return built(Cnn(widths, part_of(8, rate) if strategy == "group" else None))

    switchable = "each rate has its own norm, and rate 1 never sees that of rate r"
    return Citizen(
        name=f"nnx_cnn_{strategy}",
        model=built(Cnn()),
        inputs=(random_inputs(2, 8, 8, 3),),
        by_hand=build,
        narrow_by_hand=narrow_cnn,
        norm=strategy,
        not_maskable=switchable if strategy == "switchable" else "",
        has_batch_stats=strategy != "group",
    )


class Decoder(nnx.Module):
    """Causal transformer: embedding, `nnx.MultiHeadAttention`, MLP, vocabulary."""

    def __init__(self, units: int = 16, heads: int = 4, hidden: int = 24):
        rngs = nnx.Rngs(0)
        self.embed = nnx.Embed(11, units, rngs=rngs)
        self.place = nnx.Embed(8, units, rngs=rngs)
        self.norms = nnx.List([nnx.LayerNorm(units, rngs=rngs) for _ in range(3)])
        self.attention = nnx.MultiHeadAttention(
            heads, units, qkv_features=4 * heads, decode=False, rngs=rngs
        )
        self.mlp = nnx.Sequential(
            nnx.Linear(units, hidden, rngs=rngs),
            nnx.gelu,
            nnx.Linear(hidden, units, rngs=rngs),
        )
        self.head = nnx.Linear(units, 11, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = self.embed(tokens) + self.place(jnp.arange(tokens.shape[1]))[None]
        mask = nnx.make_causal_mask(tokens)
        x = x + self.attention(self.norms[0](x), mask=mask)
        x = x + self.mlp(self.norms[1](x))
        return self.head(self.norms[2](x))


def narrow_decoder(variables: Tree, rate: float) -> Tree:
    """16 units in the residual stream, 4 heads of 4, 24 hidden units."""
    params = variables["params"]
    stream, hidden = lead(16, rate), lead(24, rate)
    heads, size = lead(4, rate), everything(4)
    attention, layers = params["attention"], params["mlp"]["layers"]
    projected = {
        name: {
            "kernel": cut(attention[name]["kernel"], stream, heads, size),
            "bias": cut(attention[name]["bias"], heads, size),
        }
        for name in ("query", "key", "value")
    }
    projected["out"] = {
        "kernel": cut(attention["out"]["kernel"], heads, size, stream),
        "bias": cut(attention["out"]["bias"], stream),
    }
    norms = params["norms"]
    return {
        "params": {
            "embed": {"embedding": cut(params["embed"]["embedding"], stream)},
            "place": {"embedding": cut(params["place"]["embedding"], stream)},
            "norms": {name: vectors(norms[name], stream) for name in norms},
            "attention": projected,
            "mlp": {
                "layers": {
                    "0": kernel(layers["0"], stream, hidden),
                    "2": kernel(layers["2"], hidden, stream),
                }
            },
            "head": kernel(params["head"], stream, everything(11)),
        }
    }


def decoder() -> Citizen:
    """Multi-head attention of NNX with a causal mask."""

    def build(rate: float) -> nnx.Module:
        return built(Decoder(*(part_of(size, rate) for size in (16, 4, 24))))

    return Citizen(
        name="nnx_decoder",
        model=built(Decoder()),
        inputs=(random_tokens(2, 6, below=11),),
        by_hand=build,
        narrow_by_hand=narrow_decoder,
        not_maskable="layer norm takes a mean over the stream",
    )


class Recurrent(nnx.Module):
    """Embedding, an LSTM and a GRU under `nnx.RNN`, a dense layer on the last state."""

    def __init__(self, units: int = 16, hidden: tuple[int, int] = (16, 8)):
        rngs = nnx.Rngs(0)
        self.embed = nnx.Embed(11, units, rngs=rngs)
        self.lstm = nnx.RNN(nnx.OptimizedLSTMCell(units, hidden[0], rngs=rngs))
        self.gru = nnx.RNN(nnx.GRUCell(hidden[0], hidden[1], rngs=rngs))
        self.head = nnx.Linear(hidden[1], 10, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        return self.head(self.gru(self.lstm(self.embed(tokens)))[:, -1])


def narrow_recurrent(variables: Tree, rate: float) -> Tree:
    """Four concatenated gates of 16 in the LSTM, three of 8 in the GRU."""
    params = variables["params"]
    stream = lead(16, rate)
    narrow = {"embed": {"embedding": cut(params["embed"]["embedding"], stream)}}
    inputs = stream
    for name, gates, size in (("lstm", 4, 16), ("gru", 3, 8)):
        cell, hidden = params[name]["cell"], lead(size, rate)
        fused = beside(*[(size, hidden)] * gates)
        narrow[name] = {
            "cell": {
                "dense_i": kernel(cell["dense_i"], inputs, fused),
                "dense_h": kernel(cell["dense_h"], hidden, fused),
            }
        }
        inputs = hidden
    narrow["head"] = kernel(params["head"], inputs, everything(10))
    return {"params": narrow}


def recurrent() -> Citizen:
    """LSTM and GRU under `nnx.RNN`."""

    def build(rate: float) -> nnx.Module:
        hidden = part_of(16, rate), part_of(8, rate)
        return built(Recurrent(part_of(16, rate), hidden))

    return Citizen(
        name="nnx_recurrent",
        model=built(Recurrent()),
        inputs=(random_tokens(2, 5, below=11),),
        by_hand=build,
        narrow_by_hand=narrow_recurrent,
    )


class Block(nnx.Module):
    """A residual layer with a norm."""

    def __init__(self, units: int, hidden: int, groups: int | None, rngs: nnx.Rngs):
        self.up = nnx.Linear(units, hidden, rngs=rngs)
        self.norm = norm(hidden, groups)
        self.down = nnx.Linear(hidden, units, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + self.down(nnx.relu(self.norm(self.up(x))))


class Stack(nnx.Module):
    """Three residual layers with stacked arrays, run by `nnx.scan`."""

    def __init__(self, units: int = 16, hidden: int = 32, groups: int | None = None):
        rngs = nnx.Rngs(0)

        @nnx.split_rngs(splits=3)
        @nnx.vmap
        def layers(rngs: nnx.Rngs) -> Block:
            return Block(units, hidden, groups, rngs)

        self.enter = nnx.Linear(5, units, rngs=rngs)
        self.layers = layers(rngs)
        self.leave = nnx.Linear(units, 3, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        @nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
        def run(layer: Block, x: jax.Array) -> jax.Array:
            return layer(x)

        return self.leave(run(self.layers, self.enter(x)))


def narrow_stack(variables: Tree, rate: float) -> Tree:
    """The first axis of the arrays counts the three layers."""
    params = variables["params"]
    units, hidden = lead(16, rate), lead(32, rate)
    layers = params["layers"]
    norms = {"norm": hidden}
    narrow = {
        "params": {
            "enter": kernel(params["enter"], everything(5), units),
            "layers": {
                "up": kernel(layers["up"], units, hidden),
                "down": kernel(layers["down"], hidden, units),
                **narrow_norms(layers, norms, rate),
            },
            "leave": kernel(params["leave"], units, everything(3)),
        }
    }
    if "batch_stats" in variables:
        stats = narrow_norms(variables["batch_stats"]["layers"], norms, rate)
        narrow["batch_stats"] = {"layers": stats}
    return narrow


def stack(strategy: str) -> Citizen:
    """A stack of layers under scan, with one of the norm strategies."""

    def build(rate: float) -> nnx.Module:
        groups = part_of(8, rate) if strategy == "group" else None
        return built(Stack(part_of(16, rate), part_of(32, rate), groups))

    return Citizen(
        name=f"nnx_stack_{strategy}",
        model=built(Stack()),
        inputs=(random_inputs(4, 5),),
        by_hand=build,
        narrow_by_hand=narrow_stack,
        norm=strategy,
        has_batch_stats=strategy != "group",
    )
