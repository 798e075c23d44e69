"""Networks of mslice_jax.nn against `upgrade` of the same ones in plain Flax layers.

The two ways share only the rounding of rates: layers cut by hand, and the
transformation of a trace.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mslice_jax as ms
from mslice_jax import nn as sliced
from tests.citizens.citizen import Tree, random_inputs, random_tokens, shaken

RATES = (0.25, 0.5, 0.75, 1.0)
ODD = (0.3, 0.625, 1.0)  # 0.3 of 8 units rounds to 2
GROUPS = 8


class Mlp(nn.Module):
    """Two hidden layers."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.Dense(32)(x))
        x = nn.relu(nn.Dense(16)(x))
        return nn.Dense(5)(x)


class SlicedMlp(nn.Module):
    """The same, by hand."""

    @nn.compact
    def __call__(self, x: jax.Array, rate: float = 1.0) -> jax.Array:
        x = nn.relu(sliced.Dense(32, slice_inputs=False, name="Dense_0")(x, rate))
        x = nn.relu(sliced.Dense(16, name="Dense_1")(x, rate))
        return sliced.Dense(5, slice_outputs=False, name="Dense_2")(x, rate)


class Cnn(nn.Module):
    """Branches of different width, group norm across them, depthwise, residual."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Conv(16, (3, 3), strides=(2, 2), name="stem")(x)
        x = nn.relu(nn.GroupNorm(8, name="norm")(x))
        left = nn.Conv(8, (1, 1), name="left")(x)
        right = nn.Conv(16, (3, 3), name="right")(x)
        y = jnp.concatenate([left, right], axis=-1)
        y = nn.relu(nn.GroupNorm(12, name="joined")(y))
        x = x + nn.Conv(16, (3, 3), name="mixed")(y)
        x = nn.Conv(32, (3, 3), feature_group_count=16, name="deep")(nn.relu(x))
        return nn.Dense(5, name="head")(x.mean((1, 2)))


class SlicedCnn(nn.Module):
    """The same, by hand."""

    @nn.compact
    def __call__(self, x: jax.Array, rate: float = 1.0) -> jax.Array:
        stem = sliced.Conv(16, (3, 3), (2, 2), slice_inputs=False, name="stem")
        x = nn.relu(sliced.GroupNorm(8, name="norm")(stem(x, rate), rate))
        left = sliced.Conv(8, (1, 1), name="left")(x, rate)
        right = sliced.Conv(16, (3, 3), name="right")(x, rate)
        y = jnp.concatenate([left, right], axis=-1)
        parts = (8, 16)
        y = nn.relu(sliced.GroupNorm(12, in_features=parts, name="joined")(y, rate))
        x = x + sliced.Conv(16, (3, 3), in_features=parts, name="mixed")(y, rate)
        deep = sliced.Conv(32, (3, 3), feature_group_count=16, name="deep")
        x = deep(nn.relu(x), rate)
        return sliced.Dense(5, slice_outputs=False, name="head")(x.mean((1, 2)), rate)


class Switchable(nn.Module):
    """Convolutions and batch norms, which `upgrade` makes switchable."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        for i in range(2):
            x = nn.Conv(8 * 2**i, (3, 3), use_bias=False, name=f"conv{i}")(x)
            norm = nn.BatchNorm(use_running_average=not train, name=f"norm{i}")
            x = nn.relu(norm(x))
        return nn.Dense(5, name="head")(x.mean((1, 2)))


class SlicedSwitchable(nn.Module):
    """The same, by hand."""

    @nn.compact
    def __call__(
        self, x: jax.Array, rate: float = 1.0, train: bool = False
    ) -> jax.Array:
        for i in range(2):
            x = sliced.Conv(
                8 * 2**i, (3, 3), use_bias=False, slice_inputs=i > 0, name=f"conv{i}"
            )(x, rate)
            norm = sliced.BatchNorm(RATES, name=f"norm{i}")
            x = nn.relu(norm(x, rate, use_running_average=not train))
        return sliced.Dense(5, slice_outputs=False, name="head")(x.mean((1, 2)), rate)


PAST = np.tril(np.ones((1, 1, 6, 6), bool))


class Decoder(nn.Module):
    """Attention with a causal mask, layer and RMS norm, gated MLP, tied embedding."""

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        embed = nn.Embed(11, 16, name="embed")
        x = embed(tokens)
        y = nn.LayerNorm(name="before")(x)
        attention = nn.MultiHeadDotProductAttention(8, qkv_features=32, name="attend")
        x = x + attention(y, mask=PAST)
        y = nn.RMSNorm(name="between")(x)
        y = nn.silu(nn.Dense(24, name="gate")(y)) * nn.Dense(24, name="value")(y)
        return embed.attend(x + nn.Dense(16, name="down")(y))


