"""The command: what it refuses to start with, and a process of its own."""

import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mslice_jax as ms
from mslice_jax.serve import Executor, LatencyTable
from mslice_jax.serve.__main__ import _bound, _listen, main
from tests.serve.client import Client

ROOT = pathlib.Path(__file__).resolve().parents[2]
INFER = "/v2/models/tiny/infer"
BATCHES = (1, 4)


def mlp(p, x):
    return {"y": jnp.tanh(x @ p["w1"]) @ p["w2"]}


class Other:
    """A class; it is called for the model."""

    def __call__(self, p, x):
        return {"y": x @ p["w2"]}


def leaves(path):
    raise SystemExit(3)


def nothing_of(path):
    """Is called with the path, and forgets to return."""


def linear(p, x):
    return {"y": (x @ p["w1"]) @ p["w2"]}


def weights(seed):
    rng = np.random.default_rng(seed)
    shapes = {"w1": (3, 8), "w2": (8, 2)}
    return {n: jnp.asarray(rng.normal(size=s), jnp.float32) for n, s in shapes.items()}


def expected(seed, rate, x):
    p = {name: np.asarray(w, np.float64) for name, w in weights(seed).items()}
    k = round(8 * rate)
    return np.tanh(x @ p["w1"][:, :k]) @ p["w2"][:k]


def net_of(seed):
    return ms.upgrade(mlp, weights(seed), jnp.ones((1, 3)), rates=(0.5, 1.0))


