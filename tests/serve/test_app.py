"""The server over sockets, in this process: codes and bodies of answers."""

import gzip
import json
import socket
import threading
import time
import zlib

import numpy as np
import pytest

from mslice_jax.serve import Executor, bodies
from mslice_jax.serve.live import Live
from mslice_jax.serve.metrics import Metrics
from tests.serve.fakes import FakeExecutor
from tests.serve.networks import RATES, expected, request, two_inputs_net
from tests.serve.served import INFER, Served, as_json, simple


@pytest.fixture(scope="module")
def network():
    executor = Executor(two_inputs_net(), batch_sizes=(1, 4), finite=["x"]).prepare()
    with Served(executor) as served:
        yield served


@pytest.fixture
def fake():
    with Served(FakeExecutor()) as served:
        yield served


@pytest.mark.parametrize("rate", RATES)
def test_a_network_answers(network, rate):
    asked = request(3, seed=1)
    body = as_json(asked, id="me", parameters={"rate": rate})
    told = network.client.post(INFER, json=body).json()
    assert (told["model_name"], told["model_version"]) == ("default", "1")
    assert (told["id"], told["parameters"]) == ("me", {"rate": rate})
    found = {out["name"]: out for out in told["outputs"]}
    assert list(found) == ["twice.0", "twice.1", "y"]
    assert found["y"]["shape"] == [3, 4]
    y = np.reshape(found["y"]["data"], (3, 4))
    np.testing.assert_allclose(y, expected(asked, rate), atol=1e-5)
    assert network.metrics.value("mslice_compilations_after_ready") == 0


def test_binary_both_ways(network):
    asked = request(2, seed=2)
    inputs = [
        {
            "name": name,
            "datatype": "FP32",
            "shape": [*x.shape],
            "parameters": {"binary_data_size": x.nbytes},
        }
        for name, x in asked.items()
    ]
    outputs = [{"name": "y", "parameters": {"binary_data": True}}]
    head = json.dumps({"inputs": inputs, "outputs": outputs}).encode()
    body = head + b"".join(x.tobytes() for x in asked.values())
    size = {"Inference-Header-Content-Length": str(len(head))}
    packed = gzip.compress(body)
    for content, more in (
        (body, {}),
        (packed, {"Content-Encoding": "gzip"}),
        (zlib.compress(body), {"Content-Encoding": "deflate"}),
    ):
        answer = network.client.post(INFER, content=content, headers={**size, **more})
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "application/octet-stream"
        at = int(answer.headers["inference-header-content-length"])
        (told,) = json.loads(answer.content[:at])["outputs"]
        assert told["parameters"] == {"binary_data_size": 2 * 4 * 4}
        y = np.frombuffer(answer.content[at:], "<f4").reshape(2, 4)
        np.testing.assert_allclose(y, expected(asked, 1.0), atol=1e-5)


def test_metadata(network):
    get = network.client.get
    told = get("/v2/models/default").json()
    assert told["versions"] == ["1"] and told["parameters"]["rates"] == list(RATES)
    assert told["inputs"] == [
        {"name": "x", "datatype": "FP32", "shape": [-1, 3]},
        {"name": "more.shift", "datatype": "FP32", "shape": [-1, 2]},
    ]
    assert {"name": "y", "datatype": "FP32", "shape": [-1, 4]} in told["outputs"]
    assert get("/v2/models/default/versions/1").json() == told
    assert get("/v2").json()["name"] == "mslice_jax"
    assert "binary_tensor_data" in get("/v2").json()["extensions"]
    for path in ("health/live", "health/ready", "models/default/ready"):
        assert get(f"/v2/{path}").status_code == 200
    assert get("/v2/models/default/versions/1/ready").status_code == 200
    (told,) = network.client.post("/v2/repository/index").json()
    assert told == {"name": "default", "version": "1", "state": "READY", "reason": ""}


def dumped(*rows, **more):
    return json.dumps(simple(*rows, **more)).encode()


