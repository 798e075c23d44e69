"""Requests and answers of HTTP as bytes, on a connection that does what it is told."""

import asyncio
import contextlib
import json
import socket
import struct
from dataclasses import dataclass
from typing import Any

INFER = "/v2/models/default/infer"
_SECONDS = 60.0
"""An answer that has not come by then is lost."""


class Lost(Exception):
    """There is no answer; says why."""


@dataclass(frozen=True)
class Reply:
    """An answer.

    Attributes:
      code: of HTTP.
      headers: their names in small letters.
      body: its bytes.
    """

    code: int
    headers: dict[str, str]
    body: bytes

    @property
    def reason(self) -> str:
        """What an error says, in JSON or as text."""
        try:
            return str(json.loads(self.body)["error"])
        except (ValueError, KeyError, TypeError):
            return self.body.decode(errors="replace").strip()

    @property
    def closes(self) -> bool:
        """Whether the server says that it takes nothing more on this connection."""
        return self.headers.get("connection", "").lower() == "close"


def head(lines: dict[str, Any], path: str = INFER, method: str = "POST") -> bytes:
    """The head of a request."""
    told = [f"{method} {path} HTTP/1.1", "Host: localhost"]
    told += [f"{name}: {value}" for name, value in lines.items()]
    return ("\r\n".join(told) + "\r\n\r\n").encode()


def request(
    body: bytes,
    lines: dict[str, Any] | None = None,
    path: str = INFER,
    method: str = "POST",
) -> bytes:
    """A request with its length."""
    return head({"Content-Length": len(body), **(lines or {})}, path, method) + body


def chunked(body: bytes, size: int, lines: dict[str, Any] | None = None) -> bytes:
    """The same in chunks of so many bytes."""
    parts = [body[i : i + size] for i in range(0, len(body), size)]
    text = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)
    return head({"Transfer-Encoding": "chunked", **(lines or {})}) + text + b"0\r\n\r\n"


class Connection:
    """One connection to the server."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def send(self, content: bytes) -> None:
        """Sends bytes; connects before if need be.

        Raises:
          Lost: if the server closed the connection.
        """
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self.port)
        writer = self._streams[1]
        try:
            writer.write(content)
            await writer.drain()
        except ConnectionError as error:
            raise Lost(f"cannot send: {error!r}") from error

    async def reply(self, seconds: float = _SECONDS) -> Reply:
        """Reads one answer; closes when the server says so.

        Raises:
          Lost: without one.
        """
        assert self._streams is not None
        try:
            async with asyncio.timeout(seconds):
                found = await _read(self._streams[0])
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            self.close()
            raise Lost(f"closed without an answer: {error!r:.100}") from error
        except TimeoutError:
            self.close()
            raise Lost(f"no answer in {seconds:g} s") from None
        if found.closes:
            self.close()
        return found

    async def ask(self, content: bytes) -> Reply:
        """Sends, and reads the answer, also one that comes before all was sent."""
        with contextlib.suppress(Lost):  # maybe it said why
            await self.send(content)
        return await self.reply()

    def close(self, *, reset: bool = False) -> None:
        """Hangs up, with a reset as one does whose process was killed."""
        if self._streams is not None:
            writer = self._streams[1]
            if reset:
                here = writer.get_extra_info("socket")
                now = struct.pack("ii", 1, 0)  # linger for no second
                here.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, now)
            writer.close()
        self._streams = None


async def _read(reader: asyncio.StreamReader) -> Reply:
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    code = int(lines[0].split()[1])
    pairs = (line.partition(":") for line in lines[1:] if line)
    headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
    if "content-length" in headers:
        body = await reader.readexactly(int(headers["content-length"]))
    elif headers.get("transfer-encoding") == "chunked":
        body = b""
        while size := int(await reader.readuntil(b"\r\n"), 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readuntil(b"\r\n")
    else:
        body = await reader.read()
    return Reply(code, headers, body)