class SlicedDecoder(nn.Module):
    """The same, by hand."""

    @nn.compact
    def __call__(self, tokens: jax.Array, rate: float = 1.0) -> jax.Array:
        embed = sliced.Embed(11, 16, name="embed")
        x = embed(tokens, rate)
        y = sliced.LayerNorm(name="before")(x, rate)
        attention = sliced.MultiHeadAttention(8, qkv_features=32, name="attend")
        x = x + attention(y, mask=PAST, rate=rate)
        y = sliced.RMSNorm(name="between")(x, rate)
        gate = nn.silu(sliced.Dense(24, name="gate")(y, rate))
        y = gate * sliced.Dense(24, name="value")(y, rate)
        x = x + sliced.Dense(16, name="down")(y, rate)
        return embed.attend(x, rate)


class Recurrent(nn.Module):
    """An LSTM over tokens, a GRU over its states."""

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        x: Any = nn.Embed(11, 8, name="embed")(tokens)
        x = nn.RNN(nn.LSTMCell(16, name="lstm"))(x)
        x = nn.RNN(nn.GRUCell(8, name="gru"))(x)
        return nn.Dense(5, name="head")(x[:, -1])


class SlicedRecurrent(nn.Module):
    """The same, by hand."""

    @nn.compact
    def __call__(self, tokens: jax.Array, rate: float = 1.0) -> jax.Array:
        x: Any = sliced.Embed(11, 8, name="embed")(tokens, rate)
        for cell in (sliced.LSTMCell(16, name="lstm"), sliced.GRUCell(8, name="gru")):
            step = nn.scan(
                lambda cell, carry, x: cell(carry, x, rate),
                variable_broadcast="params",
                split_rngs={"params": False},
                in_axes=1,
                out_axes=1,
            )
            _, x = step(cell, cell.initial_carry(tokens.shape[:1], rate), x)
        return sliced.Dense(5, slice_outputs=False, name="head")(x[:, -1], rate)


@dataclasses.dataclass(frozen=True)
class Pair:
    """A network of plain layers, and the same one of layers with a rate."""

    plain: nn.Module
    by_hand: nn.Module
    x: np.ndarray
    rates: tuple[float, ...] = RATES
    norm: str = "group"
    weights_by_hand: Callable[[Tree], Tree] = lambda variables: variables

    def __str__(self) -> str:
        return type(self.plain).__name__


def sets_as_wide_as_their_rate(variables: Tree) -> Tree:
    """Upgraded batch norms have full width at every rate, those of `nn` that rate's."""

    def cut(path: Any, leaf: Any) -> Any:
        rates = [key.key for key in path if key.key in map(str, RATES)]
        return leaf[: round(float(rates[0]) * leaf.shape[0])] if rates else leaf

    return jax.tree_util.tree_map_with_path(cut, variables)


IMAGES, TOKENS = random_inputs(2, 6, 6, 3), random_tokens(2, 6, below=11)
PAIRS = (
    Pair(Mlp(), SlicedMlp(), random_inputs(3, 12), ODD),
    Pair(Cnn(), SlicedCnn(), IMAGES),
    Pair(
        Switchable(),
        SlicedSwitchable(),
        IMAGES,
        norm="switchable",
        weights_by_hand=sets_as_wide_as_their_rate,
    ),
    Pair(Decoder(), SlicedDecoder(), TOKENS),
    Pair(Recurrent(), SlicedRecurrent(), TOKENS),
)


@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_by_hand_is_the_transformation(pair: Pair) -> None:
    variables = jax.eval_shape(pair.plain.init, jax.random.key(0), pair.x)
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), variables)
    net = ms.upgrade(
        pair.plain, zeros, pair.x, rates=pair.rates, groups=GROUPS, norm=pair.norm
    )
    net = net.replace(jax.tree.map(jnp.asarray, shaken(net.variables)))
    weights = pair.weights_by_hand(net.variables)
    expected = jax.eval_shape(pair.by_hand.init, jax.random.key(0), pair.x)
    assert jax.tree.map(jnp.shape, weights) == jax.tree.map(jnp.shape, expected)
    outputs = []
    for rate in pair.rates:
        y = np.asarray(ms.slice_apply(net, pair.x, rate))
        by_hand = jax.jit(pair.by_hand.apply, static_argnames="rate")
        np.testing.assert_allclose(
            y,
            by_hand(weights, pair.x, rate=rate),
            rtol=1e-6,
            atol=1e-6 * np.max(np.abs(y)),
        )
        outputs.append(y)
    for small, large in zip(outputs, outputs[1:], strict=False):
        assert np.max(np.abs(small - large)) > 1e-3
