"""Scores of units: what NumPy computes of the activations that units pass on."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import mslice_jax as ms
from tests.citizens.citizen import random_inputs
from tests.networks import CITIZENS
from tests.test_proofs import assert_close, output, run, upgraded

RATES = (0.5, 1.0)
rng = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return rng.normal(size=shape).astype(np.float32)


def rms(x: np.ndarray, axis: int = -1) -> np.ndarray:
    """The root mean square of each index along an axis, over all others."""
    x = np.moveaxis(x, axis, -1).astype(np.float64)
    return np.sqrt(np.mean(x.reshape(-1, x.shape[-1]) ** 2, axis=0))


def norm(w: np.ndarray, axis: int = 0) -> np.ndarray:
    """The norm of each index along an axis."""
    w = np.moveaxis(w, axis, 0).astype(np.float64)
    return np.sqrt((w.reshape(len(w), -1) ** 2).sum(1))


def check(scores: Any, expected: Any) -> None:
    assert scores.keys() == expected.keys()
    for name, score in expected.items():
        np.testing.assert_allclose(scores[name], score, rtol=2e-5, err_msg=name)


X, MORE = normal(4, 5), normal(7, 5)
W = {"a": normal(5, 16), "b": normal(16, 8), "c": normal(8, 3)}


def mlp(p: Any, x: jax.Array) -> jax.Array:
    return jnp.tanh(jnp.tanh(x @ p["a"]) @ p["b"]) @ p["c"]


def test_mlp():
    net = ms.upgrade(mlp, W, X, rates=RATES)
    first = np.tanh(np.concatenate([X, MORE]) @ W["a"])
    second = np.tanh(first @ W["b"])
    batches = [X, MORE]  # the larger one counts for more
    expected = {"a:1": rms(first), "b:1": rms(second)}
    check(ms.importance(net, batches=batches), expected)
    expected = {"a:1": expected["a:1"] * norm(W["b"])}
    expected["b:1"] = rms(second) * norm(W["c"])
    check(ms.importance(net, "activations x weights", batches=batches), expected)
    new = ms.reorder(net, "activations x weights", batches=batches)
    np.testing.assert_array_equal(
        new.variables["a"], W["a"][:, np.argsort(-expected["a:1"])]
    )
    kept = ms.reorder(net, ms.importance(net, batches=batches), exclude="a")
    np.testing.assert_array_equal(kept.variables["a"], W["a"])


def convolved(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """A convolution over two axes without padding."""
    views = np.lib.stride_tricks.sliding_window_view(x, w.shape[:2], axis=(1, 2))
    return np.einsum("bhwcij,ijco->bhwo", views, w)


def test_convolutions_and_a_flattened_image():
    p = {"a": normal(3, 3, 2, 8), "b": normal(2, 2, 8, 4), "c": normal(36, 3)}

    def apply(p: Any, x: jax.Array) -> jax.Array:
        for name in "ab":
            x = lax.conv_general_dilated(
                x, p[name], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            x = jax.nn.relu(x)
        return x.reshape(len(x), -1) @ p["c"]

    x = normal(2, 6, 6, 2)
    first = np.maximum(convolved(x, p["a"]), 0)
    second = np.maximum(convolved(first, p["b"]), 0)
    net = ms.upgrade(apply, p, x, rates=RATES)
    check(ms.importance(net, batches=[x]), {"a:3": rms(first), "b:3": rms(second)})
    flat = second.reshape(2, 9, 4)
    each = np.einsum(
        "bpc,pco->c", flat.astype(float) ** 2, p["c"].reshape(9, 4, 3) ** 2
    )
    expected = {"a:3": rms(first) * norm(p["b"], 2), "b:3": np.sqrt(each / 18)}
    check(ms.importance(net, "activations x weights", batches=[x]), expected)


def test_groups_of_a_convolution():
    """Groups are not contracted where they are convolved, but where they meet."""
    p = {"a": normal(5, 8), "b": normal(1, 2, 8), "c": normal(8, 3)}

    def apply(p: Any, x: jax.Array) -> jax.Array:
        x = jnp.tanh(x @ p["a"])
        x = lax.conv_general_dilated(
            x, p["b"], (1,), "VALID",
            dimension_numbers=("NWC", "WIO", "NWC"), feature_group_count=4,
        )  # fmt: skip
        return (x @ p["c"]).sum(1)

    x = normal(2, 3, 5)
    net = ms.upgrade(apply, p, x, rates=RATES)
    (name,) = net.plan.groups
    h = np.tanh(x @ p["a"]).reshape(2, 3, 4, 2)
    out = np.einsum("bwgi,igo->bwgo", h, p["b"][0].reshape(2, 4, 2))
    check(ms.importance(net, batches=[x]), {name: rms(out, 2)})


def test_heads():
    """Heads narrow: 4 of 2 channels each, in one axis of the output's kernel."""
    p = {name: normal(6, 8) for name in "qkv"} | {"o": normal(8, 3)}

    def apply(p: Any, x: jax.Array) -> jax.Array:
        q, k, v = (
            (x @ p[name]).reshape(len(x), 5, 4, 2).swapaxes(1, 2) for name in "qkv"
        )
        mixed = jax.nn.softmax(q @ k.mT) @ v
        return mixed.swapaxes(1, 2).reshape(len(x), 5, 8) @ p["o"]

    x = normal(2, 5, 6)
    q, k, v = ((x @ p[name]).reshape(2, 5, 4, 2) for name in "qkv")
    weights = np.exp(np.einsum("bthd,bshd->bhts", q, k))
    weights /= weights.sum(-1, keepdims=True)
    mixed = np.einsum("bhts,bshd->bthd", weights, v)
    net = ms.upgrade(apply, p, x, rates=RATES)
    (name,) = net.plan.groups
    check(ms.importance(net, batches=[x]), {name: rms(mixed, 2)})
    each = mixed.astype(float) ** 2 * norm(p["o"]).reshape(4, 2) ** 2
    expected = np.sqrt(each.sum((0, 1, 3)) / 20)
    check(ms.importance(net, "activations x weights", batches=[x]), {name: expected})


