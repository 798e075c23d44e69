"""Derivatives of convolutions on CPU: other programs, the same numbers."""

import collections
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import mslice_jax as ms
from mslice_jax.cpu import columns, convolution
from tests.convolutions import NHWC, convolved, prepared

# lhs, rhs, strides, padding, dilation of the window, layout
CASES = {
    "same": ((2, 8, 8, 3), (3, 3, 3, 5), (1, 1), ((1, 1), (1, 1)), (1, 1), NHWC),
    "odd": ((4, 7, 9, 3), (3, 2, 3, 5), (2, 1), ((1, 0), (0, 2)), (1, 2), NHWC),
    "channels_first": (
        (2, 3, 8, 8), (5, 3, 3, 3), (2, 2), ((1, 1), (1, 1)), (1, 1),
        ("NCHW", "OIHW", "NCHW"),
    ),
    "one_pixel": (
        (4, 8, 8, 3), (1, 1, 3, 5), (2, 2), ((0, 0), (0, 0)), (1, 1),
        ("NHWC", "HWIO", "NCHW"),
    ),
    "window_larger_than_image": (
        (4, 2, 2, 6), (3, 3, 6, 5), (1, 1), ((1, 1), (1, 1)), (1, 1), NHWC,
    ),
    "one_dimension": (
        (2, 8, 3), (3, 3, 5), (1,), ((2, 0),), (1,), ("NHC", "HIO", "NHC"),
    ),
    "three_dimensions": (
        (2, 4, 5, 6, 3), (3, 3, 2, 3, 5), (1, 2, 1), ((1, 1), (0, 1), (0, 0)),
        (1, 1, 1), ("NDHWC", "DHWIO", "NDHWC"),
    ),
}  # fmt: skip


@pytest.fixture(params=CASES)
def case(request):
    """XLA's convolution, ours, lhs, rhs, and a cotangent."""
    xla, params, x, w, cotangent = prepared(*CASES[request.param])
    assert convolution.applies(x, w, params)
    return xla, convolution.with_cpu_gradient(xla, params, "eigen"), x, w, cotangent


def assert_close(found, expected, tolerance=1e-5):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        scale = np.max(np.abs(b))
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize("limit", [columns.COLUMNS, 2000])
def test_derivatives_are_xla_s(case, limit, monkeypatch):
    # 2000 bytes are fewer than two images': each is a chunk of its own.
    monkeypatch.setattr(columns, "COLUMNS", limit)
    xla, ours, x, w, ct = case

    @functools.partial(jax.jit, static_argnums=0)
    def derivatives(convolve):
        def curved(w):
            # Where tanh is flat its derivative, 1 - tanh^2, is mostly rounding.
            return jnp.sum(jnp.tanh(convolve(x, w) / 16) * ct)

        return (
            jax.vjp(convolve, x, w)[1](ct),
            jax.jvp(convolve, (x, w), (2 * x, w**2)),
            jax.jvp(convolve, (x, w), (2 * x, jnp.zeros_like(w))),
            jax.jvp(jax.grad(curved), (w,), (w,)),  # second derivatives
        )

    assert_close(derivatives(ours), derivatives(xla))


def test_gradients_of_single_examples():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 1, 6, 6, 3)).astype(np.float32)
    w = rng.normal(size=(3, 3, 3, 5)).astype(np.float32)
    xla = functools.partial(
        lax.conv_general_dilated,
        window_strides=(1, 1),
        padding="SAME",
        dimension_numbers=NHWC,
    )
    (eqn,) = jax.make_jaxpr(xla)(x[0], w).jaxpr.eqns
    ours = convolution.with_cpu_gradient(xla, eqn.params, "eigen")

    def each(convolve):
        gradient = jax.grad(lambda w, x: jnp.sum(jnp.sin(convolve(x, w))))
        return jax.jit(jax.vmap(gradient, (None, 0)))(w, x)

    assert_close(each(ours), each(xla))


def network(p, x):
    for name in ("first", "second", "third"):
        x = lax.conv_general_dilated(x, p[name], (1, 1), "SAME", dimension_numbers=NHWC)
        scale, bias = (p[key].reshape(1, 1, 1, -1) for key in ("scale", "bias"))
        x = (x - x.mean((1, 2), keepdims=True)) * scale + bias
        x = lax.reduce_window(x, -jnp.inf, lax.max, *[(1, 2, 2, 1)] * 2, "VALID")
    return x.mean((1, 2)) @ p["out"]


