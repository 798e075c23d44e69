"""The open-loop load: against a server that does what each request's body tells it."""

import asyncio
import collections
import json
import threading

import numpy as np
import pytest

from experiments.serving.inference import infer
from experiments.serving.load import LoadError, Message, drive
from experiments.serving.outcome import Result
from experiments.serving.wire import MalformedAnswer, address_of, end_of, head_of
from mslice_jax.serve import protocol
from mslice_jax.serve.signature import Tensor

PLAIN = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s"
CHUNKS = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n"


class Server:
    """Answers as the body says; `together` waits until so many are there at once."""

    def __init__(self, together=0):
        self.together, self.seen, self.connections = together, [], 0
        self.loop = asyncio.new_event_loop()
        self.ready = threading.Event()
        self.thread = threading.Thread(target=self._run)

    def __enter__(self):
        self.thread.start()
        assert self.ready.wait(10)
        return self

    def __exit__(self, *_):
        self.loop.call_soon_threadsafe(self.stop.set)
        self.thread.join(10)

    def _run(self):
        self.loop.run_until_complete(self._serve())
        self.loop.close()

    async def _serve(self):
        self.stop, self.all = asyncio.Event(), asyncio.Event()
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/do?x=1"
        self.ready.set()
        await self.stop.wait()
        server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _connected(self, reader, writer):
        self.connections += 1
        try:
            while await self._one(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _one(self, reader, writer):
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(head.split("content-length: ")[1].split("\r\n")[0])
        word = (await reader.readexactly(length)).decode()
        self.seen.append((word, head))
        if len(self.seen) == self.together:
            self.all.set()
        if self.together:
            await self.all.wait()
        if word == "hang up":
            return False
        if word == "never":
            await asyncio.sleep(60)
        if word == "slow":
            await asyncio.sleep(0.2)
        if word == "refuse":
            writer.write(b"HTTP/1.1 429 Too Many\r\nContent-Length: 2\r\n\r\nno")
        elif word == "nonsense":
            writer.write(b"SMTP no HTTP\r\n\r\n")
        elif word == "chunks":
            writer.write(CHUNKS)
        elif word == "parts":
            for part in (b"HTTP/1.1 200 OK\r\nContent-", b"Length: 3\r\n\r\na", b"bc"):
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(0.01)
        elif word == "close":
            writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nall of it")
            return False
        elif word == "rate":
            told = json.dumps({"parameters": {"rate": 0.25}, "outputs": []}).encode()
            writer.write(PLAIN % (len(told), told))
        else:
            writer.write(PLAIN % (2, b"ok"))
        await writer.drain()
        return True


def test_what_becomes_of_each_request():
    words = ["ok", "refuse", "hang up", "never", "slow", "parts", "chunks", "close"]
    words += ["rate", "nonsense"]
    with Server() as server:
        done = drive(
            server.url,
            np.arange(20) * 0.01,
            [word.encode() for word in words],
            slo_s=0.15,
            patience_s=1.0,
            connections=2,
            warm=1,
            late_s=10.0,
        )
    expected = [200, 429, -1, 0, 200, 200, 200, 200, 200, -1] * 2
    assert done.status.tolist() == expected
    assert np.isnan(done.answered[[2, 3, 9]]).all() and done.answered[1] >= 0.01
    assert (done.latency_s[[4, 14]] >= 0.2).all() and not done.in_time[[4, 14]].any()
    assert done.rate[8] == 0.25 and np.isnan(np.delete(done.rate, [8, 18])).all()
    assert (done.sent >= done.due).all()
    assert done.summary()["status"] == {
        "hung up": 4, "no answer": 2, "200": 12, "429": 2
    }  # fmt: skip
    assert collections.Counter(word for word, _ in server.seen) == {
        word: 3 if word == "ok" else 2 for word in words
    }  # one that warms up
    assert server.seen[0][1].startswith("post /do?x=1 http/1.1\r\nhost: 127.0.0.1:")


def test_nobody_waits_for_the_answers_of_others():
    """The server answers once it has all forty; who waits for one never gets there."""
    with Server(together=40) as server:
        done = drive(server.url, [0.0] * 40, [b"ok"], slo_s=60.0, warm=0, connections=3)
    assert done.share == 1.0 and server.connections == done.opened == 40


def test_connections_are_used_again():
    with Server() as server:
        done = drive(
            server.url,
            np.arange(30) * 0.01,
            [Message(b"ok", {"X-Mine": "1"})],
            slo_s=60.0,
            warm=2,
            connections=30,
        )
    assert server.connections == done.opened == 30 and done.share == 1.0
    assert all("x-mine: 1\r\n" in head for _, head in server.seen)
    assert done.cpu_s > 0


def of(due, sent, answered, status, rate, **more):
    arrays = (np.array(x, float) for x in (due, sent, answered, rate))
    due, sent, answered, rate = arrays
    about = {"slo_s": 0.1, "late_s": 0.002, "cpu_s": 0.003, "opened": 1, **more}
    return Result(
        due=due,
        sent=sent,
        answered=answered,
        status=np.array(status),
        rate=rate,
        **about,
    )


def test_a_result_by_hand(tmp_path):
    nan = float("nan")
    done = of(
        due=[0.0, 0.1, 0.2, 0.3, 0.4],
        sent=[0.0, 0.1, 0.2, 0.301, 0.4],
        answered=[0.05, 0.21, nan, 0.4, 0.41],  # the second late, the fourth just not
        status=[200, 200, -1, 200, 504],
        rate=[1.0, 1.0, nan, 0.5, nan],
    )
    assert done.in_time.tolist() == [True, False, False, True, False]
    assert done.share == 0.4
    told = done.summary({0.5: 0.8, 1.0: 0.9})
    assert told["accuracy"] == pytest.approx(0.85) and told["mean_rate"] == 0.75
    assert told["p50_ms"] == pytest.approx(100) and told["max_ms"] == pytest.approx(110)
    assert told["rates"] == {"0.5": 1, "1": 1} and told["void"] is None
    assert told["lateness_ms"]["max"] == pytest.approx(1.0)
    assert told["cpu_ms"] == pytest.approx(0.6)
    done.write(tmp_path / "run.json")
    assert Result.read(tmp_path / "run.json").summary() == done.summary()


def test_a_run_is_void_where_the_load_was_late():
    due, count = np.arange(100) / 100, 100
    for late_of, void in ((1, False), (2, True)):  # p99 of a hundred: the second
        sent = due.copy()
        sent[:late_of] += 0.003
        done = of(due, sent, due + 0.01, [200] * count, [1.0] * count)
        assert (done.void is not None) == void
    assert "3.00 ms (p99), allowed are 2 ms" in done.void
    never = of(due, [float("nan")] * count, due, [0] * count, [1.0] * count)
    assert never.void is not None


def test_answers_end_where_their_head_says():
    assert head_of(b"HTTP/1.1 200 OK\r\nConte") is None and head_of(b"HT") is None
    data = PLAIN % (2, b"abX")
    assert end_of(data, head_of(data)) == len(data) - 1
    assert end_of(CHUNKS + b"X", head_of(CHUNKS)) == len(CHUNKS)
    for cut in range(1, len(CHUNKS) - head_of(CHUNKS).start):
        assert end_of(CHUNKS[:-cut], head_of(CHUNKS)) is None
    assert not head_of(b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\n").keep
    assert head_of(b"HTTP/1.1 204 None\r\n\r\n").length == 0
    for data in (b"FTP", b"HTTP/1.1 x\r\n\r\n", b"HTTP/1.1\r\n\r\n"):
        with pytest.raises(MalformedAnswer):
            head_of(data)
    with pytest.raises(MalformedAnswer):
        end_of(CHUNKS.replace(b"2\r\n", b"z\r\n"), head_of(CHUNKS))


@pytest.mark.parametrize("binary", [True, False])
def test_requests_as_the_server_reads_them(binary):
    """What is sent is what our server takes for the same arrays."""
    x, n = np.arange(6, dtype=np.float32).reshape(2, 3), np.array([[1], [2]], np.int32)
    message = infer({"x": x, "n": n}, {"rate": 0.5}, binary=binary)
    types = (Tensor("x", x.dtype, (-1, 3)), Tensor("n", n.dtype, (-1, 1)))
    output = (Tensor("y", x.dtype, (-1, 2)),)
    header = message.headers.get("Inference-Header-Content-Length")
    asked = protocol.read(message.body, header, types, output)
    np.testing.assert_array_equal(asked.inputs["x"], x)
    np.testing.assert_array_equal(asked.inputs["n"], n)
    assert asked.wishes == {"rate": 0.5}
    assert [wanted.binary for wanted in asked.outputs] == [binary]


def test_bad_input():
    assert address_of("http://[::1]/a") == ("::1", 80, "/a")
    with pytest.raises(ValueError, match="expected http://HOST"):
        address_of("https://example.org/")
    for arrivals in ([], [1.0, 0.5], [-1.0]):
        with pytest.raises(ValueError, match="ascending"):
            drive("http://127.0.0.1:9/", arrivals, [b""], slo_s=0.1)
    with pytest.raises(LoadError, match="failed at http://127.0.0.1:9/: error"):
        drive("http://127.0.0.1:9/", [0.0], [b""], slo_s=0.1)