def test_a_loop_with_gates():
    """A GRU in lax.scan: its states go into the gates, and into what comes after."""
    p = {"x": normal(3, 24), "h": normal(8, 24), "out": normal(8, 2)}

    def apply(p: Any, x: jax.Array) -> jax.Array:
        def turn(h: jax.Array, x: jax.Array) -> Any:
            z, r, n = jnp.split(x @ p["x"], 3, -1)
            to_z, to_r, to_n = jnp.split(h @ p["h"], 3, -1)
            z = jax.nn.sigmoid(z + to_z)
            n = jnp.tanh(n + jax.nn.sigmoid(r + to_r) * to_n)
            return (1 - z) * n + z * h, None

        start = jnp.zeros((x.shape[1], p["h"].shape[0]))
        return lax.scan(turn, start, x)[0] @ p["out"]

    x, h, before = normal(4, 2, 3), np.zeros((2, 8)), []
    for step in x:
        before.append(h)
        z, r, n = np.split(step @ p["x"], 3, -1)
        to_z, to_r, to_n = np.split(h @ p["h"], 3, -1)
        z, r = (1 / (1 + np.exp(-v)) for v in (z + to_z, r + to_r))
        h = (1 - z) * np.tanh(n + r * to_n) + z * h
    net = ms.upgrade(apply, p, x, rates=RATES)
    (name,) = net.plan.groups
    everything = np.concatenate([*before, h])
    check(ms.importance(net, batches=[x]), {name: rms(everything)})
    squares = np.concatenate(before).astype(float) ** 2
    expected = (squares.mean(0) * norm(p["h"]) ** 2) + (
        (h**2).mean(0) * norm(p["out"]) ** 2
    )
    found = ms.importance(net, "activations x weights", batches=[x])
    check(found, {name: np.sqrt(expected)})


def inside_jit(f: Any) -> Any:
    return jax.jit(f)


def inside_remat(f: Any) -> Any:
    return jax.checkpoint(f)


def inside_custom_vjp(f: Any) -> Any:
    own = jax.custom_vjp(f)
    own.defvjp(lambda h, w: (f(h, w), (h, w)), lambda kept, g: (g @ kept[1].T, kept[1]))
    return own


def inside_cond(f: Any) -> Any:
    return lambda h, w: lax.cond(h.sum() > -1e9, f, lambda h, w: 0 * (h @ w), h, w)


def inside_while(f: Any) -> Any:
    def loop(h: jax.Array, w: jax.Array) -> jax.Array:
        start = 0, jnp.zeros((len(h), w.shape[1]))
        return lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, f(h, w)), start)[
            1
        ]

    return loop


def inside_vmap(f: Any) -> Any:
    def each(h: jax.Array, w: jax.Array) -> jax.Array:
        return f(h[None], w)[0]

    return jax.vmap(each, (0, None))


