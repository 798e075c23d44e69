"""Each layer of mslice_jax.nn against Flax's own of narrow size, cut by hand."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mslice_jax import nn as sliced
from tests.citizens.citizen import (
    Tree,
    beside,
    cut,
    everything,
    kernel,
    lead,
    random_inputs,
    random_tokens,
    shaken,
    vectors,
)

RATES = (0.25, 0.5, 1.0)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """A layer, Flax's layer at a rate, and a cut by hand."""

    name: str
    layer: nn.Module
    plain: Callable[[float], nn.Module]
    inputs: Callable[[float], tuple[Any, ...]]
    narrow: Callable[[Tree, float], Tree]  # params, rate -> params

    def __str__(self) -> str:
        return self.name

    @functools.cached_property
    def params(self) -> Tree:
        init = jax.eval_shape(self.layer.init, jax.random.key(0), *self.inputs(1.0))
        return shaken(init["params"])


def channels(*shape: int) -> Callable[[float], tuple[np.ndarray]]:
    """An input whose last axis is narrow."""
    full = random_inputs(*shape)
    return lambda rate: (full[..., lead(shape[-1], rate)],)


def whole(*inputs: np.ndarray) -> Callable[[float], tuple[np.ndarray, ...]]:
    return lambda rate: inputs


def layer_cut(inputs: int, outputs: int) -> Callable[[Tree, float], Tree]:
    return lambda p, r: kernel(p, lead(inputs, r), lead(outputs, r))


JOINED = random_inputs(2, 24)
"""Two concatenated branches, of 8 and 16 units."""


def joined(rate: float) -> np.ndarray:
    return beside((8, lead(8, rate)), (16, lead(16, rate)))


def heads(rate: float) -> np.ndarray:
    return lead(4, rate)


def narrow_attention(params: Tree, rate: float) -> Tree:
    stream, left = lead(16, rate), heads(rate)
    narrow = {
        name: {
            "kernel": cut(params[name]["kernel"], stream, left, everything(3)),
            "bias": cut(params[name]["bias"], left, everything(3)),
        }
        for name in ("query", "key", "value")
    }
    out = params["out"]
    narrow["out"] = {
        "kernel": cut(out["kernel"], left, everything(3), stream),
        "bias": cut(out["bias"], stream),
    }
    return narrow


def narrow_cell(params: Tree, rate: float) -> Tree:
    inputs, units = lead(8, rate), lead(16, rate)
    return {
        name: kernel(gate, inputs if name.startswith("i") else units, units)
        for name, gate in params.items()
    }


def carried(count: int) -> Callable[[float], tuple[Any, ...]]:
    def inputs(rate: float) -> tuple[Any, ...]:
        state = [random_inputs(3, 16, seed=i)[:, lead(16, rate)] for i in range(count)]
        x = random_inputs(3, 8, seed=9)[:, lead(8, rate)]
        return (tuple(state) if count > 1 else state[0]), x

    return inputs


def attend(rate: float) -> tuple[Any, ...]:
    x, context = random_inputs(2, 5, 16), random_inputs(2, 7, 16, seed=1)
    mask = np.arange(5)[:, None] + 2 >= np.arange(7)
    stream = lead(16, rate)
    return x[..., stream], context[..., stream], mask[None, None]


class Attention(nn.Module):
    """Flax's attention with the mask as third argument."""

    num_heads: int

    @nn.compact
    def __call__(self, x: Any, context: Any, mask: Any) -> jax.Array:
        attention = nn.MultiHeadDotProductAttention(
            self.num_heads, qkv_features=3 * self.num_heads
        )
        nn.share_scope(self, attention)
        return attention(x, context, mask=mask)


