"""Numbers that look like an axis size: a warning, the user's decision, an error."""

import math
import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mslice_jax as ms
from mslice_jax.core.errors import PlanError

TOKENS = np.array([[1, 5, 7], [0, 2, 2]])


class Model(nn.Module):
    """Embeds, scales by sqrt(d), normalises, and divides logits by sqrt(fan-in)."""

    d: int = 64
    embedding: bool = True
    logits: bool = True

    @nn.compact
    def __call__(self, t):
        x = nn.Embed(10, self.d)(t)
        if self.embedding:
            x = x * math.sqrt(self.d)
        x = nn.LayerNorm()(nn.relu(nn.Dense(self.d)(x)))
        y = nn.Dense(3)(x)
        return y / math.sqrt(self.d) if self.logits else y


def variables(d=64):
    return Model(d).init(jax.random.key(0), TOKENS)


def cut(tree, d):
    """The variables of `Model(d)` by NumPy; the last axis of the logits is whole."""
    p = jax.tree.map(np.asarray, tree)["params"]
    return {
        "params": {
            "Embed_0": {"embedding": p["Embed_0"]["embedding"][:, :d]},
            "Dense_0": {
                "kernel": p["Dense_0"]["kernel"][:d, :d],
                "bias": p["Dense_0"]["bias"][:d],
            },
            "LayerNorm_0": {k: v[:d] for k, v in p["LayerNorm_0"].items()},
            "Dense_1": {
                "kernel": p["Dense_1"]["kernel"][:d],
                "bias": p["Dense_1"]["bias"],
            },
        }
    }


def upgraded(d=64, **options):
    return ms.upgrade(Model(d), variables(d), TOKENS, rates=(0.5, 1.0), **options)


def lines_of(net, follows=None):
    return [
        number["where"]
        for number in ms.report(net).to_dict()["numbers"]
        if follows is None or number["follows"] is follows
    ]


@pytest.mark.parametrize("d", [64, 66])
def test_numbers_that_stay_are_one_warning(d):
    with pytest.warns(ms.NumberWarning) as record:
        net = upgraded(d)
    assert len(record) == 1
    text = str(record[0].message)
    assert text.count("test_numbers.py") == 2 and "Model.__call__" in text
    assert "it scales a parameter" in text and "contracted" in text
    assert record[0].filename == __file__
    numbers = ms.report(net).to_dict()["numbers"]
    assert [n["open"] for n in numbers if not n["follows"]] == [True, True]
    assert all(n["size"] == d for n in numbers)
    assert lines_of(net, follows=True)  # those of the layer norm