@pytest.mark.parametrize(
    "inside",
    [
        inside_jit,
        inside_remat,
        inside_custom_vjp,
        inside_cond,
        inside_while,
        inside_vmap,
    ],
)
def test_calls_branches_and_loops(inside):
    def apply(p: Any, x: jax.Array) -> jax.Array:
        return inside(lambda h, w: h @ w)(jnp.tanh(x @ p["a"]), p["out"])

    p = {"a": normal(5, 16), "out": normal(16, 3)}
    net = ms.upgrade(apply, p, X, rates=RATES)
    check(ms.importance(net, batches=[X]), {"a:1": rms(np.tanh(X @ p["a"]))})


def test_only_the_branch_that_runs_counts():
    p = {"a": normal(5, 16), "b": normal(16, 3), "c": normal(16, 3)}

    def apply(p: Any, x: jax.Array) -> jax.Array:
        h = x @ p["a"]
        return lax.cond(
            x[0, 0] > 0, lambda h: h @ p["b"], lambda h: jnp.tanh(h) @ p["c"], h
        )

    net = ms.upgrade(apply, p, X, rates=RATES)
    for sign, does in ((1, lambda h: h), (-1, np.tanh)):
        x = X * sign * np.sign(X[0, 0])
        check(ms.importance(net, batches=[x]), {"a:1": rms(does(x @ p["a"]))})


def test_experts():
    """Of each expert the hidden units, and the experts' outputs, weighted by gates."""
    p = {"gate": normal(5, 4), "in": normal(4, 5, 6), "out": normal(4, 6, 3)}

    def apply(p: Any, x: jax.Array) -> jax.Array:
        hidden = jnp.tanh(jnp.einsum("bd,edf->bef", x, p["in"]))
        each = jnp.einsum("bef,efo->beo", hidden, p["out"])
        return jnp.einsum("beo,be->bo", each, jax.nn.softmax(x @ p["gate"]))

    net = ms.upgrade(apply, p, X, rates=RATES, exclude="gate")
    hidden = np.tanh(np.einsum("bd,edf->bef", X, p["in"]))
    check(ms.importance(net, batches=[X]), {"in:2": rms(hidden)})
    products = np.einsum("bef,efo->f", hidden.astype(float) ** 2, p["out"] ** 2)
    found = ms.importance(net, "activations x weights", batches=[X])
    check(found, {"in:2": np.sqrt(products / (len(X) * 4))})


def test_concatenated_branches_have_their_own_units():
    p = {"a": normal(5, 4), "b": normal(5, 8), "c": normal(12, 3)}

    def apply(p: Any, x: jax.Array) -> jax.Array:
        return jnp.concatenate([jnp.tanh(x @ p["a"]), x @ p["b"]], -1) @ p["c"]

    net = ms.upgrade(apply, p, X, rates=RATES)
    a, b = np.tanh(X @ p["a"]), X @ p["b"]
    check(ms.importance(net, batches=[X]), {"a:1": rms(a), "b:1": rms(b)})
    expected = {"a:1": rms(a) * norm(p["c"][:4]), "b:1": rms(b) * norm(p["c"][4:])}
    check(ms.importance(net, "activations x weights", batches=[X]), expected)


def test_what_is_only_reduced_counts_there():
    net = ms.upgrade(lambda p, x: jnp.tanh(x @ p).max(-1), W["a"], X, rates=RATES)
    for by in ("activations", "activations x weights"):
        found = ms.importance(net, by, batches=[X])
        check(found, {":1": rms(np.tanh(X @ W["a"]))})


def test_parameters_and_keys_alone_are_no_activations():
    """A product of two matrices of weights, and noise that is multiplied with one."""
    p = {"a": normal(5, 8), "b": normal(8, 6), "n": normal(4, 6)}

    def apply(p: Any, x: jax.Array, key: Any = None) -> jax.Array:
        noise = jnp.tanh(jax.random.normal(key, (len(x), 5)) @ p["a"]) @ p["b"]
        return x @ (p["a"] @ p["b"]) + noise

    net = ms.upgrade(apply, p, X, rates=RATES, key=jax.random.key(0))
    scores = ms.importance(net, batches=[X], key=jax.random.key(1))
    assert {name: score.any() for name, score in scores.items()} == {"a:1": False}
    new = ms.reorder(net, scores)
    np.testing.assert_array_equal(new.variables["a"], p["a"])


