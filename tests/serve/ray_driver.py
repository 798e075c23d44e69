"""A driver of Ray: python -m tests.serve.ray_driver NAME FOLDER runs one of these.

A network is served by replicas that are processes, and what they answer is held against
`slice_apply`. An AssertionError ends it with code 1.
"""

import contextlib
import functools
import os
import pathlib
import signal
import socket
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mslice_jax as ms
from mslice_jax.serve import Late, LatencyTable
from mslice_jax.serve import ray as on_ray
from mslice_jax.serve.scaling import Scaling
from tests.serve.client import Client
from tests.serve.test_app import as_json

INFER = "/v2/models/default/infer"
RATES = (0.25, 0.5, 1.0)
WIDTH = 64


LOOPS = 5000


def mlp(p, x):
    """Takes a while, so that there is always something in a replica."""
    h = jnp.tanh(x @ p["w1"])
    h = jax.lax.fori_loop(0, LOOPS, lambda _, h: h + jnp.tanh(h @ p["w"]) / LOOPS, h)
    return {"y": h @ p["w2"]}


@functools.cache
def net():
    rng = np.random.default_rng(0)
    shapes = {"w1": (3, WIDTH), "w": (WIDTH, WIDTH), "w2": (WIDTH, 2)}
    p = {
        n: jnp.asarray(rng.normal(size=s) / s[0] ** 0.5, jnp.float32)
        for n, s in shapes.items()
    }
    return ms.upgrade(mlp, p, jnp.ones((1, 3)), rates=RATES)


def saved(folder):
    """A network, and tables of what it is said to take, two rows a lot more than one.

    By "slow" and a T of 200 ms one row at a time has full width, and two do not: they
    are said to take 250 ms, and have to be done within T/2.
    """
    ms.save(net(), folder / "net.mslice")
    for name, one, two in (("quick", 2.0, 2.0), ("slow", 100.0, 250.0)):
        took = {(r, n): (t * r**2,) * 2 for r in RATES for n, t in ((1, one), (2, two))}
        LatencyTable(took).write(folder / f"{name}.json")


def number(client, name):
    lines = client.get("/metrics").text.splitlines()
    return next(float(x.rpartition(" ")[2]) for x in lines if x.startswith(name))


def until(true, seconds=60.0, pause=0.01):
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end
        time.sleep(pause)
    return found


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as it:
        return it.getsockname()[1]


def processes(name):
    """The process of each replica of a model, as Ray titles it."""
    found = set()
    for each in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            line = (each / "cmdline").read_bytes().decode(errors="replace")
            if f"ServeReplica:{name}:{on_ray.REPLICAS}" in line:
                found.add(int(each.name))
    return found


def states(name):
    from ray import serve

    deployment = serve.status().applications[name].deployments[on_ray.REPLICAS]
    return {
        str(getattr(k, "value", k)): n for k, n in deployment.replica_states.items()
    }


class Load:
    """Threads that ask again and again; answers are held against `slice_apply`.

    Args:
      ask: gives code, rate and rows for an array and a rate.
      threads: how many.
      rows: of each request; one or two if it is None.
      pause_s: between an answer and the next request.
    """

    def __init__(self, ask, threads, rows=None, pause_s=0.0):
        self.ask, self.rows, self.pause_s = ask, rows, pause_s
        self.answers, self.going = [], True
        self.threads = [
            threading.Thread(target=self._go, args=(i,)) for i in range(threads)
        ]

    def _go(self, seed):
        rng = np.random.default_rng(seed)
        while self.going:
            rows = self.rows or 1 + int(rng.integers(2))
            x = rng.normal(size=(rows, 3)).astype(np.float32)
            rate = [None, *RATES][rng.integers(4)]
            began = time.monotonic()
            told = self.ask(x, rate)
            self.answers.append((x, rate, told, began, time.monotonic()))
            time.sleep(self.pause_s)

    def __enter__(self):
        for each in self.threads:
            each.start()
        return self

    def __exit__(self, *_):
        self.going = False
        for each in self.threads:
            each.join(120)
            assert not each.is_alive()

    def check(self, at_least):
        """Every answer is there, at the rate it was asked for, and right."""
        assert len(self.answers) >= at_least
        for x, wanted, (code, rate, y), *_ in self.answers:
            assert code == 200 and wanted in (None, rate)
            right = ms.slice_apply(net(), x, rate)["y"]
            np.testing.assert_allclose(y, right, atol=1e-3)


def by_http(port, timeout_s):
    client = Client(port)

    def ask(x, rate):
        parameters = {"timeout": int(1e6 * timeout_s)}
        if rate is not None:
            parameters["rate"] = rate
        answer = client.post(INFER, json=as_json({"x": x}, parameters=parameters))
        if answer.status_code != 200:
            return answer.status_code, None, answer.text
        told = answer.json()
        out = told["outputs"][0]
        return 200, told["parameters"]["rate"], np.reshape(out["data"], out["shape"])

    return ask


def by_handle(handle, timeout_s):
    def ask(x, rate):
        answer = handle.ask({"x": x}, rate=rate, timeout_s=timeout_s)
        return 200, answer.rate, answer.outputs["y"]

    return ask


