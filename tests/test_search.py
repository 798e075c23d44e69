"""Search: against hand, against exhaustive search, against slices."""

import itertools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mslice_jax as ms
from mslice_jax.plots import plot_search
from mslice_jax.search import Found, Point
from mslice_jax.search.costs import Measured
from mslice_jax.serve import Executor

RATES = (0.25, 0.5, 0.75, 1.0)
SHAPES = {"a": (4, 8), "b": (8, 8), "c": (8, 8), "d": (8, 2)}
A, B, C = "a:1", "b:1", "c:1"


def two_layers(p, x):
    return jnp.tanh(jnp.tanh(x @ p["a"]) @ p["b"]) @ p["d"]


def three_layers(p, x):
    return jnp.tanh(jnp.tanh(jnp.tanh(x @ p["a"]) @ p["b"]) @ p["c"]) @ p["d"]


def weights(*names, seed=0):
    rng = np.random.default_rng(seed)
    return {n: rng.normal(size=SHAPES[n]).astype(np.float32) for n in names}


def build(function=two_layers, names="abd", seed=0, rates=RATES, **settings):
    x = jnp.ones((1, 4))
    return ms.upgrade(function, weights(*names, seed=seed), x, rates=rates, **settings)


@pytest.fixture(scope="module")
def net():
    return build()


def by_widths(score):
    """An evaluate that looks at widths alone; they are those of slices."""

    def evaluate(net, rate):
        return score(**{name[0]: width for name, width in net.part.widths})

    return evaluate


def parameters(a, b):
    return 4 * a + a * b + 2 * b


# From (8, 8) a step of a loses 2 and saves 4·2 + 2·8 = 24, one of b loses 1.8 and saves
# 8·2 + 2·2 = 20: by the score alone it would be b, for each number saved it is a. From
# (6, 8) and (4, 8) a saves 24 again, b 16 and 12.
def test_greedy_narrows_what_costs_least_for_each_number_saved(net):
    found = ms.search(
        net, by_widths(lambda a, b: a + 0.9 * b), parameters=60, masks=False
    )
    assert [p.mapping for p in found.rounds] == [
        {A: a, B: 1.0} for a in (1.0, 0.75, 0.5, 0.25)
    ]
    assert [p.cost for p in found.rounds] == [112, 88, 64, 40]
    # Better than the last, 2 + 7.2, is one that was looked at on the way.
    assert (found.mapping, found.cost) == ({A: 0.5, B: 0.75}, 52)
    assert found.score == pytest.approx(4 + 5.4)
    assert {rate: p.cost for rate, p in found.uniform.items()} == {
        rate: parameters(8 * rate, 8 * rate) for rate in RATES
    }
    # Asked were the uniform widths and the neighbours of the path, each once.
    assert len(found.seen) == 4 + 5
    assert found.masks is False


def test_flops_are_those_of_the_call(net):
    evaluate = by_widths(lambda a, b: a + 0.9 * b)
    found = ms.search(net, evaluate, flops=2 * 60, masks=False)
    assert found.cost == 2 * 52
    x = jnp.ones((3, 4))
    found = ms.search(net, evaluate, x, flops=3 * 2 * 60, masks=False)
    assert found.cost == 3 * 2 * 52


def test_what_saves_nothing_is_narrowed_last():
    def scaled(p, x):  # s runs through no contraction
        return jnp.tanh(x @ p["a"]) @ p["d"] + p["s"].sum()

    p = {**weights("a", "d"), "s": np.ones(8, np.float32)}
    net = ms.upgrade(scaled, p, jnp.ones((1, 4)), rates=(0.5, 1.0))
    assert set(net.plan.groups) == {"a:1", "s:0"}
    found = ms.search(net, by_widths(lambda a, s: a + 0.1 * s), flops=60, masks=False)
    assert found.mapping == {"a:1": 0.5, "s:0": 1.0}


