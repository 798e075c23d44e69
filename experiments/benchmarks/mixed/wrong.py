"""Requests that are malformed, of every kind, and the codes that they have to get."""

import functools
import gzip
import json
from dataclasses import dataclass
from typing import Any

from .right import tensors
from .wire import INFER, chunked, head, request
from .wrong_inputs import KIND, X, bodies, changed, given

BODY_BYTES = 1 << 16
"""The largest body that the server takes."""


@dataclass(frozen=True)
class Wrong:
    """A malformed request.

    Attributes:
      content: its bytes.
      codes: what the server may answer.
      closed: whether it may close the connection without an answer: where what came is
        no HTTP, nobody knows where the next request begins.
      counted: whether it is a request to the model, and so one of `/metrics`; None if
        that depends on what parses HTTP (uvicorn takes httptools where it is there).
    """

    content: bytes
    codes: tuple[int, ...] = (400,)
    closed: bool = False
    counted: bool | None = True


@functools.cache
def kinds() -> dict[str, Wrong]:
    """Every kind, by a name that says what is wrong."""
    found = {name: Wrong(content) for name, content in bodies().items()}
    return found | _names() | _headers() | _bodies() | _broken()


def _names() -> dict[str, Wrong]:
    good = json.dumps({"inputs": tensors(X, KIND, False)[0]}).encode()

    def outputs(*names: Any) -> Wrong:
        each = [{"name": name} for name in names]
        return Wrong(changed(lambda asked: asked.update(outputs=each)))

    def path(text: str, code: int = 404, method: str = "POST") -> Wrong:
        return Wrong(request(good, path=text, method=method), (code,), counted=False)

    return {
        "name: an input unknown": Wrong(given(name="image")),
        "name: an input a number": Wrong(given(name=3)),
        "name: an input without": Wrong(given(name=None)),
        "name: an input missing": Wrong(changed(lambda a: a["inputs"].pop())),
        "name: an input twice": Wrong(
            changed(lambda a: a["inputs"].append(a["inputs"][0]))
        ),
        "name: an output unknown": outputs("probability"),
        "name: an output twice": outputs("logits", "logits"),
        "name: an output a list": outputs([]),
        "name: a model unknown": path("/v2/models/other/infer"),
        "name: a version unknown": path("/v2/models/default/versions/7/infer"),
        "name: a path unknown": path("/v2/models/default/inferr"),
        "name: a method": path(INFER, 405, method="PUT"),
    }


def _headers() -> dict[str, Wrong]:
    inputs, rest = tensors(X, KIND, True)
    text = json.dumps({"inputs": inputs}).encode()

    def size(value: Any) -> Wrong:
        lines = {"Inference-Header-Content-Length": value}
        return Wrong(request(text + rest, lines))

    def encoded(body: bytes, kind: str, code: int = 400) -> Wrong:
        return Wrong(request(body, {"Content-Encoding": kind}), (code,))

    return {
        "header: length of JSON a word": size("all"),
        "header: length of JSON negative": size(-1),
        "header: length of JSON too large": size(len(text + rest) + 1),
        "header: length of JSON too small": size(len(text) - 1),
        "header: length of JSON 0": size(0),
        "header: length of JSON huge": size("9" * 40),
        "header: length of JSON missing": Wrong(request(text + rest)),
        "header: no such encoding": encoded(text, "br", 415),
        "header: not packed": encoded(text, "gzip"),
        "header: packed by half": encoded(gzip.compress(text)[:-9], "gzip"),
    }


def _bodies() -> dict[str, Wrong]:
    large = b"[" + b" " * BODY_BYTES
    told = {"Content-Length": 10 * BODY_BYTES}
    return {
        "body: too large": Wrong(request(large), (413,)),
        "body: larger than sockets hold": Wrong(request(b" " * (4 << 20)), (413,)),
        "body: larger, in chunks": Wrong(chunked(b" " * (4 << 20), 1 << 16), (413,)),
        "body: too large, says its head": Wrong(head(told), (413,)),
        "body: too large, in chunks": Wrong(chunked(large, 9000), (413,)),
        "body: too large when unpacked": Wrong(
            request(gzip.compress(large), {"Content-Encoding": "gzip"}), (413,)
        ),
    }


def _broken() -> dict[str, Wrong]:
    """What is no HTTP."""
    good = json.dumps({"inputs": tensors(X, KIND, False)[0]}).encode()

    def lines(text: str, *, counted: bool | None = False, body: bytes = b"") -> Wrong:
        start = f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\n{text}\r\n\r\n"
        return Wrong(start.encode() + body, (400, 413, 431, 505), True, counted)

    return {
        "content length: negative": lines("Content-Length: -1"),
        "content length: a word": lines("Content-Length: two"),
        "content length: two of them": lines("Content-Length: 5\r\nContent-Length: 6"),
        "content length: huge": lines(f"Content-Length: {'9' * 20}", counted=None),
        "content length: too small": lines(
            "Content-Length: 20", counted=True, body=good
        ),
        "header: no colon": lines("a line that is no header"),
        "header: too long": lines("X: " + "y" * 200_000, counted=None),
        "header: a space before the colon": lines("Content-Length : 5"),
        "header: chunks that are none": lines(
            "Transfer-Encoding: chunked", counted=True, body=b"xyz\r\n"
        ),
        "header: an encoding of transfer": lines(
            "Transfer-Encoding: rot13", counted=None
        ),
        "header: two lengths": lines(
            "Content-Length: 5\r\nTransfer-Encoding: chunked",
            counted=None,
            body=b"2\r\n{}\r\n0\r\n\r\n",
        ),
        "header: no host": Wrong(
            f"POST {INFER} HTTP/1.1\r\nContent-Length: 0\r\n\r\n".encode(),
            closed=True,
            counted=None,
        ),
        "header: another protocol": Wrong(
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
            closed=True,
            counted=False,
        ),
        "header: another version": Wrong(
            f"POST {INFER} HTTP/new\r\nHost: localhost\r\n\r\n".encode(),
            (400, 505),
            closed=True,
            counted=False,
        ),
    }
