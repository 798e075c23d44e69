"""Equinox's loops with buffers, and the equations of its checks.

The narrow network by hand is the function itself on weights that NumPy cut.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mslice_jax as ms

eqx = pytest.importorskip("equinox")
eqxi = pytest.importorskip("equinox.internal")

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


X = normal(3, 4)
FULL = {"a": normal(4, 24), "b": normal(24, 24), "c": normal(24, 3)}
NARROW = {"a": FULL["a"][:, :6], "b": FULL["b"][:6, :6], "c": FULL["c"][:6]}


def check(f, grad=True):
    net = ms.upgrade(f, FULL, X, rates=(0.25, 1.0))
    small = dict(ms.extract(net, 0.25).variables)
    jax.tree.map(np.testing.assert_array_equal, small, NARROW)
    got = ms.slice_apply(net, X, 0.25)
    np.testing.assert_allclose(got, f(NARROW, X), rtol=1e-4, atol=1e-4)
    if grad:
        grads = jax.grad(lambda net: (ms.slice_apply(net, X, 0.25) ** 2).sum())(net)
        by_hand = jax.grad(lambda p: (f(p, X) ** 2).sum())(NARROW)
        for key, want in by_hand.items():
            got = net.plan.slice(grads.variables, 0.25)[key]
            np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-3)
    orders = {n: RNG.permutation(g.size) for n, g in net.plan.groups.items()}
    permuted = ms.slice_apply(net.permute(orders), X, 1.0)
    np.testing.assert_allclose(permuted, f(FULL, X), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "vmapped"),
    [
        ("lax", False),
        ("lax", True),
        pytest.param("checkpointed", False, marks=pytest.mark.nightly),
        ("checkpointed", True),
        ("bounded", False),
        ("bounded", True),
    ],
)
def test_a_while_loop_with_a_buffer(kind, vmapped):
    def f(p, x):
        def run(h, steps):
            def body(carry):
                i, h, buffer = carry
                buffer = buffer.at[i].set(h)
                return i + 1, jnp.tanh(h @ p["b"]) + buffer[0], buffer

            _, h, buffer = eqxi.while_loop(
                lambda carry: carry[0] < steps,
                body,
                (0, h, jnp.zeros((4, *h.shape))),
                kind=kind,
                max_steps=4,
                buffers=lambda carry: carry[2],
            )
            return h + buffer.sum(0)

        h = jnp.tanh(x @ p["a"])
        if vmapped:  # each row has its own number of steps
            return jax.vmap(run)(h, jnp.arange(len(x)) + 1) @ p["c"]
        return run(h, 3) @ p["c"]

    check(f, grad=kind != "lax")


@pytest.mark.parametrize("kind", ["lax", "checkpointed"])
def test_a_scan(kind):
    def f(p, x):
        def step(h, _):
            return jnp.tanh(h @ p["b"]), h.sum(-1, keepdims=True)

        h = jnp.tanh(x @ p["a"])
        h, sums = eqxi.scan(step, h, None, length=3, kind=kind)
        return (h + sums.sum(0)) @ p["c"]

    check(f)


def test_marks_and_checks():
    def f(p, x):
        h = eqxi.nonbatchable(jnp.tanh(x @ p["a"]))
        h = eqx.debug.announce_transform(h, announce=lambda text: None)
        h = jnp.where(eqxi.unvmap_any(h > 0.5), h, h * eqxi.unvmap_max(h))
        return jnp.tanh(h @ p["b"]) @ p["c"]

    check(f, grad=False)


def test_an_error_that_is_raised_by_a_condition():
    def f(p, x):
        h = jnp.tanh(x @ p["a"])
        h = eqx.error_if(h, h.sum() > 1e6, "too large")
        return jnp.tanh(h @ p["b"]) @ p["c"]

    check(f)

    def raises(p, x):
        h = x @ p["a"]
        h = eqx.error_if(h, h.max() > 1e3, "too large")
        return jnp.tanh(h @ p["b"]) @ p["c"]

    net = ms.upgrade(raises, FULL, X, rates=(0.25, 1.0))
    with pytest.raises(Exception, match="too large"):
        jax.block_until_ready(ms.slice_apply(net, 1e6 * X, 0.25))
