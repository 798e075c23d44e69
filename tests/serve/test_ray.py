"""On Ray Serve: what is refused before it, the front; and nightly, real processes."""

import contextlib
import functools
import json
import os
import pathlib
import socket
import subprocess
import sys
import threading
import time
from types import ModuleType, SimpleNamespace

import pytest
import uvicorn

from mslice_jax.serve import ray as on_ray
from mslice_jax.serve.front import Front
from mslice_jax.serve.options import options
from tests.serve.client import Client
from tests.serve.fakes import FakeExecutor
from tests.serve.ray_driver import INFER, number, until
from tests.serve.test_app import simple
from tests.serve.test_replicas import ABOUT, Busy, Dead, Remote, replica

ROOT = pathlib.Path(__file__).resolve().parents[2]


# -- without Ray


def test_nothing_imports_ray_before_it_is_asked_for():
    script = "import sys, mslice_jax.serve.ray; print('ray' in sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == "False"


def test_ray_may_be_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    for call in (
        lambda: on_ray.run("net.mslice"),
        on_ray.connect,
        on_ray.stop,
    ):
        with pytest.raises(ImportError, match=r'pip install "mslice_jax\[ray\]"'):
            call()


@pytest.mark.parametrize(
    ("settings", "kind", "says"),
    [
        ({"replicas": 0}, ValueError, "integers from 1, got least 0"),
        ({"replicas": (2, 1)}, ValueError, "the least first, got 2 to 1"),
        ({"replicas": (1, 2, 3)}, ValueError, "the least and the most, got"),
        ({"replicas": 1.5}, ValueError, "got least 1.5"),
        ({"replicas": "2"}, ValueError, "got least '2'"),
        ({"slo": 50}, TypeError, r"no settings \['slo'\]; there are \['accuracy', "),
        ({"demo": True}, TypeError, "no settings"),
        ({"slo_ms": 0}, ValueError, "slo_ms: expected a number above 0, got 0"),
        ({"slo_ms": "50"}, ValueError, "got '50'"),
        ({"margin_ms": -1}, ValueError, "margin_ms: expected a number from 0, got -1"),
        ({"memory_mb": -1}, ValueError, "memory_mb: expected a number above 0"),
        ({"policy": "best"}, ValueError, "expected one of .* got 'best'"),
        ({"queue": 0}, ValueError, "queue: expected an integer from 1, got 0"),
        ({"port": 70000}, ValueError, "port: expected an integer from 1 to 65535"),
        ({"name": ""}, ValueError, "name: expected the name of a model"),
        ({"name": "stats"}, ValueError, "name of a model, without /, got 'stats'"),
        ({"host": ""}, ValueError, "host: expected an address, got ''"),
        ({"token": "ü"}, ValueError, "token: expected a word of ASCII, got 'ü'"),
        ({"token": 5}, ValueError, "token: expected a word of ASCII, got 5"),
    ],
)
def test_a_bad_setting_is_refused_before_ray_is_looked_for(
    monkeypatch, settings, kind, says
):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(kind, match=says):
        on_ray.run("net.mslice", **settings)


def test_a_port_in_use_is_told_before_ray_starts(monkeypatch):
    """On a machine alone; the front of a larger cluster may be on another one."""

    class Started(Exception):
        pass

    def init():
        raise Started

    ray, serve = ModuleType("ray"), ModuleType("ray.serve")
    ray.init, ray.is_initialized = init, lambda: False
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setitem(sys.modules, "ray.serve", serve)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"port {port} of 127.0.0.1: Address already"):
            on_ray.run("net.mslice", port=port)
        with pytest.raises(Started):
            on_ray.run("net.mslice", port=port, http=False)
        ray.is_initialized, serve.status = lambda: True, lambda: served
        served = SimpleNamespace(proxies={})
        ray.nodes = lambda: [{}]
        with pytest.raises(OSError, match=f"port {port}"):
            on_ray.run("net.mslice", port=port)
    with pytest.raises(Started):
        ray.is_initialized = lambda: False
        on_ray.run("net.mslice", port=port)


def test_who_waits_for_a_free_worker_is_told(monkeypatch, caplog):
    """Where replicas hold all of the cluster nobody can try another network."""

    class Tried(Exception):
        pass

    class Task:
        def remote(self, flags):
            raise Tried

    ray, serve = ModuleType("ray"), ModuleType("ray.serve")
    ray.is_initialized, ray.nodes = lambda: True, lambda: [{}, {}]
    ray.remote = lambda **_: lambda function: Task()
    ray.exceptions, ray.get = SimpleNamespace(RayTaskError=Dead), None
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setitem(sys.modules, "ray.serve", serve)
    ray.available_resources = lambda: {"CPU": 0.5, "memory": 1e9}
    with pytest.raises(Tried):
        on_ray.run("net.mslice", resources={"num_gpus": 1})
    said = caplog.records[0].getMessage()
    assert "waits until 1 CPU (there are 0.5) and 1 GPU (there are 0) are free" in said
    with pytest.raises(Tried):
        on_ray.run("net.mslice", resources={"num_cpus": 0.5})
    assert len(caplog.records) == 1