CASES = (
    Case(
        name="dense",
        layer=sliced.Dense(24),
        plain=lambda r: nn.Dense(int(24 * r)),
        inputs=channels(2, 5, 16),
        narrow=layer_cut(16, 24),
    ),
    Case(
        name="first_dense",
        layer=sliced.Dense(24, slice_inputs=False, use_bias=False),
        plain=lambda r: nn.Dense(int(24 * r), use_bias=False),
        inputs=whole(random_inputs(2, 5)),
        narrow=lambda p, r: kernel(p, everything(5), lead(24, r)),
    ),
    Case(
        name="last_dense",
        layer=sliced.Dense(5, slice_outputs=False),
        plain=lambda r: nn.Dense(5),
        inputs=channels(2, 16),
        narrow=lambda p, r: kernel(p, lead(16, r), everything(5)),
    ),
    Case(
        name="dense_of_branches",
        layer=sliced.Dense(24, in_features=(8, 16)),
        plain=lambda r: nn.Dense(int(24 * r)),
        inputs=lambda r: (cut(JOINED, joined(r)),),
        narrow=lambda p, r: kernel(p, joined(r), lead(24, r)),
    ),
    Case(
        name="conv",
        layer=sliced.Conv(16, (3, 2), strides=(2, 1), kernel_dilation=(1, 2)),
        plain=lambda r: nn.Conv(int(16 * r), (3, 2), (2, 1), kernel_dilation=(1, 2)),
        inputs=channels(2, 5, 6, 8),
        narrow=layer_cut(8, 16),
    ),
    Case(
        name="first_conv",
        layer=sliced.Conv(8, (3,), padding=[(2, 0)], slice_inputs=False),
        plain=lambda r: nn.Conv(int(8 * r), (3,), padding=[(2, 0)]),
        inputs=whole(random_inputs(2, 7, 3)),
        narrow=lambda p, r: kernel(p, everything(3), lead(8, r)),
    ),
    Case(
        name="depthwise_conv",
        layer=sliced.Conv(16, (3, 3), feature_group_count=8, padding="VALID"),
        plain=lambda r: nn.Conv(
            int(16 * r), (3, 3), feature_group_count=int(8 * r), padding="VALID"
        ),
        inputs=channels(2, 5, 5, 8),
        narrow=lambda p, r: kernel(p, everything(1), lead(16, r)),
    ),
    Case(
        name="grouped_conv",
        layer=sliced.Conv(16, (1,), feature_group_count=4, groups=4),
        plain=lambda r: nn.Conv(int(16 * r), (1,), feature_group_count=int(4 * r)),
        inputs=channels(2, 5, 8),
        narrow=lambda p, r: kernel(p, everything(2), lead(16, r)),
    ),
    Case(
        name="embed",
        layer=sliced.Embed(11, 16),
        plain=lambda r: nn.Embed(11, int(16 * r)),
        inputs=whole(random_tokens(2, 5, below=11)),
        narrow=lambda p, r: {"embedding": cut(p["embedding"], lead(16, r))},
    ),
    Case(
        name="group_norm",
        layer=sliced.GroupNorm(num_groups=4),
        plain=lambda r: nn.GroupNorm(num_groups=int(4 * r)),
        inputs=channels(2, 5, 5, 16),
        narrow=lambda p, r: vectors(p, lead(16, r)),
    ),
    Case(
        name="group_norm_of_branches",  # 4 and 8 groups of 2
        layer=sliced.GroupNorm(num_groups=12, in_features=(8, 16)),
        plain=lambda r: nn.GroupNorm(num_groups=int(12 * r)),
        inputs=lambda r: (cut(JOINED, joined(r)),),
        narrow=lambda p, r: vectors(p, joined(r)),
    ),
    Case(
        name="layer_norm",
        layer=sliced.LayerNorm(),
        plain=lambda r: nn.LayerNorm(),
        inputs=channels(2, 5, 16),
        narrow=lambda p, r: vectors(p, lead(16, r)),
    ),
    Case(
        name="layer_norm_without_bias",
        layer=sliced.LayerNorm(use_bias=False, epsilon=1e-3),
        plain=lambda r: nn.LayerNorm(use_bias=False, epsilon=1e-3),
        inputs=channels(2, 16),
        narrow=lambda p, r: vectors(p, lead(16, r)),
    ),
    Case(
        name="rms_norm",
        layer=sliced.RMSNorm(),
        plain=lambda r: nn.RMSNorm(),
        inputs=channels(2, 5, 16),
        narrow=lambda p, r: vectors(p, lead(16, r)),
    ),
    Case(
        name="attention",
        layer=sliced.MultiHeadAttention(4, qkv_features=12),
        plain=lambda r: Attention(int(4 * r)),
        inputs=attend,
        narrow=narrow_attention,
    ),
    Case(
        name="lstm_cell",
        layer=sliced.LSTMCell(16),
        plain=lambda r: nn.LSTMCell(int(16 * r)),
        inputs=carried(2),
        narrow=narrow_cell,
    ),
    Case(
        name="gru_cell",
        layer=sliced.GRUCell(16),
        plain=lambda r: nn.GRUCell(int(16 * r)),
        inputs=carried(1),
        narrow=narrow_cell,
    ),
)

