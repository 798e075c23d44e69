"""The factors of a merged axis that narrow, against weights cut by NumPy.

Channels of an image narrow, not its rows; heads narrow, not the head size; both factors
narrow where each is an axis of units by itself.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import mslice_jax as ms

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def check(function, full, narrow, x, rate=0.5):
    """Values and gradients are those of the function on the weights cut by hand."""
    net = ms.upgrade(function, full, x, rates=(rate, 1.0))
    small = dict(ms.extract(net, rate).variables)
    jax.tree.map(np.testing.assert_array_equal, small, narrow)
    got = ms.slice_apply(net, x, rate)
    np.testing.assert_allclose(got, function(narrow, x), rtol=1e-4, atol=1e-4)
    grads = jax.grad(lambda net: (ms.slice_apply(net, x, rate) ** 2).sum())(net)
    by_hand = jax.grad(lambda p: (function(p, x) ** 2).sum())(narrow)
    for key, want in by_hand.items():
        got = net.plan.slice(grads.variables, rate)[key]
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-3)
    orders = {n: RNG.permutation(g.size) for n, g in net.plan.groups.items()}
    permuted = ms.slice_apply(net.permute(orders), x, 1.0)
    np.testing.assert_allclose(permuted, function(full, x), rtol=1e-4, atol=1e-4)
    return net


MATRIX = normal(6, 3)
DCT = np.cos(np.pi * np.outer(np.arange(6) + 0.5, np.arange(3)) / 6).astype(np.float32)


def repeated(h):
    b, height, width, channels = h.shape
    h = jnp.broadcast_to(
        h[:, :, None, :, None], (b, height, 2, width, 2, channels)
    ).reshape(b, 2 * height, 2 * width, channels)
    return h[:, ::4, ::4]


# From 6 x 6 pixels to 3 x 3.
PICTURES = {
    "bilinear": lambda h: jax.image.resize(h, (2, 3, 3, h.shape[-1]), "bilinear"),
    "nearest": lambda h: jax.image.resize(h, (2, 3, 3, h.shape[-1]), "nearest"),
    "cubic": lambda h: jax.image.resize(h, (2, 3, 3, h.shape[-1]), "cubic"),
    "matrix": lambda h: jnp.einsum("bhwc,hi,wj->bijc", h, MATRIX, MATRIX),
    "cosines": lambda h: jnp.einsum("bhwc,hi,wj->bijc", h, DCT, DCT),
    "own cosines": lambda h: jnp.einsum(
        "bhwc,hi,wj->bijc",
        h,
        jnp.cos((jnp.arange(6)[:, None] + 0.5) * jnp.arange(3)),
        jnp.cos((jnp.arange(6)[:, None] + 0.5) * jnp.arange(3)),
    ),
    "repeated": repeated,
    "positions added": lambda h: (
        jax.image.resize(h, (2, 3, 3, h.shape[-1]), "linear")
        + jnp.linspace(0.0, 1.0, 9).reshape(3, 3, 1)
    ),
}


@pytest.fixture(autouse=True)
def as_users_write():
    with jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.parametrize("name", PICTURES)
def test_channels_narrow_and_rows_stay(name):
    full = {"k": normal(3, 3, 3, 8), "o": normal(72, 16), "c": normal(16, 2)}
    image = normal(2, 6, 6, 3)

    def f(p, x):
        numbers = ("NHWC", "HWIO", "NHWC")
        h = lax.conv_general_dilated(
            x, p["k"], (1, 1), "SAME", dimension_numbers=numbers
        )
        h = PICTURES[name](jnp.tanh(h)).reshape(2, -1)
        return jnp.tanh(h @ p["o"]) @ p["c"]

    narrow = {
        "k": full["k"][..., :4],
        "o": full["o"].reshape(9, 8, 16)[:, :4, :8].reshape(36, 8),
        "c": full["c"][:8],
    }
    check(f, full, narrow, image)


def test_rows_made_of_the_input_by_a_constant_stay():
    full = {"w": normal(27, 16), "c": normal(16, 2)}

    def f(p, x):
        x = jnp.einsum("bhwc,hi,wj->bijc", x, MATRIX, MATRIX)
        return jnp.tanh(x.reshape(2, -1) @ p["w"]) @ p["c"]

    narrow = {"w": full["w"][:, :8], "c": full["c"][:8]}
    net = check(f, full, narrow, normal(2, 6, 6, 3))
    reasons = {one["axis"]: one["reason"] for one in ms.report(net).to_dict()["fixed"]}
    assert "constant" in reasons["w:0"]


def test_tokens_that_a_constant_mixes_stay():
    full = {"a": normal(4, 8), "o": normal(24, 16), "c": normal(16, 2)}

    def f(p, x):
        h = jnp.einsum("btd,ts->bsd", jnp.tanh(x @ p["a"]), MATRIX)
        return jnp.tanh(h.reshape(len(x), -1) @ p["o"]) @ p["c"]

    narrow = {
        "a": full["a"][:, :4],
        "o": full["o"].reshape(3, 8, 16)[:, :4, :8].reshape(12, 8),
        "c": full["c"][:8],
    }
    check(f, full, narrow, normal(2, 6, 4))


def test_features_narrow_and_elements_mixed_by_a_constant_stay():
    # As in networks over the elements of a group: a kernel for every element.
    full = {"a": normal(4, 16), "b": normal(10, 16, 8), "c": normal(8, 2)}
    irreps = normal(7, 10)

    def f(p, x):
        h = jnp.einsum("bgi,gr->bri", jnp.tanh(x @ p["a"]), irreps)
        return jnp.tanh(jnp.einsum("bri,rio->bo", h, p["b"])) @ p["c"]

    narrow = {
        "a": full["a"][:, :8],
        "b": full["b"][:, :8, :4],
        "c": full["c"][:4],
    }
    check(f, full, narrow, normal(3, 7, 4))


@pytest.mark.parametrize("constant_first", [False, True])
def test_a_kernel_that_a_constant_transforms_narrows_in_and_out(constant_first):
    full = {"a": normal(4, 16), "b": normal(6, 16, 10), "c": normal(6, 2)}
    basis = normal(10, 7)

    def f(p, x):
        h = jnp.tanh(x @ p["a"])
        if constant_first:
            kernel = jnp.tensordot(basis, p["b"], axes=(0, 2)).transpose(1, 2, 0)
        else:
            kernel = jnp.tensordot(p["b"], basis, axes=1)
        return jnp.tanh(jnp.einsum("btr,otr->bo", h[..., None] * ROW, kernel)) @ p["c"]

    def by_hand(p, x):
        kernel = np.einsum("otg,gr->otr", p["b"], basis[: p["b"].shape[2]])
        h = np.tanh(x @ p["a"])[..., None] * ROW
        return np.tanh(np.einsum("btr,otr->bo", h, kernel)) @ p["c"]

    x = normal(3, 4)
    net = ms.upgrade(f, full, x, rates=(0.5, 1.0))
    narrow = {"a": full["a"][:, :8], "b": full["b"][:3, :8, :5], "c": full["c"][:3]}
    small = dict(ms.extract(net, 0.5).variables)
    jax.tree.map(np.testing.assert_array_equal, small, narrow)
    got = ms.slice_apply(net, x, 0.5)
    np.testing.assert_allclose(got, by_hand(narrow, x), rtol=1e-3, atol=1e-3)


ROW = normal(7)


def outer(p, x):
    left, right = jnp.tanh(x @ p["l"]), jnp.tanh(x @ p["r"])
    both = left[:, :, None] * right[:, None, :]
    return jnp.tanh(both.reshape(len(x), -1) @ p["o"]) @ p["c"]


def outer_by_einsum(p, x):
    left, right = jnp.tanh(x @ p["l"]), jnp.tanh(x @ p["r"])
    both = jnp.einsum("bi,bj->bij", left, right).reshape(len(x), -1)
    return jnp.tanh(both @ p["o"]) @ p["c"]


def outer_by_vmap(p, x):
    left, right = jnp.tanh(x @ p["l"]), jnp.tanh(x @ p["r"])
    both = jax.vmap(lambda a, b: jnp.outer(a, b).ravel())(left, right)
    return jnp.tanh(both @ p["o"]) @ p["c"]


@pytest.mark.parametrize("pooling", [outer, outer_by_einsum, outer_by_vmap])
def test_both_factors_of_an_outer_product(pooling):
    full = {"l": normal(4, 8), "r": normal(4, 6), "o": normal(48, 16)}
    full["c"] = normal(16, 2)
    narrow = {
        "l": full["l"][:, :4],
        "r": full["r"][:, :3],
        "o": full["o"].reshape(8, 6, 16)[:4, :3, :8].reshape(12, 8),
        "c": full["c"][:8],
    }
    net = check(pooling, full, narrow, normal(3, 4))
    assert ms.report(net).to_dict()["products"] == {"o:0": "(8* x 6*)"}
    assert "o:0 = (8* x 6*)" in str(ms.report(net))
    mixed = ms.upgrade(pooling, full, normal(3, 4), rates=(0.5, 1.0))
    one = mixed.plan.slice(full, mixed.plan.resolve({"r:1": 0.5, "l:1": 1.0}))
    assert one["o"].shape == (24, 16) and one["r"].shape == (4, 3)


def kan_layer(p, x):
    """Splines on every edge, with the coefficients of all edges in one axis."""
    batch, (outs, ins) = len(x), p["r"].shape
    edges = jnp.einsum("ij,k->ikj", x, jnp.ones(outs)).reshape(batch, outs * ins).T
    basis = jnp.stack([jnp.tanh(edges) ** i for i in range(4)], 1)
    y = jnp.einsum("ij,ijk->ik", p["c"], basis).T * p["r"].reshape(1, -1)
    return y.reshape(batch, outs, ins).sum(2)


@pytest.mark.nightly
def test_both_axes_of_edges():
    sizes = [(8, 3), (16, 8), (2, 16)]
    full, narrow = {}, {}
    for i, (outs, ins) in enumerate(sizes):
        o = outs // 2 if i < 2 else outs
        n = ins // 2 if i else ins
        c, r = normal(outs * ins, 4), normal(outs, ins)
        full |= {f"c{i}": c, f"r{i}": r}
        narrow[f"c{i}"] = c.reshape(outs, ins, 4)[:o, :n].reshape(-1, 4)
        narrow[f"r{i}"] = r[:o, :n]

    def f(p, x):
        for i in range(3):
            x = kan_layer({"c": p[f"c{i}"], "r": p[f"r{i}"]}, x)
        return x

    net = check(f, full, narrow, 0.3 * normal(5, 3))
    assert ms.report(net).to_dict()["products"] == {"c1:0": "(16* x 8*)"}


HEADS, SIZE = 4, 6


def attention(p, x, norm=False, slopes=False):
    def heads(w):
        return (x @ w).reshape(*x.shape[:2], HEADS_OF[len(w[0])], SIZE)

    q, k, v = heads(p["q"]), heads(p["k"]), heads(p["v"])
    if norm:
        q, k = q * p["s"], k * p["s"]
    scores = jnp.einsum("bthd,bshd->bhts", q, k)
    if slopes:
        distance = jnp.arange(5.0)[:, None] - jnp.arange(5.0)
        scores += SLOPES[: q.shape[2], None, None] * distance
    h = jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(scores), v)
    return jnp.tanh(h.reshape(*x.shape[:2], -1)) @ p["o"]


HEADS_OF = {HEADS * SIZE: HEADS, HEADS * SIZE // 2: HEADS // 2}
SLOPES = 2.0 ** -np.arange(1.0, HEADS + 1)


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("slopes", [False, True])
def test_heads_narrow_and_their_size_stays(norm, slopes):
    full = {name: normal(3, HEADS * SIZE) for name in "qkv"}
    full |= {"o": normal(HEADS * SIZE, 2), "s": normal(SIZE)}
    narrow = {name: full[name][:, : HEADS * SIZE // 2] for name in "qkv"}
    narrow |= {"o": full["o"][: HEADS * SIZE // 2], "s": full["s"]}

    def f(p, x):
        return attention(p, x, norm, slopes)

    net = check(f, full, narrow, normal(2, 5, 3))
    assert ms.report(net).to_dict()["products"] == {}


def test_heads_as_an_axis_of_the_kernel():
    full = {name: normal(3, HEADS, SIZE) for name in "qkv"}
    full |= {"b": normal(HEADS, SIZE), "o": normal(HEADS, SIZE, 2)}

    def f(p, x):
        q, k, v = (jnp.einsum("btm,mhd->bthd", x, p[name]) for name in "qkv")
        scores = jnp.einsum("bthd,bshd->bhts", q + p["b"], k)
        h = jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(scores), v)
        return jnp.einsum("bthd,hdm->btm", jnp.tanh(h), p["o"])

    narrow = {name: full[name][:, : HEADS // 2] for name in "qkv"}
    narrow |= {name: full[name][: HEADS // 2] for name in "bo"}
    check(f, full, narrow, normal(2, 5, 3))


def test_groups_of_a_norm_narrow_whole():
    full = {"w": normal(4, 32), "s": normal(8, 4), "o": normal(32, 2)}

    def f(p, x):
        groups = len(p["s"])
        h = (x @ p["w"]).reshape(len(x), groups, -1)
        h = h / jnp.sqrt((h**2).mean(-1, keepdims=True)) * p["s"]
        return jnp.tanh(h.reshape(len(x), -1)) @ p["o"]

    narrow = {"w": full["w"][:, :16], "s": full["s"][:4], "o": full["o"][:16]}
    check(f, full, narrow, normal(3, 4))


@pytest.mark.parametrize("residual", [False, True])
def test_channels_of_shuffled_groups(residual):
    """A shuffle reorders units; the inner axis narrows where groups cannot."""
    groups, size = 4, 8
    full = {
        "a": normal(5, groups * size),
        "v": normal(groups, size, size),
        "w": normal(groups, size, size),
        "c": normal(groups * size, 3),
    }
    half = size // 2
    cut_in = full["a"].reshape(5, groups, size)[..., :half].reshape(5, -1)
    cut_out = full["c"].reshape(groups, size, 3)[:, :half].reshape(-1, 3)
    # Units of the middle are (4 of the groups x 2) x 4; of the 2 the first is kept.
    narrow = {
        "a": cut_in,
        "v": full["v"][:, :half].reshape(groups, half, 4, 2)[..., 0],
        "w": full["w"].reshape(groups, 2, 4, size)[:, 0, :, :half],
        "c": cut_out,
    }

    def grouped(h, w):
        h = h.reshape(len(h), groups, -1)
        return jnp.einsum("bgi,gio->bgo", h, w).reshape(len(h), -1)

    def f(p, x):
        h = jnp.tanh(x @ p["a"])
        y = jnp.tanh(grouped(h, p["v"]))
        y = y.reshape(len(x), groups, -1).swapaxes(1, 2).reshape(len(x), -1)
        y = grouped(y, p["w"])
        return jnp.tanh(h + y if residual else y) @ p["c"]

    if residual:
        check(f, full, narrow, normal(3, 5))
        return
    net = ms.upgrade(f, full, normal(3, 5), rates=(0.5, 1.0))
    kept = ms.report(net).to_dict()["parameters"]
    assert kept["0.5"] / kept["1.0"] < 0.45


def test_two_axes_of_a_contraction_may_be_the_same_units():
    full = {"a": normal(4, 12), "m": normal(12, 12), "c": normal(1, 3)}

    def f(p, x):
        h = jnp.tanh(x @ p["a"])
        both = jnp.einsum("bi,bj->bij", h, jnp.cos(h))
        return jnp.einsum("bij,ij->b", both, p["m"])[:, None] @ p["c"]

    narrow = {"a": full["a"][:, :6], "m": full["m"][:6, :6], "c": full["c"]}
    check(f, full, narrow, normal(5, 4))


def squared(h):
    return (h[:, :, None] * h[:, None, :]).reshape(len(h), -1)


def squared_by_contraction(h):
    """Bilinear pooling over an image's pixels: channels times their cosines."""
    pixels = h[:, None, :] * ROW[None, :, None]
    return jnp.einsum("bpi,bpj->bij", pixels, jnp.cos(pixels)).reshape(len(h), -1)


@pytest.mark.parametrize("pooling", [squared, squared_by_contraction])
def test_both_factors_of_an_outer_product_of_units_with_themselves(pooling):
    full = {"a": normal(4, 8), "o": normal(64, 16), "c": normal(16, 2)}
    narrow = {
        "a": full["a"][:, :4],
        "o": full["o"].reshape(8, 8, 16)[:4, :4, :8].reshape(16, 8),
        "c": full["c"][:8],
    }

    def f(p, x):
        return jnp.tanh(pooling(jnp.tanh(x @ p["a"])) @ p["o"]) @ p["c"]

    net = check(f, full, narrow, normal(3, 4))
    assert ms.report(net).to_dict()["products"] == {"o:0": "(8* x 8*)"}
    x = normal(3, 4)
    moved = ms.slice_apply(ms.reorder(net), x, 1.0)
    np.testing.assert_allclose(moved, f(full, x), rtol=1e-4, atol=1e-4)
