"""Poolings place by place, against XLA's own."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

import mslice_jax as ms
from mslice_jax.cpu import pooling
from tests.convolutions import assert_close, own_programs

NONE = (0, 0)
# window, strides, padding, of 4 x 6 x 6 x 6
CASES = {
    "apart": ((1, 2, 2, 1), (1, 2, 2, 1), "VALID"),
    "pixels_left_over": ((1, 4, 5, 1), (1, 4, 5, 1), "VALID"),
    "of_images_and_channels": ((2, 1, 1, 3), (2, 1, 1, 3), "VALID"),
    "overlapping": ((1, 3, 3, 1), (1, 2, 2, 1), "SAME"),
    "at_every_pixel": ((1, 3, 2, 1), (1, 1, 1, 1), "SAME"),
    "pixels_between": ((1, 2, 1, 1), (1, 3, 4, 1), (NONE, (1, 2), NONE, NONE)),
    "much_padding": ((1, 2, 3, 1), (1, 2, 1, 1), (NONE, (5, 4), (1, 3), NONE)),
    "large": ((1, 5, 4, 1), (1, 2, 3, 1), "SAME"),
    "large_in_all_axes": ((2, 3, 3, 2), (1, 2, 1, 3), "SAME"),
    "large_and_padded_elsewhere": (
        (1, 4, 4, 1),
        (1, 1, 1, 1),
        (NONE, NONE, NONE, (0, 2)),
    ),
    "whole": ((1, 6, 6, 1), (1, 6, 6, 1), "VALID"),
    "whole_by_one": ((1, 6, 5, 1), (1, 1, 1, 1), "VALID"),
}
REDUCTIONS = {"max": (-jnp.inf, lax.max), "sum": (0.0, lax.add)}


def ours(kind, params):
    form = pooling.maximum if kind == "max" else pooling.total
    return lambda x: form(x, params)


def prepared(kind, name, dtype=np.float32):
    """XLA's pooling, ours, and an array to pool, without equal entries."""
    window, strides, padding = CASES[name]
    x = np.random.default_rng(0).permutation(4 * 6**3).reshape(4, 6, 6, 6) / 200
    x = x.astype(dtype)
    start, pairwise = REDUCTIONS[kind]
    xla = functools.partial(
        lax.reduce_window,
        init_value=np.array(start, dtype),
        computation=pairwise,
        window_dimensions=window,
        window_strides=strides,
        padding=padding,
    )
    (*_, eqn) = jax.make_jaxpr(xla)(x).jaxpr.eqns
    assert eqn.primitive.name == f"reduce_window_{kind}"
    assert pooling.applies(x, eqn.params)
    return xla, ours(kind, eqn.params), x


def derivatives(pool, x):
    """The pooling, its gradient, forward mode, and a derivative of the gradient."""

    def curved(x):
        y = jnp.maximum(pool(x), -5)  # a window may see padding alone
        return jnp.sum((y + 1) ** 2 * jnp.cos(jnp.arange(y.size)).reshape(y.shape))

    slope = jax.grad(curved)
    moves = jnp.sin(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape)
    (_, of_values), (_, of_slopes) = (jax.jvp(f, (x,), (moves,)) for f in (pool, slope))
    return pool(x), slope(x), of_values, of_slopes


@pytest.mark.parametrize("kind", REDUCTIONS)
@pytest.mark.parametrize("name", CASES)
def test_numbers_and_derivatives(kind, name):
    xla, form, x = prepared(kind, name)
    found, expected = (
        jax.jit(functools.partial(derivatives, pool))(x) for pool in (form, xla)
    )
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-6)
    assert_close(found[1:], expected[1:])


@pytest.mark.parametrize("name", CASES)
def test_the_first_of_equal_entries_gets_the_gradient(name):
    xla, form, x = prepared("max", name)
    x = np.floor(x % 1 * 3)  # most windows hold their maximum more than once
    gradients = [
        jax.jit(jax.grad(lambda x, pool=pool: jnp.sum(jnp.maximum(pool(x), 0) ** 2)))(x)
        for pool in (form, xla)
    ]
    np.testing.assert_array_equal(*gradients)


