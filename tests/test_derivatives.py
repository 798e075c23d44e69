"""Custom derivatives of a function survive narrowing."""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name

import mslice_jax as ms

H, KEPT = 16, 8


@jax.custom_vjp
def straight_through(x, scale):
    """Rounds, and lets seven times the gradient through where |x| < 1."""
    return jnp.round(x * scale) / scale


def _forward(x, scale):
    return straight_through(x, scale), (x, scale)


def _backward(saved, g):
    x, scale = saved
    return 7.0 * g * (jnp.abs(x) < 1), jnp.zeros_like(scale)


straight_through.defvjp(_forward, _backward)


@jax.custom_jvp
def damped(x):
    """The identity, with a tenth of its derivative."""
    return x


@damped.defjvp
def _damped_jvp(primals, tangents):
    return primals[0], 0.1 * tangents[0]


@jax.custom_vjp
def clipped(x):
    """The identity; its gradient is clipped to 0.01."""
    return x


clipped.defvjp(lambda x: (x, None), lambda _, g: (jnp.clip(g, -0.01, 0.01),))


@jax.custom_vjp
def fused_cross_entropy(logits, label):
    """-log softmax(logits)[label], mean over the batch; its gradient is doubled."""
    return jnp.mean(
        jax.nn.logsumexp(logits, -1)
        - jnp.take_along_axis(logits, label[:, None], 1)[:, 0]
    )


def _ce_forward(logits, label):
    return fused_cross_entropy(logits, label), (jax.nn.softmax(logits), label)


def _ce_backward(saved, g):
    probabilities, label = saved
    one_hot = jax.nn.one_hot(label, probabilities.shape[-1])
    return 2 * g * (probabilities - one_hot) / label.shape[0], None


fused_cross_entropy.defvjp(_ce_forward, _ce_backward)

