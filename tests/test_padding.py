"""Padding that XLA's CPU backend gets wrong, against the sums written out in NumPy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import mslice_jax as ms
from mslice_jax.cpu import convolution, padding
from tests.convolutions import NHWC, assert_close, convolved, own_programs

# images, filters, padding, what else
CASES = {
    "cut_before_padded_behind": (
        (2, 5, 8, 4), (1, 2, 4, 16), ((0, 0), (-2, 1)), {},
    ),
    "of_many_channels": ((1, 9, 8, 32), (2, 3, 32, 16), ((-2, -2), (-1, 1)), {}),
    "images_are_cut_in_their_gradient": (
        (2, 5, 8, 4), (1, 2, 4, 16), ((0, 0), (3, 0)), {},
    ),
    "of_one_pixel": ((1, 5, 6, 12), (1, 1, 12, 3), ((1, 0), (2, 1)), {}),
    "strided": (
        (2, 7, 8, 4), (3, 2, 4, 3), ((4, -1), (-2, 3)),
        {"window_strides": (2, 3)},
    ),
    "dilated": (
        (1, 9, 8, 12), (2, 2, 12, 3), ((5, 0), (-1, 1)),
        {"rhs_dilation": (3, 1)},
    ),
    "groups": (
        (1, 5, 8, 18), (2, 3, 9, 4), ((0, 3), (-2, 1)),
        {"feature_group_count": 2},
    ),
    "spread": ((1, 3, 4, 5), (2, 3, 5, 2), ((3, 2), (-1, 3)), {"lhs_dilation": (2, 2)}),
    "spread_in_rows": (
        (1, 4, 4, 5), (3, 1, 5, 2), ((-1, 3), (-1, 1)),
        {"lhs_dilation": (1, 3)},
    ),
}  # fmt: skip


def by_numpy(x, w, cotangent, pads, window_strides=(1, 1), lhs_dilation=(1, 1),
             rhs_dilation=(1, 1), feature_group_count=1):  # fmt: skip
    """The convolution, and its gradients of images and filters, in float64.

    Each pixel of the result is taken by itself: of each tap of its window, whether it
    falls on a pixel of the image.
    """
    out = np.zeros(cotangent.shape)
    of_images, of_filters = np.zeros(x.shape), np.zeros(w.shape)
    inputs, filters = w.shape[2], w.shape[3] // feature_group_count
    sizes = *cotangent.shape[1:3], *w.shape[:2]
    for i, j, k, m in itertools.product(*map(range, sizes)):
        at = [
            place * step + tap * apart - low
            for place, step, tap, apart, (low, _) in zip(
                (i, j), window_strides, (k, m), rhs_dilation, pads, strict=True
            )
        ]
        pixel = [n // s for n, s in zip(at, lhs_dilation, strict=True)]
        if not all(map(_is_seen, at, x.shape[1:3], lhs_dilation, pads)):
            continue
        for g in range(feature_group_count):
            c, o = (
                slice(g * inputs, (g + 1) * inputs),
                slice(g * filters, (g + 1) * filters),
            )
            seen, tap = x[:, pixel[0], pixel[1], c], w[k, m, :, o]
            out[:, i, j, o] += seen @ tap
            of_images[:, pixel[0], pixel[1], c] += cotangent[:, i, j, o] @ tap.T
            of_filters[k, m, :, o] += seen.T @ cotangent[:, i, j, o]
    return out, (of_images, of_filters)


def _is_seen(at, size, apart, pads):
    """Whether a place is on a pixel, between zeros, that padding has not cut off."""
    last = (size - 1) * apart
    return max(0, -pads[0]) <= at <= last + min(0, pads[1]) and at % apart == 0


@own_programs
@pytest.mark.parametrize("name", CASES)
def test_the_convolution_and_its_gradients(name):
    images, filters, pads, changed = CASES[name]
    options = {"window_strides": (1, 1), "padding": pads, **changed}
    plain, params, x, w, cotangent = convolved(images, filters, NHWC, **options)
    assert convolution.applies(x, w, params)
    assert padding.within_reach(w, params) != pads
    ours = convolution.with_cpu_gradient(plain, params, "eigen")

    @ms.jit
    def found(x, w):
        y, pull = jax.vjp(ours, x, w)
        return y, pull(cotangent)

    expected = by_numpy(*map(np.float64, (x, w, cotangent)), pads, **changed)
    assert_close(found(x, w), expected)


@own_programs
@pytest.mark.parametrize("rate", [0.5, 1.0])
def test_a_network_is_the_one_whose_padding_is_written_out(rate):
    class Shifted(nn.Module):
        apart: bool

        @nn.compact
        def __call__(self, x):
            x = nn.Conv(64, (1, 1))(x)
            pads = ((0, 0), (3, 0))  # more than a window reaches
            if self.apart:
                x = jnp.pad(x, ((0, 0), (0, 0), (3, 0), (0, 0)))
                pads = ((0, 0), (0, 0))
            x = nn.Conv(32, (1, 2), padding=pads)(x)
            return nn.Conv(2, (1, 1))(nn.relu(x))

    x = jax.random.normal(jax.random.key(0), (2, 5, 8, 3))
    variables = Shifted(False).init(jax.random.key(1), x)

    def gradients(apart, jit):
        net = ms.upgrade(Shifted(apart), variables, x, rates=(0.5, 1.0))

        def loss(net, x):
            return jnp.square(ms.slice_apply(net, x, rate)).mean()

        return jit(jax.grad(loss, (0, 1)))(net, x)

    assert_close(gradients(False, ms.jit), gradients(True, jax.jit))


def test_as_much_as_a_window_reaches():
    options = {"window_strides": (1, 1), "padding": ((-1, 9), (4, 1))}
    dilated = {"rhs_dilation": (1, 2)}
    *_, params, _, w, _ = convolved(
        (1, 5, 5, 3), (2, 2, 3, 4), NHWC, **options, **dilated
    )
    assert padding.within_reach(w, params) == ((0, 1), (2, 1))


def test_padding_that_a_window_reaches_is_left_to_the_convolution():
    plain, params, x, w, _ = convolved(
        (1, 5, 5, 3), (3, 2, 3, 4), NHWC,
        window_strides=(1, 1), padding=((2, 0), (1, 1)),
    )  # fmt: skip
    ours = convolution.with_cpu_gradient(plain, params, "onednn")
    text = str(jax.make_jaxpr(ours)(x, w))
    assert " pad[" not in text


@pytest.mark.parametrize(
    "options",
    [
        {"padding": ((-4, 0), (0, 0))},  # no window is left
        {"window_strides": (2, 1), "lhs_dilation": (2, 1), "padding": ((1, 1), (1, 1))},
    ],
    ids=["no_window", "spread_and_strided"],
)
def test_convolutions_that_are_left_to_xla(options):
    options = {"window_strides": (1, 1), **options}
    _, params, x, w, _ = convolved((1, 5, 5, 3), (3, 2, 3, 4), NHWC, **options)
    assert not convolution.applies(x, w, params)
