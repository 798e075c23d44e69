"""Bad rates and inputs raise before any work, and the error says what to do."""

from typing import Any

import flax.linen as linen
import jax
import numpy as np
import pytest

from mslice_jax import nn
from mslice_jax.core.errors import RateError

KEY = jax.random.key(0)
ONES = np.ones((2, 16), np.float32)
IMAGE = np.ones((2, 4, 4, 16), np.float32)

LAYERS = (
    (nn.Dense(16), ONES),
    (nn.Conv(16, (1, 1)), IMAGE),
    (nn.Embed(3, 16), np.zeros((2,), np.int32)),
    (nn.GroupNorm(4), ONES),
    (nn.LayerNorm(), ONES),
    (nn.RMSNorm(), ONES),
    (nn.BatchNorm((0.5, 1.0), use_running_average=True), ONES),
    (nn.MultiHeadAttention(4), ONES[None]),
)


def zeros(layer: linen.Module, *inputs: Any) -> Any:
    shapes = jax.eval_shape(layer.init, KEY, *inputs)
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)


@pytest.mark.parametrize("rate", (0, 1.5, float("nan"), "half", True))
@pytest.mark.parametrize(("layer", "x"), LAYERS, ids=lambda x: type(x).__name__)
def test_rate_outside_of_0_1(layer: linen.Module, x: Any, rate: Any) -> None:
    variables = zeros(layer, x)
    with pytest.raises(RateError, match=r"slice rate"):
        layer.apply(variables, x, rate=rate)


@pytest.mark.parametrize("cell", (nn.LSTMCell(16), nn.GRUCell(16)))
def test_cell_checks_rate_and_carry(cell: Any) -> None:
    carry = cell.initial_carry((2,))
    variables = zeros(cell, carry, ONES)
    with pytest.raises(RateError, match=r"slice rate lies in \(0, 1\]; got 2"):
        cell.apply(variables, carry, ONES, rate=2.0)
    with pytest.raises(ValueError, match=r"carry of 8 of 16 .*initial_carry"):
        cell.apply(variables, carry, ONES[:, :8], rate=0.5)


def test_traced_rate() -> None:
    layer = nn.Dense(16)
    variables = layer.init(KEY, ONES)
    with pytest.raises(RateError, match="static"):
        jax.jit(lambda rate: layer.apply(variables, ONES, rate))(0.5)


@pytest.mark.parametrize(
    ("layer", "x"),
    [pair for pair in LAYERS if not isinstance(pair[0], nn.Embed)],
    ids=lambda x: type(x).__name__,
)
def test_input_of_another_rate(layer: linen.Module, x: Any) -> None:
    variables = zeros(layer, x)
    with pytest.raises(ValueError, match=r"expected 8 of 16 input features at rate "):
        layer.apply(variables, x, rate=0.5)


def test_first_call_at_a_narrow_rate() -> None:
    with pytest.raises(ValueError, match=r"init at rate 1 .*in_features"):
        nn.Dense(16).init(KEY, ONES, 0.5)
    variables: Any = nn.Dense(16, in_features=32).init(KEY, ONES, 0.5)
    assert variables["params"]["kernel"].shape == (32, 16)


def test_unknown_rate_of_switchable_norm() -> None:
    norm = nn.BatchNorm((0.5,), use_running_average=True)
    variables = norm.init(KEY, ONES)
    with pytest.raises(RateError, match=r"rates \[0.5, 1.0\]; got 0.25"):
        norm.apply(variables, ONES[:, :4], 0.25)


def test_groups_that_do_not_divide() -> None:
    with pytest.raises(ValueError, match="num_groups=5 does not divide 16"):
        nn.GroupNorm(5).init(KEY, ONES)
    with pytest.raises(ValueError, match="num_heads=3 does not divide 16"):
        nn.MultiHeadAttention(3).init(KEY, ONES[None])


def test_grouped_convolution_keeps_whole_groups() -> None:
    # 4 groups of 4: 3/8 of 16 channels are 6, one group and a half.
    conv = nn.Conv(16, (1, 1), feature_group_count=4)
    variables = conv.init(KEY, IMAGE)
    with pytest.raises(ValueError, match=r"whole groups .*`groups` \(now 8\).* 4"):
        conv.apply(variables, IMAGE[..., :6], 0.375)


def test_convolution_of_one_image() -> None:
    with pytest.raises(ValueError, match=r"4 axes .*\(4, 4, 16\)"):
        nn.Conv(16, (1, 1)).init(KEY, IMAGE[0])


def test_embedding_of_floats() -> None:
    with pytest.raises(ValueError, match="integers; got float32"):
        nn.Embed(3, 16).init(KEY, ONES)


def test_attend_checks_its_input() -> None:
    embed = nn.Embed(3, 16)
    variables = embed.init(KEY, np.zeros(2, np.int32))
    with pytest.raises(ValueError, match="expected 8 of 16 features at rate 0.5"):
        embed.apply(variables, ONES, 0.5, method="attend")