GOOD, GZIP = dumped(1), {"Content-Encoding": "gzip"}
NOTHING = json.dumps(as_json({"x": np.zeros((0, 2), np.float32)})).encode()
BAD = {
    "no JSON": (INFER, b"{", {}, 400, "no JSON"),
    "no numbers": (INFER, NOTHING, {}, 400, "1 to 4 rows, got 0"),
    "rows": (
        INFER,
        dumped(*range(5)),
        {},
        400,
        "1 to 4 rows, got 5",
    ),
    "no such rate": (
        INFER,
        dumped(1, parameters={"rate": 0.3}),
        {},
        400,
        "rate 0.3 is not one of (0.5, 1.0)",
    ),
    "least rate": (
        INFER,
        dumped(1, parameters={"min_rate": 1e300}),
        {},
        400,
        "min_rate inf is above the widest",
    ),
    "model": ("/v2/models/other/infer", GOOD, {}, 404, "no model 'other'"),
    "version": ("/v2/models/default/versions/2/infer", GOOD, {}, 404, "no version '2'"),
    "path": ("/v2/models/default/inferr", GOOD, {}, 404, "Not Found"),
    "large": (INFER, b"[" + b" " * 1000, {}, 413, "more than 1000 bytes"),
    "bomb": (
        INFER,
        gzip.compress(b" " * 9999),
        {"Content-Encoding": "gzip"},
        413,
        "more",
    ),
    "no gzip": (INFER, GOOD, GZIP, 400, "not packed so"),
    "half": (
        INFER,
        gzip.compress(GOOD)[:-9],
        GZIP,
        400,
        "ends too early",
    ),
    "two packed": (
        INFER,
        gzip.compress(GOOD) * 2,
        GZIP,
        400,
        "more after the end",
    ),
    "encoding": (INFER, GOOD, {"Content-Encoding": "br"}, 415, "expected gzip"),
    "head": (
        INFER,
        GOOD,
        {"Inference-Header-Content-Length": "x"},
        400,
        "expected the by",
    ),
    "index": ("/v2/repository/index", b"[]", {}, 400, "expected a JSON object"),
    "load": ("/v2/repository/models/other/load", b"", {}, 404, "no model 'other'"),
    "nothing": ("/v2/repository/models/default/load", b"", {}, 400, "no checkpoint"),
}


def test_what_is_malformed_gets_a_reason_and_the_server_lives():
    nan = np.array([[np.nan, 1]], np.float32)
    head = as_json({"x": nan})
    del head["inputs"][0]["data"]
    head["inputs"][0]["parameters"] = {"binary_data_size": 8}
    text = json.dumps(head).encode()
    size = {"Inference-Header-Content-Length": str(len(text))}
    cases = {**BAD, "NaN": (INFER, text + nan.tobytes(), size, 400, "holds NaN")}
    with Served(FakeExecutor(), body_bytes=1000) as served:
        for name, (path, body, headers, code, says) in cases.items():
            answer = served.client.post(path, content=body, headers=headers)
            assert answer.status_code == code, (name, answer.text)
            assert says in answer.json()["error"], name
        assert served.client.get(INFER).status_code == 405
        assert served.client.post(INFER, content=GOOD).status_code == 200
        # What went to the model and was no request of it.
        found = served.outcomes()
    assert found == {
        "answered": 1.0,
        "invalid": float(sum(b[0] == INFER for b in cases.values())),
    }


LARGE = b" " * (8 << 20)  # more than sockets hold, so that the server has to read it


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (LARGE, {}),
        (
            b"%x\r\n%b\r\n0\r\n\r\n" % (len(LARGE), LARGE),
            {"Transfer-Encoding": "chunked"},
        ),
    ],
)
def test_who_sends_all_of_a_large_body_reads_why_it_is_too_large(content, lines):
    with Served(FakeExecutor(), body_bytes=1000) as served:
        for _ in range(3):
            answer = served.client.post(INFER, content=content, headers=lines)
            assert answer.status_code == 413
            assert "more than 1000 bytes" in answer.json()["error"]
            assert answer.headers["connection"] == "close"
        assert served.outcomes() == {"invalid": 3.0}


