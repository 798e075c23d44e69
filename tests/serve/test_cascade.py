"""The cascade: who is kept, in which order, at which cost; expected values by NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mslice_jax as ms
from mslice_jax.core.errors import RateError
from mslice_jax.serve import Above, Cascade
from mslice_jax.serve.stages import check_keeps, kept, sizes, survivors

RATES = (0.25, 0.5, 1.0)
WIDTHS = {0.25: 4, 0.5: 8, 1.0: 16}  # of 16 hidden units
RNG = np.random.default_rng(0)
W = {
    "w1": RNG.normal(size=(5, 16)).astype(np.float32),
    "w2": RNG.normal(size=(16, 1)).astype(np.float32),
}


def network(p, batch, query):
    x = jnp.concatenate([batch["item"], query], axis=-1)
    return jnp.tanh(x @ p["w1"]) @ p["w2"]


def items(n, seed, *axes):
    rng = np.random.default_rng(seed)
    return (
        {"item": rng.normal(size=(*axes, n, 3)).astype(np.float32)},
        rng.normal(size=(*axes, n, 2)).astype(np.float32),
    )


def by_hand(batch, query, rate, w=W):
    k = WIDTHS[rate]
    x = np.concatenate([batch["item"], query], axis=-1)
    return (np.tanh(x @ w["w1"][:, :k]) @ w["w2"][:k])[..., 0]


def ranked_by_hand(batch, query, rates, kept_each):
    """Survivors of each stage, by the scores of everyone."""
    left, found = np.arange(len(query)), []
    for rate, keep in zip(rates, kept_each, strict=True):
        scores = by_hand(batch, query, rate)[left]
        if not isinstance(keep, int):
            left, scores = left[scores > keep], scores[scores > keep]
            keep = len(left)
        left = left[np.argsort(-scores)][:keep]
        found.append(left)
    return found


def net(weights=W):
    p = jax.tree.map(jnp.asarray, weights)
    batch, query = {"item": jnp.ones((1, 3))}, jnp.ones((1, 2))
    return ms.upgrade(network, p, batch, query, rates=RATES)


NET = net()


@pytest.fixture(scope="module")
def cascade():
    stages = [(0.25, 8), (0.5, 0.4), (1.0, None)]
    return Cascade(NET, stages, candidates=(9, 14), queries=(1, 3)).prepare()


def same(found, expected):
    for got, wanted in zip(found.survivors, expected, strict=True):
        np.testing.assert_array_equal(got, wanted)
    np.testing.assert_array_equal(found.indices, expected[-1])


# n -> after each stage: 8 at most; of these .4, and the next whole number; all.
@pytest.mark.parametrize(
    ("n", "each"), [(14, (8, 4, 4)), (10, (8, 4, 4)), (9, (8, 4, 4)), (5, (5, 2, 2))]
)
def test_survivors_are_those_of_numpy(cascade, n, each):
    batch, query = items(n, seed=n)
    found = cascade(batch, query)
    same(found, ranked_by_hand(batch, query, RATES, each))
    assert found.scored == (n, *each[:2])
    expected = by_hand(batch, query, 1.0)[found.indices]
    np.testing.assert_allclose(found.scores, expected, atol=1e-5)


def test_many_queries_are_each_alone(cascade):
    batch, query = items(14, 3, 3)
    counts = [14, 6, 0]
    found = cascade.many(batch, query, counts=counts)
    for q, (n, each) in enumerate([(14, (8, 4, 4)), (6, (6, 3, 3)), (0, (0, 0, 0))]):
        one = {"item": batch["item"][q, :n]}, query[q, :n]
        same(found[q], ranked_by_hand(*one, RATES, each))
        assert found[q].scored == (n, *each[:2])
    two = cascade.many({"item": batch["item"][:2]}, query[:2])
    np.testing.assert_array_equal(two[0].indices, found[0].indices)


def test_nothing_compiles_once_it_is_ready(cascade, compilations):
    before = cascade.compilations
    assert len(cascade._programs) == 2 * 2 * 3
    with compilations() as names:
        for n in (1, 9, 14):
            cascade(*items(n, 0))
        cascade.many(*items(12, 1, 2))
    assert names == []
    assert cascade.compilations == before >= 12


def test_a_filter_keeps_what_is_above(compilations):
    filters = [(0.25, Above(0.3)), (0.5, Above(-0.2, most=6)), (1.0, Above(0.0))]
    found = Cascade(NET, filters, candidates=24).prepare()
    seen = set()
    with compilations() as names:
        for seed in range(8):
            batch, query = items(24, seed)
            batch["item"] *= 2 * seed  # from few to many above
            got = found(batch, query)
            first = ranked_by_hand(batch, query, [0.25], [0.3])[0]
            scores = by_hand(batch, query, 0.5)[first]
            second = first[scores > -0.2]
            second = second[np.argsort(-scores[scores > -0.2])][:6]
            scores = by_hand(batch, query, 1.0)[second]
            third = second[scores > 0]
            third = third[np.argsort(-scores[scores > 0])]
            same(got, [first, second, third])
            assert got.scored == (24, len(first), len(second))
            seen.add(len(first))
    assert names == []
    assert len(seen) > 3


def test_nobody_passes():
    found = Cascade(NET, [(0.25, Above(1e9)), (1.0, 2)], candidates=4).prepare()
    got = found(*items(4, 0))
    assert got.indices.shape == got.scores.shape == (0,)
    assert got.scored == (4, 0)
    assert [len(each) for each in got.survivors] == [0, 0]


def test_a_network_for_each_rate():
    other = {name: -w for name, w in W.items()}
    other["w1"] = other["w1"][:, ::-1].copy()
    nets = {0.25: NET, 1.0: net(other)}
    found = Cascade(nets, [(0.25, 5), (1.0, 2)], candidates=10).prepare()
    batch, query = items(10, 2)
    first = ranked_by_hand(batch, query, [0.25], [5])[0]
    scores = by_hand(batch, query, 1.0, other)[first]
    expected = [first, first[np.argsort(-scores)][:2]]
    same(found(batch, query), expected)
    found.swap({0.25: nets[1.0].variables, 1.0: NET.variables})
    first = np.argsort(-by_hand(batch, query, 0.25, other))[:5]
    np.testing.assert_array_equal(found(batch, query).survivors[0], first)
    with pytest.raises(ValueError, match=r"none for \[1.0\]"):
        found.swap({0.25: NET.variables})


def test_widths_that_are_not_uniform_and_scores_of_a_class():
    def logits(p, x):
        return jnp.tanh(jnp.tanh(x @ p["a"]) @ p["b"]) @ p["c"]

    rng = np.random.default_rng(1)
    p = {
        name: rng.normal(size=shape).astype(np.float32)
        for name, shape in [("a", (3, 8)), ("b", (8, 8)), ("c", (8, 2))]
    }
    net = ms.upgrade(
        logits, jax.tree.map(jnp.asarray, p), jnp.ones((1, 3)), rates=(0.5, 1.0)
    )
    first = {next(iter(net.plan.groups)): 0.5}
    stages = [(0.5, 4), (first, 2), (1.0, 1)]
    found = Cascade(net, stages, candidates=6, score=lambda y: y[:, 1]).prepare()
    x = rng.normal(size=(6, 3)).astype(np.float32)
    narrow = {name: net.plan.slice(p, first)[name].shape for name in p}
    left = np.arange(6)
    for (ka, kb), keep in [((4, 4), 4), ((narrow["b"]), 2), ((8, 8), 1)]:
        h = np.tanh(np.tanh(x @ p["a"][:, :ka]) @ p["b"][:ka, :kb])
        scores = (h @ p["c"][:kb])[left, 1]
        left = left[np.argsort(-scores)][:keep]
    np.testing.assert_array_equal(found(x).indices, left)
    with pytest.raises(RateError, match="ascend"):
        back = [(first, 4), (0.5, 2)]
        Cascade(net, back, candidates=6, score=lambda y: y[:, 1])


def test_flops_are_counted_by_hand(cascade):
    # A unit: 5 products with sums, one more for the output; tanh is none.
    each = [2 * 5 * k + 2 * k for k in (4, 8, 16)]
    assert cascade.flops_per_candidate == tuple(each)
    assert cascade.flops(14) == 14 * each[0] + 8 * each[1] + 4 * each[2]
    assert cascade.flops(3, 2, 1) == 3 * each[0] + 2 * each[1] + each[2]
    with pytest.raises(ValueError, match="3 stages"):
        cascade.flops(3, 2)


def test_other_weights_without_compiling(cascade, compilations):
    other = {name: -2 * w for name, w in W.items()}
    other["w1"] = other["w1"][:, ::-1].copy()
    batch, query = items(14, 7)
    before = cascade(batch, query)
    with compilations() as names:
        cascade.swap(jax.tree.map(jnp.asarray, other))
        found = cascade(batch, query)
        with pytest.raises(ValueError, match="w1: expected"):
            cascade.swap({**other, "w1": other["w1"][:4]})
        np.testing.assert_array_equal(cascade(batch, query).indices, found.indices)
        cascade.swap(NET.variables)
        np.testing.assert_array_equal(cascade(batch, query).scores, before.scores)
    assert names == []
    left = np.argsort(-by_hand(batch, query, 0.25, other))[:8]
    np.testing.assert_array_equal(found.survivors[0], left)
    expected = by_hand(batch, query, 1.0, other)[found.indices]
    np.testing.assert_allclose(found.scores, expected, atol=1e-4)


# -- what is kept


def test_equal_scores_stay_in_order_and_nan_is_last():
    scores = np.array([[1.0, np.nan, 1.0, -np.inf, 2.0, 7.0]])
    order, left = survivors(scores, np.array([5]), 4)
    assert order[0, :4].tolist() == [4, 0, 2, 3]
    assert left.tolist() == [4]
    order, left = survivors(scores, np.array([5]), Above(1.0))
    assert (order[0, 0], left.tolist()) == (4, [1])


@pytest.mark.parametrize(
    ("keep", "count", "expected"),
    [(0.1, 30, 3), (0.1, 31, 4), (0.07, 100, 7), (1.0, 9, 9), (0.5, 0, 0), (4, 2, 2)],
)
def test_a_share_is_the_next_whole_number(keep, count, expected):
    assert kept(keep, count) == expected


def test_sizes_hold_whatever_survives():
    # By halving, down to 200 / 64 or just below; from each a half; at most 9, halved.
    assert sizes((Above(0.0), 0.5, Above(0.0, most=9), 1), 200) == [
        (200,),
        (2, 4, 7, 13, 25, 50, 100, 200),
        (1, 2, 4, 7, 13, 25, 50, 100),
        (1, 2, 3, 4, 5, 7, 9),
    ]


# -- bad input


@pytest.mark.parametrize(
    ("stages", "error", "words"),
    [
        ([], ValueError, "at least one stage"),
        ([0.25, 0.5], ValueError, "pairs"),
        ([(0.5, 8), (0.25, 4)], RateError, "ascend"),
        ([(0.5, 8), (0.5, 4)], RateError, "ascend"),
        ([(0.3, 8), (0.5, 4)], RateError, "0.3"),
        ([(0.25, 4), (0.5, 8)], ValueError, "keeps 8, but at most 4 are handed on"),
        ([(0.25, 0.2), (0.5, 3)], ValueError, "keeps 3, but at most 2"),
        ([(0.25, 11), (1.0, 2)], ValueError, "keeps 11, but there are at most 10"),
        ([(0.25, Above(0.0, most=11))], ValueError, "keeps 11"),
        ([(0.25, None), (1.0, 2)], ValueError, "only the last"),
        ([(0.25, 0)], ValueError, "an integer from 1"),
        ([(0.25, True)], ValueError, "an integer from 1"),
        ([(0.25, "all")], ValueError, "an integer from 1"),
        ([(0.25, 1.5)], ValueError, "a share lies in"),
        ([(0.25, float("nan"))], ValueError, "a share lies in"),
        ([(0.25, Above(float("nan")))], ValueError, "threshold"),
    ],
)
def test_stages_that_do_not_fit(stages, error, words):
    with pytest.raises(error, match=words):
        Cascade(NET, stages, candidates=10)


def test_networks_that_do_not_fit():
    stages = [(0.25, 4), (1.0, 2)]
    with pytest.raises(TypeError, match="expects a Sliceable"):
        Cascade(network, stages, candidates=10)  # pyright: ignore[reportArgumentType]
    with pytest.raises(RateError, match=r"none for \[1.0\]"):
        Cascade({0.25: NET}, stages, candidates=10)
    with pytest.raises(ValueError, match=r"one real score.*float32\[10, 2\]"):
        wide = lambda y: jnp.concatenate([y, y], axis=1)  # noqa: E731
        Cascade(NET, stages, candidates=10, score=wide)
    with pytest.raises(ValueError, match="candidates are positive"):
        Cascade(NET, stages, candidates=0)


def test_queries_that_do_not_fit(cascade):
    batch, query = items(14, 0)
    with pytest.raises(ValueError, match=r"batch.item, query; got"):
        cascade(batch)
    with pytest.raises(ValueError, match=r"'query': expected float32 \(14, 2\)"):
        cascade(batch, query[:-1])
    with pytest.raises(ValueError, match=r"'query'.*got int32"):
        cascade(batch, query.astype(np.int32))
    with pytest.raises(ValueError, match=r"'batch.item'.*\(queries, candidates, 3\)"):
        cascade.many(jax.tree.map(lambda x: x[0], batch), query)
    with pytest.raises(ValueError, match="got 15 candidates.*14 at most"):
        cascade(*items(15, 0))
    with pytest.raises(ValueError, match="got 4 queries"):
        cascade.many(*items(2, 0, 4))
    with pytest.raises(ValueError, match="integers from 0 to 14"):
        cascade.many(*items(14, 0, 2), counts=[15, 1])
    with pytest.raises(RuntimeError, match="prepare"):
        Cascade(NET, [(0.25, 4)], candidates=14)(batch, query)


def test_integers_of_numpy_are_numbers():
    assert check_keeps([np.int64(4), np.float64(0.5)], 10) == (4, 0.5)
