"""Programs of our own on CPU: other derivatives and options, the same numbers."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

import mslice_jax as ms
from mslice_jax.core.forms import active
from mslice_jax.cpu import compilation
from mslice_jax.cpu.table import EIGEN
from tests.convolutions import assert_close


class Small(nn.Module):
    """What the rules treat apart: biases, norms, pooling, strided one-pixel windows."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(8, (3, 3))(x))
        x = nn.max_pool(x, (2, 2), strides=(2, 2))
        x = nn.GroupNorm(num_groups=4)(x)
        x = nn.Conv(16, (1, 1), strides=2)(x)
        return nn.Dense(3)(x.mean((1, 2)))


@pytest.fixture(scope="module")
def net_and_images():
    x = jax.random.normal(jax.random.key(0), (16, 32, 32, 3))
    model = Small()
    variables = model.init(jax.random.key(1), x)
    return ms.upgrade(model, variables, x, rates=(0.5, 1.0)), x


def loss(net, x, rate=0.5):
    return (ms.slice_apply(net, x, rate) ** 2).sum()


def gradients(jit, fun, *args):
    argnums = tuple(range(len(args)))
    return jit(jax.grad(fun, argnums=argnums))(*args)


def whatever_is_in_it(fun):
    """What `ms.jit` makes of programs with convolutions, of one without them."""
    forms = dataclasses.replace(EIGEN, suits=lambda program: True)

    def traced(*args):
        with active(forms):
            return fun(*args)

    return jax.jit(traced, compiler_options=compilation._known_options())


def scatters(jitted, *args):
    """How many gradients of poolings a program computes as XLA does."""
    return jitted.lower(*args).as_text().count("stablehlo.select_and_scatter")


def test_gradients_are_those_of_jax_jit(net_and_images):
    own, plain = (gradients(jit, loss, *net_and_images) for jit in (ms.jit, jax.jit))
    assert_close(own, plain)
    value = ms.jit(loss)(*net_and_images)
    np.testing.assert_allclose(value, jax.jit(loss)(*net_and_images), rtol=1e-5)


def test_the_program_has_no_scatter(net_and_images):
    grad = jax.grad(loss)
    assert scatters(ms.jit(grad), *net_and_images) == 0
    # What a user's own program keeps.
    assert scatters(jax.jit(grad), *net_and_images) == 1


def test_second_derivatives_and_forward_mode(net_and_images):
    net, x = net_and_images

    def slope(x):
        return jax.grad(lambda x: loss(net, x))(x).sum()

    own, plain = (gradients(jit, slope, x[:2]) for jit in (ms.jit, jax.jit))
    assert_close(own, plain, 1e-4)

    def forward(x):
        return jax.jvp(lambda x: ms.slice_apply(net, x, 0.5), (x,), (x + 1,))

    assert_close(ms.jit(forward)(x), jax.jit(forward)(x))


@pytest.fixture
def without_cache():
    """XLA cannot write programs with oneDNN to it."""
    name = "jax_persistent_cache_min_compile_time_secs"
    before = jax.config.values[name]
    jax.config.update(name, 1e9)
    yield
    jax.config.update(name, before)


@pytest.mark.parametrize("groups", [1, 4], ids=["plain", "grouped"])
@pytest.mark.usefixtures("without_cache")
def test_with_onednn(groups):
    x = jax.random.normal(jax.random.key(0), (8, 16, 12, 3))
    model = nn.Sequential(
        [
            nn.Conv(8, (3, 3)),
            nn.relu,
            nn.Conv(8, (3, 3), strides=2, padding=2, feature_group_count=groups),
            nn.relu,
            nn.Conv(6, (2, 3), kernel_dilation=2, padding="VALID"),
        ]
    )
    net = ms.upgrade(model, model.init(jax.random.key(1), x), x, rates=(0.5, 1.0))
    options = {compilation._ONEDNN: True}
    with_onednn = functools.partial(ms.jit, compiler_options=options)

    def run(net, x):
        return ms.slice_apply(net, x, 0.5)

    assert_close(with_onednn(run)(net, x), jax.jit(run)(net, x))
    own, plain = (gradients(jit, loss, net, x) for jit in (with_onednn, jax.jit))
    assert_close(own, plain)
    # Filter gradients; of four groups two are left at this rate, which are joined.
    compiled = with_onednn(jax.grad(loss)).lower(net, x).compile().as_text()
    if "__onednn$convolution" in compiled:  # jaxlib 0.11, on x86
        left = [x for x in compiled.splitlines() if " convolution(" in x and "_-" in x]
        assert len(left) == 3


