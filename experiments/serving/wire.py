"""HTTP/1.1 as bytes: a request that is ready to be sent, and where an answer ends."""

from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import urlsplit


class Address(NamedTuple):
    """Where requests go."""

    host: str
    port: int
    path: str


class Head(NamedTuple):
    """What the head of an answer says.

    Attributes:
      status: the code.
      start: where the body begins.
      length: of the body; None until the connection ends, -1 in chunks.
      keep: whether the connection may be used again.
    """

    status: int
    start: int
    length: int | None
    keep: bool


class MalformedAnswer(ValueError):
    """No answer of HTTP."""


def address_of(url: str) -> Address:
    """The parts of a URL.

    Raises:
      ValueError: if it is not of plain HTTP.
    """
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        raise ValueError(f"expected http://HOST:PORT/PATH, got {url!r}.")
    query = f"?{parts.query}" if parts.query else ""
    return Address(parts.hostname, parts.port or 80, (parts.path or "/") + query)


def request(address: Address, body: bytes, headers: Mapping[str, str]) -> bytes:
    """A POST, all of it."""
    host = f"[{address.host}]" if ":" in address.host else address.host
    lines = {
        "Host": f"{host}:{address.port}",
        "Content-Length": str(len(body)),
        **headers,
    }
    head = [f"POST {address.path} HTTP/1.1"]
    head += [f"{name}: {value}" for name, value in lines.items()]
    return "\r\n".join([*head, "", ""]).encode("latin-1") + body


def head_of(data: bytes | bytearray) -> Head | None:
    """The head of an answer; None where it is not all there yet.

    Raises:
      MalformedAnswer: if it is none.
    """
    end = data.find(b"\r\n\r\n")
    if end < 0:
        if len(data) > 1 << 16 or not b"HTTP/1.".startswith(data[:7]):
            raise MalformedAnswer("no head of HTTP/1.1")
        return None
    first, *lines = bytes(data[:end]).lower().split(b"\r\n")
    words = first.split()
    if len(words) < 2 or not words[0].startswith(b"http/1.") or not words[1].isdigit():
        raise MalformedAnswer("no line of status")
    status, length, keep = int(words[1]), None, words[0] == b"http/1.1"
    for line in lines:
        name, _, value = line.partition(b":")
        value = value.strip()
        if name == b"content-length":
            if not value.isdigit():
                raise MalformedAnswer("no content length")
            length = int(value)
        elif name == b"transfer-encoding" and b"chunked" in value:
            length = -1
        elif name == b"connection":
            keep = value != b"close"
    if status in (204, 304):
        length = 0
    return Head(status, end + 4, length, keep and length is not None)


def end_of(data: bytes | bytearray, head: Head) -> int | None:
    """Where the answer ends; None where it is not all there yet.

    Raises:
      MalformedAnswer: for chunks that are none.
    """
    if head.length is None:
        return None  # the connection ends it
    if head.length >= 0:
        end = head.start + head.length
        return end if len(data) >= end else None
    at = head.start
    while True:
        line = data.find(b"\r\n", at)
        if line < 0:
            return None
        try:
            size = int(bytes(data[at:line]).split(b";")[0], 16)
        except ValueError:
            raise MalformedAnswer("no size of a chunk") from None
        if size == 0:  # lines may follow, up to an empty one
            if data[line : line + 4] == b"\r\n\r\n":
                return line + 4
            end = data.find(b"\r\n\r\n", line)
            return end + 4 if end >= 0 else None
        at = line + 2 + size + 2
        if at > len(data):
            return None
