"""The table of rules: each primitive, sliced, against the same function run narrow.

The functions take every size from their arguments, so the narrow network by hand is the
function itself on weights that NumPy sliced. `H` stands for the hidden axis of 16.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import mslice_jax as ms
from mslice_jax.rules import RULES

H = 16
X = (4, 5)


@dataclasses.dataclass(frozen=True)
class Case:
    """A function of weights w1 (5, H), w2 (H, 3) and more, and an input (4, 5)."""

    primitive: str
    hidden: Callable[..., Any]  # what stands between the two layers
    more: dict[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)


def relu_rule(h, p):
    return jax.nn.relu(h)


def scan(h, p):
    def step(carry, x):
        return jnp.tanh(carry @ p["w"] + x), carry.sum(-1)

    carry, sums = lax.scan(step, h, jnp.stack([h, 2 * h]))
    return carry + sums[0][:, None]


def while_loop(h, p):
    def more(carry):
        return carry[0] < 3

    return lax.while_loop(more, lambda c: (c[0] + 1, jnp.tanh(c[1] @ p["w"])), (0, h))[
        1
    ]


def cond(h, p):
    return lax.cond(h.sum() > 0, lambda h: h * 2, lambda h: h @ p["w"], h)


def table(h, p):
    return h + jnp.take(p["t"], jnp.array([2, 0, 1, 1]), axis=0)


def written(h, p):
    return p["t"].at[jnp.array([2, 0, 1, 3])].add(h)[:4]


def window(h, p):
    image = jnp.broadcast_to(h[:, None], (h.shape[0], 6, h.shape[1]))
    return lax.reduce_window(
        image, -jnp.inf, lax.max, (1, 2, 1), (1, 2, 1), "SAME"
    ).sum(1)


def depthwise(h, p):
    image = jnp.broadcast_to(h[:, None], (h.shape[0], 6, h.shape[1]))
    out = lax.conv_general_dilated(
        image, p["k"], (1,), "SAME", dimension_numbers=("NHC", "HIO", "NHC"),
        feature_group_count=h.shape[1],
    )  # fmt: skip
    return out.mean(1)


def iota(h, p):
    return h * lax.broadcasted_iota(jnp.float32, h.shape, 1)


def unbiased(h, p):
    return h / jnp.std(h, axis=-1, ddof=1, keepdims=True)


def rms(h, p):
    return h * lax.rsqrt(jnp.mean(jnp.square(h), -1, keepdims=True) + 1e-6)


def variance_by_reciprocal(h, p):
    mean = h.sum(-1, keepdims=True) * (1 / h.shape[-1])
    return h - mean


def gates(h, p):
    a, b = jnp.split(jnp.concatenate([h, 2 * h], axis=-1), 2, axis=-1)
    return jax.nn.sigmoid(a) * b


def slices(h, p):
    both = jnp.concatenate([h, h + 1], axis=-1)
    n = h.shape[-1]
    return both[:, n:] * both[:, :n]


def outer_and_back(h, p):
    flat = (h[:, None, :] * jnp.arange(1.0, 4.0)[None, :, None]).reshape(h.shape[0], -1)
    return flat.reshape(h.shape[0], 3, -1).sum(1)


def padded(h, p):
    return jnp.pad(h, ((0, 0), (h.shape[1], 0)))[:, h.shape[1] :]


CASES = [
    Case("add", lambda h, p: h + p["b"][None], {"b": ("H",)}),
    Case("select_n", lambda h, p: jnp.where(h > 0, h, p["b"][None]), {"b": ("H",)}),
    Case("clamp", lambda h, p: lax.clamp(0.0, h, 6.0)),
    Case("convert_element_type", lambda h, p: h.astype(jnp.bfloat16).astype(h.dtype)),
    Case("custom_jvp_call", relu_rule),
    Case("remat2", lambda h, p: jax.checkpoint(lambda h: jnp.tanh(h @ p["w"]))(h), {"w": ("H", "H")}),  # noqa: E501
    Case("jit", lambda h, p: jax.jit(lambda h: jax.nn.silu(h))(h)),
    Case("scan", scan, {"w": ("H", "H")}),
    Case("while", while_loop, {"w": ("H", "H")}),
    Case("cond", cond, {"w": ("H", "H")}),
    Case("gather", table, {"t": (3, "H")}),
    Case("scatter-add", written, {"t": (6, "H")}),
    Case("dynamic_slice", lambda h, p: h + lax.dynamic_slice_in_dim(p["t"], 1, 4), {"t": (6, "H")}),  # noqa: E501
    Case("dynamic_update_slice", lambda h, p: lax.dynamic_update_slice_in_dim(p["t"], h, 1, 0)[:4], {"t": (6, "H")}),  # noqa: E501
    Case("reduce_window_max", window),
    Case("conv_general_dilated", depthwise, {"k": (3, 1, "H")}),
    Case("iota", iota),
    Case("div", unbiased),
    Case("div", rms),
    Case("mul", variance_by_reciprocal),
    Case("reduce_max", lambda h, p: h - h.max(-1, keepdims=True)),
    Case("concatenate", gates),
    Case("slice", slices),
    Case("reshape", outer_and_back),
    Case("tile", lambda h, p: jnp.tile(h, (1, 3)).reshape(h.shape[0], 3, -1)[:, 0]),
    Case("pad", padded),
    Case("transpose", lambda h, p: (h.T * p["b"][:, None]).T, {"b": ("H",)}),
    Case("unstack", lambda h, p: jnp.unstack(jnp.stack([h, 2 * h], 1), axis=1)[1]),
    Case("random_bits", lambda h, p: h * (jax.random.uniform(jax.random.key(0), h.shape) < 2)),  # noqa: E501
    Case("squeeze", lambda h, p: jnp.squeeze(h[:, None], 1)),
    Case("sort", lambda h, p: lax.sort(h, dimension=0)),
    Case("cumsum", lambda h, p: jnp.cumsum(h, axis=0)),
    Case("rev", lambda h, p: h[::-1]),
    Case("argmax", lambda h, p: h * jnp.argmax(h, 0)[None]),
    Case("stop_gradient", lambda h, p: h + lax.stop_gradient(h)),
    Case("dot_general", lambda h, p: jnp.einsum("bh,bk,hk->bk", h, h, p["w"]), {"w": ("H", "H")}),  # noqa: E501
]  # fmt: skip


def function(case):
    def apply(p, x):
        return case.hidden(x @ p["w1"], p) @ p["w2"]

    return apply


def weights(case, size=H):
    shapes = {"w1": (5, "H"), "w2": ("H", 3), **case.more}
    rng = np.random.default_rng(0)
    full = {
        name: rng.normal(size=[H if n == "H" else n for n in shape]).astype(np.float32)
        for name, shape in shapes.items()
    }
    return {
        name: full[name][tuple(slice(size) if n == "H" else slice(None) for n in shape)]
        for name, shape in shapes.items()
    }


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.primitive)
def test_rule(case):
    assert case.primitive in RULES
    x = np.random.default_rng(1).normal(size=X).astype(np.float32)
    fn = function(case)
    net = ms.upgrade(fn, weights(case), x, rates=(0.25, 1.0))
    assert {g.size for g in net.plan.groups.values()} == {H}
    for rate, size in ((0.25, 4), (1.0, 16)):
        sliced = ms.slice_apply(net, x, rate)
        by_hand = jax.jit(fn)(weights(case, size), x)
        np.testing.assert_allclose(sliced, by_hand, rtol=2e-6, atol=2e-6)
    np.testing.assert_array_equal(
        ms.slice_apply(net, x, 1.0), jax.jit(fn)(weights(case), x)
    )


FIXES = {
    "sort": lambda h: lax.sort(h, dimension=1),
    "cumsum": lambda h: jnp.cumsum(h, axis=1),
    "rev": lambda h: h[:, ::-1],
    "argmax": lambda h: h * jnp.argmax(h, 1, keepdims=True),
    "slice": lambda h: h * jnp.repeat(h[:, ::2], 2, axis=1),
    "top_k": lambda h: h * lax.top_k(h, 1)[0],
    "dynamic_slice": lambda h: h * lax.dynamic_slice_in_dim(h, 3, 1, axis=1),
    "gather": lambda h: h * h[:, jnp.array([1])],
    "fft": lambda h: jnp.fft.fft(h).real,
    "unstack": lambda h: jnp.stack(jnp.unstack(h, axis=1), axis=1),
}


@pytest.mark.parametrize("name", FIXES)
def test_what_depends_on_the_order_is_fixed_and_says_so(name):
    def apply(p, x):
        return FIXES[name](x @ p["w1"]) @ p["w2"]

    case = Case(name, lambda h, p: h)
    with pytest.raises(ms.PlanError) as error:
        ms.upgrade(apply, weights(case), np.ones(X, np.float32), rates=(0.5, 1.0))
    assert f"{name}:" in str(error.value)
    assert "test_rules.py" in str(error.value)


def test_tiled_copies_all_narrow():
    """w2 reads two copies of the hidden axis: rows 0..3 and 16..19 of 32 at r = 1/4."""

    def apply(p, x):
        return jnp.tile(x @ p["w1"], (1, 2)) @ p["w2"]

    rng = np.random.default_rng(0)
    p = {"w1": rng.normal(size=(5, H)), "w2": rng.normal(size=(2 * H, 3))}
    x = rng.normal(size=X).astype(np.float32)
    net = ms.upgrade(apply, p, x, rates=(0.25, 1.0))
    h = x @ p["w1"][:, :4]
    expected = h @ p["w2"][:4] + h @ p["w2"][16:20]
    np.testing.assert_allclose(ms.slice_apply(net, x, 0.25), expected, rtol=1e-5)


@pytest.mark.parametrize("how", ["one_hot", "eye"])
def test_what_an_index_picks_from_stays_whole(how):
    """Tokens above a narrow vocabulary would have no embedding."""

    def apply(p, tokens):
        codes = jax.nn.one_hot(tokens, 11) if how == "one_hot" else jnp.eye(11)[tokens]
        return jnp.tanh(codes @ p["table"]) @ p["w"]

    p = {"table": np.ones((11, H), np.float32), "w": np.ones((H, 3), np.float32)}
    net = ms.upgrade(apply, p, np.array([1, 9, 10]), rates=(0.25, 1.0))
    assert {group.size for group in net.plan.groups.values()} == {H}
    assert net.plan.slice(net.variables, 0.25)["table"].shape == (11, 4)


def test_captured_constant_is_sliced_like_a_parameter():
    """A position table that the function closes over: rows 0..3 of an H-wide table."""
    positions = np.random.default_rng(2).normal(size=(4, H)).astype(np.float32)

    def apply(p, x, size=H):
        return jnp.tanh(x @ p["w1"] + positions[:, :size]) @ p["w2"]

    case = Case("const", lambda h, p: h)
    x = np.ones(X, np.float32)
    net = ms.upgrade(lambda p, x: apply(p, x), weights(case), x, rates=(0.25, 1.0))
    by_hand = apply(weights(case, 4), x, size=4)
    np.testing.assert_allclose(ms.slice_apply(net, x, 0.25), by_hand, rtol=1e-6)


def test_every_rule_has_a_picture():
    for name, rule in RULES.items():
        assert rule.picture, name
