"""Entries that are distinguished by position are fixed, in every spelling.

A vocabulary of 16 tokens is looked up by a code for each token. Only the width of the
embedding narrows: the expected values are rows of tables cut by NumPy. Axes that are
only scaled by position narrow, as with a constant.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import mslice_jax as ms
from mslice_jax.core.reading import walk
from mslice_jax.core.rules.order import PLACE, SAME, line, of_constant
from mslice_jax.core.solver import Equations

RNG = np.random.default_rng(0)
TOKENS, UNITS, KEPT = 16, 12, 3
IDS = np.array([0, 3, 8, 13, 15], np.int32)
EYE = np.eye(TOKENS, dtype=np.float32)
PLACES = np.arange(TOKENS)
BITS = RNG.normal(size=(4, UNITS)).astype(np.float32)


@pytest.fixture(autouse=True)
def as_users_write():
    with jax.numpy_rank_promotion("allow"):
        yield


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def relu_code(ids, places):
    return jax.nn.relu(1 - jnp.abs(ids[:, None] - places))


def scanned(ids, n):
    def step(found, place):
        here = (ids.astype(jnp.float32) == place).astype(jnp.float32)
        return found + here[:, None] * jnp.eye(n)[place.astype(int)], None

    return lax.scan(step, jnp.zeros((len(ids), n)), jnp.arange(n, dtype=jnp.float32))[0]


def by_branch(ids, n):
    def code(_):
        return (ids[:, None] == jnp.arange(n, dtype=jnp.float16)).astype(jnp.float32)

    return lax.cond(ids.sum() > -1, code, lambda _: jnp.zeros((len(ids), n)), 0)


def parts(n):
    """The positions, concatenated from two ranges."""
    return jnp.concatenate([jnp.arange(0.0, 5.0), jnp.arange(5.0, n)])


def floats(x):
    return jnp.asarray(x, jnp.float32)


CODES = {
    "float arange": lambda i, n: floats(floats(i)[:, None] == jnp.arange(n * 1.0)),
    "cast": lambda i, n: floats(floats(i)[:, None] == floats(jnp.arange(n))),
    "half": lambda i, n: floats(
        i[:, None].astype(jnp.bfloat16) == jnp.arange(n).astype(jnp.bfloat16)
    ),
    "scaled": lambda i, n: floats(i[:, None] / 4 == jnp.arange(n) / 4),
    "not less, not greater": lambda i, n: floats(
        ~((i[:, None] < jnp.arange(n * 1.0)) | (i[:, None] > jnp.arange(n * 1.0)))
    ),
    "captured": lambda i, n: floats(i[:, None] == PLACES),
    "captured floats": lambda i, n: floats(floats(i)[:, None] == PLACES * 1.0),
    "captured backwards": lambda i, n: floats(n - 1 - i[:, None] == PLACES[::-1]),
    "captured shuffled": lambda i, n: (
        floats(floats(i)[:, None] == floats(PLACES[::-1].reshape(4, 4).T.reshape(-1)))
        @ EYE[PLACES[::-1].reshape(4, 4).T.reshape(-1)]
    ),
    "rows of a captured eye": lambda i, n: jnp.asarray(EYE)[i],
    "rows of an integer eye": lambda i, n: floats(jnp.asarray(EYE.astype(int))[i]),
    "rows of a boolean eye": lambda i, n: floats(jnp.asarray(EYE > 0)[i]),
    "take from a captured eye": lambda i, n: jnp.take(EYE, i, axis=0),
    "columns of a captured eye": lambda i, n: jnp.take(EYE, i, axis=1).T,
    "slices of a captured eye": lambda i, n: jax.vmap(
        lambda one: lax.dynamic_slice(jnp.asarray(EYE), (one, 0), (1, n))[0]
    )(i),
    "rows of an eye": lambda i, n: jnp.eye(n)[i],
    "rows of a float eye": lambda i, n: floats(
        jnp.arange(n * 1.0)[:, None] == jnp.arange(n * 1.0)
    )[i],
    "rows of an eye by arithmetic": lambda i, n: relu_code(
        jnp.arange(n * 1.0), jnp.arange(n * 1.0)
    )[i],
    "a permutation matrix": lambda i, n: jnp.asarray(EYE[::-1])[n - 1 - i],
    "concatenated": lambda i, n: floats(i[:, None] == parts(n)),
    "rolled": lambda i, n: floats(
        i[:, None] == jnp.roll(jnp.roll(jnp.arange(1.0 * n), 3), -3)
    ),
    "running sum": lambda i, n: floats(i[:, None] == jnp.cumsum(jnp.ones(n)) - 1),
    "linspace": lambda i, n: floats(i[:, None] == jnp.linspace(0.0, n - 1, n)),
    "relu": lambda i, n: relu_code(i, jnp.arange(n)),
    "relu of floats": lambda i, n: relu_code(floats(i), jnp.linspace(0.0, n - 1, n)),
    "relu of captured": lambda i, n: relu_code(floats(i), floats(PLACES)),
    "clip": lambda i, n: jnp.clip(1 - jnp.abs(i[:, None] - jnp.arange(n * 1.0)), 0, 1),
    "sinc": lambda i, n: jnp.sinc(floats(i)[:, None] - jnp.arange(n * 1.0)),
    "exp": lambda i, n: jnp.exp(-40.0 * (i[:, None] - jnp.arange(n * 1.0)) ** 2),
    "softmax": lambda i, n: jax.nn.softmax(
        -40.0 * jnp.square(i[:, None] - jnp.arange(n * 1.0))
    ),
    "power": lambda i, n: 0.0 ** jnp.abs(i[:, None] - jnp.arange(n * 1.0)),
    "difference": lambda i, n: floats(i[:, None] - jnp.arange(n) == 0),
    "xor": lambda i, n: 1 - jnp.minimum(floats(i[:, None] ^ jnp.arange(n)), 1),
    "a column": lambda i, n: floats(lax.reshape(jnp.arange(n), (n, 1)) == i).T,
    "close": lambda i, n: floats(jnp.isclose(i[:, None], jnp.arange(n * 1.0))),
    "repeated ids": lambda i, n: floats(
        jnp.repeat(i[:, None], n, axis=1) == jnp.arange(n * 1.0)
    ),
    "vmap": lambda i, n: jax.vmap(lambda one: floats(one == jnp.arange(n * 1.0)))(i),
    "outer": lambda i, n: floats(jnp.subtract.outer(i, jnp.arange(n * 1.0)) == 0),
    "jit": lambda i, n: jax.jit(lambda i, p: floats(i[:, None] == p))(
        i, jnp.arange(n * 1.0)
    ),
    "scan": scanned,
    "branch": by_branch,
}


@pytest.mark.parametrize("name", CODES)
def test_a_vocabulary_stays_whole(name):
    full = {"e": normal(TOKENS, UNITS), "w": normal(UNITS, 3)}

    def f(p, ids):
        return jnp.tanh(CODES[name](ids, TOKENS) @ p["e"]) @ p["w"]

    def expected(e, w):
        return np.tanh(e[IDS]) @ w

    np.testing.assert_allclose(
        f(full, IDS), expected(full["e"], full["w"]), rtol=1e-4, atol=1e-5
    )
    net = ms.upgrade(f, full, IDS, rates=(0.25, 1.0))
    narrow = {"e": full["e"][:, :KEPT], "w": full["w"][:KEPT]}
    jax.tree.map(np.testing.assert_array_equal, ms.extract(net, 0.25).variables, narrow)
    np.testing.assert_allclose(
        ms.slice_apply(net, IDS, 0.25),
        expected(narrow["e"], narrow["w"]),
        rtol=1e-4,
        atol=1e-5,
    )
    orders = {n: RNG.permutation(g.size) for n, g in net.plan.groups.items()}
    np.testing.assert_allclose(
        ms.slice_apply(net.permute(orders), IDS, 1.0),
        expected(full["e"], full["w"]),
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize(
    "bits",
    [
        lambda i: floats(i[:, None] >> jnp.arange(4) & 1),
        lambda i: floats(i[:, None] & (1 << jnp.arange(4)) > 0),
        lambda i: floats(i[:, None] // np.array([1, 2, 4, 8]) % 2),
        lambda i: jnp.floor(floats(i)[:, None] / 2.0 ** jnp.arange(4.0)) % 2,
        lambda i: floats((i[:, None] // (2 ** jnp.arange(4))).astype(int) % 2),
    ],
)
def test_bits_of_a_number_stay_whole(bits):
    full = {"e": normal(4, UNITS), "w": normal(UNITS, 3)}

    def f(p, ids):
        return jnp.tanh(bits(ids) @ p["e"]) @ p["w"]

    codes = np.array([[i >> k & 1 for k in range(4)] for i in IDS], np.float32)
    net = ms.upgrade(f, full, IDS, rates=(0.25, 1.0))
    want = np.tanh(codes @ full["e"][:, :KEPT]) @ full["w"][:KEPT]
    np.testing.assert_allclose(
        ms.slice_apply(net, IDS, 0.25), want, rtol=1e-4, atol=1e-5
    )


TIMES = np.linspace(0.1, 0.9, 5).astype(np.float32)
TABLE = np.sin(np.arange(5)[:, None] / 10 ** (np.arange(UNITS) / UNITS))
FREQUENCIES = normal(UNITS)


def sines(x, frequencies):
    return jnp.sin(x[:, None] * frequencies)


FEATURES = {
    "linspace": lambda x, n: sines(x, jnp.linspace(1.0, 6.0, n)),
    "geomspace": lambda x, n: sines(x, jnp.geomspace(1.0, 60.0, n)),
    "logspace": lambda x, n: sines(x, jnp.logspace(0.0, 1.0, n)),
    "linspace without its end": lambda x, n: sines(x, jnp.linspace(0, 9, n + 1)[1:]),
    "arange": lambda x, n: sines(x, jnp.arange(n)),
    "powers": lambda x, n: sines(x, 100.0 ** (-jnp.arange(n) / n)),
    "exp": lambda x, n: sines(x, jnp.exp(jnp.arange(0, 2 * n, 2) * (-4.0 / n))),
    "captured": lambda x, n: sines(x, FREQUENCIES),
    "captured places": lambda x, n: sines(x, np.arange(1.0, n + 1)),
    "phases": lambda x, n: sines(x, FREQUENCIES) + jnp.linspace(0.0, 1.0, n),
    "thresholds of a table": lambda x, n: sines(
        x, jnp.where(jnp.exp(-jnp.arange(n) / n) > 0.6, 1.5, 3.0)
    ),
    "random features": lambda x, n: jnp.cos(x[:, None] @ FREQUENCIES[None] + 0.5),
    "reversed": lambda x, n: sines(x, jnp.arange(1.0, n + 1)[::-1]),
    "laid together": lambda x, n: sines(
        x, jnp.concatenate([jnp.linspace(1.0, 2.0, 5), jnp.arange(2.0, n - 3)])
    ),
    "running product": lambda x, n: sines(x, jnp.cumprod(jnp.full(n, 0.9))),
    "rows of a table": lambda x, n: jnp.asarray(TABLE)[(x * 5).astype(int)],
    "table": lambda x, n: x[:, None] * jnp.ones(n) * TABLE,
    "interleaved": lambda x, n: sines(
        x, jnp.stack([jnp.arange(n // 2), jnp.sqrt(jnp.arange(n // 2))], -1).reshape(-1)
    ),
}


@pytest.mark.filterwarnings("ignore::mslice_jax.NumberWarning")  # 12 positions
@pytest.mark.parametrize("name", FEATURES)
def test_features_by_position_narrow_as_one_axis(name):
    full = {"w": normal(UNITS, 16), "v": normal(16, 3)}

    def f(p, x):
        return jnp.tanh(FEATURES[name](x, UNITS) @ p["w"]) @ p["v"]

    net = ms.upgrade(f, full, TIMES, rates=(0.25, 1.0))
    small = ms.extract(net, 0.25).variables
    assert small["w"].shape == (KEPT, 4)
    features = np.asarray(FEATURES[name](TIMES, UNITS))[:, :KEPT]
    want = np.tanh(features @ full["w"][:KEPT, :4]) @ full["v"][:4]
    np.testing.assert_allclose(
        ms.slice_apply(net, TIMES, 0.25), want, rtol=1e-4, atol=1e-5
    )
    moved = ms.slice_apply(ms.reorder(net), TIMES, 1.0)
    np.testing.assert_allclose(moved, f(full, TIMES), rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore::mslice_jax.NumberWarning")  # 12 positions
def test_a_table_that_is_added_to_features_narrows():
    full = {"w": normal(3, UNITS), "v": normal(UNITS, 2)}
    x = normal(4, 5, 3)

    def f(p, x):
        d = p["w"].shape[1]
        angles = jnp.arange(5)[:, None] / 100 ** (jnp.arange(UNITS) / UNITS)
        table = jnp.where(jnp.arange(5)[:, None] > 2, jnp.sin(angles), jnp.cos(angles))
        return jnp.tanh(x @ p["w"] + table[:, :d]) @ p["v"]

    net = ms.upgrade(f, full, x, rates=(0.25, 1.0))
    narrow = {"w": full["w"][:, :KEPT], "v": full["v"][:KEPT]}
    np.testing.assert_allclose(
        ms.slice_apply(net, x, 0.25), f(narrow, x), rtol=1e-5, atol=1e-5
    )


def grams(h):
    return h[:, :, None] * h[:, None, :]


def divergence(h, n):
    """The trace of a Jacobian, as in continuous flows."""

    def of_one(v):
        return jnp.trace(jax.jacfwd(lambda u: jnp.sin(u) * u.sum())(v))

    return h * jax.vmap(of_one)(h)[:, None]


def attention_to_others(h, n):
    scores = jnp.where(jnp.eye(n, dtype=bool), -jnp.inf, grams(h))
    return jnp.einsum("bij,bj->bi", jax.nn.softmax(scores), h)


IDENTITIES = {
    "letters": lambda h, n: jnp.einsum("bii->bi", grams(h)),
    "trace": lambda h, n: h * jnp.einsum("bii->b", grams(h))[:, None],
    "three letters": lambda h, n: jnp.einsum(
        "biii->bi", h[:, None, None] * grams(h)[..., None]
    ),
    "jnp.trace": lambda h, n: h * jax.vmap(jnp.trace)(grams(h))[:, None],
    "jnp.diag": lambda h, n: jax.vmap(jnp.diag)(h).sum(1),
    "times": lambda h, n: (grams(h) * jnp.eye(n)).sum(1),
    "contracted": lambda h, n: h @ jnp.eye(n),
    "scaled": lambda h, n: h @ jnp.diag(jnp.full(n, 2.0)),
    "added": lambda h, n: jnp.einsum("bij,bj->bi", grams(h) + 0.1 * jnp.eye(n), h),
    "reflected": lambda h, n: jnp.einsum(
        "bij,bj->bi", jnp.eye(n) - 0.3 * grams(h), jnp.cos(h)
    ),
    "others": lambda h, n: (grams(h) * (1 - jnp.eye(n))).sum(2),
    "others by not": lambda h, n: jnp.where(~jnp.eye(n, dtype=bool), grams(h), 0).sum(
        2
    ),
    "attention": attention_to_others,
    "divergence": divergence,
}


@pytest.mark.parametrize("name", IDENTITIES)
def test_an_identity_makes_two_axes_one(name):
    """An entry is distinguished from the others, but its position is not known."""
    full = {"a": normal(4, UNITS), "b": normal(UNITS, UNITS), "c": normal(UNITS, 3)}
    narrow = {"a": full["a"][:, :KEPT], "b": full["b"][:KEPT, :KEPT]}
    narrow["c"] = full["c"][:KEPT]
    x = normal(5, 4)

    def f(p, x):
        h = jnp.tanh(x @ p["a"])
        h = IDENTITIES[name](h, h.shape[1])
        return jnp.tanh(h @ p["b"]) @ p["c"]

    net = ms.upgrade(f, full, x, rates=(0.25, 1.0))
    jax.tree.map(
        np.testing.assert_array_equal, dict(ms.extract(net, 0.25).variables), narrow
    )
    np.testing.assert_allclose(
        ms.slice_apply(net, x, 0.25), f(narrow, x), rtol=1e-4, atol=1e-4
    )
    orders = {n: RNG.permutation(g.size) for n, g in net.plan.groups.items()}
    permuted = ms.slice_apply(net.permute(orders), x, 1.0)
    np.testing.assert_allclose(permuted, f(full, x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", IDENTITIES)
def test_units_beside_an_identity_narrow(name):
    """Read off the plan alone: 12 units twice, of which each keeps 3."""
    full = {"a": normal(4, UNITS), "b": normal(UNITS, UNITS), "c": normal(UNITS, 3)}

    def f(p, x):
        h = jnp.tanh(x @ p["a"])
        return jnp.tanh(IDENTITIES[name](h, UNITS) @ p["b"]) @ p["c"]

    net = ms.upgrade(f, full, normal(5, 4), rates=(0.25, 1.0), check=False)
    narrow = jax.eval_shape(lambda: net.plan.slice(full, 0.25))
    assert jax.tree.map(np.shape, narrow) == {"a": (4, 3), "b": (3, 3), "c": (3, 3)}
    assert not net.plan.fixed[0].reason.primitive  # inputs and outputs alone
    assert len(net.plan.fixed) == 2


PLACED = {
    "offset": lambda n: jnp.eye(n, k=1),
    "turned": lambda n: jnp.eye(n)[::-1],
    "running": lambda n: jnp.cumsum(jnp.eye(n), 1),
    "rolled": lambda n: jnp.roll(jnp.eye(n), 1, 0),
    "one entry set": lambda n: jnp.eye(n).at[0, 0].set(5.0),
    "triangle": lambda n: floats(jnp.arange(n)[:, None] >= jnp.arange(n)),
    "scaled by place": lambda n: jnp.eye(n) + 0.1 * jnp.arange(n)[:, None],
    "less a mean": lambda n: jnp.eye(n) - 1 / n,
    "plus a sine": lambda n: jnp.eye(n) + jnp.sin(jnp.float32(2.0)),
    "pairs": lambda n: floats((PLACES // 2)[:n, None] == (PLACES // 2)[:n]),
    "sines": lambda n: floats(
        jnp.sin(jnp.arange(n))[:, None] == jnp.sin(jnp.arange(n))
    ),
    "turned against": lambda n: floats(PLACES[:n, None] == PLACES[:n][::-1]),
}


@pytest.mark.parametrize("name", PLACED)
def test_other_matrices_of_positions_fix_the_axes_that_they_mix(name):
    full = {"a": normal(4, UNITS), "b": normal(UNITS, 8), "c": normal(8, 3)}
    x = normal(5, 4)

    def f(p, x):
        h = jnp.tanh(x @ p["a"]) @ PLACED[name](UNITS)
        return jnp.tanh(h @ p["b"]) @ p["c"]

    net = ms.upgrade(f, full, x, rates=(0.25, 1.0))
    narrow = {"a": full["a"], "b": full["b"][:, :2], "c": full["c"][:2]}
    jax.tree.map(
        np.testing.assert_array_equal, dict(ms.extract(net, 0.25).variables), narrow
    )


def test_a_column_of_positions_fixes_the_units_that_it_tells_apart():
    def network(p, x):
        h = (x @ p["w"]).T
        first = lax.reshape(jnp.arange(8), (8, 1)) < 4
        return jnp.where(first, h, -h).T @ p["o"]

    p = {"w": np.ones((5, 8), np.float32), "o": np.ones((8, 3), np.float32)}
    with pytest.raises(ms.PlanError, match="narrow"):
        ms.upgrade(network, p, np.ones((2, 5), np.float32), rates=(0.5, 1.0))


# Of ids and positions, (5, 16) each; by the names of the primitives.
SUMS = {
    "add": lax.add,
    "and": lax.bitwise_and,
    "atan2": lambda i, p: lax.atan2(floats(i), floats(p)),
    "clamp": lambda i, p: lax.clamp(p, i, jnp.full_like(i, 20)),
    "max": lax.max,
    "min": lax.min,
    "nextafter": lambda i, p: lax.nextafter(floats(i), floats(p)),
    "or": lax.bitwise_or,
    "rem": lambda i, p: lax.rem(i, p + 1),
    "shift_left": lax.shift_left,
    "shift_right_arithmetic": lax.shift_right_arithmetic,
    "shift_right_logical": lax.shift_right_logical,
    "sub": lax.sub,
    "xor": lax.bitwise_xor,
}


@pytest.mark.parametrize("name", SUMS)
def test_what_tells_positions_apart_stays_whole(name):
    """Read off the plan alone: ids beside positions; beside ones nothing is fixed."""
    full = {"e": normal(TOKENS, UNITS), "w": normal(UNITS, 3)}
    shapes = {}
    for beside in (jnp.arange, lambda n: jnp.ones(n, int)):

        def f(p, ids, beside=beside):
            i, places = jnp.broadcast_arrays(ids[:, None], beside(TOKENS)[None])
            return jnp.tanh(floats(SUMS[name](i, places)) @ p["e"]) @ p["w"]

        net = ms.upgrade(f, full, IDS, rates=(0.25, 1.0), check=False)
        shapes[beside] = jax.tree.map(np.shape, net.plan.slice(full, 0.25))["e"]
    assert list(shapes.values()) == [(TOKENS, KEPT), (TOKENS // 4, KEPT)]


def test_numbers_count_along_any_axis():
    for axis in range(3):
        positions = np.indices((4, 3, 5))[axis]
        order = of_constant(positions)
        assert order.along == tuple(PLACE if i == axis else SAME for i in range(3))
        assert order.counts
        assert not of_constant(positions**2).counts


def how(value):
    """What tells entries apart, by axis; whether they count, and are a code."""
    order = of_constant(value)
    return [along.name for along in order.along], order.counts, order.code


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.arange(3), (["PLACE"], True, False)),
        (np.arange(3.0) / 7 - 2, (["PLACE"], True, False)),
        (np.arange(2), (["PLACE"], False, False)),  # of two nothing is told
        (np.array([0, 1, 3]), (["PLACE"], False, False)),
        (np.array([0.0, 1.0, np.inf]), (["PLACE"], False, False)),
        (np.array([True, False, True]), (["PLACE"], False, False)),
        (np.full(3, 4), (["SAME"], False, False)),
        (np.ones((1, 3)), (["SAME", "SAME"], False, False)),
        (np.zeros((0, 3)), (["PLACE", "PLACE"], False, False)),
        (np.arange(3)[:, None] * np.ones((1, 2)), (["PLACE", "SAME"], True, False)),
        (np.eye(3), (["PLACE", "PLACE"], False, True)),
        (2 * np.eye(3), (["PLACE", "PLACE"], False, False)),
        (np.arange(6).reshape(2, 3), (["PLACE", "PLACE"], False, False)),
        (jnp.arange(3).astype(jnp.bfloat16), (["PLACE"], True, False)),
        (jnp.full(3, 2, jnp.bfloat16), (["SAME"], False, False)),
        (7.0, ([], False, False)),
        (jax.random.key(0), ([], False, False)),
        (jax.random.split(jax.random.key(0), 3), (["PLACE"], False, False)),
    ],
)
def test_what_tells_the_entries_of_a_constant_apart(value, expected):
    assert how(value) == expected
    assert not of_constant(value).reached


# The entries along the only axis along which an array differs.
LINES = {
    "a range": (lambda: jnp.arange(3), [0, 1, 2]),
    "a float range": (lambda: lax.iota(jnp.float32, 3), [0, 1, 2]),
    "along rows": (lambda: lax.broadcasted_iota(jnp.int32, (3, 4), 0), [0, 1, 2]),
    "cast": (lambda: (lax.iota(jnp.float32, 3) + 0.5).astype(jnp.int32), [0, 1, 2]),
    "scaled": (lambda: -2 * (jnp.arange(3) - 1), [2, 0, -2]),
    "in another shape": (lambda: jnp.arange(3)[None, :, None], [0, 1, 2]),
    "captured": (lambda: jnp.asarray(np.array([[4, 4], [7, 7]])) + 1, [5, 8]),
    "two ranges": (lambda: jnp.arange(3)[:, None] + jnp.arange(3)[None], None),
    "captured, of two axes": (lambda: jnp.asarray(np.eye(3)) + 1, None),
    "a sine": (lambda: jnp.sin(lax.iota(jnp.float32, 3)) + 1, None),
    "complex": (lambda: jnp.asarray(np.array([1j, 2])) + 1, None),
}


@pytest.mark.parametrize("name", LINES)
def test_the_line_of_an_array(name):
    """Read off the program that makes it."""
    make, expected = LINES[name]
    frame, (value,) = walk(jax.make_jaxpr(make)(), [], Equations())
    assert value.order is not None and value.order.source is not None
    found = line(value.order.source)
    assert (found if found is None else found.tolist()) == expected