everyone = pytest.mark.parametrize("case", CASES, ids=str)


def apply(case: Case, params: Tree, rate: float) -> Any:
    return case.layer.apply({"params": params}, *case.inputs(rate), rate=rate)


def assert_close(actual: Any, expected: Any) -> None:
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6 * np.max(np.abs(b)))


@everyone
def test_parameters_are_those_of_flax_at_full_width(case: Case) -> None:
    def shapes(layer: nn.Module) -> Tree:
        init = jax.eval_shape(layer.init, jax.random.key(0), *case.inputs(1.0))
        return jax.tree.map(lambda x: (x.shape, x.dtype), init["params"])

    assert shapes(case.layer) == shapes(case.plain(1.0))


@everyone
@pytest.mark.parametrize("rate", (0.25, 1.0))
def test_output_is_that_of_the_narrow_layer(case: Case, rate: float) -> None:
    narrow = case.narrow(case.params, rate)
    expected = case.plain(rate).apply({"params": narrow}, *case.inputs(rate))
    assert_close(apply(case, case.params, rate), expected)


@everyone
def test_gradient_is_the_narrow_one_inside_and_zero_outside(case: Case) -> None:
    rate = 0.5

    def total(y: Any) -> jax.Array:  # squares, so that no gradient is constant
        return sum((jnp.sum(leaf**2) for leaf in jax.tree.leaves(y)), jnp.zeros(()))

    def by_hand(params: Tree) -> jax.Array:
        plain = case.plain(rate)
        return total(plain.apply({"params": params}, *case.inputs(rate)))

    full = jax.grad(lambda p: total(apply(case, p, rate)))(case.params)
    inside = jax.grad(by_hand)(case.narrow(case.params, rate))
    # Entries outside of the cut are zero.
    kept = case.narrow(full, rate)
    largest = max(float(np.max(np.abs(leaf))) for leaf in jax.tree.leaves(inside))
    for a, b in zip(jax.tree.leaves(kept), jax.tree.leaves(inside), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6 * largest)
    for a, b in zip(jax.tree.leaves(full), jax.tree.leaves(kept), strict=True):
        assert np.count_nonzero(a) == np.count_nonzero(b)
        assert np.size(a) > np.size(b) or case.name == "last_dense"


@everyone
def test_dropped_units_have_no_influence(case: Case) -> None:
    rate = 0.25
    count = sum(np.size(leaf) for leaf in jax.tree.leaves(case.params))
    leaves, structure = jax.tree.flatten(case.params)
    starts = np.cumsum([0] + [np.size(leaf) for leaf in leaves])
    numbers = jax.tree.unflatten(
        structure,
        [
            start + np.arange(np.size(leaf)).reshape(np.shape(leaf))
            for start, leaf in zip(starts, leaves, strict=False)
        ],
    )
    keep = np.zeros(count, bool)
    for leaf in jax.tree.leaves(case.narrow(numbers, rate)):
        keep[np.ravel(leaf)] = True
    assert not keep.all()
    poisoned = jax.tree.map(
        lambda leaf, at: np.where(keep[at], leaf, np.float32(np.nan)),
        case.params,
        numbers,
    )
    actual, expected = apply(case, poisoned, rate), apply(case, case.params, rate)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def test_odd_rate_rounds_to_whole_units() -> None:
    # 16 channels in 8 units of 2: 0.3 keeps 2.4 of them, so 2; 12 are units of 1: 3.6.
    x = random_inputs(2, 4)
    dense = sliced.Dense(16, in_features=12)
    variables: Any = dense.init(jax.random.key(0), x, 0.3)
    assert variables["params"]["kernel"].shape == (12, 16)
    y: Any = dense.apply(variables, x, 0.3)
    assert y.shape == (2, 4)


