"""The executor: rows, buckets, rates, weights; expected values by NumPy."""

import itertools
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mslice_jax as ms
from mslice_jax.serve import Executor, InvalidRequest
from mslice_jax.serve.loaded import Loaded
from tests.serve.networks import (
    RATES,
    Normed,
    OfNnx,
    expected,
    request,
    two_inputs_net,
    weights,
)

NARROW = {0.25: 4, 0.5: 8}  # of 16 hidden units
BYTES = {rate: 4 * width * (3 + 2 + 4) for rate, width in NARROW.items()}


@pytest.fixture(scope="module")
def executor():
    return Executor(two_inputs_net(), batch_sizes=(2, 5), finite=["x"]).prepare()


def check(answers, requests, rate, seed=0):
    assert len(answers) == len(requests)
    for answer, asked in zip(answers, requests, strict=True):
        y = expected(asked, rate, seed)
        np.testing.assert_allclose(answer["y"], y, atol=1e-5)
        np.testing.assert_allclose(answer["twice.0"], 2 * y, atol=1e-5)
        np.testing.assert_array_equal(answer["twice.1"], asked["x"])


# -- rows


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize(
    "rows", [(1,), (2,), (1, 1), (2, 1), (1, 3, 1), (5,), (1,) * 5]
)
def test_rows_come_back_to_their_callers(executor, rate, rows):
    requests = [request(n, seed) for seed, n in enumerate(rows)]
    answers, seconds = executor.run(rate, requests)
    check(answers, requests, rate)
    assert 0 < seconds < 60


def test_checked_requests_run_as_they_are(executor):
    requests = [request(2, 1), request(1, 2)]
    answers, _ = executor.run(0.5, [executor.check(each) for each in requests])
    check(answers, requests, 0.5)


def test_arrays_of_a_caller_are_not_changed(executor):
    asked = request(1, 4)
    before = {name: x.copy() for name, x in asked.items()}
    answers, _ = executor.run(1.0, [asked, request(2, 5)])
    executor.run(1.0, [request(1, 6), request(2, 7)])
    check(answers[:1], [before], 1.0)
    for name, x in asked.items():
        np.testing.assert_array_equal(x, before[name])


def test_rows_along_another_axis():
    def sums(p, x):  # (t, b, 3)
        return jnp.moveaxis((jnp.tanh(x @ p["w1"]) @ p["w3"]).sum(0), 0, -1)

    p = {name: weights()[name] for name in ("w1", "w3")}
    net = ms.upgrade(sums, p, jnp.ones((6, 2, 3)), rates=(0.5, 1.0))
    found = Executor(net, batch_sizes=(3,), batch_axes=1).prepare()
    assert [x.shape for x in (*found.inputs, *found.outputs)] == [(6, -1, 3), (4, -1)]
    x = np.random.default_rng(0).normal(size=(6, 2, 3)).astype(np.float32)
    (first, second), _ = found.run(0.5, [{"x": x[:, :1]}, {"x": x[:, 1:]}])
    h = np.tanh(x @ np.asarray(p["w1"])[:, :8]) @ np.asarray(p["w3"])[:8]
    np.testing.assert_allclose(first["output"][:, 0], h[:, 0].sum(0), atol=1e-4)
    np.testing.assert_allclose(second["output"][:, 0], h[:, 1].sum(0), atol=1e-4)


# -- what it is


def test_inputs_and_outputs_are_described(executor):
    inputs = [(x.name, x.dtype, x.shape) for x in executor.inputs]
    assert inputs == [("x", np.float32, (-1, 3)), ("more.shift", np.float32, (-1, 2))]
    outputs = {x.name: x.shape for x in executor.outputs}
    assert outputs == {"y": (-1, 4), "twice.0": (-1, 4), "twice.1": (-1, 3)}
    assert executor.rates == RATES
    assert (executor.batch_sizes, executor.lengths) == ((2, 5), (None,))


def test_names_of_your_own_and_progress():
    net, told = two_inputs_net(), []
    found = Executor(
        net,
        rates=[0.5],
        batch_sizes=[1, 2],
        input_names=["a", "b"],
        output_names=["p", "q", "r"],
    )
    assert not found.ready
    with pytest.raises(RuntimeError, match="prepare"):
        found.run(0.5, [{"a": np.zeros((1, 3)), "b": np.zeros((1, 2))}])
    with pytest.raises(RuntimeError, match="prepare"):
        found.swap(net)
    assert found.prepare(lambda done, of: told.append((done, of))).ready
    assert told == [(0, 2), (1, 2), (2, 2)]
    asked = request(1, 0)
    given = {"a": asked["x"], "b": asked["more.shift"]}
    (answer,), _ = found.run(0.5, [given])
    np.testing.assert_allclose(answer["r"], expected(asked, 0.5), atol=1e-5)
    assert list(answer) == ["p", "q", "r"]  # in the order of the tree's keys


