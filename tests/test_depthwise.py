"""Depthwise convolutions as sums of products, against XLA's own."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

import mslice_jax as ms
from mslice_jax.cpu import convolution, depthwise
from tests.convolutions import NHWC, assert_close, convolved, own_programs

# images, window, strides, padding, dilation of the window, layout
CASES = {
    "same": ((2, 5, 6, 4), (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), NHWC),
    "strided": ((2, 7, 8, 3), (3, 3), (2, 2), ((1, 1), (1, 1)), (1, 1), NHWC),
    "pixels_left_over": ((2, 8, 9, 3), (2, 3), (3, 2), ((0, 0), (0, 0)), (1, 1), NHWC),
    "dilated": ((1, 9, 8, 3), (3, 2), (1, 2), ((2, 1), (2, 0)), (2, 3), NHWC),
    "much_padding": ((2, 3, 3, 2), (2, 2), (1, 1), ((3, 2), (0, 4)), (1, 1), NHWC),
    "cut": ((2, 6, 7, 2), (3, 3), (1, 1), ((-1, 1), (1, -2)), (1, 1), NHWC),
    "channels_first": (
        (2, 4, 5, 6), (3, 3), (1, 2), ((1, 1), (1, 1)), (1, 1),
        ("NCHW", "OIHW", "NCHW"),
    ),
    "one_dimension": (
        (2, 8, 4), (4,), (1,), ((3, 0),), (1,), ("NHC", "HIO", "NCH"),
    ),
    "three_dimensions": (
        (1, 3, 4, 5, 2), (1, 2, 3), (1, 2, 1), ((0, 0), (0, 1), (1, 1)), (1, 1, 1),
        ("NDHWC", "DHWIO", "NDHWC"),
    ),
}  # fmt: skip


def prepared(images, window, strides, padding, dilation, layout):
    """See `convolved`; of images, with a filter for each channel."""
    numbers = lax.conv_dimension_numbers(images, (1,) * len(images), layout)
    channels = images[numbers.lhs_spec[1]]
    shape = [0] * len(images)
    for axis, size in zip(numbers.rhs_spec, (channels, 1, *window), strict=True):
        shape[axis] = size
    return convolved(
        images,
        shape,
        layout,
        window_strides=strides,
        padding=padding,
        rhs_dilation=dilation,
        feature_group_count=channels,
    )


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.nightly] * (at in (0, 4, 6)))
        for at, name in enumerate(CASES)
    ],
)
def test_numbers_and_derivatives(name):
    plain, params, x, w, ct = prepared(*CASES[name])
    assert depthwise.applies(x, w, params)
    ours = convolution.with_cpu_gradient(plain, params, "eigen")

    @functools.partial(jax.jit, static_argnums=0)
    def derivatives(convolve):
        def curved(w):
            return jnp.sum(jnp.tanh(convolve(x, w)) * ct)

        y, pull = jax.vjp(convolve, x, w)
        first = y, pull(ct), jax.jvp(convolve, (x, w), (2 * x, w**2))
        return first, jax.jvp(jax.grad(curved), (w,), (w,))

    (first, second), (plain_first, plain_second) = map(derivatives, (ours, plain))
    assert_close(first, plain_first)
    assert_close(second, plain_second, 1e-4)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_that_of_the_result(dtype):
    plain, params, x, w, ct = prepared(*CASES["strided"])
    x, w = x.astype(dtype), w.astype(dtype)
    ours = convolution.with_cpu_gradient(plain, params, "eigen")
    y, pull = jax.vjp(ours, x, w)
    assert {a.dtype for a in (y, *pull(ct.astype(dtype)))} == {jnp.dtype(dtype)}
    # In single precision, then rounded once.
    exact, exact_pull = jax.vjp(plain, x.astype(np.float32), w.astype(np.float32))
    np.testing.assert_array_equal(y, exact.astype(dtype))
    exact_ct = ct.astype(dtype).astype(np.float32)
    for a, b in zip(pull(ct.astype(dtype)), exact_pull(exact_ct), strict=True):
        assert_close(a.astype(np.float32), b, float(jnp.finfo(dtype).eps))


@pytest.mark.parametrize(
    "changed",
    [
        {"feature_group_count": 2},  # several channels a group
        {"lhs_dilation": (2, 1)},
    ],
)
def test_others_are_left_alone(changed):
    x, w = np.ones((1, 6, 6, 4), np.float32), np.ones((3, 3, 1, 4), np.float32)
    if "feature_group_count" in changed:
        w = np.ones((3, 3, 2, 4), np.float32)
    options = {"feature_group_count": 4, **changed}
    convolve = functools.partial(
        lax.conv_general_dilated,
        window_strides=(1, 1),
        padding=((1, 1), (1, 1)),
        dimension_numbers=NHWC,
        **options,
    )
    (eqn,) = jax.make_jaxpr(convolve)(x, w).jaxpr.eqns
    assert not depthwise.applies(x, w, eqn.params)


@own_programs
@pytest.mark.parametrize("rate", [0.25, 0.5, 1.0])
def test_a_network_has_them_at_every_rate(rate):
    model = nn.Sequential(
        [
            nn.Conv(8, (1, 1)),
            nn.Conv(8, (3, 3), feature_group_count=8),
            nn.relu,
            nn.Conv(2, (1, 1)),
        ]
    )
    x = jax.random.normal(jax.random.key(0), (2, 5, 5, 3))
    variables = model.init(jax.random.key(1), x)
    net = ms.upgrade(model, variables, x, rates=(0.25, 0.5, 1.0))

    def loss(net, x):
        return jnp.square(ms.slice_apply(net, x, rate)).mean()

    own, plain = ms.jit(jax.grad(loss)), jax.jit(jax.grad(loss))
    assert_close(own(net, x), plain(net, x))
    if rate != 0.25:  # there two channels are left, of two groups
        assert "feature_group_count = 1" in plain.lower(net, x).as_text()
    text = own.lower(net, x).as_text()
    assert f"feature_group_count = {round(8 * rate)} " not in text
