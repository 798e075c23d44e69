"""Blocks of recent networks: scanned layers, experts, shuffles, skips, state spaces."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from tests.citizens.attention import rotate
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

HEAD = 4  # size of a head


class Layer(nn.Module):
    """RMS norm, rotary attention, gated MLP: (b, t, units) -> the same."""

    heads: int
    hidden: int

    @nn.compact
    def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
        y = nn.RMSNorm(name="before")(x)
        shape = self.heads, HEAD
        query, key, value = (
            nn.DenseGeneral(shape, use_bias=False, name=name)(y)
            for name in ("query", "key", "value")
        )
        past = np.tril(np.ones((1, 1, x.shape[1], x.shape[1]), bool))
        y = nn.dot_product_attention(rotate(query), rotate(key), value, mask=past)
        x = x + nn.DenseGeneral(x.shape[-1], axis=(-2, -1), name="out")(y)
        y = nn.RMSNorm(name="between")(x)
        gate = nn.silu(nn.Dense(self.hidden, name="gate")(y))
        y = gate * nn.Dense(self.hidden, name="value_of_gate")(y)
        return x + nn.Dense(x.shape[-1], name="down")(y), None


class ScannedDecoder(nn.Module):
    """Two layers whose weights are stacked, under one `nn.scan`; tied embedding."""

    units: int = 16
    heads: int = 4
    hidden: int = 24

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        embed = nn.Embed(11, self.units, name="embed")
        layers = nn.scan(
            Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=2
        )
        x, _ = layers(self.heads, self.hidden, name="layers")(embed(tokens), None)
        return embed.attend(nn.RMSNorm(name="norm")(x))


def narrow_scanned_decoder(variables: Tree, rate: float) -> Tree:
    """The leading axis of a stacked leaf counts layers: `cut` keeps all of it."""
    params = variables["params"]
    stream, heads, hidden = lead(16, rate), lead(4, rate), lead(24, rate)
    layers = params["layers"]
    narrow = {name: vectors(layers[name], stream) for name in ("before", "between")}
    for name in ("query", "key", "value"):
        whole = layers[name]["kernel"]
        narrow[name] = {"kernel": cut(whole, stream, heads, everything(HEAD))}
    narrow["out"] = {
        "kernel": cut(layers["out"]["kernel"], heads, everything(HEAD), stream),
        "bias": cut(layers["out"]["bias"], stream),
    }
    for name in ("gate", "value_of_gate"):
        narrow[name] = kernel(layers[name], stream, hidden)
    narrow["down"] = kernel(layers["down"], hidden, stream)
    return {
        "params": {
            "embed": {"embedding": cut(params["embed"]["embedding"], stream)},
            "layers": narrow,
            "norm": vectors(params["norm"], stream),
        }
    }


def scanned_decoder() -> Citizen:
    """Stacked layers under a scan, RMS norm, rotary embedding, tied embedding."""

    def build(rate: float) -> ScannedDecoder:
        return ScannedDecoder(*(part_of(size, rate) for size in (16, 4, 24)))

    return Citizen(
        name="scanned_decoder",
        model=ScannedDecoder(),
        inputs=(random_tokens(2, 6, below=11),),
        by_hand=build,
        narrow_by_hand=narrow_scanned_decoder,
        not_maskable="RMS norm takes a mean over the stream",
    )


class Mixture(nn.Module):
    """Four experts, of which each position uses two; the router sees all of them."""

    units: int = 16
    hidden: int = 8

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        experts, init = 4, nn.initializers.lecun_normal()
        x = nn.Dense(self.units, name="enter")(x)
        scores = jax.nn.softmax(nn.Dense(experts, name="router")(x))
        best, which = jax.lax.top_k(scores, 2)
        shares = jnp.sum(jax.nn.one_hot(which, experts) * best[..., None], axis=-2)
        up = self.param("up", init, (experts, self.units, self.hidden))
        down = self.param("down", init, (experts, self.hidden, self.units))
        y = nn.silu(jnp.einsum("btc,ech->bteh", x, up))
        x = x + jnp.einsum("bteh,ehc,bte->btc", y, down, shares)
        return nn.Dense(5, name="leave")(x)


def narrow_mixture(variables: Tree, rate: float) -> Tree:
    """The number of experts is fixed; each expert narrows inside."""
    params = variables["params"]
    stream, hidden = lead(16, rate), lead(8, rate)
    return {
        "params": {
            "enter": kernel(params["enter"], everything(12), stream),
            "router": kernel(params["router"], stream, everything(4)),
            "up": cut(params["up"], stream, hidden),
            "down": cut(params["down"], hidden, stream),
            "leave": kernel(params["leave"], stream, everything(5)),
        }
    }


def mixture() -> Citizen:
    """A mixture of experts; the router takes the best two."""
    return Citizen(
        name="mixture_of_experts",
        model=Mixture(),
        inputs=(random_inputs(2, 6, 12),),
        by_hand=lambda rate: Mixture(part_of(16, rate), part_of(8, rate)),
        narrow_by_hand=narrow_mixture,
    )


class Shuffle(nn.Module):
    """ShuffleNet: grouped convolution, channel shuffle, grouped convolution."""

    groups: int = 4
    filters: int = 8

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        groups, size = self.groups, 4
        x = nn.relu(nn.Conv(groups * size, (3, 3), name="stem")(x))
        conv = nn.Conv(
            groups * size, (3, 3), feature_group_count=groups, name="grouped"
        )
        x = nn.relu(conv(x))
        b, h, w, c = x.shape  # groups x size become size x groups
        x = jnp.swapaxes(x.reshape(b, h, w, groups, size), 3, 4).reshape(b, h, w, c)
        conv = nn.Conv(
            size * self.filters, (1, 1), feature_group_count=size, name="shuffled"
        )
        return nn.Dense(5, name="head")(nn.relu(conv(x)).mean((1, 2)))


def narrow_shuffle(variables: Tree, rate: float) -> Tree:
    """Groups narrow before the shuffle; after it they are the inner axis."""
    params = variables["params"]
    groups = within(lead(4, rate), 4, everything(4))
    filters = within(everything(4), 8, lead(8, rate))
    return {
        "params": {
            "stem": kernel(params["stem"], everything(3), groups),
            "grouped": kernel(params["grouped"], everything(4), groups),
            "shuffled": kernel(params["shuffled"], lead(4, rate), filters),
            "head": kernel(params["head"], filters, everything(5)),
        }
    }


def shuffle() -> Citizen:
    """Channel shuffle between grouped convolutions."""
    return Citizen(
        name="channel_shuffle",
        model=Shuffle(),
        inputs=(random_inputs(2, 6, 6, 3),),
        by_hand=lambda rate: Shuffle(part_of(4, rate), part_of(8, rate)),
        narrow_by_hand=narrow_shuffle,
    )


class UNet(nn.Module):
    """Down, a dilated convolution, up by a transposed one; concatenated skips."""

    width: int = 8

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = self.width
        outer = nn.relu(nn.Conv(width, (3, 3), name="outer")(x))
        x = nn.max_pool(outer, (2, 2), (2, 2))
        x = nn.relu(nn.Conv(2 * width, (3, 3), kernel_dilation=2, name="dilated")(x))
        x = nn.relu(nn.ConvTranspose(width, (2, 2), strides=(2, 2), name="up")(x))
        x = jnp.concatenate([x, outer], axis=-1)
        x = nn.relu(nn.Conv(width, (3, 3), name="joined")(x))
        return nn.Conv(2, (1, 1), name="head")(x)


def narrow_unet(variables: Tree, rate: float) -> Tree:
    """The concatenation has the channels of the way up, then those of the skip."""
    params = variables["params"]
    width, double = lead(8, rate), lead(16, rate)
    joined = beside((8, width), (8, width))
    return {
        "params": {
            "outer": kernel(params["outer"], everything(3), width),
            "dilated": kernel(params["dilated"], width, double),
            "up": kernel(params["up"], double, width),
            "joined": kernel(params["joined"], joined, width),
            "head": kernel(params["head"], width, everything(2)),
        }
    }


def unet() -> Citizen:
    """Skips, dilated and transposed convolution; an image as output."""
    return Citizen(
        name="unet",
        model=UNet(),
        inputs=(random_inputs(2, 6, 6, 3),),
        by_hand=lambda rate: UNet(part_of(8, rate)),
        narrow_by_hand=narrow_unet,
    )


def upsample(blocks: bool) -> Citizen:
    """Weight-standardised convolution, depth to space, convolution.

    `blocks` chooses the outermost axis of the channels: the 2 x 2 positions of a block
    (as in TensorFlow), or the channel (as in PyTorch).
    """

    def convolve(x: jax.Array, weights: jax.Array) -> jax.Array:
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x, weights, (1, 1), "SAME", dimension_numbers=numbers
        )

    def run(variables: Tree, x: jax.Array) -> jax.Array:
        x = jax.nn.relu(convolve(x, variables["stem"]))
        weights = variables["wide"]
        mean = weights.mean((0, 1, 2), keepdims=True)
        spread = weights.std((0, 1, 2), keepdims=True)
        x = convolve(x, (weights - mean) / (spread + 1e-3))
        b, h, w, c = x.shape
        if blocks:
            x = x.reshape(b, h, w, 2, 2, c // 4).transpose(0, 1, 3, 2, 4, 5)
        else:
            x = x.reshape(b, h, w, c // 4, 2, 2).transpose(0, 1, 4, 2, 5, 3)
        x = jax.nn.relu(x.reshape(b, 2 * h, 2 * w, c // 4))
        return convolve(x, variables["head"])

    def init(key: jax.Array) -> Tree:
        del key
        shapes = {"stem": (1, 1, 3, 8), "wide": (3, 3, 8, 32), "head": (3, 3, 8, 3)}
        return {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}

    def narrow(variables: Tree, rate: float) -> Tree:
        width, block = lead(8, rate), everything(4)
        wide = within(block, 8, width) if blocks else within(width, 4, block)
        return {
            "stem": cut(variables["stem"], everything(3), width),
            "wide": cut(variables["wide"], width, wide),
            "head": cut(variables["head"], width, everything(3)),
        }

    return Citizen(
        name="depth_to_space_blocks" if blocks else "depth_to_space_channels",
        model=run,
        init=init,
        inputs=(random_inputs(2, 4, 4, 3),),
        by_hand=lambda rate: run,
        narrow_by_hand=narrow,
        not_maskable="weights are standardised over the inputs",
    )


def state_space() -> Citizen:
    """A selective state space (b, t, channels, states), run by an associative scan."""

    def run(variables: Tree, x: jax.Array) -> jax.Array:
        x = x @ variables["enter"]
        step = jax.nn.softplus(x @ variables["step"])[..., None]
        decay = jnp.exp(-step * jnp.exp(variables["decay"])[None, None])
        driven = step * x[..., None] * variables["drive"][None, None]

        def then(first: tuple, second: tuple) -> tuple:
            (a, x), (b, y) = first, second
            return a * b, b * x + y

        _, states = jax.lax.associative_scan(then, (decay, driven), axis=1)
        y = jnp.einsum("btcn,nc->btc", states, variables["read"])
        return (y + x) @ variables["leave"]

    def init(key: jax.Array) -> Tree:
        del key
        shapes = {
            "enter": (12, 16),
            "step": (16, 16),
            "decay": (16, 4),
            "drive": (16, 4),
            "read": (4, 16),
            "leave": (16, 5),
        }
        return {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}

    def narrow(variables: Tree, rate: float) -> Tree:
        stream, states = lead(16, rate), lead(4, rate)
        cuts = {
            "enter": (everything(12), stream),
            "step": (stream, stream),
            "decay": (stream, states),
            "drive": (stream, states),
            "read": (states, stream),
            "leave": (stream, everything(5)),
        }
        return {name: cut(variables[name], *kept) for name, kept in cuts.items()}

    return Citizen(
        name="state_space",
        model=run,
        init=init,
        inputs=(random_inputs(2, 6, 12),),
        by_hand=lambda rate: run,
        narrow_by_hand=narrow,
    )