@pytest.mark.parametrize("platform", ["cpu", "tpu", "cuda"])
def test_a_users_jit_gets_the_operations_as_written(platform):
    p = {
        "first": jnp.ones((3, 3, 3, 64)),
        "second": jnp.ones((3, 3, 64, 64)),
        "third": jnp.ones((1, 1, 64, 64)),
        "scale": jnp.ones((1, 1, 1, 64)),
        "bias": jnp.ones((1, 1, 1, 64)),
        "out": jnp.ones((64, 2)),
    }
    x = jnp.ones((4, 32, 32, 3))
    net = ms.upgrade(network, p, x, rates=(0.5, 1.0))
    small = ms.extract(net, 0.5)

    def operations(fun, weights):
        gradient = jax.jit(jax.grad(lambda weights: jnp.sum(fun(weights))))
        exported = jax.export.export(gradient, platforms=(platform,))(weights)
        counts = collections.Counter(
            re.findall(r"stablehlo\.\w+", exported.mlir_module())
        )
        del counts["stablehlo.constant"]  # one in each called function
        return counts

    by_hand = operations(lambda p: network(p, x), small.variables)
    ours = operations(
        lambda p: ms.slice_apply(small.replace(p), x, 0.5), small.variables
    )
    assert by_hand["stablehlo.convolution"] == 8  # 3 forward, 3 filters, 2 images
    assert ours == by_hand


@pytest.mark.parametrize("size", [1, 3])
def test_products_keep_the_precision_that_is_asked_for(size):
    """bfloat16 in, float32 out: sums are not rounded in between."""
    rng = np.random.default_rng(0)
    x, w = (
        jnp.asarray(rng.normal(size=shape), jnp.bfloat16)
        for shape in ((4, 8, 8, 64), (size, size, 64, 8))
    )
    xla = functools.partial(
        lax.conv_general_dilated,
        window_strides=(1, 1),
        padding="SAME",
        dimension_numbers=NHWC,
        preferred_element_type=jnp.float32,
    )
    (eqn,) = jax.make_jaxpr(xla)(x, w).jaxpr.eqns
    ours = columns.convolve(x, w, eqn.params)
    assert ours.dtype == jnp.float32
    exact = xla(x.astype(jnp.float32), w.astype(jnp.float32))
    assert_close(ours, exact)


def test_gradients_of_an_empty_batch():
    def apply(p, x):
        y = lax.conv_general_dilated(x, p["w"], (1, 1), "SAME", dimension_numbers=NHWC)
        return jnp.tanh(y).mean((1, 2)) @ p["out"]

    p = {"w": jnp.ones((3, 3, 2, 8)), "out": jnp.ones((8, 3))}
    x = jnp.ones((2, 4, 4, 2))
    net = ms.upgrade(apply, p, x, rates=(0.5, 1.0))
    for jit in (jax.jit, ms.jit):
        grad = jit(jax.grad(lambda net: ms.slice_apply(net, x[:0], 0.5).sum()))(net)
        assert not any(leaf.any() for leaf in jax.tree.leaves(grad))


NHC, NC = ("NHC", "HIO", "NHC"), ("NC", "IO", "NC")
# images, filters, layout, parameters
LEFT_TO_XLA = {
    "no_axis_of_pixels": ((2, 3), (3, 4), NC, {"window_strides": (), "padding": ()}),
    "many_taps_outside_of_the_image": (
        (1, 200, 2), (300, 2, 2), NHC,
        {"window_strides": (1,), "padding": ((200, 200),)},
    ),
    "the_same_of_groups": (
        (1, 7, 7, 64), (13, 13, 1, 64), NHWC,
        {"padding": ((6, 6), (6, 6)), "feature_group_count": 64},
    ),
    "many_kinds_of_pixels": (
        (1, 4, 4, 3), (20, 20, 3, 4), NHWC, {"lhs_dilation": (17, 17)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LEFT_TO_XLA)
def test_what_would_take_long_to_compile(name):
    images, filters, layout, changed = LEFT_TO_XLA[name]
    options = {"window_strides": (1, 1), "padding": ((1, 1), (1, 1)), **changed}
    _, params, x, w, _ = convolved(images, filters, layout, **options)
    assert not convolution.applies(x, w, params)


def test_results_of_another_type_are_left_to_xla():
    x, w = (jnp.ones(s, jnp.bfloat16) for s in ((1, 5, 5, 3), (3, 3, 3, 4)))

    def convolve(x, w, dtype):
        return lax.conv_general_dilated(
            x, w, (1, 1), "SAME", dimension_numbers=NHWC, preferred_element_type=dtype
        )

    for dtype, expected in ((None, True), (jnp.bfloat16, True), (jnp.float32, False)):
        jaxpr = jax.make_jaxpr(functools.partial(convolve, dtype=dtype))(x, w)
        assert convolution.applies(x, w, jaxpr.eqns[0].params) == expected