@pytest.mark.parametrize("limit", [30, 47, 70, 100])
def test_evolution_finds_what_exhaustive_search_finds(net, limit):
    def score(a, b):  # neither separable nor monotone
        return np.sin(1.3 * a) + np.cos(0.9 * b) + 0.02 * a * b

    widths = (2, 4, 6, 8)
    fits = [w for w in itertools.product(widths, widths) if parameters(*w) <= limit]
    best = max(fits, key=lambda w: score(*w))
    found = ms.search(
        net,
        by_widths(score),
        parameters=limit,
        method="evolution",
        population=6,
        generations=6,
        masks=False,
    )
    assert found.mapping == {A: best[0] / 8, B: best[1] / 8}
    assert found.cost == parameters(*best)
    assert all(p.cost <= limit for p in found.rounds)
    # Nothing above the limit is scored, but for the uniform widths.
    drawn = [p for p in found.seen if p not in found.uniform.values()]
    assert drawn and all(p.cost <= limit for p in drawn)


def forward(p, x, a, b, c):
    """Three layers of these widths, by NumPy."""
    h = np.tanh(x @ p["a"][:, :a])
    h = np.tanh(h @ p["b"][:a, :b])
    h = np.tanh(h @ p["c"][:b, :c])
    return h @ p["d"][:c]


def test_a_real_network_is_searched_by_one_program(compilations):
    p = weights(*"abcd", seed=1)
    x = np.random.default_rng(2).normal(size=(5, 4)).astype(np.float32)
    y = forward(p, x, 8, 8, 8)
    net = ms.upgrade(three_layers, p, x, rates=(0.25, 0.5, 1.0))

    def evaluate(net, rate):
        return -float(jnp.square(ms.slice_apply(net, x, rate) - y).mean())

    scores = {
        w: -np.square(forward(p, x, *w) - y).mean()
        for w in itertools.product((2, 4, 8), repeat=3)
    }
    limit = 5 * 2 * 90
    flops = {
        w: 5 * 2 * (4 * w[0] + w[0] * w[1] + w[1] * w[2] + 2 * w[2]) for w in scores
    }
    best = max((w for w in scores if flops[w] <= limit), key=scores.get)
    with compilations() as names:
        found = ms.search(
            net, evaluate, flops=limit, method="evolution", population=8, generations=6
        )
    assert found.masks is True
    assert tuple(int(8 * found.mapping[name]) for name in (A, B, C)) == best
    assert found.score == pytest.approx(scores[best], rel=1e-4)
    for point in found.seen:  # a masked network scores as its slice does
        widths = tuple(int(8 * rate) for rate in point.mapping.values())
        assert point.score == pytest.approx(scores[widths], rel=1e-4, abs=1e-6)
        assert point.cost == flops[widths]
    assert len(found.seen) > 10
    # One for all candidates, and the two narrow ones by which masks were tried out.
    assert names.count("jit(run)") + names.count("run") == 3, names


def test_several_masked_networks_are_evaluated_at_once():
    net, x = build(), jnp.ones((3, 4))
    traced = []

    def evaluate(net, rate):
        traced.append(rate)
        return ms.slice_apply(net, x, rate).sum()

    one = ms.search(net, evaluate, parameters=60)
    asked = len(traced)
    assert asked == len(one.seen)
    several = ms.search(net, evaluate, parameters=60, together=4)
    assert len(traced) == asked + 1  # once
    assert several.mapping == one.mapping
    for a, b in zip(one.seen, several.seen, strict=True):
        assert (a.mapping, a.cost) == (b.mapping, b.cost)
        assert a.score == pytest.approx(b.score, rel=1e-5)


def centred(p, x):  # a mean along an axis that narrows
    h = x @ p["a"]
    return jnp.tanh(h - h.mean(-1, keepdims=True)) @ p["d"]


def probable(p, x):
    return jax.nn.softmax(x @ p["a"]) @ p["d"]


def silent(p, x):  # zero whatever the width
    return jnp.tanh(x @ p["a"]) @ (0 * p["d"])


@pytest.mark.parametrize("function", [centred, probable, silent])
def test_slices_stand_where_masks_would_be_wrong(function):
    net, x = build(function, "ad", rates=(0.5, 1.0)), jnp.arange(8.0).reshape(2, 4)
    p = weights(*"ad")

    def evaluate(net, rate):
        return ms.slice_apply(net, x, rate).sum()

    found = ms.search(net, evaluate, parameters=30)
    assert found.masks is False
    half = function({"a": p["a"][:, :4], "d": p["d"][:4]}, x)
    assert found.score == pytest.approx(float(half.sum()), rel=1e-5)
    with pytest.raises(ValueError, match="something else than slices"):
        ms.search(net, evaluate, parameters=30, masks=True)


