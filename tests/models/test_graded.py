"""Gains and biases that every width has of its own, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import mslice_jax as ms
from mslice_jax.models import RecurrentLM
from mslice_jax.models.graded import GradedDense
from tests.citizens.citizen import random_inputs, random_tokens, shaken
from tests.citizens.language import init


class Mlp(nn.Module):
    """Two layers, 16 units that narrow between them."""

    @nn.compact
    def __call__(self, x):
        x = nn.tanh(GradedDense(16, rows=8, name="first")(x))
        return GradedDense(3, rows=8, name="last")(x)


X = random_inputs(5, 4)


def sliced(variables):
    return ms.upgrade(Mlp(), variables, X, rates=(0.25, 0.5, 0.75, 1.0))


@pytest.mark.parametrize("rate", [0.25, 0.75, 1.0])
def test_a_width_has_the_sum_of_its_leading_rows(rate):
    params = shaken(jax.jit(Mlp().init)(jax.random.key(0), X))["params"]
    rows, units = round(8 * rate), round(16 * rate)
    first = {name: table[:, :units] for name, table in params["first"].items()}
    last = {**params["last"], "kernel": params["last"]["kernel"][:units]}
    x = X
    for layer, end in ((first, np.tanh), (last, np.array)):
        gain, bias = (layer[name][:rows].sum(0) for name in ("gain", "bias"))
        x = end(x @ layer["kernel"] * gain + bias)
    net = sliced({"params": jax.tree.map(jnp.asarray, params)})
    np.testing.assert_allclose(net(rate, X), x, atol=1e-5)


@pytest.mark.parametrize("rate", [0.25, 0.5, 0.75, 1.0])
def test_a_new_network_scales_narrow_products_by_the_rate(rate):
    variables = jax.jit(Mlp().init)(jax.random.key(1), X)
    units = round(16 * rate)
    first, last = (variables["params"][name] for name in ("first", "last"))
    h = np.tanh(X @ first["kernel"][:, :units] / rate)
    expected = h @ last["kernel"][:units] / rate
    np.testing.assert_allclose(sliced(variables)(rate, X), expected, rtol=1e-4)


def test_a_new_lstm_remembers_at_every_width():
    model = RecurrentLM(vocab=5, units=8, graded=4)
    params = init(model, random_tokens(1, 2, below=5))["params"]
    bias = np.asarray(params["layer1"]["input"]["bias"])
    for rows in (1, 2, 3, 4):
        each = bias[:rows].sum(0).reshape(4, 8)
        np.testing.assert_array_equal(each, np.repeat([[0], [1], [0], [0]], 8, 1))


def test_a_network_without_is_as_it_was():
    tokens = random_tokens(1, 2, below=5)
    plain = RecurrentLM(vocab=5, units=8, tied=True)
    params = jax.eval_shape(plain.init, jax.random.key(0), tokens)["params"]
    assert set(params) == {"embed", "layer0", "layer1"}
    assert set(params["layer0"]["state"]["gates"]) == {"kernel"}


def test_rows_below_zero_are_refused():
    with pytest.raises(ValueError, match="graded to be 0 or more, got -1"):
        RecurrentLM(vocab=5, graded=-1)
