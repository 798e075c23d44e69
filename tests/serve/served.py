"""A server over sockets in this process: an engine, and a client of its routes."""

import functools
import socket
import threading

import uvicorn

from mslice_jax.serve import Elastic, Engine, LatencyTable
from mslice_jax.serve.app import App
from mslice_jax.serve.live import Live
from mslice_jax.serve.metrics import Metrics
from tests.serve.client import Client
from tests.serve.fakes import x_of

INFER = "/v2/models/default/infer"


def table_of(rates, batches):
    return LatencyTable({(r, b): (10 * r, 10 * r) for r in rates for b in batches})


class Served:
    """An engine, and a client of its routes."""

    def __init__(self, executor, slo_s=60.0, most_waiting=1000, accuracy=None, **more):
        self.executor = executor
        self.metrics = Metrics(executor.rates, slo_s=slo_s, accuracy=accuracy)
        self.engine = Engine(
            executor,
            Elastic(slo_s=slo_s),
            table_of(executor.rates, executor.batch_sizes),
            slo_s=slo_s,
            most_waiting=most_waiting,
            watcher=self.metrics,
        )
        self.metrics.of(self.engine, executor)
        self.live = Live(self.metrics, {"name": "default", "slo_ms": 1e3 * slo_s})
        self.app = App(
            engine=self.engine,
            executor=executor,
            metrics=self.metrics,
            live=self.live,
            **more,
        )
        config = uvicorn.Config(self.app.asgi(), log_level="critical")
        self.server = uvicorn.Server(config)
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.client = Client(self.socket.getsockname()[1])
        run = functools.partial(self.server.run, sockets=[self.socket])
        self.thread = threading.Thread(target=run)

    def __enter__(self):
        self.engine.start()
        self.thread.start()
        return self

    def __exit__(self, *_):
        if hasattr(self.executor, "gate"):
            self.executor.gate.set()
        assert self.engine.drain(60)
        self.server.should_exit = True
        self.thread.join(60)
        self.socket.close()

    def outcomes(self):
        names = ("answered", "shed", "gone", "invalid", "full", "draining", "failed")
        count = self.metrics.value
        found = {name: count("mslice_requests_total", outcome=name) for name in names}
        return {name: n for name, n in found.items() if n}


def as_json(inputs, **more):
    told = [
        {"name": name, "datatype": "FP32", "shape": [*x.shape], "data": x.tolist()}
        for name, x in inputs.items()
    ]
    return {"inputs": told, **more}


def simple(*rows, **more):
    return as_json({"x": x_of(*rows)}, **more)