class Stop(Exception):
    pass


@pytest.mark.parametrize("method", ["greedy", "evolution"])
def test_a_search_that_was_stopped_finds_the_same(net, tmp_path, method):
    asked = []

    def evaluate(net, rate):
        asked.append(net.part)
        a, b = (width for _, width in net.part.widths)
        return np.sin(a) + 0.2 * b

    settings = {"method": method, "masks": False, "generations": 4, "population": 4}
    whole = ms.search(net, evaluate, parameters=88, **settings)
    count, path = len(asked), tmp_path / "deep" / "search.json"
    for stop_at in (1, 2, 3):

        def stop(round_, stop_at=stop_at):
            if round_.number == stop_at:
                raise Stop

        with pytest.raises(Stop):
            ms.search(
                net, evaluate, parameters=88, path=path, progress=stop, **settings
            )
    again = ms.search(net, evaluate, parameters=88, path=path, **settings)
    assert again == whole
    assert len(asked) == 2 * count  # none twice
    assert len(json.loads(path.read_text())["scores"]) == count
    assert len(list(path.parent.iterdir())) == 1
    # A file that is done asks for nothing more.
    assert ms.search(net, evaluate, parameters=88, path=path, **settings) == whole
    assert len(asked) == 2 * count


def test_a_file_of_another_search_is_refused(net, tmp_path):
    path, evaluate = tmp_path / "search.json", by_widths(lambda a, b: a + b)
    ms.search(net, evaluate, parameters=60, path=path, masks=False)
    other = build(seed=3)
    for args, settings, words in (
        ((other, evaluate), {"parameters": 60}, "another network or weights"),
        ((net, evaluate), {"parameters": 61}, r"limit \['parameters', 60.0\], not"),
        ((net, evaluate), {"parameters": 60, "method": "evolution"}, "method greedy"),
        ((net, evaluate, jnp.ones((2, 4))), {"parameters": 60}, "inputs"),
    ):
        with pytest.raises(ValueError, match=words) as error:
            ms.search(*args, path=path, masks=False, **settings)
        assert "\n" not in str(error.value) and str(path) in str(error.value)
    path.write_text(path.read_text()[:40])
    with pytest.raises(ValueError, match="no file of a search"):
        ms.search(net, evaluate, parameters=60, path=path, masks=False)


def test_a_bar_hears_of_every_round(net):
    heard = []
    found = ms.search(
        net,
        by_widths(lambda a, b: a + 0.9 * b),
        parameters=60,
        masks=False,
        progress=heard.append,
    )
    assert [r.number for r in heard] == [1, 2, 3, 4]
    assert [r.done for r in heard] == pytest.approx([0, 24 / 52, 48 / 52, 1])
    assert [r.seen for r in heard] == [4, 6, 7, 9]
    assert tuple(r.kept for r in heard) == found.rounds


def test_latency_is_measured_for_few(net, monkeypatch):
    measured = []

    def exact(self, choice):
        if choice not in self._there:
            measured.append(choice)
            self._there[choice] = 1.0 + self._flops.estimate(choice) / 100
        return self._there[choice]

    monkeypatch.setattr(Measured, "exact", exact)
    x, evaluate = jnp.ones((1, 4)), by_widths(lambda a, b: a + 0.9 * b)
    found = ms.search(net, evaluate, x, latency_ms=2.0, masks=False)
    assert found.rounds[-1].mapping == {A: 0.25, B: 1.0}  # 1 + 80 / 100
    assert found.cost == pytest.approx(1.8)
    # The uniform widths, and what was kept.
    assert set(measured) == {(i, i) for i in range(4)} | {(i, 3) for i in range(4)}
    assert len(found.seen) == 7
    settings = {"method": "evolution", "generations": 3, "population": 4}
    found = ms.search(net, evaluate, x, latency_ms=2.0, masks=False, **settings)
    assert found.mapping == {A: 0.25, B: 1.0}


