"""Products on CPU: the same derivatives, from another program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import mslice_jax as ms
from tests.convolutions import own_programs


class Attention(nn.Module):
    """Products with weights, and of a batch."""

    @nn.compact
    def __call__(self, x):
        y = nn.MultiHeadDotProductAttention(4)(nn.Dense(8)(x))
        return nn.Dense(3)(nn.gelu(y))


@pytest.fixture(scope="module")
def net_and_texts():
    x = jax.random.normal(jax.random.key(0), (2, 5, 3))
    model = Attention()
    net = ms.upgrade(model, model.init(jax.random.key(1), x), x, rates=(0.5, 1.0))
    return net, x


def loss(net, x):
    return jnp.square(jax.nn.log_softmax(ms.slice_apply(net, x, 0.5))).mean()


def barriers(jitted, *args):
    return jitted.lower(*args).as_text().count("stablehlo.optimization_barrier")


def assert_close(found, expected):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())


@own_programs
def test_each_product_has_one(net_and_texts):
    grad = jax.grad(loss, argnums=(0, 1))
    # Six dense layers, of which each reads what the last one made, and two products of
    # attention.
    assert barriers(ms.jit(grad), *net_and_texts) == 8
    assert barriers(jax.jit(grad), *net_and_texts) == 0


def test_the_forward_pass_is_that_of_jax_jit(net_and_texts):
    own, plain = ms.jit(loss), jax.jit(loss)
    assert barriers(own, *net_and_texts) == 0
    np.testing.assert_array_equal(own(*net_and_texts), plain(*net_and_texts))


def test_derivatives(net_and_texts):
    net, x = net_and_texts

    def derivatives(net, x):
        def by_x(x):
            return loss(net, x)

        return (
            jax.grad(loss, argnums=(0, 1))(net, x),
            jax.jvp(by_x, (x,), (jnp.cos(x),)),
            jax.jvp(jax.grad(by_x), (x,), (jnp.cos(x),)),
            jax.vmap(jax.grad(by_x))(x[:, None]),
        )

    assert_close(ms.jit(derivatives)(net, x), jax.jit(derivatives)(net, x))
