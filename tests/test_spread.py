"""Transposed convolutions as several ordinary ones, against XLA's own."""

import functools

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

import mslice_jax as ms
from mslice_jax.cpu import convolution, spread
from tests.convolutions import NHWC, assert_close, convolved, own_programs

# images, filters, how far pixels are apart, padding, layout
CASES = {
    "windows_apart": ((2, 3, 4, 3), (2, 2, 3, 2), (2, 2), ((1, 1), (1, 1)), NHWC),
    "overlapping": ((2, 3, 4, 3), (3, 4, 3, 2), (2, 2), ((2, 1), (2, 2)), NHWC),
    "pixels_between": ((1, 3, 3, 2), (2, 1, 2, 2), (3, 2), ((1, 2), (0, 1)), NHWC),
    "cut": ((2, 4, 4, 2), (3, 3, 2, 2), (2, 1), ((-1, 1), (1, -1)), NHWC),
    "channels_first": (
        (2, 3, 4, 3), (2, 3, 3, 3), (2, 3), ((1, 1), (3, 2)), ("NCHW", "OIHW", "NCHW"),
    ),
    "apart_and_cut": ((2, 3, 4, 3), (2, 2, 3, 2), (2, 2), ((0, 1), (1, 2)), NHWC),
    "in_rows_alone": ((2, 4, 5, 3), (1, 3, 3, 2), (1, 3), ((0, 0), (2, 2)), NHWC),
    "one_tap": (
        (3, 4, 2, 4), (4, 2, 2, 3), (2, 3), ((1, 1), (2, 2)), ("HWNC", "IOHW", "NCHW"),
    ),
    "one_dimension": ((2, 5, 3), (4, 3, 2), (2,), ((2, 2),), ("NHC", "HIO", "NCH")),
    "volumes": (
        (2, 2, 3, 4, 3), (2, 3, 2, 3, 5), (2, 2, 1), ((1, 1), (2, 1), (1, 0)),
        ("NDHWC", "DHWIO", "NDHWC"),
    ),
}  # fmt: skip


def prepared(images, filters, apart, padding, layout):
    """See `convolved`; of images whose pixels are apart."""
    return convolved(
        images,
        filters,
        layout,
        window_strides=(1,) * len(apart),
        padding=padding,
        lhs_dilation=apart,
    )


PRODUCTS = "windows_apart", "in_rows_alone", "one_tap"


@pytest.mark.parametrize("name", CASES)
def test_one_product_where_windows_do_not_overlap(name):
    plain, params, x, w, _ = prepared(*CASES[name])
    assert spread.is_product(w, params) == (name in PRODUCTS)
    if name in PRODUCTS:
        assert_close(spread.as_product(x, w, params), plain(x, w))
        ours = convolution.with_cpu_gradient(plain, params, "eigen")
        assert "convolution" not in jax.jit(ours).lower(x, w).as_text()


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.nightly] * (at % 2))
        for at, name in enumerate(CASES)
    ],
)
def test_numbers_and_derivatives(name):
    plain, params, x, w, ct = prepared(*CASES[name])
    assert spread.applies(params)
    ours = convolution.with_cpu_gradient(plain, params, "eigen")

    def divided(x, w):
        parts = functools.partial(functools.partial, plain)
        return spread.convolve(x, w, params, parts)

    assert_close(jax.jit(divided)(x, w), plain(x, w))

    @functools.partial(jax.jit, static_argnums=0)
    def derivatives(convolve):
        pull = jax.vjp(convolve, x, w)[1]
        return pull(ct), jax.jvp(convolve, (x, w), (2 * x, jnp.cos(w)))

    assert_close(derivatives(ours), derivatives(plain))


@own_programs
def test_in_a_network():
    model = nn.Sequential(
        [
            nn.Conv(8, (3, 3), strides=2),
            nn.relu,
            nn.ConvTranspose(8, (3, 3), strides=(2, 2)),
            nn.relu,
            nn.Conv(2, (1, 1)),
        ]
    )
    x = jax.random.normal(jax.random.key(0), (2, 6, 6, 3))
    variables = model.init(jax.random.key(1), x)
    net = ms.upgrade(model, variables, x, rates=(0.5, 1.0))

    def loss(net):
        return jnp.square(ms.slice_apply(net, x, 0.5)).mean()

    own, plain = ms.jit(jax.grad(loss)), jax.jit(jax.grad(loss))
    assert_close(own(net), plain(net))

    def spread_windows(jitted):
        return jitted.lower(net).as_text().count("lhs_dilate = [2, 2]")

    # Filters' gradient is no convolution of images that are spread any more.
    assert spread_windows(own) < spread_windows(plain)