def test_latency_is_that_of_the_slice(net):
    x = jnp.ones((2, 4))
    evaluate = by_widths(lambda a, b: a + b)
    found = ms.search(net, evaluate, x, latency_ms=1e6, masks=False, repeats=2)
    assert found.mapping == {A: 1.0, B: 1.0} and len(found.rounds) == 1
    assert all(0 < point.cost < 1e6 for point in found.seen)
    with pytest.raises(ValueError, match="below the narrowest network, which takes"):
        ms.search(net, evaluate, x, latency_ms=1e-9, masks=False, repeats=1)


def test_a_group_of_one_width_keeps_it():
    net = build(three_layers, "abcd", min_width=8)
    with pytest.raises(ValueError, match="nothing to search"):
        ms.search(net, by_widths(lambda **_: 0.0), parameters=1e6)
    shapes = {"a": (4, 8), "b": (8, 16), "d": (16, 2)}
    p = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    net = ms.upgrade(two_layers, p, jnp.ones((1, 4)), rates=RATES, min_width=8)
    found = ms.search(net, by_widths(lambda a, b: b), parameters=120, masks=False)
    assert found.mapping == {A: 1.0, B: 0.5}  # 32 + 64 + 16
    assert len(found.rounds) == 3


def test_a_narrow_network_is_searched_within_its_widths(net):
    half = ms.extract(net, 0.5)
    x = jnp.ones((3, 4))

    def evaluate(net, rate):
        return ms.slice_apply(net, x, rate).sum()

    found = ms.search(half, evaluate, parameters=28)
    assert found.masks is True
    assert found.rounds[0].mapping == {A: 0.5, B: 0.5}
    assert set(found.uniform) == {0.25, 0.5}
    assert found.score == pytest.approx(float(evaluate(half, found.mapping)), rel=1e-5)


def test_the_mapping_is_taken_as_a_rate_is(net, tmp_path):
    x = np.arange(8, dtype=np.float32).reshape(2, 4)

    def evaluate(net, rate):
        return ms.slice_apply(net, x, rate).sum()

    found = ms.search(net, evaluate, parameters=60)
    a, b = (int(8 * found.mapping[name]) for name in (A, B))
    p = weights(*"abd")
    y = np.tanh(np.tanh(x @ p["a"][:, :a]) @ p["b"][:a, :b]) @ p["d"][:b]
    assert found.score == pytest.approx(y.sum(), rel=1e-5)
    np.testing.assert_allclose(ms.slice_apply(net, x, found.mapping), y, atol=1e-5)
    small = ms.extract(net, found.mapping)
    assert small.variables["b"].shape == (a, b)

    named = net.named({"phone": found.mapping})
    np.testing.assert_allclose(ms.slice_apply(named, x, "phone"), y, atol=1e-5)
    np.testing.assert_allclose(ms.extract(named, "phone")("phone", x), y, atol=1e-5)
    assert named.plan.widths("phone") == {A: a, B: b}
    ms.save(named, tmp_path / "net.mslice", programs=False)
    back = ms.load(tmp_path / "net.mslice", model=two_layers)
    assert back.definition == named.definition != net.definition
    np.testing.assert_allclose(ms.slice_apply(back, x, "phone"), y, atol=1e-5)

    executor = Executor(
        named, rates={"found": found.mapping, "phone": "phone"}, batch_sizes=(2,)
    ).prepare()
    for key in ("found", "phone"):
        [answer], _ = executor.run(key, [{executor.inputs[0].name: x}])
        np.testing.assert_allclose(*answer.values(), y, atol=1e-5)