def test_inputs_as_trees():
    def apply(p: Any, x: Any, scale: jax.Array, *, shift: jax.Array) -> jax.Array:
        return jnp.tanh(x["in"] @ p["a"] * scale + shift) @ p["b"]

    p = {"a": normal(5, 16), "b": normal(16, 3)}
    net = ms.upgrade(
        apply, p, {"in": X}, 2.0 * np.ones(()), rates=RATES, shift=X[:, :1]
    )
    found = ms.importance(
        net, batches=[({"in": X}, np.full((), 3.0, np.float32))], shift=X[:, 1:2]
    )
    check(found, {"a:1": rms(np.tanh(3 * X @ p["a"] + X[:, 1:2]))})


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = nn.BatchNorm(not train)(nn.Dense(16)(x))
        x = nn.Dropout(0.5, deterministic=not train)(nn.relu(x))
        return nn.Dense(3)(x)


def test_batch_norms_and_random_streams():
    variables = Normed().init(jax.random.key(0), X)
    kept = np.asarray(variables["params"]["Dense_0"]["kernel"])
    net = ms.upgrade(Normed(), variables, X, rates=RATES, norm="shared")
    z = X @ kept
    expected = np.maximum(z / np.sqrt(1 + 1e-5), 0)  # its statistics are fresh
    check(ms.importance(net, batches=[X]), {"Dense_0/kernel:1": rms(expected)})
    call: dict[str, Any] = {"train": True, "mutable": ["batch_stats"]}
    scores = ms.importance(
        net, batches=[X], rngs={"dropout": jax.random.key(1)}, **call
    )
    normed = np.maximum((z - z.mean(0)) / np.sqrt(z.var(0) + 1e-5), 0)
    # Dropout keeps half of the entries, and doubles them.
    assert np.all(scores["Dense_0/kernel:1"] <= 2 * rms(normed) + 1e-5)
    assert scores["Dense_0/kernel:1"].any()
    assert not net.variables["batch_stats"]["BatchNorm_0"]["mean"].any()


@pytest.mark.parametrize("turns", [0, 2])
def test_shared_over_devices(turns):
    if jax.device_count() < 4:
        pytest.skip("needs four devices")
    mesh = jax.make_mesh((2, 2), ("x", "y"), (AxisType.Auto, AxisType.Auto))
    p = {"a": W["a"], "b": normal(16, 3)}

    def body(p: Any, x: jax.Array) -> jax.Array:
        y = jnp.tanh(x @ p["a"]) @ p["b"]
        if turns:

            def turn(y: jax.Array, _: None) -> Any:
                return 0.5 * y + jnp.tanh(x @ p["a"]) @ p["b"], None

            y, _ = lax.scan(turn, y, length=turns)
        return lax.psum(y, "y")

    apply = jax.shard_map(
        body,
        mesh=mesh,
        in_specs=({"a": P(None, "y"), "b": P("y")}, P("x")),
        out_specs=P("x"),
    )
    net = ms.upgrade(apply, p, X, rates=RATES)
    (name,) = net.plan.groups  # each device narrows its part to the same indices
    both = rms(np.tanh(X @ p["a"]).reshape(-1, 2, 8))
    check(ms.importance(net, batches=[X]), {name: both})


def test_planted_units_are_found():
    """The important half stands last; in order, half of the network computes it all."""
    p = {"a": W["a"].copy(), "b": W["b"].copy(), "c": W["c"]}
    p["a"][:, :8] = 0  # nothing comes in: the norm of what goes out tells nothing
    p["b"][:8] *= 100
    p["b"][:, :4] = 0
    p["c"] = np.where(np.arange(8)[:, None] < 4, 100 * W["c"], W["c"])
    net = ms.upgrade(mlp, p, X, rates=RATES)
    expected = mlp(p, X)
    assert np.abs(ms.slice_apply(net, X, 0.5) - expected).max() > 0.1
    assert np.abs(ms.slice_apply(ms.reorder(net), X, 0.5) - expected).max() > 0.1
    for by in ("activations", "activations x weights"):
        new = ms.reorder(net, by, batches=[MORE])
        assert_close(ms.slice_apply(new, X, 0.5), expected)


SAMPLE = ("decoder_reshape", "mixture_of_experts")


