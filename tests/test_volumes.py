"""Convolutions over volumes slice by slice, against XLA's own."""

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

import mslice_jax as ms
from mslice_jax.cpu import convolution, volumes
from tests.convolutions import (
    assert_close,
    assert_derivatives_agree,
    assert_vmap_agrees,
    own_programs,
    prepared,
    windows,
)

NDHWC = ("NDHWC", "DHWIO", "NDHWC")
ONES = (1, 1, 1)
PADDED = ((1, 1), (1, 1), (1, 1))
# volumes, filters, strides, padding, dilation, layout, filters of its convolutions
CASES = {
    "same": (
        (2, 4, 5, 6, 12), (3, 3, 3, 12, 40), ONES, PADDED, ONES, NDHWC, ["3x3x36x40"],
    ),
    "strided": (
        (2, 7, 8, 5, 12), (3, 2, 3, 12, 5), (2, 3, 1), ((1, 0), (0, 1), (2, 0)), ONES,
        NDHWC, ["2x3x36x5"],
    ),
    "dilated": (
        (1, 9, 7, 8, 12), (3, 3, 2, 12, 40), (2, 1, 1), ((2, 2), (0, 0), (1, 0)),
        (2, 2, 1), NDHWC, ["3x2x36x40"],
    ),
    "padded_beyond": (
        (1, 3, 4, 4, 20), (2, 2, 1, 20, 6), ONES, ((3, -1), (1, 1), (0, 2)), ONES,
        NDHWC, ["2x1x40x6"],
    ),
    "one_slice": (
        (2, 3, 6, 6, 20), (1, 3, 3, 20, 40), ONES, ((0, 0), (1, 1), (1, 1)), ONES,
        NDHWC, ["3x3x20x40"],
    ),
    "along_slices": (
        (2, 5, 3, 3, 4), (3, 1, 1, 4, 6), ONES, ((1, 1), (0, 0), (0, 0)), ONES, NDHWC,
        ["1x1x12x6"],
    ),
    "channels_first": (
        (2, 12, 4, 5, 4), (5, 12, 2, 3, 2), ONES, PADDED, ONES,
        ("NCDHW", "OIDHW", "NCDHW"), ["3x2x24x5"],
    ),
    "four_axes": (
        (1, 3, 3, 4, 4, 12), (2, 2, 3, 3, 12, 20), (1, 1, 1, 1),
        ((1, 0), (0, 1), (1, 1), (1, 1)), (1, 1, 1, 1),
        ("NTDHWC", "TDHWIO", "NTDHWC"), ["3x3x48x20"],
    ),
}  # fmt: skip


@own_programs
@pytest.mark.parametrize("name", CASES)
def test_numbers_and_derivatives(name):
    *of_case, expected = CASES[name]
    plain, params, x, w, cotangent = prepared(*of_case)
    assert convolution.applies(x, w, params)
    ours = convolution.with_cpu_gradient(plain, params, "eigen")
    assert windows(ms.jit, ours, x, w) == expected
    assert_derivatives_agree(ours, plain, x, w, cotangent)


@pytest.mark.parametrize(("slices", "expected"), [(8, True), (9, False)])
def test_windows_that_see_many_slices_are_left_to_xla(slices, expected):
    pads = ((slices - 1, 0), (0, 0), (0, 0))
    shapes = (1, 3, 4, 4, 2), (slices, 1, 1, 2, 3)
    *_, params, _, w, _ = prepared(*shapes, ONES, pads, ONES, NDHWC)
    assert volumes.applies(w, params) == expected


@own_programs
def test_vmap():
    plain, params, x, w, _ = prepared(*CASES["strided"][:-1])
    ours = convolution.with_cpu_gradient(plain, params, "eigen")
    assert_vmap_agrees(ours, plain, x, w)


@own_programs
@pytest.mark.parametrize("rate", [0.5, 1.0])
def test_in_a_network(rate):
    model = nn.Sequential(
        [
            nn.Conv(16, (3, 3, 3)),
            nn.relu,
            nn.Conv(16, (3, 3, 3), strides=2),
            nn.relu,
            nn.ConvTranspose(16, (2, 2, 2), strides=(2, 2, 2)),
            nn.Conv(2, (1, 1, 1)),
        ]
    )
    x = jax.random.normal(jax.random.key(0), (2, 4, 6, 4, 3))
    variables = model.init(jax.random.key(1), x)
    net = ms.upgrade(model, variables, x, rates=(0.5, 1.0))

    def loss(net, x):
        return jnp.square(ms.slice_apply(net, x, rate)).mean()

    own, plain = ms.jit(jax.grad(loss)), jax.jit(jax.grad(loss))
    assert_close(own(net, x), plain(net, x))
    forward = windows(ms.jit, lambda net, x: ms.slice_apply(net, x, rate), net, x)
    # None is over volumes but the last, and the transposed one is no convolution.
    assert [w.count("x") for w in forward] == [3, 3, 4]