def test_names_are_rates(net):
    named = net.named({"phone": {A: 0.5}}).named({"half": 0.5, "phone": {A: 0.25}})
    assert named.plan.widths("phone") == {A: 2, B: 8}
    assert named.plan.resolve("half").rate == 0.5
    assert hash(named.definition) == hash(net.named(named.plan.names).definition)
    for name in ("phon", ""):
        with pytest.raises(
            ms.RateError, match=f"no sub-network is named {name!r}; there"
        ):
            ms.slice_apply(named, jnp.ones((1, 4)), name)
    with pytest.raises(ms.RateError, match="there are none"):
        ms.extract(net, "half")
    with pytest.raises(ValueError, match="is named by a string; got 3"):
        net.named({3: 0.5})
    with pytest.raises(ms.RateError, match="was not declared"):
        net.named({"third": 0.33})
    with pytest.raises(ms.RateError, match="wider than this network"):
        ms.extract(named, "half").named({"full": 1.0})
    # A jitted function tells networks apart whose names mean other widths.
    apply = jax.jit(lambda net, x: ms.slice_apply(net, x, "it"))
    x = jnp.ones((1, 4))
    for rate in (0.5, 1.0):
        y = apply(net.named({"it": rate}), x)
        np.testing.assert_allclose(y, ms.slice_apply(net, x, rate), atol=1e-6)


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({}, "one limit.*got none"),
        ({"flops": 1e3, "parameters": 50}, "got flops and parameters"),
        ({"flops": 0}, "above 0; got 0"),
        ({"flops": float("nan")}, "above 0; got nan"),
        ({"parameters": "50"}, "above 0; got '50'"),
        (
            {"parameters": 15},
            r"parameters=15 is below .* takes 16 \(the widest .* 112\)",
        ),
        ({"latency_ms": 1.0}, "give the inputs"),
        ({"flops": 1e3, "method": "best"}, "'greedy' or 'evolution'; got 'best'"),
        ({"flops": 1e3, "population": 0}, "population is an integer, 1 or more; got 0"),
        ({"flops": 1e3, "together": 1.5}, "together is an integer"),
    ],
)
def test_settings_that_cannot_be(net, limits, words):
    with pytest.raises(ValueError, match=words):
        ms.search(net, by_widths(lambda a, b: a), **limits)


@pytest.mark.parametrize(
    ("value", "error", "words"),
    [
        (float("nan"), ValueError, r"nan for the rates \{'a:1': 0.25"),
        (jnp.inf, ValueError, "inf for the rates"),
        (None, TypeError, "one number, higher is better; got None of type NoneType"),
        (np.ones(2), TypeError, "one number"),
        (True, TypeError, "one number"),
    ],
)
def test_scores_that_are_none(net, value, error, words):
    with pytest.raises(error, match=words):
        ms.search(net, lambda net, rate: value, flops=1e3, masks=False)


def test_an_evaluate_that_raises_is_told_of(net):
    def evaluate(net, rate):
        raise KeyError("labels")

    with pytest.raises(KeyError, match="labels") as error:
        ms.search(net, evaluate, flops=1e3, masks=False)
    assert re.search(r"search: evaluate .* \{'a:1': 0.25, ", error.value.__notes__[0])
    with pytest.raises(TypeError, match="a function of"):
        ms.search(net, "accuracy", flops=1e3)
    with pytest.raises(TypeError, match="expects a Sliceable; got dict"):
        ms.search({}, evaluate, flops=1e3)

    def eager(net, rate):
        return float(ms.slice_apply(net, jnp.ones((1, 4)), rate).sum())

    with pytest.raises(jax.errors.ConcretizationTypeError) as error:
        ms.search(net, eager, flops=1e3, together=2)
    assert any("together=1 does not" in note for note in error.value.__notes__)


def found_of(*points):
    points = [Point({}, cost, score) for cost, score in points]
    return Found(
        {}, 0, 0, limit=("flops", 9), uniform={}, rounds=(), seen=points, masks=True
    )


def test_the_frontier_has_what_no_other_beats():
    found = found_of(
        (5, 0.5), (3, 0.2), (5, 0.6), (4, 0.2), (9, 0.6), (7, 0.7), (3, 0.1)
    )
    assert [(p.cost, p.score) for p in found.frontier] == [(3, 0.2), (5, 0.6), (7, 0.7)]
    assert (found.within(6).cost, found.within(6).score) == (5, 0.6)
    assert found.within(9).cost == 7
    with pytest.raises(ValueError, match="flops=2; the cheapest takes 3"):
        found.within(2)
    assert json.loads(json.dumps(found.to_dict()))["seen"] == 7


def test_the_picture(tmp_path):
    uniform = {0.5: (3.0, 0.2), 1.0: (5e6, 0.7)}
    plot_search(tmp_path / "a.png", [(1.0, 0.1), (4e6, 0.7)], uniform, title="digits")
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(ValueError, match="got 0 and 2"):
        plot_search(tmp_path / "b.png", [], uniform, title="digits")