def test_widths_that_are_not_uniform_have_a_key():
    def deep(p, x):
        return jnp.tanh(jnp.tanh(x @ p["a"]) @ p["b"]) @ p["c"]

    rng = np.random.default_rng(1)
    p = {
        name: rng.normal(size=shape).astype(np.float32)
        for name, shape in {"a": (3, 8), "b": (8, 8), "c": (8, 2)}.items()
    }
    net = ms.upgrade(deep, p, jnp.ones((1, 3)), rates=(0.5, 1.0))
    rates = {"late": {"a*": 1.0, "b*": 0.5}, 0.5: 0.5}
    found = Executor(net, rates=rates, batch_sizes=(2,)).prepare()
    x = rng.normal(size=(2, 3)).astype(np.float32)
    (answer,), _ = found.run("late", [{"x": x}])
    by_hand = np.tanh(np.tanh(x @ p["a"]) @ p["b"][:, :4]) @ p["c"][:4]
    np.testing.assert_allclose(answer["output"], by_hand, atol=1e-5)


# -- compilation


def sizes(executor):
    for rate, rows in itertools.product(executor.rates, (1, 2, 3, 5)):
        executor.run(rate, [request(rows, rows)])


@pytest.mark.parametrize("limit", [None, 0])
def test_nothing_compiles_once_it_is_ready(compilations, limit):
    net = two_inputs_net()
    found = Executor(net, batch_sizes=(2, 5), memory_bytes=limit).prepare()
    # Three rates, two buckets, and two rates that are cut from the weights.
    assert found.compilations == 3 * 2 + 2
    with compilations() as names:
        sizes(found)
        found.swap(two_inputs_net(1).variables)
        sizes(found)
        found.measure(1)
    assert names == []
    assert found.compilations == 8


def test_every_program_has_run_once_it_is_ready(monkeypatch):
    ran = []

    def answers(self, part, checked):
        ran.append((part.rate, sum(rows.rows for rows in checked)))
        return answer(self, part, checked)

    answer = Loaded.answers
    monkeypatch.setattr(Loaded, "answers", answers)
    Executor(two_inputs_net(), batch_sizes=(2, 5)).prepare()
    assert sorted(ran) == [(rate, size) for rate in RATES for size in (2, 5)]


def test_the_counter_notices_a_program(executor):
    before = executor.compilations
    jax.jit(lambda x: x + 17)(1.0).block_until_ready()  # of somebody else
    assert executor.compilations == before
    with executor._counter:
        jax.jit(lambda x: x + 18)(1.0).block_until_ready()
    assert executor.compilations == before + 1


# -- memory


def test_narrow_weights_are_kept_up_to_a_limit():
    found = Executor(two_inputs_net(), batch_sizes=(1,), memory_bytes=BYTES[0.5])
    found.prepare()

    def bytes_after(rate):
        asked = request(1, 0)
        answers, _ = found.run(rate, [asked])
        check(answers, [asked], rate)
        return found.narrow_bytes

    # Both narrow trees do not fit: the one asked for is there, the other is dropped.
    assert [bytes_after(rate) for rate in (0.25, 0.5, 1.0, 0.25, 0.25, 0.5)] == [
        BYTES[rate] for rate in (0.25, 0.5, 0.5, 0.25, 0.25, 0.5)
    ]


def test_all_narrow_weights_are_kept_without_a_limit(executor):
    assert executor.narrow_bytes == BYTES[0.25] + BYTES[0.5]


def test_the_one_in_use_is_there_below_any_limit():
    found = Executor(two_inputs_net(), batch_sizes=(1,), memory_bytes=0).prepare()
    assert found.narrow_bytes == 0
    asked = request(1, 0)
    for rate in (0.5, 0.25, 0.5):
        check(found.run(rate, [asked])[0], [asked], rate)
        assert found.narrow_bytes == BYTES[rate]


# -- other weights


@pytest.mark.parametrize("as_network", [True, False])
@pytest.mark.parametrize("limit", [None, BYTES[0.25]])
def test_new_weights_at_every_rate(as_network, limit):
    found = Executor(two_inputs_net(), batch_sizes=(2,), memory_bytes=limit).prepare()
    asked, new = [request(2, 0)], two_inputs_net(1)
    found.swap(new if as_network else jax.tree.map(np.asarray, new.variables))
    for rate in RATES:
        check(found.run(rate, asked)[0], asked, rate, seed=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: {**p, "w1": p["w1"][:, :8]}, r"w1: expected .*\[3, 16\], got .*8\]"),
        (lambda p: {**p, "w1": p["w1"].astype(np.float16)}, "w1: .* got float16"),
        (lambda p: {k: p[k] for k in ("w1", "w2")}, "w3: .* got nothing"),
        (lambda p: {**p, "w4": p["w3"]}, "w4: expected nothing"),
        (lambda p: {**p, "w1": 3.0}, "w1: .* got float"),
    ],
)
def test_weights_that_do_not_fit_change_nothing(executor, change, message):
    with pytest.raises(ValueError, match=message):
        executor.swap(change(weights(1)))
    asked = [request(2, 0)]
    check(executor.run(0.5, asked)[0], asked, 0.5)


