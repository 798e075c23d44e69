"""Grouped convolutions as one for each few groups, against XLA's own."""

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

import mslice_jax as ms
from mslice_jax.cpu import convolution
from tests.convolutions import (
    NHWC,
    assert_close,
    assert_derivatives_agree,
    assert_vmap_agrees,
    convolved,
    own_programs,
    windows,
)

PADDED = ((1, 1), (1, 1))
# images, filters, groups, what else, layout, filters of the convolutions there are
CASES = {
    "few_channels": (
        (2, 9, 9, 12), (3, 3, 2, 18), 6, {}, NHWC, [],  # four together; two columns
    ),
    "nine_channels": (
        (1, 4, 5, 27), (3, 3, 9, 6), 3, {}, NHWC, ["3x3x9x2"] * 3,
    ),
    "a_rest": (
        (1, 4, 5, 35), (1, 1, 7, 10), 5, {"padding": ((0, 0), (0, 0))}, NHWC,
        ["1x1x14x4"] * 2 + ["1x1x7x2"],
    ),
    "many_groups": (
        (1, 3, 3, 330), (1, 1, 10, 66), 33, {"padding": ((0, 0), (0, 0))}, NHWC,
        ["1x1x20x4"] * 16 + ["1x1x10x2"],
    ),
    "strided": (
        (2, 8, 7, 20), (3, 2, 10, 6), 2, {"window_strides": (2, 3)}, NHWC,
        ["3x2x10x3"] * 2,
    ),
    "dilated": (
        (1, 9, 8, 20), (3, 2, 10, 6), 2, {"rhs_dilation": (2, 3)}, NHWC,
        ["3x2x10x3"] * 2,
    ),
    "channels_first": (
        (2, 20, 5, 6), (4, 10, 3, 3), 2, {}, ("NCHW", "OIHW", "NCHW"),
        ["2x10x3x3"] * 2,
    ),
    "one_dimension": (
        (2, 9, 20), (4, 10, 6), 2, {"padding": ((3, 0),), "window_strides": (1,)},
        ("NHC", "HIO", "NCH"), ["4x10x3"] * 2,
    ),
    "spread": (
        (1, 3, 4, 20), (2, 3, 10, 4), 2, {"lhs_dilation": (2, 2)}, NHWC,
        [*["1x1x10x2"] * 2, *["1x5x10x8"] * 2] * 2,  # four pixels share windows of two
    ),
    "several_filters_of_a_channel": (
        (2, 5, 6, 3), (3, 3, 1, 6), 3, {}, NHWC, [],  # all together: columns
    ),
}  # fmt: skip


def prepared(images, filters, groups, changed, layout, _):
    """See `convolved`; of images of several groups of channels."""
    params = {"window_strides": (1, 1), "padding": PADDED, **changed}
    return convolved(images, filters, layout, feature_group_count=groups, **params)


@own_programs
@pytest.mark.parametrize("name", CASES)
def test_numbers_and_derivatives(name):
    plain, params, x, w, cotangent = prepared(*CASES[name])
    assert convolution.applies(x, w, params)
    ours = convolution.with_cpu_gradient(plain, params, "eigen")
    assert windows(ms.jit, ours, x, w) == CASES[name][-1]
    assert_derivatives_agree(ours, plain, x, w, cotangent)


@own_programs
def test_vmap():
    plain, params, x, w, _ = prepared(*CASES["few_channels"])
    ours = convolution.with_cpu_gradient(plain, params, "eigen")
    assert_vmap_agrees(ours, plain, x, w)


@own_programs
def test_half_precision():
    plain, params, x, w, _ = prepared(*CASES["strided"])
    x, w = x.astype(jnp.bfloat16), w.astype(jnp.bfloat16)
    found = ms.jit(convolution.with_cpu_gradient(plain, params, "eigen"))(x, w)
    assert found.dtype == jnp.bfloat16
    assert_close(found.astype(jnp.float32), plain(x, w).astype(jnp.float32), 1e-2)


def test_groups_of_examples_are_left_to_xla():
    plain, params, x, w, _ = convolved(
        (4, 5, 5, 3), (3, 3, 3, 8), NHWC,
        window_strides=(1, 1), padding=PADDED, batch_group_count=2,
    )  # fmt: skip
    del plain
    assert not convolution.applies(x, w, params)


@own_programs
@pytest.mark.parametrize("rate", [0.25, 0.5, 1.0])
def test_a_network_narrows_by_whole_groups(rate):
    model = nn.Sequential(
        [
            nn.Conv(40, (1, 1)),
            nn.Conv(40, (3, 3), strides=2, feature_group_count=4),
            nn.relu,
            nn.Conv(2, (1, 1)),
        ]
    )
    x = jax.random.normal(jax.random.key(0), (2, 6, 7, 3))
    variables = model.init(jax.random.key(1), x)
    net = ms.upgrade(model, variables, x, rates=(0.25, 0.5, 1.0))

    def loss(net, x):
        return jnp.square(ms.slice_apply(net, x, rate)).mean()

    own, plain = ms.jit(jax.grad(loss)), jax.jit(jax.grad(loss))
    assert_close(own(net, x), plain(net, x))
    groups = round(4 * rate)
    assert f"feature_group_count = {groups} " in plain.lower(net, x).as_text()
    forward = windows(ms.jit, lambda net, x: ms.slice_apply(net, x, rate), net, x)
    assert forward.count("3x3x10x10") == groups


@own_programs
@pytest.mark.parametrize("rate", [0.5, 1.0])
def test_what_takes_long_to_compile_is_told_by_the_groups_of_a_rate(rate):
    # Nine taps, of windows larger than the image, for each of sixteen groups.
    model = nn.Sequential(
        [
            nn.Conv(128, (1, 1)),
            nn.Conv(128, (3, 3), feature_group_count=16),
            nn.relu,
            nn.Conv(2, (1, 1)),
        ]
    )
    x = jax.random.normal(jax.random.key(0), (2, 2, 2, 3))
    variables = model.init(jax.random.key(1), x)
    net = ms.upgrade(model, variables, x, rates=(0.5, 1.0))
    own, plain = (
        jit(lambda net, x: ms.slice_apply(net, x, rate)) for jit in (ms.jit, jax.jit)
    )
    assert_close(own(net, x), plain(net, x))
    text = own.lower(net, x).as_text()
    assert ("feature_group_count = 16 " in text) == (rate == 1)
    assert "feature_group_count = 8 " not in text
