"""Products on CPU: the same derivatives, from another program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import mslice_jax as ms
from mslice_jax.cpu import dense
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
def test_each_product_has_one(net_and_texts, monkeypatch):
    monkeypatch.setattr("mslice_jax.cpu.barriers._SMALL", 0)
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


PRODUCTS = {
    # lhs, rhs, the same in NumPy's words, whether it is one of matrices
    "texts": ((2, 3, 4), (4, 5), "abk,kc->abc", True),
    "heads": ((2, 3, 4), (4, 2, 3), "abk,khd->abhd", True),
    "from_heads": ((2, 3, 2, 4), (2, 4, 5), "abhd,hdc->abc", True),
    "weights_of_an_embedding": ((2, 3, 4), (6, 4), "abk,ck->abc", True),
    "no_rows": ((0, 3, 4), (4, 5), "abk,kc->abc", True),
    "summed_first": ((4, 2), (4, 5), "ka,kc->ac", False),
    "batch": ((2, 3, 4), (2, 4, 5), "bak,bkc->bac", False),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_as_products_of_matrices(name):
    lhs_shape, rhs_shape, words, as_matrices = PRODUCTS[name]
    rng = np.random.default_rng(0)
    lhs, rhs = rng.normal(size=lhs_shape), rng.normal(size=rhs_shape)
    lhs, rhs = lhs.astype(np.float32), rhs.astype(np.float32)
    axes = words.split("->")[0].split(",")
    batch = [a for a in axes[0] if a in axes[1] and a in words.split("->")[1]]
    summed = [a for a in axes[0] if a in axes[1] and a not in batch]
    numbers = tuple(
        tuple(tuple(each.index(a) for a in group) for each in axes)
        for group in (summed, batch)
    )
    params = {
        "dimension_numbers": numbers,
        "precision": None,
        "preferred_element_type": None,
    }
    run = jax.jit(lambda x, y: dense.flat(x, y, params))
    found, expected = run(lhs, rhs), np.einsum(words, lhs, rhs)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    (eqn,) = (
        eqn
        for eqn in jax.make_jaxpr(lambda x, y: dense.flat(x, y, params))(lhs, rhs).eqns
        if eqn.primitive.name == "dot_general"
    )
    assert (eqn.invars[0].aval.shape != lhs_shape) == as_matrices