LABEL = np.array([0, 2, 1, 1])
TABLE = np.linspace(-1, 1, H, dtype=np.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def applied(f, power, x):
    """f(x), with x ** power as its derivative."""
    return f(x)


applied.defvjp(
    lambda f, power, x: (f(x), x), lambda f, power, x, g: (g * jnp.abs(x) ** power,)
)


def shaped(x):
    """The identity; its derivative is a captured table as wide as x."""
    table = TABLE[None, : x.shape[-1]]

    @jax.custom_jvp
    def call(x):
        return x + table

    @call.defjvp
    def _(primals, tangents):
        return call(*primals), tangents[0] * table

    return call(x)


@jax.custom_vjp
def remembered(x):
    """sin(x), with a derivative of 3 cos(x), and its own forward pass."""
    return jnp.sin(x)


remembered.defvjp(
    lambda x: (-jnp.sin(-x), jnp.cos(x)), lambda c, g: (3 * g * c,), optimize_remat=True
)


@jax.custom_vjp
def eager(x):
    """As `remembered`, but the function may not replace the forward pass."""
    return jnp.sin(x)


eager.defvjp(lambda x: (-jnp.sin(-x), jnp.cos(x)), lambda c, g: (3 * g * c,))


@jax.custom_vjp
def with_place(x):
    """The largest of each row and its index: one of the results is an integer."""
    return jnp.max(x.T, -1), jnp.argmax(x.T, -1)


with_place.defvjp(
    lambda x: (with_place(x), x), lambda x, g: (2 * jnp.sign(x) * g[0][None],)
)


@jax.custom_jvp
def with_place_jvp(x):
    return jnp.max(x.T, -1), jnp.argmax(x.T, -1)


@with_place_jvp.defjvp
def _with_place_jvp(primals, tangents):
    out = with_place_jvp(*primals)
    moved = tangents[0].sum(0), np.zeros(out[1].shape, jax.dtypes.float0)
    return out, moved


def with_statistic(h, place):
    largest, at = place(h)
    return h * (1 + largest + at)[None]


def named(c):
    return checkpoint_name(jnp.sin(checkpoint_name(jnp.tanh(c), "kept")), "dropped")


def layers(body):
    """Three steps of a scan with remat around each."""

    def apply(h):
        return jax.lax.scan(
            jax.checkpoint(lambda c, _: (body(c), None)), h, None, length=3
        )[0]

    return apply


@jax.custom_vjp
def outer(x):
    """A function with a custom derivative around another one."""
    return straight_through(jnp.tanh(x), jnp.float32(4.0))


outer.defvjp(lambda x: (outer(x), x), lambda x, g: (clipped(damped(g * x)),))

BODIES = {
    "straight_through": lambda h: straight_through(h, jnp.float32(4.0)),
    "clipped": lambda h: clipped(h),
    "damped": lambda h: damped(h),
    "relu": jax.nn.relu,
    "both, under scan and remat": lambda h: jax.lax.scan(
        jax.checkpoint(
            lambda c, _: (damped(straight_through(c, jnp.float32(4.0))), None)
        ),
        h,
        None,
        length=2,
    )[0],
    "nondiff_argnums": lambda h: applied(jnp.sin, 3, h),
    "closed over": shaped,
    "optimize_remat": remembered,
    "optimize_remat, under remat": jax.checkpoint(remembered),
    "eager, under remat": jax.checkpoint(eager),
    "integers beside, vjp": lambda h: with_statistic(h, with_place),
    "integers beside, jvp": lambda h: with_statistic(h, with_place_jvp),
    "remat, saves nothing": jax.checkpoint(named),
    "remat, saves by name": jax.checkpoint(
        named, policy=jax.checkpoint_policies.save_only_these_names("kept")
    ),
    "remat, saves dots": jax.checkpoint(
        lambda h: jnp.tanh(h @ (h.T @ h)),
        policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    ),
    "custom_vjp in scan in remat": jax.checkpoint(layers(outer)),
    "custom_jvp in scan in remat": jax.checkpoint(layers(shaped)),
    "custom_vjp in cond": lambda h: jax.lax.cond(
        h.sum() > 0, clipped, lambda h: straight_through(h, jnp.float32(2.0)), h
    ),
    "gradient inside": lambda h: jax.grad(lambda h: jnp.sum(outer(h) ** 2))(h),
    "stop_gradient": lambda h: h + jax.lax.stop_gradient(jnp.round(h) - h),
}


def weights():
    rng = np.random.default_rng(0)
    return {
        "w1": rng.normal(size=(5, H)).astype(np.float32),
        "w2": rng.normal(size=(H, 3)).astype(np.float32),
    }


def narrow(p):
    return {"w1": p["w1"][:, :KEPT], "w2": p["w2"][:KEPT]}


@pytest.mark.parametrize("name", BODIES)
def test_reverse_mode(name):
    def apply(p, x):
        return fused_cross_entropy(BODIES[name](x @ p["w1"]) @ p["w2"], LABEL)

    x = np.random.default_rng(1).normal(size=(4, 5)).astype(np.float32)
    net = ms.upgrade(apply, weights(), x, rates=(0.5, 1.0))
    grads = jax.jit(jax.grad(lambda net: ms.slice_apply(net, x, 0.5)))(net).variables
    by_hand = jax.jit(jax.grad(apply))(narrow(weights()), x)
    for leaf in ("w1", "w2"):
        np.testing.assert_allclose(
            narrow(grads)[leaf], by_hand[leaf], rtol=1e-5, atol=1e-6
        )
    assert not np.any(grads["w1"][:, KEPT:])
    assert not np.any(grads["w2"][KEPT:])
    assert np.any(by_hand["w1"])


@pytest.mark.parametrize(
    "name", ["damped", "relu", "closed over", "integers beside, jvp"]
)
def test_forward_mode(name):
    def apply(p, x):
        return BODIES[name](x @ p["w1"]) @ p["w2"]

    x = np.random.default_rng(1).normal(size=(4, 5)).astype(np.float32)
    net = ms.upgrade(apply, weights(), x, rates=(0.5, 1.0))
    tangent = np.ones_like(x)
    sliced = jax.jvp(lambda x: ms.slice_apply(net, x, 0.5), (x,), (tangent,))
    by_hand = jax.jvp(lambda x: apply(narrow(weights()), x), (x,), (tangent,))
    for a, b in zip(sliced, by_hand, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_relu_is_flat_at_zero():
    """jax.nn.relu says 0 at 0; the maximum that it is made of would say 1/2."""

    def apply(p, x):
        return jax.nn.relu(x @ p["w1"]) @ p["w2"]

    x = np.zeros((4, 5), np.float32)
    net = ms.upgrade(apply, weights(), x, rates=(0.5, 1.0))
    grads = jax.grad(lambda x: ms.slice_apply(net, x, 0.5).sum())(x)
    assert not np.any(grads)


def program(body, transform=lambda f: f):
    """The narrow program as a jaxpr: (names of all primitives in it, counts)."""

    def apply(p, x):
        return body(x @ p["w1"]) @ p["w2"]

    x = np.ones((4, 5), np.float32)
    net = ms.upgrade(apply, weights(), x, rates=(0.5, 1.0))
    run = transform(lambda net: jnp.sum(ms.slice_apply(net, x, 0.5)))
    return collections.Counter(primitives(jax.make_jaxpr(run)(net)))


def primitives(jaxpr):
    """The names of the primitives in a jaxpr and in those of its equations."""
    for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        yield eqn.primitive.name
        for value in jax.tree.leaves(list(eqn.params.values()), is_leaf=is_jaxpr):
            if is_jaxpr(value):
                yield from primitives(value)


def is_jaxpr(x):
    return hasattr(getattr(x, "jaxpr", x), "eqns")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("straight_through", {"custom_vjp_call": 1}),
        ("clipped", {"custom_vjp_call": 1}),
        ("damped", {"custom_jvp_call": 1}),
        ("closed over", {"custom_jvp_call": 1}),
        ("remat, saves by name", {"remat2": 1, "name": 2}),
        (
            "custom_vjp in scan in remat",
            {"remat2": 2, "scan": 1, "custom_vjp_call": 2},
        ),
        ("custom_vjp in cond", {"cond": 1, "custom_vjp_call": 2}),
    ],
)
def test_primitives_kept_in_the_narrow_program(name, expected):
    found = program(BODIES[name])
    # `outer` calls `straight_through`: both are there, at least in each other.
    assert {key: min(found[key], n) for key, n in expected.items()} == expected