def test_gradients_inside_a_loop(net_and_images):
    """Outside of loops XLA transposes convolutions by itself; inside we have to."""
    net, x = net_and_images

    def looped(net, x):
        losses = lax.map(lambda x: loss(net, x), x.reshape(2, 8, *x.shape[1:]))
        return losses.sum()

    own = gradients(ms.jit, looped, net, x)
    assert_close(own, gradients(jax.jit, looped, net, x))


def test_large_windows_are_left_to_xla():
    """Each place of one would be a comparison."""

    class Pool(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.max_pool(nn.Conv(8, (3, 3))(x), (16, 16), strides=(16, 16))
            return nn.Dense(2)(x.mean((1, 2)))

    model, x = Pool(), jnp.ones((2, 32, 32, 3))
    net = ms.upgrade(model, model.init(jax.random.key(0), x), x, rates=(0.5, 1.0))
    assert scatters(ms.jit(jax.grad(loss)), net, x) == 1


def test_inside_another_jit_it_is_part_of_that_program(net_and_images):
    inner = ms.jit(loss)
    outer = jax.jit(lambda net, x: inner(net, x) + 1)
    np.testing.assert_array_equal(
        outer(*net_and_images), jax.jit(lambda *xs: loss(*xs) + 1)(*net_and_images)
    )
    jax.grad(inner)(*net_and_images)


def test_a_program_of_the_users_does_not_get_what_ours_left_in_jaxs_caches(
    net_and_images,
):
    grad = jax.grad(loss)
    ms.jit(grad)(*net_and_images)
    assert "select_and_scatter" in jax.jit(grad).lower(*net_and_images).as_text()


@pytest.mark.parametrize("own_first", [True, False])
def test_an_inner_jit_is_compiled_for_the_program_that_it_is_in(
    net_and_images, own_first
):
    inner = jax.jit(jax.grad(loss))
    texts = {}
    for own in (own_first, not own_first):
        jit = ms.jit if own else jax.jit
        outer = jit(lambda net, x: inner(net, x).variables)
        texts[own] = outer.lower(*net_and_images).as_text()
    assert "select_and_scatter" not in texts[True]
    assert "select_and_scatter" in texts[False]


def test_options_that_the_compiler_does_not_know_are_left_out(monkeypatch):
    assert compilation._is_known("xla_backend_optimization_level", "1")
    assert not compilation._is_known("xla_no_such_option", "1")
    monkeypatch.setattr(compilation, "_known_options", dict)
    assert type(ms.jit(lambda x: x)) is type(jax.jit(lambda x: x))


def test_static_arguments_and_options_of_jit():
    double = ms.jit(lambda x, times: x * times, static_argnames="times")
    assert double(jnp.ones(()), times=2) == 2
    with pytest.raises(jax.errors.JaxRuntimeError, match="xla_no_such_option"):
        ms.jit(jnp.sin, compiler_options={"xla_no_such_option": 1})(1.0)


def test_inside_another_jit_without_traced_arguments(net_and_images):
    net, x = net_and_images
    teacher = ms.jit(lambda net, x: ms.slice_apply(net, x, 1.0))

    def distance(net):
        return (
            (ms.slice_apply(net, x, 0.5) - teacher(net_and_images[0], x)) ** 2
        ).sum()

    np.testing.assert_allclose(jax.jit(distance)(net), distance(net), rtol=1e-5)


def test_it_stands_for_a_jitted_function_everywhere():
    class Model:
        @ms.jit
        def double(self, x):
            return 2 * x

    jax.tree_util.register_static(Model)
    assert Model().double(jnp.ones(())) == 2
    identity = ms.jit(lambda x: x)
    assert identity.eval_shape(jnp.ones(2)).shape == (2,)
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = identity.no_such_thing
