"""Calls of a network: keywords of any name, inputs by keyword, statics."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import mslice_jax as ms

RNG = np.random.default_rng(0)
X = RNG.normal(size=(4, 5)).astype(np.float32)
W1 = RNG.normal(size=(5, 12)).astype(np.float32)
W2 = RNG.normal(size=(12, 3)).astype(np.float32)
PARAMS = {"w1": W1, "w2": W2}
HALF = np.tanh(X @ W1[:, :6]) @ W2[:6]
# Names of arguments of upgrade, slice_apply and the functions that they call.
NAMES = (
    "rate",
    "rates",
    "groups",
    "norm",
    "strict",
    "x",
    "r",
    "params",
    "call",
    "model",
)
NAMES += ("self", "variables", "definition", "function", "arrays", "source", "include")
NAMES += ("mutable", "method", "rngs", "follow", "stay", "check", "train", "key")


def takes(name):
    """A function, a Linen module and an NNX model with a keyword of this name."""
    scope: dict = {"jnp": jnp, "nn": nn, "nnx": nnx}
    first = "self_" if name == "self" else "self"
    exec(  # the only way to name a keyword
        f"""
def function(p_, x_, *, {name}=1.0):
    return (jnp.tanh(x_ @ p_["w1"]) @ p_["w2"]) * {name}

class Linen(nn.Module):
    @nn.compact
    def __call__({first}, x_, *, {name}=1.0):
        return nn.Dense(3)(nn.tanh(nn.Dense(12)(x_))) * {name}

class Nnx(nnx.Module):
    def __init__({first}, rngs):
        {first}.a = nnx.Linear(5, 12, rngs=rngs)
        {first}.b = nnx.Linear(12, 3, rngs=rngs)

    def __call__({first}, x_, *, {name}=1.0):
        return {first}.b(nnx.tanh({first}.a(x_))) * {name}
