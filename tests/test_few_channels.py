"""Convolutions to few channels, four pixels at a time, against the plain one."""

import jax
import jax.numpy as jnp
import pytest

import mslice_jax as ms
from mslice_jax.cpu import convolution, few_channels
from tests.convolutions import (
    NHWC,
    assert_close,
    assert_derivatives_agree,
    assert_vmap_agrees,
    own_programs,
    params_of,
    prepared,
    windows,
)

# lhs, rhs, strides, padding, dilation of the window, layout
CASES = {
    "same": ((2, 5, 8, 4), (3, 3, 4, 6), (1, 1), ((1, 1), (1, 1)), (1, 1), NHWC),
    "rows_of_two": ((2, 6, 7, 8), (4, 2, 8, 3), (1, 1), ((3, 0), (0, 2)), (1, 1), NHWC),
    "dilated": ((1, 9, 8, 3), (3, 3, 3, 4), (1, 1), ((2, 1), (2, 0)), (2, 1), NHWC),
    "much_padding": (
        (2, 3, 4, 4), (3, 3, 4, 2), (1, 1), ((1, 1), (4, 6)), (1, 1), NHWC,
    ),
    "channels_first": (
        (2, 4, 5, 8), (3, 4, 3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1),
        ("NCHW", "OIHW", "NCHW"),
    ),
    "one_dimension": (
        (2, 8, 4), (3, 4, 4), (1,), ((0, 2),), (1,), ("NHC", "HIO", "NCH"),
    ),
    "three_dimensions": (
        (1, 3, 4, 8, 2), (1, 2, 3, 2, 4), (1, 1, 1), ((0, 0), (0, 1), (1, 1)),
        (1, 1, 1), ("NDHWC", "DHWIO", "NDHWC"),
    ),
    "strided": ((2, 7, 8, 4), (3, 3, 4, 4), (2, 1), ((1, 1), (1, 1)), (1, 1), NHWC),
    "inputs": ((2, 5, 8, 20), (3, 3, 20, 4), (1, 1), ((1, 1), (1, 1)), (1, 1), NHWC),
    "filters": ((2, 5, 8, 4), (3, 3, 4, 20), (1, 1), ((1, 1), (1, 1)), (1, 1), NHWC),
}  # fmt: skip
NOT_FORWARD = ("filters",)
NOT_FOR_IMAGES = ("inputs", "rows_of_two", "strided")


def of_case(name):
    """The plain convolution, its parameters, lhs, rhs, and a cotangent."""
    return prepared(*CASES[name])


@pytest.mark.parametrize("name", CASES)
def test_where_it_applies(name):
    _, params, x, w, _ = of_case(name)
    assert few_channels.applies(x, w, params) == (name not in NOT_FORWARD)
    for_images = few_channels.applies_to_images(x, w, params)
    assert for_images == (name not in NOT_FOR_IMAGES)


@pytest.mark.parametrize("name", [name for name in CASES if name not in NOT_FORWARD])
def test_numbers(name):
    plain, params, x, w, _ = of_case(name)
    found = jax.jit(lambda x, w: few_channels.convolve(x, w, params))(x, w)
    assert found.dtype == jnp.float32
    assert_close(found, plain(x, w))


# lhs, rhs, strides, padding, layout, and how many pixels at a time gain
FORWARD = {
    "odd_rows": ((1, 24, 31, 3), (3, 3, 3, 16), (1, 1), ((1, 1), (1, 1)), NHWC, 4),
    "even_window": ((2, 20, 19, 8), (2, 4, 8, 32), (1, 1), ((0, 1), (2, 1)), NHWC, 2),
    "strided": ((2, 63, 17, 12), (3, 3, 12, 24), (2, 1), ((1, 0), (0, 1)), NHWC, 2),
    "channels_first": (
        (3, 5, 16, 14), (9, 5, 3, 5), (1, 1), ((1, 1), (2, 2)),
        ("NCHW", "OIHW", "NCHW"), 2,
    ),
    "one_dimension": (
        (4, 150, 2), (5, 2, 9), (1,), ((4, 0),), ("NHC", "HIO", "NHC"), 4,
    ),
    "vectors": ((2, 20, 20, 16), (3, 3, 16, 20), (1, 1), ((1, 1), (1, 1)), NHWC, 1),
    "filters": ((2, 20, 20, 12), (3, 3, 12, 25), (1, 1), ((1, 1), (1, 1)), NHWC, 1),
    "few_pixels": ((1, 20, 20, 3), (3, 3, 3, 16), (1, 1), ((1, 1), (1, 1)), NHWC, 1),
    "short_rows": ((2, 70, 5, 3), (3, 3, 3, 16), (1, 1), ((1, 1), (1, 1)), NHWC, 1),
}  # fmt: skip


@pytest.mark.parametrize("name", FORWARD)
def test_some_pixels_at_a_time_where_the_forward_pass_gains(name):
    lhs, rhs, strides, padding, layout, pixels = FORWARD[name]
    dilation = (1,) * len(strides)
    plain, params, x, w, _ = prepared(lhs, rhs, strides, padding, dilation, layout)
    assert few_channels.pixels_at_a_time(x, w, params) == pixels
    found = few_channels.convolve(x, w, params, 2 if pixels == 1 else pixels)
    assert_close(found, plain(x, w))


