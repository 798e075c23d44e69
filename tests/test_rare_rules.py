"""Primitives that few networks have: what they tie, and how they run narrow.

A network 5 -> 16 -> 3, mostly traced alone: the plan and the narrow program say it all.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental.shard_alike import shard_alike

import mslice_jax as ms

H, KEPT = 16, 4
RNG = np.random.default_rng(0)
X = RNG.normal(size=(4, 5)).astype(np.float32)


def weights(**shapes: Any) -> dict[str, np.ndarray]:
    return {name: RNG.normal(size=s).astype(np.float32) for name, s in shapes.items()}


P = weights(w1=(5, H), w2=(H, 3))
NARROW = {"w1": P["w1"][:, :KEPT], "w2": P["w2"][:KEPT]}


def upgraded(hidden: Any, *inputs: Any) -> ms.Sliceable:
    def apply(p: Any, x: Any, *more: Any) -> Any:
        return hidden(x @ p["w1"], *more) @ p["w2"]

    return ms.upgrade(apply, P, X, *inputs, rates=(0.25, 1.0), check=False)


def by_hand(hidden: Any, p: Any = NARROW) -> Any:
    return hidden(X @ p["w1"]) @ p["w2"]


def equations(net: ms.Sliceable, *inputs: Any) -> dict[str, Any]:
    """The equations of the narrow program, by primitive; calls are gone through."""
    found = {}

    def look(jaxpr: Any) -> None:
        for eqn in jaxpr.eqns:
            found[eqn.primitive.name] = eqn
            for value in eqn.params.values():
                if hasattr(value, "jaxpr"):
                    look(value.jaxpr)

    look(jax.make_jaxpr(lambda net: ms.slice_apply(net, X, 0.25, *inputs))(net).jaxpr)
    return found


def fixed(net: ms.Sliceable) -> dict[str, str]:
    return {
        f"{axis.path}:{axis.axis}": str(axis.reason).partition(", ")[0]
        for axis in net.plan.fixed
    }


# -- arrays of a shape that the program names


def uninitialised(h):
    return jnp.where(h > -9, h, lax.empty(h.shape, h.dtype))


def uniform(h):
    return h * lax.rng_uniform(0.0, 1.0, h.shape)


@pytest.mark.parametrize(
    ("name", "hidden"), [("empty", uninitialised), ("rng_uniform", uniform)]
)
def test_arrays_of_a_shape_are_narrow(name, hidden):
    net = upgraded(hidden)
    assert [group.size for group in net.plan.groups.values()] == [H]
    assert equations(net)[name].params["shape"] == (4, KEPT)


KEY = np.array([1, 2, 3, 4], np.uint32)


def bits(key, n):
    return lax.rng_bit_generator(key, (n,), np.uint32)[1].astype(np.float32) / 2.0**32


def test_bits_of_a_key_that_is_an_argument_are_drawn_narrow():
    net = upgraded(lambda h, key: h * bits(key, H)[None], KEY)
    assert equations(net, KEY)["rng_bit_generator"].params["shape"] == (KEPT,)


def test_bits_of_a_key_of_the_program_are_a_constant():
    """Its entries go with the units: the last 4 of 16, once the order is turned."""
    net = upgraded(lambda h: h * bits(KEY, H)[None]).permute(
        {"w1:1": np.arange(16)[::-1]}
    )
    kept = [15, 14, 13, 12]
    h = X @ P["w1"][:, kept] * np.asarray(bits(KEY, H))[kept]
    got = ms.slice_apply(net, X, 0.25)
    np.testing.assert_allclose(got, h @ P["w2"][kept], rtol=1e-5, atol=1e-5)


def test_the_state_of_a_generator_stays_whole():
    """Where it is made of units, these are fixed."""

    def apply(p: Any, x: Any) -> Any:
        state = lax.bitcast_convert_type(p["w"].sum(0), np.uint32)
        noise = lax.rng_bit_generator(state, (5,), np.uint32)[1].astype(np.float32)
        return jnp.tanh((x * noise[None]) @ p["w1"]) @ p["w2"]

    p = {**P, "w": np.ones((3, 4), np.float32)}
    net = ms.upgrade(apply, p, X, rates=(0.25, 1.0), check=False)
    assert fixed(net)["w:1"] == "rng_bit_generator: the state of a generator"


def test_gamma_draws_of_a_key_that_is_an_argument():
    def drawn(h: Any, key: Any) -> Any:
        return jax.random.gamma(key, jnp.exp(jnp.tanh(h)))

    key = jax.random.key(3)
    (out,) = equations(upgraded(drawn, key), key)["random_gamma"].outvars
    assert out.aval.shape == (4, KEPT)


# -- bits of numbers


def as_bytes(h):
    """(4, 16) -> (4, 16, 4) -> (4, 16): every number its own bytes."""
    return lax.bitcast_convert_type(lax.bitcast_convert_type(h, np.uint8), np.float32)


def in_pairs(h):
    """(4, 16) -> (4, 8, 2) -> (4, 8): two units make one number."""
    pairs = h.astype(np.float16).reshape(len(h), -1, 2)
    joined = lax.bitcast_convert_type(pairs, np.float32)
    pairs = lax.bitcast_convert_type(joined, np.float16)
    return pairs.reshape(h.shape).astype(np.float32)


def as_integers(h):
    return lax.bitcast_convert_type(
        lax.bitcast_convert_type(h, np.int32) & ~7, np.float32
    )


@pytest.mark.parametrize("hidden", [as_bytes, in_pairs, as_integers])
def test_bits_of_numbers(hidden):
    net = upgraded(hidden)
    (group,) = net.plan.groups.values()
    assert group.size == (8 if hidden is in_pairs else 16)
    np.testing.assert_allclose(
        ms.slice_apply(net, X, 0.25), by_hand(hidden), rtol=1e-5, atol=1e-5
    )


# -- ties


def test_arrays_that_are_sharded_alike_narrow_alike():
    def apply(p: Any, x: Any) -> Any:
        a, b = shard_alike(x @ p["a"], x @ p["b"])
        return a @ p["c"] + jnp.tanh(b) @ p["d"]

    p = weights(a=(5, 8), b=(5, 8), c=(8, 3), d=(8, 3))
    net = ms.upgrade(apply, p, X, rates=(0.5, 1.0), check=False)
    (group,) = net.plan.groups.values()
    assert {leaf for leaf, _ in group.leaves} == set("abcd")
    want = X @ p["a"][:, :4] @ p["c"][:4] + np.tanh(X @ p["b"][:, :4]) @ p["d"][:4]
    np.testing.assert_allclose(ms.slice_apply(net, X, 0.5), want, rtol=1e-5, atol=1e-5)


def apart(function: Any, **shapes: Any) -> list[set[str]]:
    """The leaves of each group, with their axes, of a function of weights alone."""
    net = ms.upgrade(
        lambda p, x: function(p, x), weights(**shapes), X, rates=(0.5, 1.0), check=False
    )
    return [
        {f"{path}:{axis}" for path, axis in group.leaves}
        for group in net.plan.groups.values()
    ]


def reduced(p, x):
    """Two arrays reduced together have the same axes."""
    first = jnp.float32(-jnp.inf), jnp.float32(0)
    a, b = lax.reduce(
        (p["a"], p["b"]),
        first,
        lambda a, b: (jnp.maximum(a[0], b[0]), a[1] + b[1]),
        (0,),
    )
    return (x @ p["a"] * a[None]) @ p["c"] + jnp.tanh(b)[None] @ p["d"]


def sorted_together(p, x):
    a, b = lax.sort((p["a"], p["b"]), dimension=0)
    return (x @ a) @ p["c"] + (x @ jnp.tanh(b)) @ p["d"]


def stacked(p, x):
    both = (
        lax.stack([x @ p["a"], x @ p["b"]], 1)
        if hasattr(lax, "stack")
        else (jnp.stack([x @ p["a"], x @ p["b"]], 1))
    )
    return both[:, 0] @ p["c"] + both[:, 1] @ p["d"]


def pooled(p, x):
    """The window slides over rows alone."""
    of = lambda w: lax.reduce_window(x @ w, 0.0, lax.add, (2, 1), (2, 1), "VALID")  # noqa: E731
    return of(p["a"]) @ p["c"] + of(p["b"]) @ p["d"]


def pooled_otherwise(p, x):
    """By a sum of squares, which begins with a number."""
    square = lambda a, b: a + b * b  # noqa: E731
    of = lambda w: lax.reduce_window(x @ w, 0.0, square, (2, 1), (2, 1), "VALID")  # noqa: E731
    return of(p["a"]) @ p["c"] + of(p["b"]) @ p["d"]


def in_branches(p, x):
    h = lax.cond(x.sum() > 0, lambda x: x @ p["a"], lambda x: x @ p["b"], x)
    return h @ p["c"] + jnp.tanh(h) @ p["d"]


def in_turns(p, x):
    def turn(carry, _):
        a, b = carry
        return (b, a), None

    a, b = lax.scan(turn, (x @ p["a"], x @ p["b"]), None, length=3)[0]
    return a @ p["c"] + b @ p["d"]


ALL = {"a:1", "b:1", "c:0", "d:0"}
TIES = {
    "reduced": (reduced, [ALL]),
    "sorted": (sorted_together, [ALL]),
    "stacked": (stacked, [ALL]),
    "pooled": (pooled, [{"a:1", "c:0"}, {"b:1", "d:0"}]),
    "pooled otherwise": (pooled_otherwise, [{"a:1", "c:0"}, {"b:1", "d:0"}]),
    "branches": (in_branches, [ALL]),
    "turns": (in_turns, [ALL]),
}


@pytest.mark.parametrize("name", TIES)
def test_which_arrays_narrow_together(name):
    function, expected = TIES[name]
    found = apart(function, a=(5, 8), b=(5, 8), c=(8, 3), d=(8, 3))
    assert sorted(found, key=sorted) == expected


# -- contractions


def test_groups_of_the_batch_have_filters_of_their_own():
    """Of two examples each has half of 8 filters: at 0.5 the first 2 of each 4."""

    def apply(p: Any, x: Any) -> Any:
        image = jnp.tanh(x[:, :, None] * p["c"][None])  # (4, 5, 6)
        h = lax.conv_general_dilated(
            image, p["k"], (1,), "SAME",
            dimension_numbers=("NHC", "HIO", "NHC"), batch_group_count=2,
        )  # fmt: skip
        return h.mean(1) @ p["o"]

    p = weights(c=(5, 6), k=(3, 6, 8), o=(8, 3))
    net = ms.upgrade(apply, p, X, rates=(0.5, 1.0), check=False)
    kept = [0, 1, 4, 5]
    half = {"c": p["c"][:, :3], "k": p["k"][:, :3, kept], "o": p["o"][kept]}
    small = dict(ms.extract(net, 0.5).variables)
    jax.tree.map(np.testing.assert_array_equal, small, half)
    np.testing.assert_allclose(
        ms.slice_apply(net, X, 0.5), apply(half, X), rtol=1e-5, atol=1e-5
    )


def test_a_scaled_product_of_a_matrix_for_each_example():
    """Every 32 entries of 128 have a scale."""

    def apply(p: Any, x: Any) -> Any:
        h = jnp.tanh(jnp.einsum("bi,bik->bk", x, p["w1"]))[:, None]
        scale = jnp.max(jnp.abs(h.reshape(len(x), 1, -1, 32)), -1)
        return lax.scaled_dot(
            h, p["w2"], lhs_scale=scale, rhs_scale=p["s"],
            dimension_numbers=(((2,), (1,)), ((0,), (0,))),
            preferred_element_type=jnp.float32,
        )[:, 0]  # fmt: skip

    p = weights(w1=(4, 5, 128), w2=(4, 128, 7), s=(4, 4, 7))
    net = ms.upgrade(apply, p, X, rates=(0.5, 1.0), check=False)
    small = jax.tree.map(np.shape, dict(ms.extract(net, 0.5).variables))
    assert small == {"w1": (4, 5, 64), "w2": (4, 64, 7), "s": (4, 2, 7)}


# -- what an equation says besides shapes


def scanned(h):
    def step(carry, x):
        return jnp.tanh(carry + x), carry.sum()

    steps = jnp.stack([h, 2 * h, h - 1, h])
    return lax.scan(step, h, steps, reverse=True, unroll=2, _split_transpose=True)[0]


def convolved(h):
    image = jnp.broadcast_to(h[:, None], (len(h), 7, h.shape[-1]))
    kernel = jnp.ones((3, 1, h.shape[-1]))
    return lax.conv_general_dilated(
        image, kernel, (2,), [(1, 3)], (2,), (3,), ("NHC", "HIO", "NHC"),
        feature_group_count=h.shape[-1], precision="highest",
    ).mean(1)  # fmt: skip


SAYS = {
    "scan": scanned,
    "remat2": jax.checkpoint(
        jnp.tanh, prevent_cse=False, policy=jax.checkpoint_policies.dots_saveable
    ),
    "while": lambda h: lax.while_loop(lambda h: h.sum() < 9, lambda h: h + 1, h),
    "cond": lambda h: lax.cond(h.sum() < 9, jnp.sin, jnp.cos, h),
    "sort": lambda h: lax.sort((h, -h), 0, is_stable=False, num_keys=2)[1],
    "cumsum": lambda h: lax.cumsum(h, 0, reverse=True),
    "conv_general_dilated": convolved,
    "dot_general": lambda h: jnp.tanh(
        jnp.dot(h.T, h, precision="high", preferred_element_type=jnp.float32).T @ h.T
    ).T,
    "gather": lambda h: h.at[jnp.array([1, 0, 2, 2])].get(
        mode="clip", indices_are_sorted=True
    ),
    "scatter-add": lambda h: h.at[jnp.array([1, 0, 2, 2])].add(
        h, mode="drop", unique_indices=True
    ),
    "reduce_window_max": lambda h: lax.reduce_window(
        h, -jnp.inf, lax.max, (2, 1), (1, 1), [(0, 1), (0, 0)], (1, 1), (1, 1)
    ),
    "reduce_precision": lambda h: lax.reduce_precision(h, 5, 7),
    "approx_top_k": lambda h: jnp.tile(
        lax.approx_max_k(h.T, 2, recall_target=0.9)[0].T, (2, 1)
    ),
    "convert_element_type": lambda h: h.astype(jnp.bfloat16).astype(h.dtype),
}  # fmt: skip


@pytest.mark.parametrize("name", SAYS)
def test_what_an_equation_says_stays(name):
    """Its parameters are those of the same function with narrow weights."""
    hidden = SAYS[name]

    def of(jaxpr: Any) -> list[dict[str, Any]]:
        found = []
        for eqn in jaxpr.eqns:
            inner = jax.tree.leaves([*eqn.params.values()], is_leaf=is_jaxpr)
            for value in filter(is_jaxpr, inner):
                found += of(getattr(value, "jaxpr", value))
            if eqn.primitive.name == name:
                found.append({k: v for k, v in eqn.params.items() if is_plain(v)})
        return found

    def program(run: Any, p: Any) -> list[dict[str, Any]]:
        return of(jax.make_jaxpr(run)(p).jaxpr)

    found = program(lambda net: ms.slice_apply(net, X, 0.25), upgraded(hidden))
    expected = program(lambda p: by_hand(hidden, p), NARROW)
    assert expected and found == expected


def is_jaxpr(x: Any) -> bool:
    return hasattr(getattr(x, "jaxpr", x), "eqns")


def is_plain(x: Any) -> bool:
    """Whether a parameter is no program and no function of one."""
    leaves = jax.tree.leaves(x, is_leaf=is_jaxpr)
    return not any(is_jaxpr(leaf) or hasattr(leaf, "call_wrapped") for leaf in leaves)
