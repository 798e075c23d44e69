"""Derivatives that the author of a function wrote survive narrowing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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


@pytest.mark.parametrize("name", ["damped", "relu"])
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


def test_remat_stays():
    def apply(p, x):
        return jax.checkpoint(lambda x: jnp.sin(x @ p["w1"]))(x) @ p["w2"]

    x = np.ones((4, 5), np.float32)
    net = ms.upgrade(apply, weights(), x, rates=(0.5, 1.0))
    program = jax.make_jaxpr(lambda net: ms.slice_apply(net, x, 0.5))(net)
    assert "remat" in str(program) or "checkpoint" in str(program)