def table_of(rates=(0.5, 1.0), batches=BATCHES, p99_ms=5.0):
    return LatencyTable({(r, b): (p99_ms, p99_ms) for r in rates for b in batches})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A saved network, tables, accuracies."""
    folder = tmp_path_factory.mktemp("server")
    ms.save(net_of(0), folder / "net.mslice")
    ms.save(net_of(0), folder / "bare.mslice", programs=False)
    half = ms.extract(net_of(0), 0.5)
    ms.save(half, folder / "half.mslice", programs=False)
    table_of().write(folder / "table.json")
    table_of(batches=(1, 2)).write(folder / "other.json")
    table_of(p99_ms=500.0).write(folder / "slow.json")
    of_another = {"inputs": "x float32[-1, 4]"}
    entries = table_of().entries
    LatencyTable(entries, about=of_another).write(folder / "elsewhere.json")
    (folder / "words.json").write_text('{"0.5": "high"}')
    (folder / "deep.json").write_text("[" * 10**5)
    (folder / "few.json").write_text('{"0.5": 0.9, "0.75": 0.95}')
    texts = [{"rate": 1.0, "batch": b, "p99_ms": "x", "median_ms": 1} for b in BATCHES]
    (folder / "texts.json").write_text(json.dumps({"version": 1, "entries": texts}))
    (folder / "broken.mslice").write_text("no network")
    whole = (folder / "net.mslice").read_bytes()
    (folder / "half.zip").write_bytes(whole[: len(whole) // 2])
    (folder / "changed.mslice").write_bytes(changed(whole))
    (folder / "run").mkdir()
    return folder


def changed(content):
    """Another bit in the middle of an array."""
    at = content.index(b"\x93NUMPY") + 140
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


def flags_of(folder, file="net.mslice", *more):
    table = ("--table", str(folder / "table.json"))
    common = ("--batches", "1,4", "--port", "0", "--slo-ms", "100", *table)
    return ["--checkpoint", str(folder / file), *common, *more]


@pytest.mark.parametrize(
    ("file", "more", "says"),
    [
        ("nothing", (), "there is nothing"),
        ("run", (), "no network.mslice, which a recipe writes at its end"),
        ("broken.mslice", (), "broken.mslice"),
        ("bare.mslice", (), "has no programs (they were left out"),
        ("net.mslice", ("--checkpoint", "/dev/null"), "neither a file nor a folder"),
        ("half.zip", (), "half.zip is damaged (its end is missing)"),
        ("changed.mslice", (), "changed.mslice is damaged (arrays/w1.npy: Bad CRC"),
        ("table.json", (), "is no file of mslice_jax.save (it is no zip file)"),
        ("net.mslice", ("--checkpoint", "~nobody-of-that-name/x"), "Could not determ"),
        ("net.mslice", ("--model", "tests"), "expected MODULE:NAME"),
        (
            "net.mslice",
            ("--model", "tests.serve.test_server:linear"),
            "at rate 0.5 its output 'y' is ",
        ),
        (
            "net.mslice",
            ("--model-from", "tests.serve.test_server:leaves"),
            "--model-from tests.serve.test_server:leaves: SystemExit: 3",
        ),
        (
            "net.mslice",
            ("--model-from", "tests.serve.test_server:nothing_of"),
            "it returned None",
        ),
        (
            "net.mslice",
            ("--model-from", "experiments.evaluate:model"),
            "expected the folder of a run, with settings.json",
        ),
        ("net.mslice", ("--model", "tests.serve:mlp"), "--model tests.serve:mlp: Attr"),
        ("net.mslice", ("--model", "tests.serve.test_server:Other"), "does not fit"),
        ("net.mslice", ("--rates", "0.5,0.7"), "rate 0.7 was not saved"),
        ("net.mslice", ("--mask", "m"), "go with --lengths"),
        ("net.mslice", ("--table", "gone.json"), "gone.json"),
        (
            "net.mslice",
            ("--table", "other.json"),
            "batches [1, 4], got [1, 2]",
        ),
        ("net.mslice", ("--table", "words.json"), "is no latency table"),
        ("net.mslice", ("--table", "texts.json"), "is no latency table"),
        ("net.mslice", ("--table", "deep.json"), "is no latency table: RecursionError"),
        (
            "net.mslice",
            ("--table", "elsewhere.json"),
            "its inputs are x float32[-1, 4], here x float32[-1, 3]",
        ),
        (
            "net.mslice",
            ("--table", "slow.json"),
            "T is 100 ms, but the narrowest",
        ),
        (
            "net.mslice",
            ("--margin-ms", "96"),
            "T is 100 ms, of which --margin-ms takes 96, and the narrowest program "
            "takes 5 ms",
        ),
        ("net.mslice", ("--accuracy", "words.json"), "no accuracies"),
        ("net.mslice", ("--accuracy", "deep.json"), "no accuracies, RecursionError"),
        (
            "net.mslice",
            ("--accuracy", "few.json"),
            "no accuracy of the rates [1.0], only of [0.5, 0.75]",
        ),
        ("net.mslice", ("--host", "192.0.2.1"), "cannot listen on port 0 of 192.0.2.1"),
        ("net.mslice", ("--host", "a..b"), "cannot listen on port 0 of a..b"),
    ],
)
def test_a_bad_start_is_one_clear_line(folder, monkeypatch, capsys, file, more, says):
    monkeypatch.chdir(ROOT)
    beside = [str(folder / x) if x.endswith(".json") else x for x in more]
    assert main(flags_of(folder, file, *beside)) == 2
    said = [x for x in capsys.readouterr().err.splitlines() if "error" in x.lower()]
    assert len(said) == 1 and said[0].startswith("error: ") and says in said[0]


def test_a_rate_that_was_not_declared(folder, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    model = ("--model", "tests.serve.test_server:mlp", "--rates", "0.3")
    assert main(flags_of(folder, "net.mslice", *model)) == 2
    assert "rate 0.3 was not declared" in capsys.readouterr().err


def test_a_port_in_use(folder, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(flags_of(folder, "net.mslice", "--port", port)) == 2
    error = capsys.readouterr().err
    assert f"error: cannot listen on port {port} of 127.0.0.1" in error


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ([], "one of the arguments --checkpoint --demo is required"),
        (["--demo", "--slo-ms", "0"], "invalid number above 0 value: '0'"),
        (["--demo", "--port", "99999"], "invalid port value"),
        (["--demo", "--rates", "a"], "invalid numbers with commas value"),
        (["--demo", "--token", ""], "invalid word of ASCII value: ''"),
        (["--demo", "--token", "two words"], "invalid word of ASCII value"),
        (["--demo", "--call", "[]"], "invalid JSON object value"),
        (["--demo", "--name", "a/b"], "invalid name of a model value: 'a/b'"),
        (["--demo", "--name", "stats"], "invalid name of a model value"),
        (["--demo", "--host", ""], "invalid address value: ''"),
        (["--demo", "--rate", "0.5"], "there is no --rate (is it --rates?)"),
        (["--demo", "--polcy=window"], "there is no --polcy=window (is it --policy?)"),
        (["--demo", "--policy", "eager"], "invalid choice: 'eager'"),
        (["--demo", "extra"], "there is no extra"),
        (["--demo", "--checkpoint", "x"], "not allowed with argument --demo"),
        (["--demo", "--table", "a", "--write-table", "b"], "--table measures none"),
        (
            ["--checkpoint", "x", "--model", "a:b", "--model-from", "a:b"],
            "not allowed with argument --model",
        ),
    ],
)
def test_options_that_do_not_fit(args, says, capsys):
    with pytest.raises(SystemExit) as ended:
        main(args)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and says in line


def test_a_token_of_the_environment_that_no_header_carries(monkeypatch, capsys):
    monkeypatch.setenv("MSLICE_TOKEN", "two\nlines")
    with pytest.raises(SystemExit) as ended:
        main(["--demo"])
    assert ended.value.code == 2
    assert "error: MSLICE_TOKEN: invalid word" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--accuracy", "x.json"), "--accuracy goes with --checkpoint, not with"),
        (("--model", "a:b"), "--model goes with --checkpoint, not with --demo"),
        (("--write-table", "/proc/none/x.json"), "in a folder that can be written"),
    ],
)
def test_options_that_have_no_effect(more, says, capsys):
    assert main(["--demo", "--port", "0", *more]) == 2
    assert says in capsys.readouterr().err


def test_a_port_that_another_process_took_meanwhile():
    one, two = _bound("127.0.0.1", 0), None
    try:
        port = one.getsockname()[1]
        two = _bound("127.0.0.1", port)  # nobody listens yet
        _listen(one, "127.0.0.1", port)
        with pytest.raises(OSError, match=f"cannot listen on port {port} of 127.0.0.1"):
            _listen(two, "127.0.0.1", port)
    finally:
        one.close()
        if two is not None:
            two.close()


def test_what_the_device_has_no_room_for_is_one_line(folder, monkeypatch, capsys):
    def no_room(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory\nwhile ...")

    monkeypatch.setattr(Executor, "prepare", no_room)
    assert main(flags_of(folder)) == 2
    error = capsys.readouterr().err
    assert error.splitlines()[-1].startswith("error: JaxRuntimeError: RESOURCE_EXH")


def test_what_the_server_is_made_of_may_be_missing(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["--demo"]) == 2
    assert 'pip install "mslice_jax[serve]"' in capsys.readouterr().err


class Process:
    """The command in a process of its own."""

    def __init__(self, args):
        command = [sys.executable, "-m", "mslice_jax.serve", *args]
        self.process = subprocess.Popen(
            command, cwd=ROOT, stderr=subprocess.PIPE, text=True, env=dict(os.environ)
        )
        self.lines, self.news = [], threading.Condition()
        threading.Thread(target=self._read, daemon=True).start()
        self.client = Client(int(self.said("Ready: ").split(",")[0].rpartition(":")[2]))

    def _read(self):
        for line in self.process.stderr:
            with self.news:
                self.lines.append(line)
                self.news.notify_all()

    def said(self, word):
        def found():
            return next((line for line in self.lines if word in line), None)

        with self.news:
            assert self.news.wait_for(found, 120), "".join(self.lines)
            return found()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.process.stderr.close()


def infer(client, x, **parameters):
    tensor = {"name": "x", "datatype": "FP32", "shape": [*x.shape]}
    asked = {"inputs": [{**tensor, "data": x.tolist()}], "parameters": parameters}
    answer = client.post(INFER, json=asked)
    if answer.status_code != 200:
        return answer.status_code, None, None
    told = answer.json()
    y = np.reshape(told["outputs"][0]["data"], told["outputs"][0]["shape"])
    return 200, told["parameters"]["rate"], y


def check(client, x, seed, rate):
    code, ran, y = infer(client, x, rate=rate)
    assert (code, ran) == (200, rate)
    np.testing.assert_allclose(y, expected(seed, rate, x), atol=1e-5)


@pytest.mark.slow
def test_a_server_from_its_start_to_its_end(folder):
    """Answers, new weights by a signal and by HTTP, and an end that loses nothing."""
    run = folder / "run"
    ms.save(net_of(0), run / "network.mslice")
    accuracy = {"0.5": {"accuracy": 0.5}, "1.0": {"accuracy": 0.75}}
    (run / "summary.json").write_text(json.dumps({"rates": accuracy}))
    x = np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32)
    with Process(flags_of(folder, "run", "--name", "tiny")) as server:
        client = server.client
        for rate in (0.5, 1.0):
            check(client, x, 0, rate)
        told = client.get("/live.json").json()
        assert told["accuracy_of"] == {"0.5": 0.5, "1.0": 0.75}

        ms.save(net_of(1), run / "network.mslice", overwrite=True)
        server.process.send_signal(signal.SIGHUP)
        server.said("New weights.")
        check(client, x, 1, 0.5)
        ms.save(net_of(2), run / "network.mslice", overwrite=True)
        load = "/v2/repository/models/tiny/load"
        assert client.post(load).status_code == 200
        check(client, x, 2, 1.0)
        other = ms.upgrade(linear, weights(2), jnp.ones((1, 3)), rates=(0.5, 1.0))
        ms.save(other, run / "network.mslice", overwrite=True)
        answer = client.post(load)
        assert answer.status_code == 400 and "got another one" in answer.json()["error"]
        check(client, x, 2, 1.0)

        text = client.get("/metrics").text
        assert "mslice_compilations_after_ready 0.0" in text
        assert 'mslice_swaps_total{outcome="done"} 2.0' in text
        assert 'mslice_swaps_total{outcome="failed"} 1.0' in text

        before = int(re.search(r'outcome="answered"} (\d+)', text).group(1))

        # Many at once; in the midst of them the signal.
        answers = []

        def ask():
            for _ in range(200):
                try:
                    answers.append(infer(client, x, timeout=60_000_000))
                except ConnectionError:
                    return  # it has ended, and did not take this one

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        end = time.monotonic() + 60
        while len(answers) < 40 and time.monotonic() < end:
            time.sleep(0.005)
        server.process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join(60)
        assert server.process.wait(60) == 0
        count = int(re.search(r"(\d+) answered", server.said("Stopped.")).group(1))
    # Who was taken has an answer; who came later was told so.
    assert {code for code, *_ in answers} <= {200, 503}
    answered = sum(code == 200 for code, *_ in answers)
    assert answered >= 40 and answered == count - before
    for code, rate, y in answers:
        if code == 200:
            np.testing.assert_allclose(y, expected(2, rate, x), atol=1e-5)


@pytest.mark.nightly
def test_the_demo_and_a_client_of_triton():
    client = pytest.importorskip("tritonclient.http", reason="needs tritonclient[http]")
    with Process(
        ["--demo", "--port", "0", "--batches", "1,4", "--slo-ms", "5000"]
    ) as it:
        asked = client.InferenceServerClient(f"127.0.0.1:{it.client.port}")
        assert asked.is_server_live() and asked.is_model_ready("default")
        assert asked.get_model_repository_index()[0]["state"] == "READY"
        told = asked.get_model_metadata("default")
        assert told["inputs"] == [
            {"name": "image", "datatype": "FP32", "shape": [-1, 8, 8, 1]}
        ]
        from mslice_jax.data.digits import read

        digits = read()
        x = digits.x_test[:4].astype(np.float32)
        guesses = []
        for binary in (False, True):
            image = client.InferInput("image", [*x.shape], "FP32")
            image.set_data_from_numpy(x, binary_data=binary)
            for output in (
                None,
                [client.InferRequestedOutput("logits", binary_data=binary)],
            ):
                answer = asked.infer(
                    "default",
                    [image],
                    request_id="me",
                    outputs=output,
                    parameters={"min_rate": 0.5},
                    priority=1,
                    timeout=4_000_000,
                )
                assert answer.get_response()["id"] == "me"
                assert answer.get_response()["parameters"]["rate"] >= 0.5
                guesses.append(answer.as_numpy("logits").argmax(-1))
        assert np.mean(guesses[0] == digits.y_test[:4]) >= 0.75
        assert all((guess == guesses[0]).all() for guess in guesses)
        with pytest.raises(client.InferenceServerException, match="deadline"):
            asked.infer("default", [image], timeout=1)
        asked.close()