def killed(folder):
    """SIGKILL, while requests are in it: each is answered by the other, and rightly."""
    port = free_port()
    handle = on_ray.run(
        folder / "net.mslice",
        replicas=2,
        resources={"num_cpus": 0.5},
        table=folder / "quick.json",
        batches=(1, 2),
        slo_ms=60_000,
        port=port,
    )
    client = Client(port)
    try:
        first = processes("default")
        assert len(first) == 2
        client.post(INFER, json=as_json({"x": np.ones((1, 3), np.float32)}))
        victim = min(first)
        http, direct = Load(by_http(port, 60), 4), Load(by_handle(handle, 60), 4)
        with http, direct:
            until(lambda: min(len(http.answers), len(direct.answers)) > 50, 120)
            killed = time.monotonic()
            os.kill(victim, signal.SIGKILL)
            until(lambda: number(client, "mslice_attempts_lost") > 0, 30)
            until(lambda: handle.lost > 0, 30)
            noticed = time.monotonic() - killed
            counts = len(http.answers), len(direct.answers)
            until(lambda: len(http.answers) > counts[0] + 50, 120)
            until(lambda: len(direct.answers) > counts[1] + 50, 120)
        until(lambda: states("default").get("RUNNING") == 2, 300, 0.5)
        replaced = time.monotonic() - killed
        assert len(processes("default") - first) == 1
        http.check(100)
        direct.check(100)
        answers = http.answers + direct.answers
        across = [end - killed for *_, began, end in answers if began < killed < end]
        print(
            f"noticed after {noticed:.2f} s, replaced after {replaced:.1f} s; "
            f"{len(answers)} answers, {handle.lost} + "
            f"{number(client, 'mslice_attempts_lost'):.0f} attempts lost, the last "
            f"answer of those under way {max(across):.2f} s after the kill"
        )
        shed = number(client, 'mslice_requests_total{outcome="shed"}')
        assert shed == 0 and number(client, "mslice_attempts_lost") > 0

        # Nobody is left: a request fails at its deadline, or waits for who comes.
        for each in processes("default"):
            os.kill(each, signal.SIGKILL)
        x = np.ones((1, 3), np.float32)
        found = []
        waits = threading.Thread(
            target=lambda: found.append(by_handle(handle, 300)(x, 0.5))
        )
        waits.start()
        began = time.monotonic()
        with pytest.raises(Late):
            handle.ask({"x": x}, timeout_s=2.0)
        assert 1.9 < time.monotonic() - began < 4
        began = time.monotonic()
        code, _, text = by_http(port, 2)(x, None)
        assert code == 504 and "deadline" in text
        assert 1.9 < time.monotonic() - began < 4
        waits.join(300)
        code, rate, y = found[0]
        assert (code, rate) == (200, 0.5)
        right = ms.slice_apply(net(), x, 0.5)["y"]
        np.testing.assert_allclose(y, right, atol=1e-3)
        again = on_ray.connect()
        assert again.rates == RATES and again.ask({"x": x}, timeout_s=60).rate == 1.0
        with pytest.raises(ValueError, match="no model 'other' is served; there are"):
            on_ray.connect("other")
    finally:
        on_ray.stop()


def scaled(folder):
    """Narrow answers bring a second replica; full width and an idle device end it."""
    rule = Scaling(window_s=1.0, up_s=0.5, down_s=2.0)
    handle = on_ray.run(
        folder / "net.mslice",
        replicas=(1, 2),
        scaling=rule,
        resources={"num_cpus": 0.5},
        table=folder / "slow.json",
        batches=(1, 2),
        slo_ms=200,
        name="scaled",
        http=False,
    )

    def ask(x, rate):
        del rate
        return by_handle(handle, 60)(x, None)

    def count():
        return sum(states("scaled").values())

    def running(n):
        return states("scaled") == {"RUNNING": n}

    try:
        assert running(1)
        began = time.monotonic()
        with Load(ask, 2, rows=2, pause_s=0.1) as heavy:
            until(lambda: count() == 2, 60, 0.2)
            decided = time.monotonic() - began
            until(lambda: running(2), 500, 0.5)
            answers = time.monotonic() - began
        mean = np.mean([told[1] for _, _, told, *_ in heavy.answers])
        began = time.monotonic()
        with Load(ask, 2, rows=1, pause_s=0.1) as light:
            until(lambda: running(1), 300, 0.5)
            fewer = time.monotonic() - began
            n = len(light.answers)
            until(lambda: len(light.answers) > n + 20, 60)
        wide = np.mean([told[1] for _, _, told, *_ in light.answers])
        print(
            f"at a mean rate of {mean:.2f} a second replica is started after "
            f"{decided:.1f} s and runs after {answers:.1f} s; at a mean of {wide:.2f} "
            f"one is left after {fewer:.1f} s; {len(heavy.answers)} and "
            f"{len(light.answers)} answers"
        )
        for load in (heavy, light):
            load.answers = [(x, None, *rest) for x, _, *rest in load.answers]
            load.check(20)
        assert mean < rule.narrow < wide and decided < 30
    finally:
        on_ray.stop("scaled")


def refused(folder):
    """What is wrong is one error, before Ray Serve starts."""
    more = {"batches": (1, 2), "http": False, "resources": {"num_cpus": 0.5}}
    file = folder / "net.mslice"
    with pytest.raises(ValueError, match="there is nothing"):
        on_ray.run(folder / "gone", **more)
    with pytest.raises(ValueError, match=r"rate 0\.3 was not saved"):
        on_ray.run(file, rates=(0.3,), **more)
    with pytest.raises(ValueError, match="T is 5 ms, but the narrowest"):
        on_ray.run(file, slo_ms=5, table=folder / "slow.json", **more)
    with pytest.raises(ValueError, match="--model tests.serve.networks:none"):
        on_ray.run(file, model="tests.serve.networks:none", **more)


def main(name, folder):
    import ray

    saved(folder)
    began = time.monotonic()
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    print(f"Ray is there after {time.monotonic() - began:.1f} s")
    {"killed": killed, "scaled": scaled, "refused": refused}[name](folder)
    print("All is as it should be.")
    ray.shutdown()


if __name__ == "__main__":
    main(sys.argv[1], pathlib.Path(sys.argv[2]))