@pytest.mark.parametrize(
    ("shapes", "changed"),
    [
        (((2, 20, 20, 4), (3, 1, 4, 16)), {}),
        (((2, 20, 20, 4), (3, 3, 4, 16)), {"window_strides": (1, 2)}),
        (((2, 20, 20, 4), (3, 3, 4, 16)), {"rhs_dilation": (1, 2)}),
        (((2, 20, 20, 4), (3, 3, 2, 16)), {"feature_group_count": 2}),
        (((2, 20, 20, 4), (3, 3, 4, 16)), {"batch_group_count": 2}),
        (((2, 20, 20, 4), (3, 3, 4, 16)), {"lhs_dilation": (2, 1)}),
        (((0, 20, 20, 4), (3, 3, 4, 16)), {}),
    ],
    ids=["one_pixel", "strided", "dilated", "groups", "batches", "spread", "no_images"],
)  # fmt: skip
def test_forward_passes_that_are_left_to_xla(shapes, changed):
    lhs, rhs = (jnp.zeros(shape) for shape in shapes)
    params = params_of(lhs, rhs, **changed)
    assert few_channels.pixels_at_a_time(lhs, rhs, params) == 1


@own_programs
@pytest.mark.parametrize(
    ("lhs", "rhs", "window"),
    [
        ((2, 17, 18, 12), (3, 3, 12, 12), ["3x4x12x24"]),  # two pixels at a time
        ((1, 31, 31, 20), (3, 3, 20, 64), ["3x3x20x64"]),
        ((1, 31, 31, 6), (3, 3, 6, 64), []),  # a product of columns
        ((2, 9, 9, 3), (2, 2, 3, 24), []),  # a product of columns
    ],
)
def test_derivatives_of_what_gains_forward_alone(lhs, rhs, window):
    plain, params, x, w, cotangent = prepared(
        lhs, rhs, (1, 1), ((0, 1), (1, 0)), (1, 1), NHWC
    )
    ours = convolution.with_cpu_gradient(plain, params, "eigen")
    assert windows(ms.jit, ours, x, w) == window

    def derivatives(convolve, jit):
        return jit(
            lambda x, w: (convolve(x, w), jax.vjp(convolve, x, w)[1](cotangent))
        )(x, w)

    assert_close(derivatives(ours, ms.jit), derivatives(plain, jax.jit))


@pytest.mark.parametrize("name", [name for name in CASES if name not in NOT_FOR_IMAGES])
def test_numbers_for_images(name):
    plain, params, x, w, cotangent = of_case(name)

    def both_ways(convolve):
        y, pull = jax.vjp(lambda x: convolve(x, w), x)
        return y, pull(cotangent)

    def ours(x, w):
        return few_channels.for_images(x, w, params)

    assert_close(jax.jit(both_ways, static_argnums=0)(ours), both_ways(plain))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.nightly] * (at % 2))
        for at, name in enumerate(CASES)
    ],
)
@pytest.mark.usefixtures("optimized")
def test_gradients(name):
    """The gradients of the rule, which has another form for each operand."""
    plain, params, x, w, cotangent = of_case(name)
    ours = convolution.with_cpu_gradient(plain, params, "eigen")
    assert_derivatives_agree(ours, plain, x, w, cotangent)


def test_vmap():
    plain, params, x, w, cotangent = of_case("same")
    ours = convolution.with_cpu_gradient(plain, params, "eigen")
    assert_vmap_agrees(ours, plain, x, w)


@own_programs
def test_the_windows_are_three_pixels_longer():
    plain, params, x, w, cotangent = prepared(
        (2, 5, 8, 9), (3, 3, 9, 6), (1, 1), ((1, 1), (1, 1)), (1, 1), NHWC
    )
    ours = convolution.with_cpu_gradient(plain, params, "eigen")
    assert windows(ms.jit, plain, x, w) == ["3x3x9x6"]
    assert windows(ms.jit, ours, x, w) == ["3x6x9x24"]

    plain, params, x, w, cotangent = prepared(
        (2, 5, 8, 4), (3, 3, 4, 9), (1, 1), ((1, 1), (1, 1)), (1, 1), NHWC
    )
    ours = convolution.with_cpu_gradient(plain, params, "eigen")

    def images(w, cotangent):
        return jax.vjp(lambda x: ours(x, w), x)[1](cotangent)[0]

    assert windows(ms.jit, images, w, cotangent) == ["3x6x9x16"]


@pytest.mark.parametrize(
    ("shapes", "changed"),
    [
        (((2, 8, 8, 4), (3, 3, 4, 9)), {}),
        (((2, 8, 6, 4), (3, 1, 4, 4)), {}),
        (((2, 8, 10, 4), (3, 3, 4, 4)), {}),
        (((2, 8, 0, 4), (3, 3, 4, 4)), {}),
        (((2, 8, 8, 4), (3, 3, 4, 4)), {"window_strides": (1, 2)}),
        (((2, 8, 10, 4), (3, 3, 4, 4)), {"rhs_dilation": (1, 2)}),
    ],
    ids=["filters", "one_pixel", "width", "no_width", "strided", "dilated"],
)  # fmt: skip
def test_convolutions_that_are_left_to_xla(shapes, changed):
    lhs, rhs = (jnp.zeros(shape) for shape in shapes)
    params = params_of(lhs, rhs, **changed)
    assert not few_channels.applies(lhs, rhs, params)


def test_half_precision_is_left_to_xla():
    _, params, x, w, _ = of_case("same")
    half = jnp.asarray(x, jnp.bfloat16), jnp.asarray(w, jnp.bfloat16)
    assert not few_channels.applies(*half, params)
    _, params, x, w, _ = prepared(*FORWARD["odd_rows"][:4], (1, 1), NHWC)
    half = jnp.asarray(x, jnp.bfloat16), jnp.asarray(w, jnp.bfloat16)
    assert few_channels.pixels_at_a_time(*half, params) == 1