@pytest.mark.parametrize(
    "name",
    [
        "remat, saves nothing",
        "remat, saves by name",
        "remat, saves dots",
        "optimize_remat",
        "optimize_remat, under remat",
        "eager, under remat",
        "custom_vjp in scan in remat",
    ],
)
def test_the_backward_pass_has_the_operations_of_the_hand_written(name):
    """The same operations are saved and computed again, equally often."""

    def by_hand(p, x):
        return jnp.sum(BODIES[name](x @ p["w1"]) @ p["w2"])

    x = np.ones((4, 5), np.float32)
    found = program(BODIES[name], jax.grad)
    expected = collections.Counter(
        primitives(jax.make_jaxpr(jax.grad(by_hand))(narrow(weights()), x))
    )
    for operation in ("sin", "cos", "neg", "tanh", "dot_general", "round", "scan"):
        assert found[operation] == expected[operation], operation


def test_optimize_remat_skips_a_forward_pass():
    """Otherwise the test above shows nothing: only one of the two runs -sin(-x)."""
    counts = [
        program(BODIES[f"{which}, under remat"], jax.grad)["neg"]
        for which in ("optimize_remat", "eager")
    ]
    assert counts[0] < counts[1]


@pytest.mark.parametrize("name", ["damped", "closed over", "relu", "gradient inside"])
def test_gradient_of_gradient(name):
    """A gradient penalty: the derivative of the gradient's norm."""

    def apply(p, x):
        return BODIES[name](jnp.sin(x @ p["w1"])) @ p["w2"]

    def penalty(f):
        return lambda x: jnp.sum(jax.grad(lambda x: jnp.sum(jnp.cos(f(x))))(x) ** 2)

    x = np.random.default_rng(1).normal(size=(4, 5)).astype(np.float32)
    net = ms.upgrade(apply, weights(), x, rates=(0.5, 1.0))
    sliced = jax.grad(lambda net: penalty(lambda x: ms.slice_apply(net, x, 0.5))(x))
    by_hand = jax.grad(lambda p: penalty(lambda x: apply(p, x))(x))
    got, expected = narrow(sliced(net).variables), by_hand(narrow(weights()))
    for leaf in ("w1", "w2"):
        np.testing.assert_allclose(got[leaf], expected[leaf], rtol=2e-5, atol=2e-5)
    assert np.any(expected["w1"])