""",
        scope,
    )
    return scope["function"], scope["Linen"], scope["Nnx"]


@pytest.mark.parametrize("name", NAMES)
def test_a_keyword_of_any_name_reaches_a_function(name):
    function, _, _ = takes(name)
    net = ms.upgrade(function, PARAMS, X, rates=(0.5, 1.0), call={name: 2.0})
    for value in (3.0, jnp.float32(3.0)):
        found = ms.slice_apply(net, X, 0.5, **{name: value})
        np.testing.assert_allclose(found, 3 * HALF, rtol=1e-5)
        np.testing.assert_allclose(net(0.5, X, **{name: value}), 3 * HALF, rtol=1e-5)


# Flax itself calls the variables of `apply` "variables", and modules "self".
@pytest.mark.parametrize("name", ("rate", "norm", "x", "r", "params", "call"))
def test_a_keyword_of_any_name_reaches_a_flax_model(name):
    _, linen, model = takes(name)
    nets = [
        ms.upgrade(
            linen(), linen().init(jax.random.key(0), X), X,
            rates=(0.5, 1.0), call={name: 2.0},
        ),
        ms.upgrade(model(nnx.Rngs(0)), X, rates=(0.5, 1.0), call={name: 2.0}),
    ]  # fmt: skip
    for net in nets:
        want = 3 * ms.slice_apply(net, X, 0.5)
        found = ms.slice_apply(net, X, 0.5, **{name: 3.0})
        np.testing.assert_allclose(found, want, rtol=1e-5)


@pytest.mark.parametrize("kind", (1, 2), ids=("linen", "nnx"))
def test_a_module_of_a_model_with_its_own_rate(kind):
    model = takes("rate")[kind]
    if kind == 1:
        tree = model().init(jax.random.key(0), X)
        net = ms.upgrade(model(), tree, X, rates=(0.5, 1.0))
        module = lambda *args, **kw: net.module.apply(net.variables, *args, **kw)  # noqa: E731
    else:
        net = ms.upgrade(model(nnx.Rngs(0)), X, rates=(0.5, 1.0))
        module = net.module
    want = ms.slice_apply(net, X, 0.5)
    np.testing.assert_allclose(
        module(X, rate=0.5, call={"rate": 3.0}), 3 * want, rtol=1e-5
    )
    np.testing.assert_allclose(module(X, rate=0.5), want, rtol=1e-5)


def test_inputs_may_be_keywords_alone():
    def function(p, *, image):
        return jnp.tanh(image @ p["w1"]) @ p["w2"]

    net = ms.upgrade(function, PARAMS, rates=(0.5, 1.0), image=X)
    np.testing.assert_allclose(net(0.5, image=X), HALF, rtol=1e-5)
    twice = net(0.5, image=np.concatenate([X, X]))
    np.testing.assert_allclose(twice, np.concatenate([HALF, HALF]), rtol=1e-5)
    with pytest.raises(ValueError, match="input image has rank 3"):
        net(0.5, image=X[None])
    half = jax.jit(lambda net, x: net(0.5, image=x))
    np.testing.assert_allclose(half(net, X), HALF, rtol=1e-5)


def test_an_nnx_model_whose_inputs_are_keywords_alone():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.a = nnx.Linear(5, 12, use_bias=False, rngs=rngs)
            self.b = nnx.Linear(12, 3, use_bias=False, rngs=rngs)

        def __call__(self, *, image):
            return self.b(nnx.tanh(self.a(image)))

    model = Model(nnx.Rngs(0))
    net = ms.upgrade(model, rates=(0.5, 1.0), image=X)
    a, b = np.asarray(model.a.kernel[...]), np.asarray(model.b.kernel[...])
    by_hand = np.tanh(X @ a[:, :6]) @ b[:6]
    np.testing.assert_allclose(net(0.5, image=X), by_hand, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        net.module(image=X, rate=0.5), by_hand, rtol=1e-4, atol=1e-5
    )


class Dropping(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(3)(nn.Dense(12)(x))


def models():
    def function(p, x, train=False):
        return x @ p["w1"] @ p["w2"]

    class Model(nnx.Module):
        def __init__(self, rngs):
            self.a = nnx.Linear(5, 12, rngs=rngs)
            self.b = nnx.Linear(12, 3, rngs=rngs)

        def __call__(self, x, train=False):
            return self.b(self.a(x))

    tree = Dropping().init(jax.random.key(0), X)
    return {
        "function": (function, PARAMS, X),
        "linen": (Dropping(), tree, X),
        "nnx": (Model(nnx.Rngs(0)), X),
    }


@pytest.mark.parametrize("kind", ("function", "linen", "nnx"))
def test_an_unknown_option_is_an_error_with_close_matches(kind):
    model = models()[kind]
    with pytest.raises(
        TypeError, match=r"'multiple_off'.*Close matches: 'multiple_of'"
    ):
        ms.upgrade(*model, rates=(0.5, 1.0), multiple_off=4)
    net = ms.upgrade(*model, rates=(0.5, 1.0))
    with pytest.raises(TypeError, match=r"'trian'.*Close matches: 'train'"):
        ms.slice_apply(net, X, 0.5, trian=True)


def test_an_inner_layer_that_refuses_a_keyword_names_the_close_option():
    """nn.Sequential accepts any keyword, for its first layer."""
    model = nn.Sequential([nn.Dense(12), nn.Dense(3)])
    tree = model.init(jax.random.key(0), X)
    with pytest.raises(TypeError, match="Close matches: 'exclude'"):
        ms.upgrade(model, tree, X, rates=(0.5, 1.0), exclud="layers_0")


def test_a_function_with_any_keywords_gets_them():
    def function(p, x, **options):
        return (x @ p["w1"] @ p["w2"]) * options["anything"]

    net = ms.upgrade(function, PARAMS, X, rates=(0.5, 1.0), anything=2.0)
    want = 3 * (X @ W1[:, :6] @ W2[:6])
    found = ms.slice_apply(net, X, 0.5, anything=3.0)
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-5)


def test_call_is_a_mapping_without_duplicates():
    function, _, _ = takes("rate")
    with pytest.raises(TypeError, match="call is a mapping"):
        ms.upgrade(function, PARAMS, X, rates=(0.5, 1.0), call=[("rate", 1)])  # type: ignore
    function, _, _ = takes("train")
    with pytest.raises(TypeError, match="'train' is given twice"):
        ms.upgrade(function, PARAMS, X, rates=(0.5, 1.0), call={"train": 1}, train=2)
    with pytest.raises(TypeError, match="expects the variables"):
        ms.upgrade(function, rates=(0.5, 1.0))


# -- static arguments


def signed(p, x, s, k=0j):
    sign = np.copysign(1.0, s) * np.copysign(1.0, k.imag)
    return (jnp.tanh(x @ p["w1"]) @ p["w2"]) * sign


@pytest.mark.parametrize("first", (0.0, -0.0))
def test_the_two_zeros_are_two_programs(first):
    net = ms.upgrade(signed, PARAMS, X, first, rates=(0.5, 1.0))
    for zero in (first, -first, first):
        want = HALF * np.copysign(1.0, zero)
        np.testing.assert_allclose(ms.slice_apply(net, X, 0.5, zero), want, rtol=1e-5)
        found = ms.slice_apply(net, X, 0.5, 1.0, k=complex(0.0, zero))
        np.testing.assert_allclose(found, want, rtol=1e-5)


def test_the_two_zeros_within_a_structure_and_under_jit():
    def function(p, x, options):
        return (jnp.tanh(x @ p["w1"]) @ p["w2"]) * np.copysign(1.0, options["s"][0])

    net = ms.upgrade(function, PARAMS, X, {"s": (0.0,)}, rates=(0.5, 1.0))
    both = jax.jit(lambda net, x: [net(0.5, x, {"s": (s,)}) for s in (0.0, -0.0)])
    plus, minus = both(net, X)
    np.testing.assert_allclose(plus, HALF, rtol=1e-5)
    np.testing.assert_allclose(minus, -HALF, rtol=1e-5)


def test_nan_is_traced_once():
    traces = []

    def function(p, x, s):
        traces.append(s)
        return jnp.tanh(x @ p["w1"]) @ p["w2"]

    net = ms.upgrade(function, PARAMS, X, 0.0, rates=(0.5, 1.0), check=False)
    del traces[:]
    for _ in range(3):
        ms.slice_apply(net, X, 0.5, float("nan"))
        ms.slice_apply(net, X, 0.5, complex("nan+1j"))
    assert len(traces) == 2
