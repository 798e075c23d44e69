"""Winograd's convolution: the numbers of the plain one, from half the products."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

import mslice_jax as ms
from mslice_jax.cpu import convolution, winograd
from tests.convolutions import NHWC, own_programs, params_of, prepared, windows

C, F = 32, 40  # the fewest channels and filters of this form
# lhs, rhs, strides, padding, dilation of the window, layout
CASES = {
    "same": ((2, 6, 8, C), (3, 3, C, F), (1, 1), ((1, 1), (1, 1)), (1, 1), NHWC),
    "odd": ((2, 7, 9, C), (2, 3, C, F), (2, 1), ((1, 0), (0, 2)), (2, 1), NHWC),
    "no_padding": ((1, 3, 6, C), (3, 3, C, F), (1, 1), ((0, 0), (0, 0)), (1, 1), NHWC),
    "much_padding": (
        (2, 3, 4, C), (3, 3, C, F), (1, 1), ((1, 1), (5, 6)), (1, 1), NHWC,
    ),
    "channels_first": (
        (2, C, 5, 7), (F, C, 3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1),
        ("NCHW", "OIHW", "NCHW"),
    ),
    "one_dimension": (
        (2, 10, C), (3, C, F), (1,), ((2, 0),), (1,), ("NHC", "HIO", "NHC"),
    ),
    "three_dimensions": (
        (1, 3, 4, 5, C), (1, 2, 3, C, F), (1, 2, 1), ((0, 0), (0, 1), (1, 1)),
        (1, 1, 1), ("NDHWC", "DHWIO", "NDHWC"),
    ),
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _small():
    """As if few pixels gained from the form, so that tests can be small."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(winograd, "_PIXELS", 1)
        patch.setattr(winograd, "_PRODUCTS", 1)
        yield


@pytest.fixture(params=CASES)
def case(request):
    """The plain convolution, its parameters, lhs, rhs, and a cotangent."""
    plain, params, x, w, cotangent = prepared(*CASES[request.param])
    assert convolution.applies(x, w, params) and winograd.applies(x, w, params)
    return plain, params, x, w, cotangent


def assert_close(found, expected):
    """Up to a few roundings of the largest entry."""
    largest = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * largest)


@pytest.mark.parametrize("form", [winograd.convolve, winograd.for_images])
def test_numbers(case, form):
    plain, params, x, w, _ = case
    found = jax.jit(lambda x, w: form(x, w, params))(x, w)
    assert found.dtype == jnp.float32
    assert_close(found, plain(x, w))


def test_gradients(case):
    """The gradients of the rule, which has another form for each operand."""
    plain, params, x, w, cotangent = case
    ours = convolution.with_cpu_gradient(plain, params, "eigen")

    def gradients(convolve, jit):
        return jit(lambda x, w: jax.vjp(convolve, x, w)[1](cotangent))(x, w)

    found, expected = gradients(ours, ms.jit), gradients(plain, jax.jit)
    for mine, other in zip(found, expected, strict=True):
        assert_close(mine, other)


def test_the_matrices_compute_a_product_of_polynomials():
    a, g, b = (m.astype(np.float64) for m in winograd.matrices())
    assert (a.shape, g.shape, b.shape) == ((4, 6), (6, 3), (6, 6))
    assert (b == np.round(b)).all()
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=6), rng.normal(size=3)
    by_hand = [x[i] * w[0] + x[i + 1] * w[1] + x[i + 2] * w[2] for i in range(4)]
    np.testing.assert_allclose(a @ ((g @ w) * (b @ x)), by_hand, rtol=1e-5)


def test_rounding_is_about_that_of_the_plain_sum():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 8, 8, 128))
    w = rng.normal(size=(3, 3, 128, 64))
    same = ((1, 1), (1, 1))
    plain = functools.partial(
        lax.conv_general_dilated, window_strides=(1, 1), padding=same,
        dimension_numbers=NHWC,
    )  # fmt: skip
    small = x.astype(np.float32), w.astype(np.float32)
    (eqn,) = jax.make_jaxpr(plain)(*small).jaxpr.eqns
    with jax.enable_x64(True):
        exact = np.asarray(plain(*(s.astype(np.float64) for s in small)))
    found = jax.jit(lambda x, w: winograd.convolve(x, w, eqn.params))(*small)

    def deviation(y):
        return np.sqrt(np.mean((np.asarray(y, np.float64) - exact) ** 2))

    assert deviation(found) < 4 * deviation(jax.jit(plain)(*small))


@pytest.mark.parametrize(
    ("shapes", "changed"),
    [
        (((2, 8, 8, 31), (3, 3, 31, 64)), {}),
        (((2, 8, 8, 64), (3, 3, 64, 31)), {}),
        (((2, 8, 8, 64), (3, 1, 64, 64)), {}),
        (((2, 8, 8, 64), (5, 5, 64, 64)), {}),
        (((2, 8, 3, 64), (3, 3, 64, 64)), {}),
        (((2, 8, 8, 64), (3, 3, 64, 64)), {"window_strides": (1, 2)}),
        (((2, 8, 8, 64), (3, 3, 64, 64)), {"rhs_dilation": (1, 2)}),
        (((2, 8, 8, 64), (3, 3, 64, 64)), {"precision": lax.Precision.HIGHEST}),
    ],
    ids=[
        "few_channels", "few_filters", "no_row", "five", "narrow_image", "strided",
        "dilated", "precise",
    ],
)  # fmt: skip
def test_convolutions_that_are_left_to_xla(shapes, changed):
    lhs, rhs = (jnp.zeros(shape) for shape in shapes)
    assert not winograd.applies(lhs, rhs, params_of(lhs, rhs, **changed))