def test_the_rest_of_a_large_body_is_not_waited_for_forever(monkeypatch):
    monkeypatch.setattr(bodies, "_LINGER_S", 0.05)
    with Served(FakeExecutor(), body_bytes=1000) as served:
        address = ("127.0.0.1", served.client.port)
        with socket.create_connection(address, timeout=60) as raw:
            head = f"POST {INFER} HTTP/1.1\r\nHost: me\r\nContent-Length: 5000\r\n\r\n"
            raw.sendall(head.encode())
            found = b""
            while part := raw.recv(1 << 16):  # to its end
                found += part
        assert found.startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize(
    ("lines", "code"),
    [
        ("Content-Length: -1", 400),
        ("Content-Length: two", 400),
        ("Content-Length: 5\r\nContent-Length: 6", 400),
        ("Content-Length: 99999999999999999999", 413),
        ("Transfer-Encoding: chunked\r\n\r\nxyz", 400),
        ("a line that is no header", 400),
        ("X: " + "y" * 200_000, 400),
    ],
)
def test_heads_that_are_no_http(fake, lines, code):
    port = fake.client.port
    with socket.create_connection(("127.0.0.1", port), timeout=60) as raw:
        head = f"POST {INFER} HTTP/1.1\r\nHost: me\r\n{lines}\r\n\r\n"
        raw.sendall(head.encode())
        assert raw.recv(1 << 16).startswith(f"HTTP/1.1 {code} ".encode())
    assert fake.client.post(INFER, json=simple(1)).status_code == 200


def raw_answer(served, head, body=b""):
    with socket.create_connection(("127.0.0.1", served.client.port), 60) as raw:
        raw.sendall(head.replace("\n", "\r\n").encode() + body)
        return raw.recv(1 << 16)


def test_what_a_proxy_may_read_otherwise_is_refused(fake):
    lengths = f"Content-Length: {len(GOOD)}\nTransfer-Encoding: chunked"
    body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(GOOD), GOOD)
    head = f"POST {INFER} HTTP/1.1\nHost: me\n"
    answer = raw_answer(fake, f"{head}{lengths}\n\n", body)
    assert answer.startswith(b"HTTP/1.1 400 ") and b"got both" in answer
    alone = "Transfer-Encoding: chunked"
    assert raw_answer(fake, f"{head}{alone}\n\n", body).startswith(b"HTTP/1.1 200 ")
    # No redirection, which would be to the host that the client named.
    answer = raw_answer(fake, "GET /v2/ HTTP/1.1\nHost: elsewhere\n\n")
    assert answer.startswith(b"HTTP/1.1 404 ") and b"elsewhere" not in answer


def test_a_client_that_hangs_up_leaves_the_queue(fake):
    fake.executor.gate.clear()
    threads, answers = post_beside(fake, 1)
    assert fake.executor.begun.wait(60)
    port = fake.client.port
    with socket.create_connection(("127.0.0.1", port), timeout=60) as raw:
        head = f"POST {INFER} HTTP/1.1\r\nHost: me\r\nContent-Length: {len(GOOD)}"
        raw.sendall(head.encode() + b"\r\n\r\n" + GOOD)
        until(lambda: fake.engine.waiting == 1)
    until(lambda: fake.engine.waiting == 0)
    # And one that hangs up in the middle of its body.
    with socket.create_connection(("127.0.0.1", port), timeout=60) as raw:
        raw.sendall(head.encode() + b"\r\n\r\n" + GOOD[:9])
    until(lambda: fake.outcomes().get("gone") == 2)
    fake.executor.gate.set()
    threads[0].join(60)
    assert answers[0].status_code == 200
    assert fake.executor.ran == [(1.0, [1])]


def test_a_failing_batch_is_500(fake):
    fake.executor.run = lambda rate, requests: 1 / 0
    answer = fake.client.post(INFER, json=simple(1))
    assert answer.status_code == 500 and "ZeroDivisionError" in answer.json()["error"]
    assert fake.client.get("/v2/health/ready").status_code == 200