@pytest.mark.parametrize(
    "citizen",
    [
        pytest.param(
            citizen, marks=() if citizen.name in SAMPLE else pytest.mark.nightly
        )
        for citizen in CITIZENS
        if not citizen.call.get("train")
    ],
    ids=str,
)
def test_scores_follow_the_units(citizen):
    """Of the network in another order the same scores, in that order."""
    net, gen = upgraded(citizen), np.random.default_rng(0)
    orders = {n: gen.permutation(g.size) for n, g in net.plan.groups.items()}
    by = "activations x weights"
    scores = ms.importance(net, by, batches=[citizen.inputs], **citizen.call)
    assert all(np.isfinite(s).all() and (s > 0).any() for s in scores.values())
    moved = net.permute(orders)
    found = ms.importance(moved, by, batches=[citizen.inputs], **citizen.call)
    for name, order in orders.items():
        np.testing.assert_allclose(found[name], scores[name][order], rtol=1e-3)
    assert_close(run(ms.reorder(net, scores), citizen, 1.0), output(citizen, 1.0))


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({}, ValueError, "needs batches="),
        ({"batches": iter(())}, ValueError, "at least one; got none"),
        ({"batches": X}, ValueError, "rank"),
        ({"batches": [X[:, :3]]}, Exception, r"\(4, 3\)|shape"),
        ({"batches": [X, X * np.nan]}, ValueError, "'a:1' are not finite in batch 1"),
        ({"batches": [X[:0]]}, ValueError, "no examples"),
        ({"by": "size", "batches": [X]}, ValueError, "'activations x weights'; got"),
        ({"by": "l1", "train": False}, TypeError, "takes no keyword 'train'"),
        ({"batches": [X], "trian": False}, TypeError, "trian"),
    ],
)
def test_bad_importance(arguments, error, words):
    net = ms.upgrade(mlp, W, X, rates=RATES)
    with pytest.raises(error, match=words):
        ms.importance(net, **arguments)


def test_the_whole_network_is_asked_for():
    small = ms.extract(ms.upgrade(mlp, W, X, rates=RATES), 0.5)
    with pytest.raises(ValueError, match="importance expects the full network"):
        ms.importance(small, batches=[random_inputs(4, 5)])


def test_norms_of_the_widest_rate():
    """Full width has the norms of the widest rate that was declared."""
    variables = Normed().init(jax.random.key(0), X)
    net = ms.upgrade(Normed(), variables, X, rates=RATES, norm="switchable")
    narrow = ms.upgrade(Normed(), variables, X, rates=(0.25, 0.5), norm="switchable")
    check(ms.importance(narrow, batches=[X]), ms.importance(net, batches=[X]))


def test_experts_of_a_ragged_product():
    """Rows belong to experts one after another; units of all experts are one group."""
    p = {"in": normal(2, 5, 8), "out": normal(2, 8, 3)}
    sizes = np.array([3, 1], np.int32)

    def apply(p: Any, x: jax.Array) -> jax.Array:
        hidden = jnp.tanh(lax.ragged_dot(x, p["in"], sizes))
        return lax.ragged_dot(hidden, p["out"], sizes)

    net = ms.upgrade(apply, p, X, rates=RATES)
    hidden = np.tanh(np.concatenate([X[:3] @ p["in"][0], X[3:] @ p["in"][1]]))
    check(ms.importance(net, batches=[X]), {"in:2": rms(hidden)})
    found = ms.importance(net, "activations x weights", batches=[X])
    outgoing = norm(p["out"], 1)  # of both experts together
    check(found, {"in:2": rms(hidden) * outgoing})


def test_captured_arrays_go_with_the_units():
    """Units that were moved are added to what they were added to before."""
    table = jnp.asarray(normal(1, 16))
    net = ms.upgrade(
        lambda p, x: (x @ p["a"] + table) @ p["out"],
        {"a": W["a"], "out": normal(16, 3)}, X, rates=RATES, check=False,
    )  # fmt: skip
    expected = rms(X @ W["a"] + np.asarray(table))
    check(ms.importance(net, batches=[X]), {"a:1": expected})
    turned = net.permute({"a:1": np.arange(16)[::-1]})
    check(ms.importance(turned, batches=[X]), {"a:1": expected[::-1]})


def test_what_a_solver_sums_over_does_not_count():
    """Conjugate gradients multiply units with each other, which no user wrote."""
    p = {"a": normal(5, 8), "w": normal(8), "out": normal(8, 3)}

    def solved(h: Any, w: Any) -> jax.Array:
        system = lambda x: 2 * x + w * (w @ x)  # noqa: E731
        return lax.custom_linear_solve(
            system, h, lambda of, b: b / 2 - w * (w @ b) / (4 + 2 * (w @ w)),
            symmetric=True,
        )  # fmt: skip

    def apply(p: Any, x: jax.Array) -> jax.Array:
        return jax.vmap(solved, (0, None))(x @ p["a"], p["w"]) @ p["out"]

    net = ms.upgrade(apply, p, X, rates=RATES, check=False)
    h = X @ p["a"]
    h = np.linalg.solve(2 * np.eye(8) + np.outer(p["w"], p["w"]), h.T).T
    check(ms.importance(net, batches=[X]), {"a:1": rms(h)})
