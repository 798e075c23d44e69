"""Convolutions for the tests of their CPU forms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import mslice_jax as ms
from mslice_jax.cpu import compilation

NHWC = ("NHWC", "HWIO", "NHWC")

own_programs = pytest.mark.skipif(
    not compilation._known_options(), reason="only programs for CPU are made so"
)


def convolved(lhs, rhs, layout, **params):
    """XLA's convolution, its parameters, random lhs and rhs, and a cotangent."""
    rng = np.random.default_rng(0)
    x, w = (rng.normal(size=shape).astype(np.float32) for shape in (lhs, rhs))
    xla = functools.partial(
        lax.conv_general_dilated, dimension_numbers=layout, **params
    )
    (eqn,) = jax.make_jaxpr(xla)(x, w).jaxpr.eqns
    cotangent = rng.normal(size=jax.eval_shape(xla, x, w).shape).astype(np.float32)
    return xla, eqn.params, x, w, cotangent


def prepared(lhs, rhs, strides, padding, dilation, layout):
    """The same, of a convolution of one group."""
    params = {"window_strides": strides, "padding": padding, "rhs_dilation": dilation}
    return convolved(lhs, rhs, layout, **params)


def assert_close(found, expected, tolerance=1e-5):
    """Up to so much of the largest entry of each array."""
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        atol = tolerance * np.abs(b).max()
        np.testing.assert_allclose(a, b, rtol=0, atol=atol)


def params_of(lhs, rhs, **changed):
    """Parameters of a convolution with strides 1 and padding 1, with `changed`."""
    options = {"window_strides": (1, 1), "padding": ((1, 1), (1, 1)), **changed}
    convolve = functools.partial(
        lax.conv_general_dilated, dimension_numbers=NHWC, **options
    )
    (eqn,) = jax.make_jaxpr(convolve)(lhs, rhs).jaxpr.eqns
    return eqn.params


def windows(jit, fun, *args):
    """The filter shape of each convolution in a program."""
    lines = jit(fun).lower(*args).as_text().splitlines()
    return [
        x.split("tensor<")[2].split("xf32")[0] for x in lines if "convolution(" in x
    ]


def assert_derivatives_agree(ours, plain, x, w, cotangent):
    """Values, gradients, forward mode and second derivatives; ours under ms.jit."""

    def derivatives(convolve, jit):
        def curved(x, w):
            # Where tanh is flat its derivative, 1 - tanh^2, is mostly rounding.
            return jnp.sum(jnp.tanh(convolve(x, w) / 16) * cotangent)

        def all_of_them(x, w):
            y, pull = jax.vjp(convolve, x, w)
            _, moves = jax.jvp(convolve, (x, w), (2 * x, w**2))
            slope = jax.grad(curved, (0, 1))
            return y, pull(cotangent), moves, jax.jvp(slope, (x, w), (w.sum() * x, w))

        return jit(all_of_them)(x, w)

    assert_close(derivatives(ours, ms.jit), derivatives(plain, jax.jit))


def assert_vmap_agrees(ours, plain, x, w):
    """Gradients of each image by itself; ours under ms.jit."""

    def each(convolve):
        slope = jax.grad(lambda x, w: jnp.sum(jnp.sin(convolve(x, w))), (0, 1))
        return jax.vmap(slope, (0, None))(x[:, None], w)

    assert_close(ms.jit(each, static_argnums=0)(ours), each(plain))
