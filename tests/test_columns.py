"""Convolutions of few channels as products of matrices, against the plain ones."""

import jax
import jax.numpy as jnp
import pytest

import mslice_jax as ms
from mslice_jax.cpu import columns, convolution
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

# lhs, rhs, strides, padding, dilation of the window, layout, and how many pixels share
# a window
CASES = {
    "same": ((2, 5, 7, 3), (3, 3, 3, 6), (1, 1), ((1, 1), (1, 1)), (1, 1), NHWC, 2),
    "five": ((2, 6, 10, 2), (5, 5, 2, 6), (1, 1), ((2, 2), (2, 2)), (1, 1), NHWC, 4),
    "stem": ((2, 15, 17, 3), (7, 7, 3, 8), (2, 2), ((2, 3), (2, 3)), (1, 1), NHWC, 2),
    "strided": ((2, 9, 8, 4), (3, 3, 4, 5), (2, 2), ((1, 1), (0, 1)), (1, 1), NHWC, 1),
    "pairs": ((2, 6, 7, 3), (2, 2, 3, 8), (1, 1), ((0, 0), (0, 0)), (1, 1), NHWC, 1),
    "patches": ((2, 9, 10, 3), (4, 4, 3, 8), (4, 4), ((0, 0), (0, 0)), (1, 1), NHWC, 1),
    "dilated_rows": (
        (1, 9, 8, 3), (3, 4, 3, 4), (1, 1), ((2, 1), (2, 0)), (2, 1), NHWC, 2,
    ),
    "column": ((2, 9, 8, 4), (3, 1, 4, 4), (1, 1), ((1, 1), (0, 0)), (1, 1), NHWC, 1),
    "much_padding": (
        (2, 3, 4, 4), (3, 3, 4, 2), (1, 1), ((1, 1), (4, 6)), (1, 1), NHWC, 2,
    ),
    "channels_first": (
        (2, 4, 5, 8), (3, 4, 3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1),
        ("NCHW", "OIHW", "NCHW"), 2,
    ),
    "one_dimension": (
        (2, 8, 4), (6, 4, 4), (1,), ((0, 2),), (1,), ("NHC", "HIO", "NCH"), 4,
    ),
    "three_dimensions": (
        (1, 3, 4, 8, 2), (1, 2, 3, 2, 4), (1, 2, 1), ((0, 0), (0, 1), (1, 1)),
        (1, 1, 1), ("NDHWC", "DHWIO", "NDHWC"), 2,
    ),
}  # fmt: skip


def of_case(name):
    *case, pixels = CASES[name]
    return *prepared(*case), pixels


@pytest.mark.parametrize("limit", [columns.COLUMNS, 2000], ids=["whole", "in_parts"])
@pytest.mark.parametrize("name", CASES)
def test_numbers(name, limit, monkeypatch):
    plain, params, x, w, _, pixels = of_case(name)
    assert columns.applies(x, w, params)
    monkeypatch.setattr(columns, "COLUMNS", limit)
    assert columns.pixels_at_a_time(w, params) == pixels
    for at_a_time in (1, 2, 3, 4, pixels):
        assert_close(columns.convolve(x, w, params, at_a_time), plain(x, w))
    assert_close(columns.with_shared_windows(x, w, params), plain(x, w))


@pytest.mark.parametrize("images", [(2, 2, 7, 3), (2, 7, 2, 3), (0, 7, 7, 3)])
def test_no_windows(images):
    case = images, (3, 3, 3, 6), (1, 1), ((0, 0), (0, 0)), (1, 1), NHWC
    plain, params, x, w, _ = prepared(*case)
    for pixels in (1, 2):
        found = columns.convolve(x, w, params, pixels)
        assert found.shape == plain(x, w).shape


def test_every_tap_of_a_dilated_row():
    case = (2, 6, 11, 3), (2, 3, 3, 4), (1, 2), ((1, 1), (2, 1)), (1, 3), NHWC
    plain, params, x, w, _ = prepared(*case)
    assert not columns.applies(x, w, params)
    assert_close(columns.convolve(x, w, params), plain(x, w))


@own_programs
@pytest.mark.parametrize("name", CASES)
def test_derivatives(name):
    plain, params, x, w, cotangent, _ = of_case(name)
    ours = convolution.with_cpu_gradient(plain, params, "eigen")
    assert_derivatives_agree(ours, plain, x, w, cotangent)


def test_vmap():
    plain, params, x, w, *_ = of_case("same")
    ours = convolution.with_cpu_gradient(plain, params, "eigen")
    assert_vmap_agrees(ours, plain, x, w)


@own_programs
def test_a_product_instead_of_a_convolution():
    """Forward, and for the images where the cotangent has few channels."""
    plain, params, x, w, cotangent = prepared(*CASES["same"][:-1])
    ours = convolution.with_cpu_gradient(plain, params, "eigen")

    def images(convolve):
        return lambda w, ct: jax.vjp(lambda x: convolve(x, w), x)[1](ct)[0]

    assert windows(ms.jit, plain, x, w) == ["3x3x3x6"]
    assert windows(ms.jit, ours, x, w) == []
    assert len(windows(ms.jit, images(plain), w, cotangent)) == 1
    assert windows(ms.jit, images(ours), w, cotangent) == []


@pytest.mark.parametrize(
    ("rhs", "changed"),
    [
        ((3, 3, 9, 4), {}),
        ((3, 3, 4, 65), {}),
        ((5, 5, 8, 4), {}),
        ((1, 1, 4, 4), {}),
        ((3, 3, 4, 4), {"rhs_dilation": (1, 2)}),
        ((3, 3, 4, 4), {"lhs_dilation": (2, 1)}),
        ((3, 3, 2, 4), {"feature_group_count": 2}),
        ((3, 3, 4, 4), {"batch_group_count": 2}),
    ],
    ids=["channels", "filters", "window", "pixel", "dilated", "spread", "groups", "b"],
)
def test_what_is_left_to_other_forms(rhs, changed):
    channels = rhs[2] * changed.get("feature_group_count", 1)
    lhs, rhs = jnp.zeros((2, 20, 20, channels)), jnp.zeros(rhs)
    params = params_of(lhs, rhs, **changed)
    assert not columns.applies(lhs, rhs, params)


def test_columns_fit_into_the_cache():
    """36 entries for two pixels: 16 MB of 227 images of 32 x 32."""
    rhs = jnp.zeros((3, 3, 3, 8))
    for images, fit in ((227, True), (228, False)):
        lhs = jax.ShapeDtypeStruct((images, 32, 32, 3), jnp.float32)
        params = params_of(jnp.zeros((1, 32, 32, 3)), rhs)
        assert columns.applies(lhs, rhs, params) == fit


def test_half_precision_is_left_to_xla():
    _, params, x, w, *_ = of_case("same")
    half = x.astype(jnp.bfloat16), w.astype(jnp.bfloat16)
    assert not columns.applies(*half, params)


def test_gradients_of_images_by_their_own_channels():
    """3 filters of 20 channels: few in the cotangent, many in the images."""
    _, params, x, w, _ = prepared(
        (2, 5, 8, 20), (3, 3, 20, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), NHWC
    )
    assert not columns.applies(x, w, params)
    assert columns.applies_to_images(x, w, params)
    assert not columns.applies_to_images(x, w, {**params, "window_strides": (2, 1)})