def test_without_such_numbers_there_is_no_warning():
    model = Model(embedding=False, logits=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ms.upgrade(model, variables(), TOKENS, rates=(0.5, 1.0), strict=True)


def test_strict_makes_it_an_error():
    with pytest.raises(PlanError, match="no number is left open"):
        upgraded(strict=True)


def _lines():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = upgraded()
    return [where.partition(" ")[0] for where in lines_of(net, follows=False)]


def test_the_user_decides_by_line():
    embedding, logits = _lines()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net = upgraded(follow=embedding, stay=[logits], strict=True)

    class Narrow(Model):
        """At half width, with the logits divided as before."""

        @nn.compact
        def __call__(self, t):
            return Model(self.d, logits=False, parent=None).apply(
                {"params": self.variables["params"]}, t
            ) / math.sqrt(64)

    expected = Narrow(32).apply(cut(variables(), 32), TOKENS)
    np.testing.assert_allclose(
        ms.slice_apply(net, TOKENS, 0.5), expected, rtol=1e-4, atol=1e-5
    )
    whys = {n["where"]: n["why"] for n in ms.report(net).to_dict()["numbers"]}
    assert whys[next(w for w in whys if w.startswith(embedding))] == "as asked"


def test_a_pattern_names_many_lines():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net = upgraded(follow="*(Model.__call__)")
    expected = Model(32).apply(cut(variables(), 32), TOKENS)
    np.testing.assert_allclose(
        ms.slice_apply(net, TOKENS, 0.5), expected, rtol=1e-4, atol=1e-5
    )


def test_a_pattern_that_names_no_line_is_an_error():
    with pytest.raises(PlanError, match="follow: the pattern 'nowhere.py:1'"):
        upgraded(follow="nowhere.py:1")


def _held(p, x, n=24):
    h = x @ p["a"]
    return (h - h.sum(-1, keepdims=True) / n) @ p["b"]


def test_a_size_that_a_function_holds_follows():
    """The function runs narrow, but its own program keeps the number of a mean."""
    rng = np.random.default_rng(0)
    p = {"a": rng.normal(size=(5, 24)).astype("f"), "b": np.ones((24, 2), "f")}
    x = np.ones((2, 5), "f")
    net = ms.upgrade(_held, p, x, rates=(0.25, 1.0))
    small = {"a": p["a"][:, :6], "b": p["b"][:6]}
    np.testing.assert_allclose(
        ms.slice_apply(net, x, 0.25), _held(small, x, 6), rtol=1e-4, atol=1e-4
    )
    (number,) = ms.report(net).to_dict()["numbers"]
    assert number["follows"] and "the function holds it fixed" in number["why"]
    stays = ms.upgrade(_held, p, x, rates=(0.25, 1.0), stay="test_numbers.py:*")
    np.testing.assert_allclose(
        ms.slice_apply(stays, x, 0.25), _held(small, x, 24), rtol=1e-4, atol=1e-4
    )


def test_a_size_that_may_be_held_is_a_warning():
    """Before the sum the number may be a coincidence: 4 is the root of 16."""

    def f(p, x):
        h = x @ p["a"] / 4
        return jnp.cos(h) * jnp.tanh((h * h).sum(-1, keepdims=True)) @ p["b"]

    p = {"a": np.ones((5, 16), "f"), "b": np.ones((16, 2), "f")}
    x = np.ones((2, 5), "f")
    with pytest.warns(ms.NumberWarning, match="the function holds it fixed"):
        net = ms.upgrade(f, p, x, rates=(0.25, 1.0))
    small = {"a": p["a"][:, :4], "b": p["b"][:4]}
    np.testing.assert_allclose(ms.slice_apply(net, x, 0.25), f(small, x), rtol=1e-5)

    def counted(p, x):
        h = x @ p["a"] / 4
        mean = (h * h).sum(-1, keepdims=True) / h.shape[-1]
        return jnp.cos(h) * jnp.tanh(mean) @ p["b"]

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net = ms.upgrade(counted, p, x, rates=(0.25, 1.0))
        without = ms.upgrade(counted, p, x, rates=(0.25, 1.0), check=False)
    for one in (net, without):
        np.testing.assert_allclose(
            ms.slice_apply(one, x, 0.25), counted(small, x), rtol=1e-5
        )


@pytest.mark.parametrize("width", [2, 4])
def test_half_beside_a_width_of_two_or_four_is_no_finding(width):
    class Small(nn.Module):
        @nn.compact
        def __call__(self, x):
            h = nn.Dense(width)(x)
            return nn.Dense(2)(jnp.where(h > 0, h, 0.5 * h)) * 0.5

    x = np.ones((3, 4), "f")
    tree = Small().init(jax.random.key(0), x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ms.upgrade(Small(), tree, x, rates=(0.5, 1.0), strict=True)


# Numbers without evidence from the values: in the report, for the user to decide.
LOOSE = {
    "times": lambda h, n: h * h.var(-1, keepdims=True) * n,
    "bessel": lambda h, n: h * h.var(-1, keepdims=True) / (n - 1),
    "standard_error": lambda h, n: h / (h.std(-1, keepdims=True) / n**0.5),
    "in_two_steps": lambda h, n: h * (jnp.sqrt(n) - 1),
    "product": lambda h, n: jnp.tanh(h) / (n * n),
    "logarithm": lambda h, n: jnp.tanh(h * math.log(n)),
    "full": lambda h, n: jnp.tanh(h / jnp.full((h.shape[0], 1), n, h.dtype)),
}


@pytest.mark.parametrize("name", LOOSE)
def test_every_number_that_may_be_a_size_is_in_the_report(name):
    def apply(p, x, n=24):
        return LOOSE[name](jnp.tanh(x @ p["a"]), n) @ p["b"]

    rng = np.random.default_rng(0)
    p = {"a": rng.normal(size=(5, 24)), "b": rng.normal(size=(24, 2))}
    x = rng.normal(size=(3, 5)).astype("f")
    p = {key: w.astype("f") for key, w in p.items()}
    small = {"a": p["a"][:, :6], "b": p["b"][:6]}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net = ms.upgrade(apply, p, x, rates=(0.25, 1.0), check=False)
    (line,) = set(lines_of(net, follows=False))
    assert line.startswith("test_numbers.py:")
    follows = ms.upgrade(apply, p, x, rates=(0.25, 1.0), check=False, follow=line)
    for each, n in ((net, 24), (follows, 6)):
        np.testing.assert_allclose(
            ms.slice_apply(each, x, 0.25), apply(small, x, n), rtol=1e-4, atol=1e-5
        )


def _average_before_a_layer(p, x):
    h = sum(x @ p["in"][i] for i in range(4)) / 4
    return (h + jnp.tanh(h @ p["up"]) @ p["down"]) @ p["out"]


def _average_before_an_outer_product(p, x):
    h = jnp.tanh(x @ p["in"][0]) / 4
    gated = jnp.einsum("bd,hd->bhd", h, p["up"].T)
    return jnp.einsum("bhd,hd->bd", jnp.sin(gated), p["down"]) @ p["out"]


def _average_before_heads(p, x):
    h = jnp.tanh(x @ p["in"][0]) / 4
    repeated = jnp.broadcast_to(
        h[:, None], (x.shape[0], p["down"].shape[0], h.shape[1])
    )
    return jnp.einsum("bhd,hd->bd", jnp.sin(repeated), p["down"]) @ p["out"]


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize(
    "network",
    [
        _average_before_a_layer,
        _average_before_an_outer_product,
        _average_before_heads,
    ],
)
def test_an_average_of_four_is_no_mean_over_the_four_units_that_read_it(network, check):
    rng = np.random.default_rng(0)
    shapes = {"in": (4, 5, 8), "up": (8, 4), "down": (4, 8), "out": (8, 3)}
    p = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    p = jax.tree.map(np.float32, p)
    x = rng.normal(size=(2, 5)).astype(np.float32)
    net = ms.upgrade(network, p, x, rates=(0.5, 1.0), check=check)
    cut = {
        "in": p["in"][..., :4],
        "up": p["up"][:4, :2],
        "down": p["down"][:2, :4],
        "out": p["out"][:4],
    }
    np.testing.assert_allclose(
        ms.slice_apply(net, x, 0.5), network(cut, x), rtol=1e-5, atol=1e-6
    )


def _decay(n):
    return 2.0 ** (-8.0 / n * jnp.arange(1, n + 1))[None]


def _frequencies(n):
    return jnp.exp(jnp.arange(n) * (-math.log(10000.0) / n))[None]


def _sines(n):
    """Sine and cosine concatenated, as position embeddings."""
    angles = jnp.arange(3)[:, None] * _frequencies(n // 2)
    return jnp.stack([jnp.sin(angles), jnp.cos(angles)], -1).reshape(3, n)


@pytest.mark.parametrize("n", [24, 64, 68])
@pytest.mark.parametrize("table", [_decay, _frequencies, _sines])
def test_a_position_table_made_of_a_size_is_a_warning(table, n):
    def apply(p, x):
        return jnp.tanh(x @ p["a"] * table(n)) @ p["b"]

    rng = np.random.default_rng(0)
    p = {"a": rng.normal(size=(5, n)), "b": rng.normal(size=(n, 2))}
    p = {key: w.astype("f") for key, w in p.items()}
    x = rng.normal(size=(3, 5)).astype("f")
    with pytest.warns(ms.NumberWarning, match="it scales positions"):
        ms.upgrade(apply, p, x, rates=(0.5, 1.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stays = ms.upgrade(apply, p, x, rates=(0.5, 1.0), stay="*")
    half = n // 2
    kept = (table(n)[..., :half], table(half))
    small = p["a"][:, :half], p["b"][:half]
    by_hand = [np.tanh(x @ small[0] * each) @ small[1] for each in kept]
    np.testing.assert_allclose(ms.slice_apply(stays, x, 0.5), by_hand[0], rtol=1e-4)
    if table is _sines:  # concatenated at full width, then cut: it cannot follow
        with pytest.warns(ms.NumberWarning, match="of a table"):
            ms.upgrade(apply, p, x, rates=(0.5, 1.0), follow="*")
        return
    follows = ms.upgrade(apply, p, x, rates=(0.5, 1.0), follow="*")
    np.testing.assert_allclose(ms.slice_apply(follows, x, 0.5), by_hand[1], rtol=1e-4)


def test_a_table_made_without_a_size_is_no_warning():
    def apply(p, x):
        at = jnp.arange(24)[None]
        decay = jnp.exp(-0.1 * at) + jnp.sin(jnp.pi * at)
        return jnp.tanh(x @ p["a"] * decay) @ p["b"]

    p = {"a": np.ones((5, 24), "f"), "b": np.ones((24, 2), "f")}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ms.upgrade(apply, p, np.ones((3, 5), "f"), rates=(0.5, 1.0), check=False)


def _own_backward(p, x, n=24):
    """The gradient of a step size is scaled by its number of entries, as in LSQ."""

    @jax.custom_vjp
    def kept(s):
        return s

    kept.defvjp(lambda s: (s, None), lambda _, g: (g / math.sqrt(n),))
    return jnp.tanh(x @ p["a"] * kept(p["s"])[None]) @ p["b"]


def test_a_number_of_a_backward_pass_is_a_warning_of_the_gradient():
    rng = np.random.default_rng(0)
    shapes = {"a": (5, 24), "s": (24,), "b": (24, 2)}
    p = {key: rng.normal(size=shape).astype("f") for key, shape in shapes.items()}
    small = {"a": p["a"][:, :6], "s": p["s"][:6], "b": p["b"][:6]}
    x = rng.normal(size=(3, 5)).astype("f")

    def upgraded(**options):
        return ms.upgrade(
            _own_backward, p, x, rates=(0.25, 1.0), check=False, **options
        )

    def slope(net):
        slopes = jax.grad(lambda net: ms.slice_apply(net, x, 0.25).sum())(net)
        return net.plan.slice(slopes.variables, 0.25)["s"]

    def by_hand(n):
        return jax.grad(lambda p: _own_backward(p, x, n).sum())(small)["s"]

    with pytest.warns(ms.NumberWarning, match=r"4\.89898 .* it scales a gradient"):
        stays = slope(upgraded())
    np.testing.assert_allclose(stays, by_hand(24), rtol=1e-4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        line = "test_numbers.py:*"
        np.testing.assert_allclose(slope(upgraded(stay=line)), by_hand(24), rtol=1e-4)
        follows = slope(upgraded(follow=line))
        np.testing.assert_allclose(follows, by_hand(6), rtol=1e-4)
    with pytest.raises(PlanError, match="no number is left open"):
        slope(upgraded(strict=True))


def test_a_number_beside_a_summed_gradient_is_told():
    """The gradient of a scale is a sum over rows, and is scaled by a root of units."""

    @jax.custom_vjp
    def scaled(h, s):
        return h * s[None]

    def backward(kept, g):
        h, s = kept
        return g * s[None], (g * h).sum(0) / math.sqrt(24)

    scaled.defvjp(lambda h, s: (scaled(h, s), (h, s)), backward)

    def apply(p, x):
        return scaled(jnp.tanh(x @ p["a"]), p["s"]) @ p["b"]

    p = {"a": np.ones((5, 24), "f"), "s": np.ones(24, "f"), "b": np.ones((24, 2), "f")}
    x = np.ones((3, 5), "f")
    slope = jax.grad(lambda net: ms.slice_apply(net, x, 0.25).sum())
    with pytest.warns(ms.NumberWarning, match=r"4\.89898 .* it scales a gradient"):
        jax.eval_shape(slope, ms.upgrade(apply, p, x, rates=(0.25, 1.0), check=False))


@pytest.mark.parametrize("weight", [0.1, 0.01, 0.001])
def test_the_weight_of_a_term_is_no_size(weight):
    """A penalty of 0.01 over 100 units looks like their mean."""

    def penalised(p, x):
        h = jnp.tanh(x @ p["a"])
        return h @ p["b"] + weight * jnp.sum(h * h, -1, keepdims=True)

    n = round(1 / weight)
    rng = np.random.default_rng(0)
    p = {"a": rng.normal(size=(3, n)), "b": rng.normal(size=(n, 2))}
    p = {name: array.astype(np.float32) for name, array in p.items()}
    x = rng.normal(size=(4, 3)).astype(np.float32)
    with pytest.warns(ms.NumberWarning, match=f"{weight:g} beside"):
        net = ms.upgrade(penalised, p, x, rates=(0.5, 1.0))
    kept = net.plan.widths(0.5)["a:1"]
    narrow = {"a": p["a"][:, :kept], "b": p["b"][:kept]}
    found = ms.slice_apply(net, x, 0.5)
    np.testing.assert_allclose(found, penalised(narrow, x), rtol=1e-4, atol=1e-5)
    quiet = ms.upgrade(penalised, p, x, rates=(0.5, 1.0), stay="test_numbers.py:*")
    np.testing.assert_array_equal(ms.slice_apply(quiet, x, 0.5), found)
