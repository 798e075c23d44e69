"""`ms.jit` compiles a program as its convolutions ask; all else is as of `jax.jit`."""

import concurrent.futures

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

import mslice_jax as ms
from mslice_jax.cpu import compilation, table, work

IMAGES = jnp.ones((2, 6, 6, 3))
ROWS = jnp.ones((2, 3))
KERNEL = jnp.ones((3, 3, 3, 4))


def convolve(x):
    return lax.conv_general_dilated(
        x, KERNEL, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def either(x):
    """A convolution of images, a product of rows."""
    return convolve(x) if x.ndim == 4 else x @ KERNEL[0, 0]


@jax.custom_jvp
def with_jvp(x):
    return convolve(x)


with_jvp.defjvp(lambda primals, tangents: (with_jvp(*primals), with_jvp(*tangents)))


@jax.custom_vjp
def backward_only(x):
    return x.sum()


backward_only.defvjp(lambda x: (x.sum(), x), lambda x, _: (convolve(x)[..., :3],))


def in_while(x):
    def body(state):
        return state[0] - 1, convolve(state[1])[..., :3]

    return lax.while_loop(lambda state: state[0] > 0, body, (2, x))


PROGRAMS = {
    "alone": convolve,
    "scan": lambda x: lax.map(lambda one: convolve(one[None]), x),
    "while": in_while,
    "branch": lambda x: lax.cond(x.sum() > 0, convolve, lambda x: convolve(x) * 2, x),
    "jit": jax.jit(convolve),
    "custom_jvp": with_jvp,
    "checkpoint": jax.checkpoint(convolve),
    "vmap": jax.vmap(lambda one: convolve(one[None])),
    "gradient": jax.grad(lambda x: convolve(x).sum()),
    "backward only": jax.grad(backward_only),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_convolution_is_found_wherever_it_is(name):
    assert work.share(jax.make_jaxpr(PROGRAMS[name])(IMAGES)) == 1


def test_the_share_of_convolutions_and_of_loops_with_weights():
    def mixed(x, w):
        y = convolve(x)  # (2, 6, 6, 4): 2 * 36 * 4 * 27 multiplications

        def turn(y, w):  # 5 times (72, 4) @ (4, 4), each with its own weight
            return y @ w, None

        return lax.scan(turn, y.reshape(72, 4), w)[0]

    def same(y, w):
        return lax.scan(lambda y, _: (y @ w @ y.T @ y, None), y, None, length=5)[0]

    program = jax.make_jaxpr(mixed)(IMAGES, jnp.ones((5, 4, 4)))
    found = 2 * 36 * 4 * 27
    assert work.share(program) == found / (found + 5 * 72 * 4 * 4)
    # (3, 4) @ (4, 4), then twice as many multiplications as that of (3, 4) @ (4, 3).
    program = jax.make_jaxpr(same)(jnp.ones((3, 4)), jnp.ones((4, 4)))
    assert work.share(program) == 48 / (48 + 2 * 36)
    assert work.share(jax.make_jaxpr(lambda x: x @ x.T)(ROWS)) == 0
    assert work.share(jax.make_jaxpr(jnp.sin)(ROWS)) == 0


def test_products_of_a_form_count_as_the_convolution():
    """Of windows larger than the image, and filter gradients of one pixel."""
    model = nn.Sequential([nn.Conv(8, (9, 9)), nn.relu, nn.Conv(4, (1, 1), strides=2)])
    net = ms.upgrade(
        model, model.init(jax.random.key(0), IMAGES), IMAGES, rates=(0.5, 1.0)
    )
    step = ms.jit(jax.grad(lambda net, x: ms.slice_apply(net, x, 0.5).sum()))
    program = step.trace(net, IMAGES).jaxpr
    assert "dot_general" in str(program)
    assert work.share(program) == 1


def compiled(jitted, *args):
    return jitted.lower(*args).compile().as_text()


@pytest.mark.usefixtures("optimized")
def test_the_program_is_that_of_jax_jit_unless_it_convolves():
    options = {"compiler_options": compilation._known_options()}
    for x, same in ((ROWS, jax.jit(either)), (IMAGES, jax.jit(either, **options))):
        assert compiled(ms.jit(either), x) == compiled(same, x)
    assert compiled(ms.jit(either), IMAGES) != compiled(jax.jit(either), IMAGES)


def network(*layers, x):
    model = nn.Sequential(layers)
    return ms.upgrade(model, model.init(jax.random.key(0), x), x, rates=(0.5, 1.0))


def test_a_network_without_convolutions_gets_no_forms():
    x = jnp.ones((64, 64, 16))  # a sum over rows of this size has a form
    net = network(nn.Dense(16), nn.LayerNorm(), nn.Dense(4), x=x)

    def total(net, x):
        return ms.slice_apply(net, x, 0.5).sum()

    own, plain = (jit(total).lower(net, x).as_text() for jit in (ms.jit, jax.jit))
    assert own == plain


def test_few_convolutions_do_not_make_a_program_convolutional():
    """As the patches of a vision transformer."""
    layers = nn.Conv(2, (1, 1)), nn.Dense(64), nn.relu, nn.Dense(64), nn.Dense(4)
    net = network(*layers, x=IMAGES)

    def total(net, x):
        return ms.slice_apply(net, x, 1.0).sum()

    slope = jax.grad(total)
    assert 0 < work.share(jax.make_jaxpr(slope)(net, IMAGES)) < table._SHARE
    own, plain = (jit(total).lower(net, IMAGES).as_text() for jit in (ms.jit, jax.jit))
    assert own == plain
    # Its filter gradient is a convolution, not the product that has a form.
    own, plain = (jit(slope).lower(net, IMAGES).as_text() for jit in (ms.jit, jax.jit))
    assert own.count("stablehlo.convolution") == plain.count("stablehlo.convolution")


def counted(**options):
    """A jitted function, and the shapes that it was traced for."""
    shapes = []

    def fun(x, times=1):
        shapes.append(x.shape)
        return times * either(x)

    return ms.jit(fun, **options), shapes


def test_a_function_is_traced_once_for_each_signature(compilations):
    fun, shapes = counted()
    for x in (IMAGES, ROWS, ROWS[:1], IMAGES[:1]):
        np.testing.assert_array_equal(fun(x), either(x))
    assert shapes == [(2, 6, 6, 3), (2, 3), (1, 3), (1, 6, 6, 3)]
    for x in (IMAGES, ROWS, ROWS[:1], IMAGES[:1]):
        fun(x)  # what was there before it had both kinds
    with compilations() as names:
        for x in (ROWS, IMAGES, ROWS[:1], IMAGES[:1]):
            fun(x)
    assert names == [] and len(shapes) == 4


def test_a_signature_of_the_other_kind_goes_its_own_way(compilations):
    fun, _ = counted()
    fun(ROWS), fun(IMAGES)  # the second goes the way of the first, and is looked at
    for expected in (1, 0):
        with compilations() as names:
            fun(IMAGES), fun(ROWS)
        assert sum("fun" in name for name in names) == expected


@pytest.mark.parametrize("inputs", [(ROWS, ROWS[:1]), (ROWS, IMAGES, ROWS[:1])])
def test_what_was_compiled_runs_without_python(inputs):
    fun, _ = counted()
    for x in inputs * 2:
        fun(x)
    # With this, JAX raises where it does not know a signature by its fast path.
    jax.config.update("jax_no_tracing", True)
    try:
        for x in inputs:
            fun(x)
    finally:
        jax.config.update("jax_no_tracing", False)


def test_ahead_of_time(compilations):
    fun, shapes = counted()
    for x in (ROWS, IMAGES):
        assert fun.trace(x).lower().compile()(x).shape == (*x.shape[:-1], 4)
        assert fun.eval_shape(x).shape == (*x.shape[:-1], 4)
        expected = "stablehlo." + ("convolution" if x.ndim == 4 else "dot_general")
        assert expected in fun.lower(x).as_text()
    fun.lower(IMAGES).compile(), fun.lower(ROWS).compile()
    with compilations() as names:
        fun(ROWS), fun(IMAGES)
    assert len(shapes) == 2
    assert not [name for name in names if "fun" in name]
    fun.clear_cache()
    fun(ROWS)
    assert len(shapes) == 3


def test_static_arguments_belong_to_the_signature():
    for options in ({"static_argnums": 1}, {"static_argnames": "times"}):
        fun, shapes = counted(**options)
        for _ in range(2):
            for times in (2, 3):
                for x in (IMAGES, ROWS):
                    found = fun(x, times) if times == 2 else fun(x, times=times)
                    np.testing.assert_array_equal(found, times * either(x))
        assert len(shapes) == 4


def test_a_static_argument_may_choose_the_kind():
    fun = ms.jit(lambda x, net: net(x), static_argnums=1)
    for _ in range(2):
        assert fun(IMAGES, convolve).shape == (2, 6, 6, 4)
        assert fun(IMAGES, jnp.sin).shape == IMAGES.shape


def test_donation():
    def fun(x, y):
        return either(x)[..., :3] + y, y

    donating = ms.jit(fun, donate_argnums=1)
    for _ in range(2):
        for x in (IMAGES, ROWS):
            y = jnp.zeros(x.shape)
            found, _ = donating(x, y)
            np.testing.assert_array_equal(found, either(x)[..., :3])
            assert y.is_deleted() and not x.is_deleted()


def test_shardings():
    mesh = jax.make_mesh((2,), ("d",), devices=jax.devices()[:2])
    over = jax.NamedSharding(mesh, jax.P("d"))
    whole = jax.NamedSharding(mesh, jax.P())
    fun = ms.jit(either, in_shardings=over, out_shardings=whole)
    for _ in range(2):
        for x in (IMAGES, ROWS):
            found = fun(jax.device_put(x, over))
            assert found.sharding.is_equivalent_to(whole, found.ndim)
            np.testing.assert_allclose(found, either(x), rtol=1e-6)


def test_errors_of_the_function_are_its_own():
    def fun(x):
        if x.ndim != 4:
            raise ValueError("four axes")
        return convolve(x)

    jitted = ms.jit(fun)
    for _ in range(2):
        with pytest.raises(ValueError, match="four axes") as caught:
            jitted(ROWS)
        assert caught.value.__context__ is None
        jitted(IMAGES)


def test_under_transformations_it_is_the_function():
    fun = ms.jit(either)
    for x in (IMAGES, ROWS):
        fun(x)
        np.testing.assert_array_equal(jax.vmap(fun)(x[None]), jax.vmap(either)(x[None]))
        total = [jax.grad(lambda x, f=f: f(x).sum())(x) for f in (fun, either)]
        np.testing.assert_array_equal(*total)
        for jit in (jax.jit, ms.jit):
            np.testing.assert_array_equal(jit(lambda x: fun(x) + 1)(x), either(x) + 1)


def test_without_jit_and_where_a_nan_is_looked_for():
    fun = ms.jit(lambda x: jnp.log(either(x)) if x.ndim == 4 else either(x))
    signs = ms.jit(lambda x: 1 if x.sum() > 0 else -1)
    for _ in range(2):
        with jax.disable_jit():
            assert signs(ROWS) == 1
            assert fun(IMAGES).shape == (2, 6, 6, 4)
            assert fun(ROWS).shape == (2, 4)
        fun(IMAGES), fun(ROWS)
    with jax.debug_nans(True), pytest.raises(FloatingPointError, match="nan"):
        fun(-IMAGES)


def test_first_calls_at_the_same_time():
    fun, shapes = counted()
    arguments = [x[:n] for n in (1, 2) for x in (IMAGES, ROWS)] * 2
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for x, found in zip(arguments, pool.map(fun, arguments), strict=True):
            np.testing.assert_array_equal(found, either(x))
    assert {*shapes} == {x.shape for x in arguments}


def test_it_can_be_exported():
    exported = jax.export.export(ms.jit(either))(IMAGES)
    np.testing.assert_allclose(exported.call(IMAGES), either(IMAGES), rtol=1e-6)