def test_weights_of_another_network(executor):
    other = ms.upgrade(
        lambda p, x, more: x @ p["w1"] @ p["w3"],
        weights(),
        jnp.ones((1, 3)),
        {"shift": jnp.ones((1, 2))},
        rates=RATES,
    )
    with pytest.raises(ValueError, match="same model"):
        executor.swap(other)
    with pytest.raises(ValueError, match="same model"):
        executor.swap(ms.extract(two_inputs_net(), 0.5))


def test_a_batch_runs_with_old_or_new_weights_alone():
    old, new = ({k: jnp.full_like(v, x) for k, v in weights().items()} for x in (0, 1))
    found = Executor(two_inputs_net().replace(old), batch_sizes=(2,)).prepare()
    ones = {"x": np.ones((2, 3), np.float32), "more.shift": np.ones((2, 2), np.float32)}
    whole = {0.0, *(np.float32(np.tanh(5.0) * width) for width in (4, 8, 16))}
    done = threading.Event()

    def swap():
        for _ in range(15):
            found.swap(new)
            found.swap(old)
        done.set()

    thread = threading.Thread(target=swap)
    thread.start()
    seen = set()
    while not done.is_set() or len(seen) < 2:
        for rate in RATES:
            (answer,), _ = found.run(rate, [ones])
            (value,) = set(answer["y"].ravel().tolist())  # one for all of the batch
            assert np.isclose(value, [*whole], atol=1e-4).any(), value
            seen.add(value > 0)
        if done.is_set():
            found.swap(new)
    thread.join()


# -- frameworks and norms


@pytest.mark.parametrize("norm", ["switchable", "shared", "group"])
def test_linen_with_norms(norm):
    x = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    net = ms.upgrade(
        Normed(), Normed().init(jax.random.key(0), x), x, rates=(0.5, 1.0), norm=norm
    )
    # Each number another one, so that a set of the wrong rate shows.
    leaves, tree = jax.tree.flatten(net.variables)
    rng = np.random.default_rng(1)
    net = net.replace(
        tree.unflatten(
            [jnp.asarray(rng.uniform(0.5, 1.5, x.shape), x.dtype) for x in leaves]
        )
    )
    found = Executor(net, batch_sizes=(1, 4)).prepare()
    for rate in net.rates:
        answers, _ = found.run(rate, [{"x": x[:1]}, {"x": x[1:3]}])
        together = np.concatenate([answer["output"] for answer in answers])
        alone = [ms.slice_apply(net, x[i : i + 1], rate)[0] for i in range(3)]
        np.testing.assert_allclose(together, np.stack(alone), rtol=1e-4, atol=1e-5)


def test_nnx():
    from flax import nnx

    model = OfNnx(nnx.Rngs(0))
    model.eval()
    x = np.random.default_rng(0).normal(size=(3, 3)).astype(np.float32)
    net = ms.upgrade(model, x, rates=(0.5, 1.0), norm="shared")
    found = Executor(net, batch_sizes=(4,)).prepare()
    (answer,), _ = found.run(1.0, [{"x": x}])
    np.testing.assert_allclose(answer["output"], model(x), atol=1e-5)
    (answer,), _ = found.run(0.5, [{"x": x[:1]}])
    np.testing.assert_allclose(answer["output"], net(0.5, x[:1]), atol=1e-5)


def test_an_extracted_network_is_served_at_its_rates():
    found = Executor(ms.extract(two_inputs_net(), 0.5), batch_sizes=(2,)).prepare()
    assert found.rates == (0.25, 0.5)
    asked = [request(2, 0)]
    for rate in found.rates:
        check(found.run(rate, asked)[0], asked, rate)


# -- measuring


def test_measure_gives_every_program_its_times(executor):
    times = executor.times(3)
    assert set(times) == set(itertools.product(RATES, (2, 5), (None,)))
    assert all(len(each) == 3 and min(each) > 0 for each in times.values())
    table = executor.measure(3)
    assert (table.rates, table.batches, table.lengths) == (RATES, (2, 5), (None,))
    assert all(0 < each.median_ms <= each.p99_ms for each in table.entries.values())


