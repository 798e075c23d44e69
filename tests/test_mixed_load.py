"""The mixed load: some seconds of it, and whether it notices a server that errs."""

import json
import pathlib

import numpy as np
import pytest

from experiments.benchmarks import mixed_load
from experiments.benchmarks.mixed import clients, right, verdict, wrong
from experiments.benchmarks.mixed.network import Pool
from experiments.benchmarks.mixed.wire import Reply

LINUX = pathlib.Path("/proc/self/status").exists()


@pytest.mark.nightly
@pytest.mark.skipif(not LINUX, reason="memory is read from /proc, which Linux has")
def test_a_server_lives_through_some_seconds(tmp_path):
    config = mixed_load.Config(
        minutes=0.04,
        per_second=80,
        clients=8,
        swap_s=0.5,
        hidden=16,
        growth_mb=100,  # it has just begun
        out=tmp_path / "result.json",
    )
    result = mixed_load.main(config)
    told = [x for x in result["verdicts"] if not x["holds"]]
    assert result["holds"], (told, result["faults"], result["lost"])
    assert result["requests"]["right, 200"] > 50
    assert min(result["malformed"].get(kind, 0) for kind in wrong.kinds()) >= 1
    assert json.loads(config.out.read_text())["holds"]


def test_every_kind_that_the_protocol_can_get_wrong_is_there():
    kinds = {name.partition(":")[0] for name in wrong.kinds()}
    assert kinds >= {"dtype", "shape", "size", "name", "JSON", "header", "NaN"}
    assert kinds >= {"content length", "body", "parameter"}


# Two rows; version 0 makes 1 and 2 of them, and version 1 11 and 12, plus the rate.
X = np.arange(12, dtype=np.float32).reshape(2, 6)
LOGITS = {
    (version, rate): np.array([[1.0] * 4, [2.0] * 4], np.float32) + 10 * version + rate
    for version in (0, 1)
    for rate in (0.25, 0.5, 1.0)
}
POOL = Pool(X, np.array([0, 1], np.int32), LOGITS)


def answered(rows=(1, 0), rate=0.5, version=0, name="r1", code=200, x=None, **more):
    logits = LOGITS[version, rate][list(rows)]
    x = X[list(rows)] if x is None else x
    told = {
        "id": name,
        "parameters": {"rate": rate},
        "outputs": [
            {"name": n, "shape": list(a.shape), "data": a.reshape(-1).tolist()}
            for n, a in (("logits", logits), ("same", x))
        ],
    }
    return Reply(code, {}, json.dumps({**told, **more}).encode())


ASKED = right.Right(b"", "r1", np.array([1, 0]), least=0.5)


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        (answered(), None),
        (answered(rate=1.0), None),
        (answered(rows=(0, 1)), "rows of somebody else"),
        (answered(rows=(0, 1), x=X[[1, 0]]), "wrong rows"),
        (answered(rows=(1,)), "for 2 rows"),
        (answered(rate=0.25), "was not asked for"),
        (answered(version=1), "rows of the weights {1}, where {0}"),
        (answered(name="r2"), "the answer to 'r2' came to 'r1'"),
        (answered(code=429, error="full"), "expected 200, got 429: full"),
        (answered(outputs=[]), "expected the outputs"),
        (Reply(200, {}, b"{}"), "no answer of the protocol"),
    ],
)
def test_what_is_wrong_with_an_answer_is_seen(reply, says):
    fault = right.fault(ASKED, reply, POOL, {0})
    assert fault is None if says is None else fault is not None and says in fault


def test_binary_outputs_are_read():
    x = X[[1, 0]]
    head = {
        "id": "r1",
        "parameters": {"rate": 1.0},
        "outputs": [
            {
                "name": "same",
                "shape": [2, 6],
                "parameters": {"binary_data_size": x.nbytes},
            },
            {"name": "logits", "shape": [2, 4], "data": [3.0] * 4 + [2.0] * 4},
        ],
    }
    text = json.dumps(head).encode()
    size = {"inference-header-content-length": str(len(text))}
    asked = right.Right(
        b"", "r1", np.array([1, 0]), binary=("same",), outputs=("same", "logits")
    )
    reply = Reply(200, size, text + x.tobytes())
    assert right.fault(asked, reply, POOL, {0}) is None
    more = Reply(200, size, text + x.tobytes() + b"more")
    assert "4 bytes are left over" in str(right.fault(asked, more, POOL, {0}))


def test_which_weights_may_have_answered(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(clients.time, "monotonic", lambda: now[0])
    history = clients.History()
    now[0] = 10.0
    history.begins(1)
    now[0] = 12.0
    history.surely()
    assert history.between(1, 9) == {0}
    assert history.between(9, 11) == {0, 1}
    assert history.between(11, 13) == {0, 1}
    assert history.between(13, 20) == {1}


def test_answers_that_look_alike_are_no_reference():
    class Same:
        rates = (0.5,)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "mslice_jax.slice_apply", lambda net, x, r, k: {"logits": np.ones((4, 4))}
        )
        with pytest.raises(AssertionError, match="differ by"):
            Pool.of([Same()], rows=4)


METRICS = """\
mslice_requests_total{outcome="answered"} 7.0
mslice_requests_total{outcome="failed"} 0.0
mslice_requests_total{outcome="full"} 0.0
mslice_requests_total{outcome="draining"} 0.0
mslice_requests_total{outcome="invalid"} 3.0
mslice_queue_requests 0.0
mslice_compilations_after_ready 0.0
"""
TOLD = "Stopped. Requests: 7 answered, 3 invalid."


@pytest.mark.parametrize(
    ("counted", "maybe", "metrics", "code", "told", "fails"),
    [
        (10, 0, METRICS, 0, TOLD, set()),
        (9, 1, METRICS, 0, TOLD, set()),
        (11, 0, METRICS, 0, TOLD, {"the server counted every request once"}),
        (8, 1, METRICS, 0, TOLD, {"the server counted every request once"}),
        (10, 0, METRICS, 1, TOLD, {"the server ends well"}),
        (10, 0, METRICS, 0, "Stopped. Requests: none.", {"the server ends well"}),
        (
            11,
            0,
            METRICS.replace('failed"} 0', 'failed"} 1').replace("ready 0", "ready 2"),
            0,
            TOLD.replace("invalid", "invalid, 1 failed"),
            {"none failed or was refused", "nothing was compiled after ready"},
        ),
    ],
)
def test_verdicts_on_a_server(counted, maybe, metrics, code, told, fails):
    seen = clients.Seen(counted=counted, maybe=maybe)
    verdicts = verdict.of_server(seen, metrics, code, told)
    assert {each.what for each in verdicts if not each.holds} == fails


def test_memory_that_grows_is_seen():
    at = np.arange(300.0)
    rng = np.random.default_rng(0)
    # It fills up in the first third, and goes up and down by some MB.
    steady = 250 + 30 * np.minimum(at / 100, 1) + rng.normal(size=300)
    assert abs(verdict.growth_mb(at, steady)) < 1
    leaks = steady + 0.05 * at
    assert verdict.growth_mb(at, leaks) == pytest.approx(10, abs=1)
    assert not verdict.of_memory(10.0, 8.0, 300).holds
    assert not verdict.of_memory(float("nan"), 8.0, 300).holds
    assert verdict.of_memory(1.0, 8.0, 300).holds