@jax.custom_batching.custom_vmap
def doubled(x):
    """The identity; under vmap it doubles, to distinguish the two."""
    return x + 0


@doubled.def_vmap
def _doubled_vmap(size, batched, x):
    return 2 * x, batched[0]


def test_a_custom_vmap_rule_is_kept():
    def apply(p, x):
        return doubled(x @ p["w1"]) @ p["w2"]

    x = np.random.default_rng(1).normal(size=(3, 4, 5)).astype(np.float32)
    net = ms.upgrade(apply, weights(), x[0], rates=(0.5, 1.0))
    w1, w2 = weights()["w1"][:, :KEPT], weights()["w2"][:KEPT]
    np.testing.assert_allclose(
        ms.slice_apply(net, x[0], 0.5), x[0] @ w1 @ w2, rtol=1e-5, atol=1e-5
    )
    together = jax.vmap(lambda x: ms.slice_apply(net, x, 0.5))(x)
    np.testing.assert_allclose(together, 2 * (x @ w1 @ w2), rtol=1e-5, atol=1e-5)


@jax.custom_batching.custom_vmap
def joined(x, b):
    """Two operands and two results."""
    return x + b, x * b


@joined.def_vmap
def _joined_vmap(size, batched, x, b):
    assert batched == [True, False]
    return (2 * x + 3 * b[None], x * b[None]), (True, True)


def test_a_custom_vmap_rule_of_which_an_operand_is_not_mapped():
    def apply(p, x, b):
        one, two = joined(x @ p["w1"], b * p["w2"].sum(1))
        return (one + two) @ p["w2"]

    x = np.random.default_rng(1).normal(size=(3, 5)).astype(np.float32)
    net = ms.upgrade(apply, weights(), x[0], 2.0, rates=(0.5, 1.0), check=False)
    w1, w2 = weights()["w1"][:, :KEPT], weights()["w2"][:KEPT]
    b = 2 * w2.sum(1)
    together = jax.vmap(lambda x: ms.slice_apply(net, x, 0.5, 2.0))(x)
    expected = (2 * (x @ w1) + 3 * b + (x @ w1) * b) @ w2
    np.testing.assert_allclose(together, expected, rtol=1e-5, atol=1e-5)


def test_a_custom_transpose_is_kept():
    """linear_call: seven times the function's own gradient; of two residuals."""

    def apply(p, x):
        h = x @ p["w1"]
        scale = jnp.asarray(TABLE)[: h.shape[-1]][None]
        h = jax.custom_derivatives.linear_call(
            lambda s, h: h * s[0] * s[1],
            lambda s, g: 7 * g * s[0] * s[1],
            (scale, jnp.exp(scale)),
            h,
        )
        return h @ p["w2"]

    x = np.random.default_rng(1).normal(size=(4, 5)).astype(np.float32)
    net = ms.upgrade(apply, weights(), x, rates=(0.5, 1.0))
    grads = jax.grad(lambda net: jnp.sum(ms.slice_apply(net, x, 0.5)))(net).variables
    scale = TABLE[:KEPT] * np.exp(TABLE[:KEPT])
    cotangent = np.ones((4, 3)) @ weights()["w2"][:KEPT].T * scale
    np.testing.assert_allclose(
        grads["w1"][:, :KEPT], 7 * x.T @ cotangent, rtol=1e-5, atol=1e-5
    )
