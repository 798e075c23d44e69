"""Configuration and statistics, as Triton's clients ask for them."""

import time

import numpy as np
import pytest

from mslice_jax.serve import Elastic, Engine, LatencyTable
from mslice_jax.serve.metrics import Metrics
from mslice_jax.serve.signature import Tensor
from mslice_jax.serve.triton import config, statistics
from tests.serve.fakes import Clock, FakeExecutor, x_of
from tests.serve.served import INFER, Served, simple

MODEL = "/v2/models/default"


def test_the_configuration_over_http():
    with Served(FakeExecutor()) as served:
        get = served.client.get
        told = get(f"{MODEL}/config").json()
        assert get(f"{MODEL}/versions/1/config").json() == told
        for path in ("/v2/models/other/config", f"{MODEL}/versions/2/config"):
            assert get(path).status_code == 404
        extensions = get("/v2").json()["extensions"]
    assert {"model_configuration", "statistics"} <= set(extensions)
    assert told["name"] == "default" and told["max_batch_size"] == 4
    # The batch stands in front of dims.
    assert told["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": [2]}]
    assert told["output"] == [{"name": "y", "data_type": "TYPE_FP32", "dims": [2]}]
    assert "dynamic_batching" in told and "sequence_batching" not in told
    assert told["model_transaction_policy"] == {"decoupled": False}


def test_rows_along_another_axis_are_no_batch_of_tritons():
    executor = FakeExecutor()
    executor.inputs = (Tensor("t", np.dtype("int32"), (7, -1), 1),)
    told = config(executor, "me")
    assert told["max_batch_size"] == 0
    assert told["input"] == [{"name": "t", "data_type": "TYPE_INT32", "dims": [7, -1]}]
    assert told["output"] == [{"name": "y", "data_type": "TYPE_FP32", "dims": [-1, 2]}]


def took(count, ms):
    return {"count": count, "ns": round(ms * 1e6)}


def test_statistics_by_hand():
    """Batches of 10 ms on a clock that is set by hand; who waits, waits for them."""
    clock = Clock()
    executor = FakeExecutor(clock, took=0.01)
    metrics = Metrics(executor.rates, slo_s=1.0)
    table = LatencyTable({(r, b): (10, 10) for r in (0.5, 1.0) for b in (1, 2, 4)})
    policy = Elastic(slo_s=1.0)
    engine = Engine(executor, policy, table, slo_s=1.0, watcher=metrics, clock=clock)

    def submit(*rows, **more):
        return engine.submit(executor.check({"x": x_of(*rows)}), **more)

    submit(1, 2, 3)
    clock.now += 0.004
    submit(4, rate=0.5)
    engine.turn()  # the first alone, for they share no rate: waited 4, ran 10 ms
    engine.turn()  # the other one: waited 10, ran 10 ms
    submit(5, timeout_s=0.001)
    engine.turn()  # shed at once
    executor.run = lambda rate, requests: 1 / 0
    submit(6)
    clock.now += 0.002
    engine.turn()  # its batch fails after 2 ms
    (told,) = statistics(metrics, "default", "1")["model_stats"]
    assert (told["name"], told["version"]) == ("default", "1")
    assert executor.ran == [(1.0, [3]), (0.5, [1])]
    assert (told["inference_count"], told["execution_count"]) == (4, 2)
    assert abs(told["last_inference"] / 1e3 - time.time()) < 60
    stats = told["inference_stats"]
    assert stats["success"] == took(2, 14 + 20)
    assert stats["queue"] == took(2, 4 + 10)
    assert stats["compute_infer"] == took(2, 10 + 10)
    assert stats["fail"] == took(2, 0 + 2)
    for name in ("compute_input", "compute_output"):
        assert stats[name] == took(2, 0)
    assert stats["cache_hit"] == stats["cache_miss"] == took(0, 0)
    sizes = {each["batch_size"]: each["compute_infer"] for each in told["batch_stats"]}
    assert sizes == {1: took(1, 10), 3: took(1, 10)}


def test_statistics_over_http():
    with Served(FakeExecutor()) as served:
        get = served.client.get
        (before,) = get(f"{MODEL}/stats").json()["model_stats"]
        for _ in range(3):
            assert served.client.post(INFER, json=simple(1, 2)).status_code == 200
        served.client.post(INFER, content=b"{")  # malformed: never taken
        told = get(f"{MODEL}/stats").json()
        for path in ("/v2/models/stats", f"{MODEL}/versions/1/stats"):
            assert get(path).json() == told
        for path in ("/v2/models/other/stats", f"{MODEL}/versions/2/stats"):
            assert get(path).status_code == 404
        text = served.client.get("/metrics").text
    assert before["last_inference"] == before["inference_count"] == 0
    assert before["batch_stats"] == []
    (after,) = told["model_stats"]
    assert (after["inference_count"], after["execution_count"]) == (6, 3)
    assert after["inference_stats"]["success"]["count"] == 3
    assert after["inference_stats"]["fail"]["count"] == 0
    assert 'mslice_busy_seconds_total{rate="1.0",rows="2"}' in text
    assert "mslice_queue_seconds_count 3.0" in text

    def whole(value):  # tools written in C++ take nothing else
        if isinstance(value, dict | list):
            each = value.values() if isinstance(value, dict) else value
            return all(map(whole, each))
        return isinstance(value, str) or (isinstance(value, int) and value >= 0)

    assert whole(told)


def test_a_client_of_triton_reads_both():
    client = pytest.importorskip("tritonclient.http", reason="needs tritonclient[http]")
    with Served(FakeExecutor()) as served:
        asked = client.InferenceServerClient(f"127.0.0.1:{served.client.port}")
        assert asked.get_model_config("default")["max_batch_size"] == 4
        assert served.client.post(INFER, json=simple(1)).status_code == 200
        for told in (
            asked.get_inference_statistics("default"),
            asked.get_inference_statistics("default", "1"),
            asked.get_inference_statistics(),
        ):
            (model,) = told["model_stats"]
            assert model["inference_stats"]["success"]["count"] == 1
        asked.close()