def test_a_window_that_stands_alone_has_one_block():
    _, form, x = prepared("sum", "whole_by_one")
    pull = jax.vjp(form, x)[1]
    # Of six rows and five columns: there are two windows side by side, in one row.
    assert str(jax.make_jaxpr(pull)(form(x))).count("name=_where") == 5


@pytest.mark.parametrize("kind", REDUCTIONS)
def test_vmap(kind):
    xla, form, x = prepared(kind, "overlapping")

    def each(pool):
        slope = jax.grad(lambda x: jnp.sum(jnp.sin(pool(x[None]))))
        return jax.jit(jax.vmap(slope))(x)

    assert_close(each(form), each(xla))


def test_other_dtypes_and_what_is_no_number():
    xla, form, x = prepared("max", "overlapping", jnp.bfloat16)
    found = form(x)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found, xla(x))
    xla, form, x = prepared("max", "large")
    x[1, 2, 3, 4], x[0, 0, 0, 0], x[2] = np.nan, np.inf, -np.inf
    np.testing.assert_array_equal(form(x), xla(x))


@pytest.mark.parametrize("kind", REDUCTIONS)
def test_types_are_not_mixed(kind):
    xla, form, x = prepared(kind, "overlapping")
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        found = jax.jit(jax.grad(lambda x: form(x).sum()))(x)
    np.testing.assert_array_equal(found, jax.grad(lambda x: xla(x).sum())(x))


@pytest.mark.parametrize(
    ("size", "changed"),
    [
        ((1, 6, 6, 2), {"window_dimensions": (1, 1, 1, 1)}),
        ((1, 40, 40, 2), {"window_dimensions": (1, 9, 9, 1)}),
        ((1, 6, 6, 2), {"padding": (NONE, (-1, 0), NONE, NONE)}),
        ((1, 6, 6, 2), {"base_dilation": (1, 2, 1, 1)}),
        ((1, 6, 6, 2), {"window_dilation": (1, 1, 2, 1)}),
        ((1, 1, 6, 2), {}),
        ((0, 6, 6, 2), {}),
    ],
    ids=["one_place", "large", "cut", "spread", "dilated", "no_window", "no_images"],
)
def test_what_is_left_to_xla(size, changed):
    params = {
        "window_dimensions": (1, 2, 2, 1),
        "window_strides": (1, 1, 1, 1),
        "padding": (NONE,) * 4,
        "base_dilation": (1, 1, 1, 1),
        "window_dilation": (1, 1, 1, 1),
    }
    x = jnp.zeros(size)
    assert pooling.applies(jnp.zeros((1, 6, 6, 2)), params)
    assert not pooling.applies(x, {**params, **changed})
    assert not pooling.applies(jnp.zeros((1, 6, 6, 2), int), params)


@own_programs
@pytest.mark.parametrize("rate", [0.5, 1.0])
def test_a_network_has_them_at_every_rate(rate):
    class Pools(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.max_pool(nn.Conv(8, (3, 3))(x), (3, 3), (2, 2), "SAME")
            x = nn.avg_pool(nn.Conv(8, (3, 3))(x), (2, 2), (1, 1))
            return nn.Dense(2)(x.mean((1, 2)))

    x = jax.random.normal(jax.random.key(0), (2, 9, 10, 3))
    model = Pools()
    net = ms.upgrade(model, model.init(jax.random.key(1), x), x, rates=(0.5, 1.0))

    def loss(net, x):
        return jnp.square(ms.slice_apply(net, x, rate)).mean()

    own, plain = ms.jit(jax.grad(loss)), jax.jit(jax.grad(loss))
    assert_close(own(net, x), plain(net, x))
    assert "reduce_window" not in own.lower(net, x).as_text()
    assert "reduce_window" in plain.lower(net, x).as_text()