def test_a_deadline_that_passes_is_504(fake):
    body = simple(1, parameters={"timeout": 1})
    answer = fake.client.post(INFER, json=body)
    assert answer.status_code == 504 and "deadline" in answer.json()["error"]
    assert fake.outcomes() == {"shed": 1.0}


def post_beside(served, count):
    """Requests from threads of their own; their answers when `join`ed."""
    answers = []

    def post(n):
        answers.append(served.client.post(INFER, json=simple(n)))

    threads = [threading.Thread(target=post, args=(n,)) for n in range(count)]
    for thread in threads:
        thread.start()
    return threads, answers


def until(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def test_a_full_queue_is_429():
    with Served(FakeExecutor(), most_waiting=2) as served:
        served.executor.gate.clear()
        threads, answers = post_beside(served, 1)
        assert served.executor.begun.wait(60)
        more, those = post_beside(served, 2)
        until(lambda: served.engine.waiting == 2)
        answer = served.client.post(INFER, json=simple(9))
        assert answer.status_code == 429 and int(answer.headers["retry-after"]) > 0
        served.executor.gate.set()
        for thread in threads + more:
            thread.join(60)
        assert [each.status_code for each in answers + those] == [200] * 3
        assert served.outcomes() == {"answered": 3.0, "full": 1.0}


def test_bodies_that_wait_are_bounded():
    with Served(FakeExecutor(), held_bytes=300) as served:
        served.executor.gate.clear()
        threads, answers = post_beside(served, 1)  # of more than 100 bytes
        assert served.executor.begun.wait(60)
        answer = served.client.post(INFER, content=b" " * 250)
        assert answer.status_code == 429 and "bytes wait" in answer.json()["error"]
        served.executor.gate.set()
        threads[0].join(60)
        # What was held was given back.
        assert served.client.post(INFER, json=simple(2)).status_code == 200
        assert answers[0].status_code == 200


def test_draining():
    with Served(FakeExecutor()) as served:
        served.executor.gate.clear()
        threads, answers = post_beside(served, 3)
        assert served.executor.begun.wait(60)
        until(
            lambda: (
                served.engine.waiting + sum(map(len, [served.executor.ran[0][1]])) == 3
            )
        )
        assert not served.engine.drain(0.001)
        get, post = served.client.get, served.client.post
        assert get("/v2/health/ready").status_code == 503
        assert get("/v2/models/default/ready").status_code == 503
        assert get("/v2/health/live").status_code == 200
        assert post("/v2/repository/index").json()[0]["state"] == "UNAVAILABLE"
        assert post("/v2/repository/index", json={"ready": True}).json() == []
        answer = post(INFER, json=simple(1))
        assert answer.status_code == 503 and "retry-after" in answer.headers
        served.executor.gate.set()
        for thread in threads:
            thread.join(60)
        assert [each.status_code for each in answers] == [200] * 3


def test_new_weights():
    executor, weights = FakeExecutor(), [3.0, None]
    with Served(executor, reload=lambda: executor.swap(weights.pop(0))) as served:
        load = "/v2/repository/models/default/load"
        assert served.client.post(load).status_code == 200
        told = served.client.post(INFER, json=simple(1)).json()
        assert told["outputs"][0]["data"] == [3.0, -3.0]
        answer = served.client.post(load)
        assert answer.status_code == 400
        assert "stay: the new weights do not fit those" in answer.json()["error"]
        told = served.client.post(INFER, json=simple(1)).json()
        assert told["outputs"][0]["data"] == [3.0, -3.0]
        answer = served.client.post(load, json={"parameters": {"config": "{}"}})
        assert answer.status_code == 400


def test_new_weights_are_read_once_at_a_time():
    begun, gate = threading.Event(), threading.Event()

    def reload():
        begun.set()
        assert gate.wait(60)

    with Served(FakeExecutor(), reload=reload) as served:
        load = "/v2/repository/models/default/load"
        codes = []
        first = threading.Thread(
            target=lambda: codes.append(served.client.post(load).status_code)
        )
        first.start()
        assert begun.wait(60)
        answer = served.client.post(load)
        assert answer.status_code == 429 and "retry-after" in answer.headers
        assert served.client.post(INFER, json=simple(1)).status_code == 200
        gate.set()
        first.join(60)
        assert codes == [200] and served.client.post(load).status_code == 200


def test_a_token():
    with Served(FakeExecutor(), token="secret", reload=lambda: None) as served:
        for headers in (
            {},
            {"Authorization": "Bearer secre"},
            {"Authorization": "secret"},
        ):
            for method, path in (
                ("POST", INFER),
                ("POST", "/v2/repository/models/default/load"),
                ("GET", "/metrics"),
                ("GET", "/live.json"),
                ("GET", "/v2"),
            ):
                answer = served.client.request(method, path, headers=headers)
                assert answer.status_code == 401 and "Bearer" in answer.json()["error"]
        for path in ("/", "/v2/health/live", "/v2/health/ready"):
            assert served.client.get(path).status_code == 200
        headers = {"Authorization": "Bearer secret"}
        answer = served.client.post(INFER, json=simple(1), headers=headers)
        assert answer.status_code == 200


def test_the_page_shows_what_metrics_say():
    accuracy = {0.5: 0.9, 1.0: 0.98}
    with Served(FakeExecutor(), accuracy=accuracy) as served:
        live = Live(served.metrics, {})  # the server's own notes every second
        live.note(0.0)
        for rate, count in ((0.5, 3), (1.0, 1)):
            for _ in range(count):
                body = simple(1, parameters={"rate": rate})
                assert served.client.post(INFER, json=body).status_code == 200
        served.client.post(INFER, content=b"{")
        live.note(2.0)
        told = served.client.get("/live.json").json()
        text = served.client.get("/metrics").text
        page = served.client.get("/").text
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if line[0] != "#")
    for rate, count in (("0.5", 3), ("1.0", 1)):
        assert float(lines[f'mslice_answers_total{{rate="{rate}"}}']) == count
        assert told["answers"][rate] == count
    for name, count in told["total"].items():
        assert float(lines[f'mslice_requests_total{{outcome="{name}"}}']) == count
    assert (told["total"]["answered"], told["total"]["invalid"]) == (4, 1)
    assert float(lines["mslice_rate"]) == told["now"]["rate"] == 1.0
    assert float(lines["mslice_queue_requests"]) == told["now"]["queue"] == 0
    assert float(lines["mslice_request_seconds_count"]) == 4
    assert float(lines['mslice_batches_total{rate="0.5",rows="1"}']) == 3
    assert float(lines['mslice_accuracy{rate="0.5"}']) == 0.9
    recent = live.told()["recent"]
    assert recent["answered_per_s"] == 2  # four in two seconds
    assert recent["rate"] == pytest.approx((3 * 0.5 + 1) / 4)
    assert recent["accuracy"] == pytest.approx((3 * 0.9 + 0.98) / 4)
    assert live.told()["seconds"] == [recent]
    # The page asks for nothing of other servers.
    assert "live.json" in page and "http" not in page.replace(
        "http://www.w3.org/2000/svg", ""
    )


def test_quantiles_of_a_histogram():
    # T is 1 s: 10 requests between .1 and .2 s, 10 between .4 and .5 s, by hand.
    metrics = Metrics((1.0,), slo_s=1.0)
    live = Live(metrics, {})
    live.note(0.0)
    for seconds in (0.15, 0.45):
        for _ in range(10):
            metrics.ended("answered", 1.0, seconds)
    live.note(1.0)
    recent = live.told()["recent"]
    assert recent["p50_ms"] == pytest.approx(200)  # the tenth ends the first bucket
    assert recent["p99_ms"] == pytest.approx(400 + 100 * (19.8 - 10) / 10)
    assert recent["accuracy"] is None  # nobody said what it is