# -- bad input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: {**r, "x": r["x"].astype(np.float64)}, "float32 .*got float64"),
        (lambda r: {**r, "x": r["x"][:, :2]}, r"\[-1, 3\].*got \[2, 2\]"),
        (lambda r: {**r, "x": r["x"][0]}, r"\[-1, 3\].*got \[3\]"),
        (lambda r: {**r, "x": r["x"][:1]}, "differ in their rows"),
        (lambda r: {**r, "x": r["x"].tolist()}, "expected an array, got list"),
        (lambda r: {"x": r["x"]}, "'more.shift'] are missing"),
        (lambda r: {**r, "z": r["x"]}, "'z'] are unknown"),
        (lambda r: {**r, "x": r["x"] * np.nan}, "'x' holds NaN"),
        (lambda r: [r["x"]], "inputs by name"),
        (lambda r: {k: x[:0] for k, x in r.items()}, "1 to 5 rows, got 0"),
        (lambda r: {k: np.tile(x, (3, 1)) for k, x in r.items()}, "rows, got 6"),
    ],
)
def test_invalid_requests(executor, change, message):
    bad = change(request(2, 0))
    with pytest.raises(InvalidRequest, match=message) as error:
        executor.check(bad)
    assert "\n" not in str(error.value)
    with pytest.raises(InvalidRequest, match=message):
        executor.run(0.5, [bad])


def test_numbers_that_need_not_be_finite(executor):
    asked = request(2, 0)
    asked["more.shift"][0] = np.inf
    (answer,), _ = executor.run(0.5, [asked])  # finite names "x" alone
    assert np.isfinite(answer["y"][1]).all()


@pytest.mark.parametrize("rate", [0.3, 2, True, "wide", None, [0.5], {"w1:1": 0.5}])
def test_rates_that_are_not_served(executor, rate):
    with pytest.raises(InvalidRequest, match=r"not served; \(0.25, 0.5, 1.0\)"):
        executor.run(rate, [request(1, 0)])


def test_batches_that_are_too_large_or_empty(executor):
    with pytest.raises(ValueError, match="1 to 5 rows; got 6"):
        executor.run(0.5, [request(3, 0), request(3, 1)])
    with pytest.raises(ValueError, match="got 0"):
        executor.run(0.5, [])
    with pytest.raises(ValueError, match="at least one repeat"):
        executor.times(0)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"batch_sizes": ()}, ValueError, "batch_sizes"),
        ({"batch_sizes": (0, 1)}, ValueError, "batch_sizes"),
        ({"rates": [0.3]}, ms.RateError, "0.3"),
        ({"rates": []}, ValueError, "rates is empty"),
        ({"input_names": ["a"]}, ValueError, "input_names are 2 different"),
        ({"input_names": ["a", "a"]}, ValueError, "input_names are 2 different"),
        ({"output_names": ["a"]}, ValueError, "output_names are 3 different"),
        ({"batch_axes": {"z": 0}}, ValueError, "batch_axes name .*'z'"),
        ({"batch_axes": 2}, ValueError, "no such free axes"),
        ({"batch_axes": {"x": 1}}, ValueError, "one entry for each row"),
        ({"finite": ["y"]}, ValueError, "finite names"),
    ],
)
def test_options_that_cannot_be(options, kind, message):
    with pytest.raises(kind, match=message):
        Executor(two_inputs_net(), **options)


def test_networks_that_cannot_be_served():
    with pytest.raises(TypeError, match="expects a Sliceable"):
        Executor(weights())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="consists of types"):
        Executor(jax.eval_shape(two_inputs_net))
    x = jnp.ones((4, 3))
    variables = Normed().init(jax.random.key(0), x)
    net = ms.upgrade(Normed(), variables, x, rates=(0.5, 1.0), norm="shared")
    with pytest.raises(ValueError, match=r"updates variables \(mutable\)"):
        Executor(net, x, call={"train": True, "mutable": ["batch_stats"]})


def test_an_output_that_belongs_to_no_row():
    def total(p, x):
        return (jnp.tanh(x @ p["w1"]) @ p["w3"]).sum(0)

    net = ms.upgrade(total, weights(), jnp.ones((2, 3)), rates=(0.5, 1.0))
    with pytest.raises(ValueError, match=r"'output' has shape \(4,\) for 32 rows"):
        Executor(net)


def test_rows_that_influence_each_other_are_refused():
    def normalized(p, x):  # batch statistics of this very batch
        h = x @ p["w1"]
        h = (h - h.mean(0)[None]) / (h.std(0)[None] + 1e-3)
        return jnp.tanh(h) @ p["w3"]

    net = ms.upgrade(normalized, weights(), jnp.ones((2, 3)), rates=(0.5, 1.0))
    refused = Executor(net, rates=[0.5], batch_sizes=(1, 4))
    with pytest.raises(ValueError, match="influence each other: output 'output'"):
        refused.prepare()
    assert not refused.ready
    assert Executor(net, rates=[0.5], batch_sizes=(4,), check=False).prepare().ready