@contextlib.contextmanager
def front_of(monkeypatch, *replicas, **more):
    """A `Front` over sockets, its replicas in this process, and no Ray."""
    ray, serve = ModuleType("ray"), ModuleType("ray.serve")
    ray.exceptions = SimpleNamespace(RayActorError=Dead, ObjectLostError=Dead)
    serve.exceptions = SimpleNamespace(BackPressureError=Busy)
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setitem(sys.modules, "ray.serve", serve)
    flags = options(["--checkpoint", "net.mslice", "--name", "default"])
    vars(flags).update(more)
    asked = SimpleNamespace(ask=SimpleNamespace(remote=Remote(*replicas)))
    app = Front(asked, ABOUT, flags).__serve_build_asgi_app__()
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical"))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        run = functools.partial(server.run, sockets=[listening])
        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield Client(listening.getsockname()[1])
        finally:
            server.should_exit = True
            thread.join(60)


def test_the_front_hands_requests_on(monkeypatch):
    with front_of(monkeypatch, Dead(), replica()) as client:
        told = client.get("/v2/models/default").json()
        assert told["parameters"] == {"rates": [0.5, 1.0], "slo_ms": 6e4, "max_rows": 4}
        answer = client.post(INFER, json=simple(3, parameters={"rate": 0.5})).json()
        assert answer["parameters"] == {"rate": 0.5}
        assert answer["outputs"][0]["data"] == [1.5, -1.5]
        assert number(client, "mslice_attempts_lost") == 1
        assert number(client, 'mslice_requests_total{outcome="answered"}') == 1
        assert number(client, "mslice_rate ") == 0.5
        code = client.post(
            INFER, json=simple(3, parameters={"min_rate": 2})
        ).status_code
        assert code == 400
        assert client.post(INFER, json={"inputs": []}).status_code == 400
        assert number(client, 'mslice_requests_total{outcome="invalid"}') == 2
        assert client.get("/v2/health/ready").status_code == 200
        live = client.get("/live.json").json()
        assert live["total"]["answered"] == 1 and live["now"]["ready"]
        assert client.post("/v2/repository/models/default/load").status_code == 400


@pytest.mark.parametrize(("one", "code"), [(Dead(), 504), (Busy(), 429)])
def test_the_front_says_why_there_is_no_answer(monkeypatch, one, code):
    with front_of(monkeypatch, one) as client:
        asked = simple(3, parameters={"timeout": 100_000})
        began = time.monotonic()
        answer = client.post(INFER, json=asked)
        assert answer.status_code == code and answer.json()["error"]
        assert time.monotonic() - began < 10
        outcome = {504: "shed", 429: "full"}[code]
        assert number(client, f'mslice_requests_total{{outcome="{outcome}"}}') == 1


def test_a_client_that_hangs_up_leaves_the_queue_of_a_replica(monkeypatch):
    executor = FakeExecutor()
    executor.gate.clear()
    one = replica(executor)
    with front_of(monkeypatch, one, token=None) as client:
        content = json.dumps(simple(1)).encode()
        size = f"Content-Length: {len(content)}"
        head = f"POST {INFER} HTTP/1.1\r\nHost: a\r\n{size}\r\n\r\n"

        def sent():
            asked = socket.create_connection(("127.0.0.1", client.port))
            asked.sendall(head.encode() + content)
            return asked

        with sent():
            assert executor.begun.wait(60)
            gone = sent()
            until(lambda: one.engine.waiting == 1)
            gone.close()
            until(lambda: one.engine.waiting == 0)
            executor.gate.set()
            until(lambda: number(client, "mslice_queue_requests") == 0)


# -- with Ray: processes of their own


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["killed", "scaled", "refused"])
def test_on_ray(name, tmp_path):
    """See `ray_driver`; Ray starts processes of its own, with warnings of theirs."""
    pytest.importorskip("ray", reason='needs ray[serve], the extra "ray"')
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    run = subprocess.run(
        [sys.executable, "-m", "tests.serve.ray_driver", name, str(tmp_path)],
        cwd=ROOT,
        # Of the workers, too; and a machine that is shared takes its time.
        env={**env, "PYTHONPATH": str(ROOT), "RAY_raylet_start_wait_time_s": "180"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=1800,
    )
    print(run.stdout)
    assert run.returncode == 0 and "as it should be" in run.stdout