@pytest.mark.parametrize(
    ("images", "strides", "least", "products", "applies"),
    [
        ((2, 6, 8, 32), (1, 1), 96, 98304, True),  # 2 x 6 x 8 pixels x 32 x 32
        ((2, 6, 8, 32), (1, 1), 97, 98304, False),
        ((2, 6, 8, 32), (1, 1), 96, 98305, False),
        ((2, 6, 8, 32), (2, 1), 48, 49152, True),  # every second row
        ((2, 6, 8, 32), (2, 1), 49, 49152, False),
        ((2, 6, 8, 32), (2, 1), 48, 49153, False),
    ],
)
def test_what_is_too_small_is_left_to_xla(
    images, strides, least, products, applies, monkeypatch
):
    monkeypatch.setattr(winograd, "_PIXELS", least)
    monkeypatch.setattr(winograd, "_PRODUCTS", products)
    lhs, rhs = jnp.zeros(images), jnp.zeros((3, 3, 32, 32))
    params = params_of(lhs, rhs, window_strides=strides)
    assert winograd.applies(lhs, rhs, params) == applies


@own_programs
@pytest.mark.parametrize(("height", "count"), [(2, 0), (3, 6)])  # 0: a product
def test_windows_larger_than_the_image_are_not_taken(height, count):
    same = ((1, 1), (1, 1))
    shapes = (2, height, 8, C), (3, 3, C, F)
    plain, params, x, w, _ = prepared(*shapes, (1, 1), same, (1, 1), NHWC)
    ours = convolution.with_cpu_gradient(plain, params, "eigen")
    text = ms.jit(ours).lower(x, w).as_text()
    assert text.count("stablehlo.convolution(") == count


def test_half_precision_is_left_to_xla():
    lhs = jnp.zeros((2, 8, 8, 64), jnp.bfloat16)
    rhs = jnp.zeros((3, 3, 64, 64), jnp.bfloat16)
    assert not winograd.applies(lhs, rhs, params_of(lhs, rhs))
    lhs, rhs = lhs.astype(jnp.float32), rhs.astype(jnp.float32)
    assert winograd.applies(lhs, rhs, params_of(lhs, rhs))


@pytest.fixture(scope="module")
def net_and_images():
    model = nn.Sequential(
        [nn.Conv(64, (3, 3)), nn.relu, nn.Conv(64, (3, 3)), nn.relu, nn.Conv(2, (1, 1))]
    )
    x = jax.random.normal(jax.random.key(0), (2, 4, 6, 3))
    net = ms.upgrade(model, model.init(jax.random.key(1), x), x, rates=(0.5, 1.0))
    return net, x


@own_programs
def test_only_programs_of_ms_jit_use_the_form(net_and_images):
    def half(net, x):
        return ms.slice_apply(net, x, 0.5)

    plain = ["1x1x32x2", "3x3x32x32", "3x3x3x32"]
    assert sorted(windows(jax.jit, half, *net_and_images)) == plain
    # The first one, of three channels, is a product.
    six = ["1x1x32x2", *6 * ["3x1x32x32"]]
    assert sorted(windows(ms.jit, half, *net_and_images)) == six


@pytest.mark.nightly
def test_second_derivatives_forward_mode_and_vmap(net_and_images):
    net, x = net_and_images

    def loss(x):
        return (ms.slice_apply(net, x, 0.5) ** 2).sum()

    def all_of_them(x):
        slope = jax.grad(lambda x: (jax.grad(loss)(x) ** 2).sum())(x)
        _, moves = jax.jvp(loss, (x,), (x,))
        each = jax.vmap(jax.grad(loss))(x[:, None])
        return slope, moves, each

    found, expected = ms.jit(all_of_them)(x), jax.jit(all_of_them)(x)
    for mine, other in zip(found, expected, strict=True):
        assert_close(mine, other)


@own_programs
def test_a_barrier_is_kept_in_programs_of_ms_jit():
    """Otherwise XLA computes the values before it once for each reader."""

    def read_twice(x, y, images, kernel):
        z = lax.optimization_barrier(x * y + 1)
        return jnp.exp(z), z.T + 1, lax.conv(images, kernel, (1, 1), "SAME")

    # With a convolution, without which it is the program of jax.jit.
    x, images, kernel = (
        jnp.ones((256, 256)),
        jnp.ones((2, 8, 8, 8)),
        jnp.ones((8, 8, 3, 3)),
    )
    text = ms.jit(read_twice).lower(x, x, images, kernel).compile().as_text()
    entry = text[text.index("ENTRY") :]
    readers = [line for line in entry.splitlines() if "fusion(%x.1, %y.1)" in line]
    assert len(readers) == 1, readers