def test_tied_output_weights() -> None:
    embed, x = sliced.Embed(11, 16), random_inputs(2, 4)
    variables = embed.init(jax.random.key(0), np.zeros(1, np.int32))
    table = np.asarray(variables["params"]["embedding"])
    logits: Any = embed.apply(variables, x, 0.25, method="attend")
    np.testing.assert_allclose(logits, x @ table[:, :4].T, rtol=1e-5, atol=1e-6)


def test_half_precision() -> None:
    x = random_inputs(2, 3, 8).astype(jnp.bfloat16)
    layers = (
        sliced.Dense(8, dtype=jnp.bfloat16),
        sliced.LayerNorm(dtype=jnp.bfloat16),
        sliced.MultiHeadAttention(2, dtype=jnp.bfloat16),
    )
    for layer in layers:
        variables = layer.init(jax.random.key(0), x)
        assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {
            np.dtype("float32")
        }
        y: Any = layer.apply(variables, x[..., :4], rate=0.5)
        assert y.dtype == jnp.bfloat16


# Switchable batch norm: each rate has its own arrays, as wide as the rate.


def batch_norm() -> tuple[sliced.BatchNorm, Tree]:
    norm = sliced.BatchNorm(RATES, momentum=0.9)
    x = random_inputs(2, 5, 5, 16)
    return norm, shaken(norm.init(jax.random.key(0), x, use_running_average=True))


def of_rate(variables: Tree, rate: float) -> Tree:
    return {name: sets[str(rate)] for name, sets in variables.items()}


@pytest.mark.parametrize("rate", RATES)
def test_batch_norm_has_arrays_for_each_rate(rate: float) -> None:
    norm, variables = batch_norm()
    x = random_inputs(2, 5, 5, int(16 * rate))
    narrow = of_rate(variables, rate)
    plain = nn.BatchNorm(use_running_average=True)
    assert_close(norm.apply(variables, x, rate, True), plain.apply(narrow, x))


def test_batch_norm_updates_the_statistics_of_its_rate() -> None:
    norm, variables = batch_norm()
    x, rate = random_inputs(2, 5, 5, 8), 0.5
    y, updates = norm.apply(variables, x, rate, False, mutable=["batch_stats"])
    plain = nn.BatchNorm(use_running_average=False, momentum=0.9)
    wanted, statistics = plain.apply(
        of_rate(variables, rate), x, mutable=["batch_stats"]
    )
    assert_close(y, wanted)
    before, after = variables["batch_stats"], updates["batch_stats"]
    assert_close(after["0.5"], statistics["batch_stats"])
    for other in ("0.25", "1.0"):
        jax.tree.map(np.testing.assert_array_equal, after[other], before[other])


def test_attention_with_a_mask_for_each_head():
    """The kept heads have their masks."""
    layer = sliced.MultiHeadAttention(num_heads=4)
    x = jax.random.normal(jax.random.key(0), (2, 5, 8))
    mask = jax.random.bernoulli(jax.random.key(1), 0.7, (1, 4, 5, 5))
    mask |= jnp.eye(5, dtype=bool)[None, None]
    variables = layer.init(jax.random.key(2), x)
    half = layer.apply(variables, x[..., :4], mask=mask, rate=0.5)
    assert half.shape == (2, 5, 4)
    np.testing.assert_array_equal(
        half, layer.apply(variables, x[..., :4], mask=mask[:, :2], rate=0.5)
    )
